"""Building engines: when, for whom, in which profiles, and what an interrupted build leaves."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from export.device.build import BUILT_BY, Order, shapes, up_to_date
from export.device.profiles import ONE_PICTURE, Lengths, dimensions, merged, of_views, profiles_of, prompt_lengths
from export.graphs.targets import TARGETS
from export.runtime import MvlmError
from export.runtime.backends.engine_files import EngineSet, Fingerprint, Profile, find_engines, read_engines
from export.runtime.backends.tensorrt_api import Tensorrt
from export.runtime.backends.tensorrt_session import Engines, TensorrtSession
from export.runtime.chat_text import ChatText
from export.runtime.manifest import read_manifest
from export.runtime.prompt import Prompt
from export.runtime.views import Pinpoints, Stitching, ViewSpec
from export.runtime.views.laid import Layout
from tests.support.bundles import query_bundle
from tests.support.cuda_double import CudaDouble
from tests.support.tensorrt_builds import JETPACK_6, JETPACK_7, RTX, TARGET_OF, builder_of, embeddings
from tests.support.tensorrt_bundles import POSITIONS, bundle_for
from tests.support.tiny import QUESTIONS


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


def test_lengths_of_pictures_in_tiles():
    """Every picture that there is room for has a range; of those that are larger none is refused beforehand."""
    plain = read_manifest(query_bundle().bundle)
    views = ViewSpec(48, 6, (0.5,) * 3, (0.5,) * 3, Pinpoints(((1, 2), (2, 1), (2, 2))), stitching=Stitching())
    manifest = replace(plain, views=views, scales=(1, 9, "9@2", "9@native"))
    tokenizer = Tokenizer.from_file(str(manifest.path(manifest.tokenizer)))
    prompt = Prompt.from_json(manifest.prompt, tokenizer)
    found = {at.scale: at for at in prompt_lengths(manifest, prompt, 24)}
    layout = Layout(views, ChatText(tokenizer).ids, manifest.image_token_id)
    around = len(prompt.ids("", 0, 0))
    for scale, at in found.items():
        for size in ((1, 1), (48, 96), (96, 48), (96, 96), (500, 400), (70, 300)):
            assert at.least <= around + len(layout.at(size, scale)) + 1
            assert around + len(layout.at(size, scale)) + 24 <= at.most
    assert found["9@native"].most > found["9@2"].most > found[9].most
    with pytest.raises(MvlmError, match=r"the decoder has 512 positions: build with --question-tokens \d+"):
        prompt_lengths(manifest, prompt, 600)
    short = prompt_lengths(replace(manifest, max_length=60), prompt, 24)
    assert max(at.most for at in short) == 59


def test_engines_of_views_have_a_range_for_one_and_one_for_many():
    assert of_views(1) == [ONE_PICTURE]
    assert of_views(16) == [ONE_PICTURE, {"batch": (1, 4, 16)}]
    used = []
    for for_many, size, wanted in ((True, 1, [0]), (True, 5, [1]), (False, 5, [])):
        session = object.__new__(TensorrtSession)
        session._for_many, session.lock = for_many, threading.Lock()
        for name in ("feed", "ready_outputs", "execute", "fetch"):
            setattr(session, name, lambda *_: None)
        session.use_profile = used.append
        session.run(["values"], {"pixel_values": np.zeros((size, 3, 2, 2), np.float32)})
        assert used == wanted
        used.clear()
