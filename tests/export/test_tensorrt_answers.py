"""Engines of every version of TensorRT answer as onnxruntime does, by a double that takes what its bindings take."""

from __future__ import annotations

import json

import numpy as np
import pytest

from export.device.build import BUILT_BY
from export.runtime import MvlmError, Runtime
from export.runtime.backends.onnx import Cache, Decoder, Device, open_session
from export.runtime.backends.tensorrt_session import Engines, TensorrtCache
from export.runtime.manifest import read_manifest
from tests.support.bundles import query_bundle
from tests.support.tensorrt_builds import JETPACK_6, JETPACK_7, RTX, TARGET_OF, builder_of, embeddings, follow
from tests.support.tensorrt_bundles import POSITIONS
from tests.support.tensorrt_double import API, VERSIONS, tensorrt_double
from tests.support.tiny import QUESTIONS


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
