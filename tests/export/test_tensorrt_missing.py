"""What is said where TensorRT, CUDA, memory or an operator is missing."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from export.device import preflight
from export.device.build import BUILT_BY
from export.graphs.targets import TARGETS
from export.runtime import MvlmError
from export.runtime.backends.cuda import Cuda
from export.runtime.backends.tensorrt_api import Tensorrt
from export.runtime.backends.tensorrt_session import Engines
from export.runtime.manifest import read_manifest
from tests.support.bundles import query_bundle
from tests.support.cuda_double import CudaDouble
from tests.support.operators import unknown_to
from tests.support.tensorrt_builds import JETPACK_6, JETPACK_7, builder_of, embeddings
from tests.support.tensorrt_bundles import POSITIONS, bundle_for


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
