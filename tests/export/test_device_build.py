"""Engines built and run by every version of TensorRT, with a double that takes what that version's bindings take."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from export.device import preflight
from export.device.build import BUILT_BY, Builder, Order, shapes, up_to_date
from export.device.profiles import Lengths, dimensions, merged, profiles_of, prompt_lengths
from export.graphs.targets import TARGETS
from export.runtime import MvlmError, Runtime
from export.runtime.backends import cuda as cuda_module
from export.runtime.backends.cuda import Cuda
from export.runtime.backends.engine_files import EngineSet, Fingerprint, Profile, find_engines, read_engines
from export.runtime.backends.onnx import Cache, Decoder, Device, open_session
from export.runtime.backends.tensorrt_api import Tensorrt
from export.runtime.backends.tensorrt_session import Engines, TensorrtCache
from export.runtime.manifest import read_manifest
from export.runtime.prompt import Prompt
from tests.support.bundles import query_bundle
from tests.support.operators import unknown_to
from tests.support.tensorrt_bundles import POSITIONS, bundle_for
from tests.support.tensorrt_double import API, VERSIONS, CudaDouble, tensorrt_double
from tests.support.tiny import QUESTIONS

# Which bundle a version is tried with: opset 20 and a growing cache before 10.15, opset 24 and a cache in place after.
TARGET_OF = {key: "jetpack-6.2" if key.startswith(("8", "10.3", "10.13")) else "jetpack-7.2" for key in VERSIONS}
TARGET_OF["rtx 1.7.1.116"] = "rtx"
JETPACK_6, JETPACK_7, RTX = "10.3.0", "10.16.1.11", "rtx 1.7.1.116"


@pytest.fixture
def install(monkeypatch):
    """Put a version of TensorRT, and a GPU, into this machine."""

    def installed(key: str, cuda: CudaDouble | None = None) -> SimpleNamespace:
        trt, gpu = tensorrt_double(key), cuda or CudaDouble()
        for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx" if key == RTX else "tensorrt", trt)
        monkeypatch.setattr(cuda_module, "_open", lambda names: gpu)
        return SimpleNamespace(trt=trt, cuda=gpu, product="tensorrt-rtx" if key == RTX else "tensorrt")

    return installed


@pytest.fixture
def copy(tmp_path):
    return lambda name, precision="float16": shutil.copytree(bundle_for(name, precision), tmp_path / "bundle")


def builder_of(bundle, order: Order | None = None, gpu: str | None = None) -> Builder:
    manifest = read_manifest(bundle)
    prompt = Prompt.from_json(manifest.prompt, Tokenizer.from_file(str(manifest.path(manifest.tokenizer))))
    return Builder.of(manifest, prompt, order or Order(24, "auto"), gpu)


def follow(decoder, cache, prompt, table, steps: int) -> tuple[list[int], list[np.ndarray]]:
    """A greedy answer and the logits on the way."""
    seen = [decoder.step(prompt, cache).copy()]
    ids = [int(seen[-1].argmax())]
    while len(ids) < steps:
        seen.append(decoder.step(table[[ids[-1]]], cache).copy())
        ids.append(int(seen[-1].argmax()))
    return ids, seen


def embeddings(count: int, seed: int = 0) -> np.ndarray:
    width = query_bundle().source.model.config.text_config.hidden_size
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("key", VERSIONS)
def test_every_version_builds_and_answers_as_onnxruntime_does(key, install, copy, monkeypatch):
    """Every call passes the names and signatures of that version's bindings; what comes out is right."""
    here = install(key)
    monkeypatch.setitem(BUILT_BY, "jetpack-6.2", ("tensorrt", (8, 6)))  # no target asks for 8.6; its calls are tried
    bundle = copy(TARGET_OF[key])
    facts = builder_of(bundle).build(lambda steps: None)
    assert facts["fingerprint"]["version"] == key.split()[-1]
    assert facts["fingerprint"]["gpu"] == "Orin"
    assert ("deserialize_cuda_engine" in {call[1] for call in here.trt.calls}) is True
    manifest = read_manifest(bundle)
    engines = Engines(manifest, here.product)

    values = engines.session("vision.onnx").run(
        ["values"], {"pixel_values": np.zeros((1, 3, manifest.image.size_px, manifest.image.size_px), np.float32)}
    )[0]
    slow = open_session(bundle / "vision.onnx", Device(threads=1))
    expected = slow.run(["values"], {"pixel_values": np.zeros_like(values, shape=(1, 3, 96, 96))})[0]
    assert np.array_equal(values, expected)
    tokens = engines.session("connector_9.onnx").run(["tokens"], {"values": values})[0]
    assert tokens.shape[1] == 9

    decoder, reference = engines.decoder(), Decoder(bundle / "decoder.onnx", manifest.decoder, Device(threads=1))
    table, prompt = embeddings(400, 1), embeddings(40)
    fast = follow(decoder, decoder.cache(POSITIONS), prompt, table, 6)
    slow_ids, slow_logits = follow(reference, Cache(reference, POSITIONS), prompt, table, 6)
    assert fast[0] == slow_ids
    assert all(np.array_equal(a, b) for a, b in zip(fast[1], slow_logits, strict=True))
    switched = [call for call in here.trt.calls if call[1] == "set_optimization_profile_async"]
    assert switched, "prompts and single tokens have profiles of their own"


@pytest.mark.parametrize("key", [JETPACK_6, JETPACK_7])
def test_a_cache_is_rewound_and_copied_as_the_slow_way_would(key, install, copy):
    """Whatever was forgotten or taken over: the logits are those of reading everything at once."""
    install(key)
    bundle = copy(TARGET_OF[key])
    builder_of(bundle).build(lambda steps: None)
    manifest = read_manifest(bundle)
    decoder = Engines(manifest, "tensorrt").decoder()
    prompt, other = embeddings(40), embeddings(7, 2)
    cache = decoder.cache(POSITIONS)
    decoder.step(prompt, cache)
    decoder.step(other, cache)
    cache.rewind(40)
    copied: TensorrtCache = decoder.cache(POSITIONS)
    copied.copy(cache, 30)
    wanted = decoder.step(np.concatenate([prompt, other[:3]]), decoder.cache(POSITIONS))
    assert np.abs(decoder.step(other[:3], cache) - wanted).max() < 2e-2
    wanted = decoder.step(np.concatenate([prompt[:30], other]), decoder.cache(POSITIONS))
    assert np.abs(decoder.step(other, copied) - wanted).max() < 2e-2
    assert (cache.used, copied.used) == (43, 37)


def test_the_device_gets_its_memory_back(install, copy):
    here = install(JETPACK_7)
    bundle = copy("jetpack-7.2")
    builder_of(bundle).build(lambda steps: None)
    decoder = Engines(read_manifest(bundle), "tensorrt").decoder()
    decoder.step(embeddings(40), decoder.cache(POSITIONS))
    held = here.cuda.allocated()
    for _ in range(5):
        decoder.step(embeddings(40), decoder.cache(POSITIONS))
    assert here.cuda.allocated() == held


def test_old_integers_are_narrowed_and_half_precision_is_allowed(install, copy, monkeypatch):
    here = install("8.6.1")
    monkeypatch.setitem(BUILT_BY, "jetpack-6.2", ("tensorrt", (8, 6)))
    bundle = copy("jetpack-6.2")
    builder = builder_of(bundle)
    builder.build(lambda steps: None)
    flags = {call[2][0].name for call in here.trt.calls if call[1] == "set_flag"}
    assert flags == {"FP16"}
    decoder = Engines(read_manifest(bundle), "tensorrt").decoder()
    assert decoder.session.dtypes["position_ids"] == np.int32
    builder.halves = False
    with pytest.raises(MvlmError, match=r"cannot build vision.onnx \(half precision was not allowed\)"):
        builder.build(lambda steps: None)


def test_a_wrong_name_or_argument_does_not_pass_the_double():
    old, new = tensorrt_double("8.6.1"), tensorrt_double("11.4.0.106")
    assert not hasattr(new.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH")
    assert not hasattr(old.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    assert new.NetworkDefinitionCreationFlag.STRONGLY_TYPED == 0
    assert not hasattr(new, "ComputeCapability")
    builder = new.Builder(type("Logger", (new.ILogger,), {})())
    with pytest.raises(AttributeError, match="build_engine"):
        builder.build_engine(1)
    with pytest.raises(TypeError, match="create_network"):
        builder.create_network("1")
    with pytest.raises(TypeError, match="set_shape"):
        builder.create_optimization_profile().set_shape("x", (1,), (1,))
    with pytest.raises(TypeError, match="set_shape"):
        builder.create_optimization_profile().set_shape("x", [1], [1], [1], [1])
    config = builder.create_builder_config()
    with pytest.raises(AttributeError, match="max_workspace_size"):
        config.max_workspace_size = 1
    with pytest.raises(TypeError, match="set_memory_pool_limit"):
        config.set_memory_pool_limit("WORKSPACE", 1)
    assert all(API[key]["Builder"] for key in VERSIONS)


def test_built_again_only_when_it_must_be(install, copy):
    here = install(JETPACK_7)
    bundle = copy("jetpack-7.2")
    builder = builder_of(bundle)
    assert not up_to_date(builder.manifest, builder.fingerprint)
    builder.build(lambda steps: None)
    assert up_to_date(builder.manifest, builder.fingerprint)
    assert builder.timings.read_bytes() == b"timings of 10.16.1.11"
    longer = builder_of(bundle, Order(32, "auto"))
    assert not up_to_date(longer.manifest, longer.fingerprint)
    newer = install(JETPACK_7, CudaDouble(driver=13000))
    assert not up_to_date(builder.manifest, builder_of(bundle).fingerprint)
    assert here.trt.__version__ == newer.trt.__version__
    install(JETPACK_7)
    folder = next(path for path in (bundle / "engines").iterdir() if path.is_dir())
    (folder / "vision.engine").write_bytes(b"other")
    assert not up_to_date(builder.manifest, builder_of(bundle).fingerprint)
    with pytest.raises(MvlmError, match=r"vision\.engine is missing or was changed"):
        Engines(builder.manifest, "tensorrt")


def test_timings_of_another_version_are_not_taken(install, copy):
    install(JETPACK_7)
    builder = builder_of(copy("jetpack-7.2"))
    builder.timings.parent.mkdir()
    builder.timings.write_bytes(b"timings of 10.3.0")
    builder.build(lambda steps: None)
    assert builder.timings.read_bytes() == b"timings of 10.16.1.11"


def test_an_interrupted_build_leaves_nothing_that_looks_whole(install, copy):
    install(JETPACK_7)
    bundle = copy("jetpack-7.2")

    def stop(steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        builder_of(bundle).build(stop)
    assert [path for path in (bundle / "engines").iterdir() if path.is_dir()] == []
    with pytest.raises(MvlmError, match="holds no engines yet"):
        Engines(read_manifest(bundle), "tensorrt")


def test_engines_of_elsewhere(install, copy):
    install(JETPACK_7)
    bundle = copy("jetpack-7.2")
    builder_of(bundle).build(lambda steps: None)
    manifest = read_manifest(bundle)
    install("11.4.0.106")
    with pytest.raises(MvlmError, match=r"holds engines for TensorRT 10\.16\.1\.11 .*; here is TensorRT 11\.4"):
        Engines(manifest, "tensorrt")
    install(JETPACK_7, CudaDouble((11, 0), "Thor"))
    with pytest.raises(MvlmError, match=r"\(sm87, Orin\); here is TensorRT 10\.16\.1\.11 \(sm110, Thor\)"):
        Engines(manifest, "tensorrt")
    here = Fingerprint("tensorrt", "10.16.1.11", "sm87", "Orin", "12.6", "another bundle", {})
    with pytest.raises(MvlmError, match="was built from another bundle"):
        find_engines(bundle, here)
    install(JETPACK_7)
    folder = next(path for path in (bundle / "engines").iterdir() if path.is_dir())
    facts = json.loads((folder / "engines.json").read_text())
    (folder / "engines.json").write_text(json.dumps(facts | {"profiles": [{}]}))
    with pytest.raises(MvlmError, match=r"engines\.json is not in order \(KeyError"):
        read_engines(folder)
    facts["files"]["vision.onnx"]["file"] = "../../weights.bin"
    (folder / "engines.json").write_text(json.dumps(facts))
    with pytest.raises(MvlmError, match=r"weights\.bin is missing or was changed"):
        read_engines(folder)


def test_an_engine_that_tensorrt_refuses(install, tmp_path):
    install(JETPACK_7)
    (tmp_path / "x.engine").write_text(json.dumps({"version": "10.3.0"}))
    with pytest.raises(MvlmError, match=r"is no engine for TensorRT 10\.16.* \(the plan is of 10\.3\.0\)"):
        Tensorrt("tensorrt").read_engine(tmp_path / "x.engine")


def test_a_bundle_for_another_device(install, copy):
    install(JETPACK_6)
    with pytest.raises(MvlmError, match=r"for jetpack-7\.2, TensorRT 10\.16 or later, and here is 10\.3\.0"):
        builder_of(copy("jetpack-7.2"))


def test_a_bundle_that_needs_no_engines(install):
    install(JETPACK_6)
    with pytest.raises(MvlmError, match=r"was exported for ort-cpu, which needs no engines"):
        builder_of(query_bundle().bundle)


def test_a_jetson_builds_on_the_device(install):
    install(JETPACK_6)
    with pytest.raises(MvlmError, match="whose engines are built on the device: leave --gpu out"):
        builder_of(bundle_for("jetpack-6.2", "float16"), gpu="sm87")


@pytest.mark.parametrize(
    ("product", "hint"), [("tensorrt", r"JetPack brings it; .*mvlm\[tensorrt\]"), ("tensorrt-rtx", r"mvlm\[rtx\]")]
)
def test_no_tensorrt(monkeypatch, product, hint):
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MvlmError, match=f"is not installed: .*{hint}"):
        Tensorrt(product)


def test_a_tensorrt_that_cannot_be_loaded(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MvlmError, match=r"tensorrt is installed, and cannot be loaded \(libnvinfer\.so\.10"):
        Tensorrt("tensorrt")


def test_a_tensorrt_that_is_too_old(install):
    install(JETPACK_6).trt.__version__ = "8.5.2"
    with pytest.raises(MvlmError, match=r"TensorRT 8\.5\.2 is installed, and 8\.6 is the oldest"):
        Tensorrt("tensorrt")


def test_no_cuda(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(MvlmError, match=r"there is no libcudart\.so here"):
        Cuda()


def test_cuda_says_why(install):
    double = CudaDouble()
    install(JETPACK_6, double)
    cuda = Cuda()
    double.fails = "cudaMalloc"
    with pytest.raises(MvlmError, match="CUDA says to cudaMalloc: out of memory"):
        cuda.allocate(8)
    assert (cuda.capability, cuda.driver, cuda.name) == ("sm87", "12.6", "Orin")
    install(JETPACK_6, CudaDouble(name=""))
    with pytest.raises(MvlmError, match="does not name its GPU"):
        _ = Cuda().name


def test_a_graph_that_this_tensorrt_cannot_read(install, copy):
    here = install(JETPACK_7)
    here.trt.forbidden = frozenset({"RotaryEmbedding"})
    with pytest.raises(MvlmError, match=r"10\.16\.1\.11 cannot read decoder\.onnx \(no importer for RotaryEmbedding\)"):
        builder_of(copy("jetpack-7.2")).build(lambda steps: None)


def test_what_an_engine_does_not_take(install, copy):
    install(JETPACK_7)
    bundle = copy("jetpack-7.2")
    builder_of(bundle).build(lambda steps: None)
    engines = Engines(read_manifest(bundle), "tensorrt")
    decoder, session = engines.decoder(), engines.session("connector_9.onnx")
    with pytest.raises(MvlmError, match=r"a prompt of 250 positions does not fit the engines, which take up to"):
        decoder.step(embeddings(250), decoder.cache(POSITIONS))
    full = decoder.cache(POSITIONS)
    for _ in range(3):
        decoder.step(embeddings(150), full)
    with pytest.raises(MvlmError, match="the cache holds 512 positions, and 600 are needed"):
        decoder.step(embeddings(150), full)
    with pytest.raises(MvlmError, match="takes values as float32, and it was given as float64"):
        session.run(["tokens"], {"values": np.zeros((1, 144, 16))})
    with pytest.raises(MvlmError, match=r"cannot take values as \(2, 144, 16\)"):
        session.run(["tokens"], {"values": np.zeros((2, 144, 16), np.float32)})


def test_layouts(install, copy):
    """The double's plans are about as large; a second copy of the weights is played by hand."""
    install(JETPACK_7)
    bundle = copy("jetpack-7.2")
    builder = builder_of(bundle)
    assert builder.layouts() == ["own", "shared"]
    assert builder_of(bundle_for("jetpack-7.2", "int4")).layouts() == ["own"]
    assert builder_of(bundle, Order(24, "shared")).layouts() == ["shared"]
    facts = builder.build(lambda steps: None)
    assert facts["layout"] == "own"
    folder = next(path for path in (bundle / "engines").iterdir() if path.is_dir())
    assert not (folder / "decoder.shared.engine").exists()
    whole = builder.engine

    def heavy(file, profiles, to):
        built = whole(file, profiles, to)
        return built if "own" not in to.name else replace(built, engine_bytes=2 * built.memory_bytes)

    builder.engine = heavy
    assert builder.build(lambda steps: None)["layout"] == "shared"
    decoder = Engines(read_manifest(bundle), "tensorrt").decoder()
    cache = decoder.cache(POSITIONS)
    decoder.step(embeddings(40), cache)
    decoder.step(embeddings(1), cache)


def test_profiles():
    lengths = [Lengths(m, 10 + m + 1, 10 + m + 6, 10 + m + 24) for m in (1, 9, 36, 144)]
    found = profiles_of(lengths, own_decode=True)
    assert found == (
        Profile(2, 52, 70, (1, 9, 36)), Profile(2, 160, 178, (144,)), Profile(1, 1, 1),
    )  # fmt: skip
    assert merged(found) == ["scales 1, 9, 36 share one profile of up to 70 positions"]
    assert profiles_of(lengths, own_decode=False)[-1] == Profile(1, 1, 178)
    short = profiles_of([Lengths(1, 3, 4, 6)], own_decode=True)
    assert short[0] == Profile(2, 4, 65, (1,))  # the compiler's least
    engines = EngineSet(Path(), None, {}, found)
    assert [engines.profile_for(n) for n in (1, 2, 70, 71, 178)] == [2, 0, 0, 1, 1]


def test_lengths_hold_every_question_that_was_asked_for():
    manifest = read_manifest(query_bundle().bundle)
    prompt = Prompt.from_json(manifest.prompt, Tokenizer.from_file(str(manifest.path(manifest.tokenizer))))
    for at in prompt_lengths(manifest, prompt, 24):
        for question in QUESTIONS:
            assert at.least <= len(prompt.ids(question, at.scale, manifest.image_token_id)) <= at.most
    with pytest.raises(MvlmError, match=r"the decoder has 512 positions: build with --question-tokens \d+"):
        prompt_lengths(manifest, prompt, 600)


def test_sizes_of_a_profile():
    assert dimensions(Profile(2, 20, 40), 256) == {
        "steps": (2, 20, 40), "past": (0, 0, 254), "positions": (2, 20, 294),
    }  # fmt: skip
    assert dimensions(Profile(1, 1, 1), 256) == {"steps": (1, 1, 1), "past": (0, 128, 255), "positions": (1, 129, 256)}


def test_a_dimension_without_sizes():
    tensor = SimpleNamespace(name="x", shape=(1, -1), get_dimension_name=lambda axis: "length")
    with pytest.raises(MvlmError, match="the input x has a dimension length that no profile gives sizes for"):
        shapes(tensor, {})


def test_every_target_of_tensorrt_says_who_builds_it():
    assert set(BUILT_BY) == {name for name, target in TARGETS.items() if target.engine == "tensorrt"}


def test_a_profile_that_tensorrt_refuses(install, copy):
    here = install(JETPACK_7)
    here.trt.IBuilderConfig.add_optimization_profile = lambda self, profile: -1
    with pytest.raises(MvlmError, match="does not take the ranges of a profile"):
        builder_of(copy("jetpack-7.2")).build(lambda steps: None)


def test_too_little_memory_or_disk_is_seen_before(install, copy, mvlm, monkeypatch):
    install(JETPACK_7)
    bundle = copy("jetpack-7.2")
    monkeypatch.setattr(preflight, "available_bytes", lambda: 2**20)
    refused = mvlm("build", bundle)
    assert refused.exit_code == 2
    assert "of memory, and 1 MiB are free: stop other programs" in refused.output
    assert not (bundle / "engines").exists()
    assert mvlm("build", bundle, "--unchecked-memory").exit_code == 0
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    refused = mvlm("build", bundle, "--unchecked-memory", "--again")
    assert refused.exit_code == 2
    assert "make room" in refused.output


def test_memory_that_is_free(monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "_MEMORY", tmp_path / "meminfo")
    assert preflight.available_bytes() is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  3 kB\nSwapFree:   2 kB\n")
    assert preflight.available_bytes() == 5 * 1024


def test_mvlm_build(install, copy, mvlm):
    install(JETPACK_7)
    bundle = copy("jetpack-7.2")
    done = mvlm("build", bundle, "--question-tokens", 24)
    assert done.exit_code == 0, done.output
    assert "scales 1, 4, 9, 36 share one profile" in done.output
    assert "decoding has kernels of its own" in done.output
    assert done.output.splitlines()[-1] == f"next: mvlm bench {bundle}"
    again = mvlm("build", bundle, "--question-tokens", 24)
    assert "up to date, nothing was built" in again.output
    assert "building" not in again.output
    assert "building engines" in mvlm("build", bundle, "--question-tokens", 24, "--again").output


@pytest.mark.parametrize(
    ("key", "commands", "flags", "absent"),
    [
        ("8.6.1", 6 + 3, ["trtexec", "--fp16", "--saveEngine", "decoder.2.engine"], ["--stronglyTyped", "--profile"]),
        (JETPACK_6, 7, ["trtexec", "--stronglyTyped", "--profile=2", "past.0.key:1x2x511x16"], ["--fp16"]),
        (JETPACK_7, 7, ["trtexec", "--stronglyTyped", "--profile=2", "inputs_embeds:1x1x32"], ["--fp16", "past.0"]),
        ("11.4.0.106", 7, ["trtexec", "--profile=2"], ["--fp16", "--stronglyTyped"]),
        (RTX, 7, ["tensorrt_rtx", "--profile=2"], ["--fp16", "--stronglyTyped"]),
    ],
)
def test_the_build_as_commands(key, commands, flags, absent, install, copy, mvlm, monkeypatch):
    install(key)
    monkeypatch.setitem(BUILT_BY, "jetpack-6.2", ("tensorrt", (8, 6)))
    bundle = copy(TARGET_OF[key])
    done = mvlm("build", bundle, "--print-trtexec", "--question-tokens", 24)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert len(lines) == commands
    assert all(flag in done.output for flag in flags)
    assert not any(flag in done.output for flag in absent)
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("name", BUILT_BY)
def test_each_target_uses_what_its_tensorrt_reads(name):
    import onnx

    version = BUILT_BY[name][1] if BUILT_BY[name][0] == "tensorrt" else (11, 0)
    for precision in TARGETS[name].precisions["decode"]:
        bundle = bundle_for(name, precision)
        for file in ("decoder.onnx", "connector_9.onnx", "vision.onnx"):
            unknown = unknown_to(version, onnx.load(bundle / file, load_external_data=False))
            assert unknown == [], f"{name}: {file}"


def test_what_a_tensorrt_does_not_read():
    import onnx
    from onnx import TensorProto, helper

    graph = onnx.load(bundle_for("jetpack-7.2", "float16") / "decoder.onnx", load_external_data=False)
    wrong = unknown_to((10, 3), graph)
    assert wrong[0] == "opset 24, where 20 is the highest"
    assert set(wrong[1:]) == {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}
    assert unknown_to((10, 14), graph)[0] == "opset 24, where 20 is the highest"
    fused = onnx.load(query_bundle().bundle / "decoder.onnx", load_external_data=False)
    assert "com.microsoft:GroupQueryAttention" in unknown_to((11, 0), fused)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 1, 1])
    beyond = [
        helper.make_node("Attention", ["x", "x", "x", "", "x", "x"], ["y"]),
        helper.make_node("Attention", ["x", "x", "x"], ["z", "k", "v"]),
        helper.make_node("Attention", ["x", "x", "x"], ["s"], softcap=2.0),
        helper.make_node("TensorScatter", ["x", "x"], ["t"], axis=1),
        helper.make_node("LayerNormalization", ["x", "x"], ["l", "m"]),
    ]
    for node in beyond:
        made = helper.make_model(
            helper.make_graph([node], "g", [x], [x]), opset_imports=[helper.make_opsetid("", 24)]
        )  # fmt: skip
        assert unknown_to((10, 16), made)[0].startswith(f"{node.op_type} with more than")


@pytest.mark.parametrize("key", [JETPACK_6, JETPACK_7, RTX])
def test_the_runtime_answers_by_engines_as_by_onnxruntime(key, install, copy):
    """The whole way: a picture, the router (walked in numpy), an escalation at the same cache, an answer."""
    here = install(key)
    bundle = copy(TARGET_OF[key])
    builder_of(bundle).build(lambda steps: None)
    fast = Runtime.load(bundle, provider=here.product)
    slow = Runtime(read_manifest(bundle), Device(threads=1))
    picture = query_bundle().picture(0)
    views = fast.look(picture), slow.look(picture)
    for question, scale in ((QUESTIONS[0], 9), (QUESTIONS[1], 9), (QUESTIONS[1], 36), (QUESTIONS[2], "auto")):
        quick, sure = (view.ask(question, scale, max_new_tokens=6) for view in views)
        assert quick.token_ids == sure.token_ids
        assert quick.num_visual_tokens == sure.num_visual_tokens
        assert quick.probabilities == pytest.approx(sure.probabilities, abs=1e-5)


def test_bench_on_engines(install, copy, mvlm):
    install(JETPACK_7)
    bundle = copy("jetpack-7.2")
    assert mvlm("build", bundle).exit_code == 0
    done = mvlm("bench", bundle, "--rounds", 2, "--warmup", 0, "--question", QUESTIONS[0])
    assert done.exit_code == 0, done.output
    facts = json.loads(next(bundle.glob("bench/*/bench.json")).read_text())
    assert facts["provider"] == "tensorrt"
    assert facts["memory_mib"]["gpu_used"] == pytest.approx(1 / 2**20)
    assert facts["memory_mib"]["gpu"] == "Orin"
    assert Runtime.load(bundle, provider="tensorrt").costs.costs[9] > 0


def test_engines_are_asked_for_where_none_were_built(install, copy, mvlm):
    install(JETPACK_7)
    bundle = copy("jetpack-7.2")
    refused = mvlm("bench", bundle, "--provider", "tensorrt")
    assert refused.exit_code == 2
    assert "holds no engines yet: run `mvlm build" in refused.output
