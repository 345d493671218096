"""NVIDIA's own parser and compiler, where they install: every graph of every dialect, all profiles, without a GPU."""

from __future__ import annotations

import json
import shutil

import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from export.device.build import OWN, SHARED, Builder, Order
from export.device.profiles import ONE_PICTURE, dimensions
from export.graphs.targets import TARGETS
from export.runtime import MvlmError
from export.runtime.backends.engine_files import Fingerprint
from export.runtime.backends.tensorrt_api import Tensorrt
from export.runtime.manifest import read_manifest
from export.runtime.prompt import Prompt
from tests.support.bundles import pool_bundle
from tests.support.tensorrt_bundles import POSITIONS, bundle_for, standard_concat
from tests.support.tensorrt_double import API

trt = pytest.importorskip("tensorrt_rtx_bindings", reason='TensorRT for RTX is not installed: pip install "mvlm[rtx]"')
DECODERS = [
    (name, precision)
    for name, target in TARGETS.items()
    if target.dialect != "fused"
    for precision in target.precisions["decode"]
    if name != "jetpack-7.2"  # the same graphs as those of rtx; a test says so
]


def ahead(bundle, capability: str = "sm89") -> Builder:
    """The compiler for a GPU that is not here, whatever target the bundle was exported for."""
    manifest = read_manifest(bundle)
    prompt = Prompt.from_json(manifest.prompt, Tokenizer.from_file(str(manifest.path(manifest.tokenizer))))
    api = Tensorrt("tensorrt-rtx")
    here = Fingerprint(api.product, api.version, capability, "", "", manifest.sha256, {})
    return Builder(api, manifest, prompt, Order(24, "auto"), here)


def built(builder: Builder, layout: str, to) -> int:
    sizes = [dimensions(profile, POSITIONS) for profile in builder.profiles(layout)]
    assert len(sizes) > 2
    one = builder.engine("decoder.onnx", sizes, to / "decoder.engine")
    assert one.engine_bytes == (to / "decoder.engine").stat().st_size
    assert one.activation_bytes is None
    return one.engine_bytes


@pytest.mark.parametrize(("name", "precision"), DECODERS)
def test_every_decoder_builds_with_all_its_profiles(name, precision, tmp_path):
    bundle = shutil.copytree(bundle_for(name, precision), tmp_path / "bundle")
    assert built(ahead(bundle), OWN, tmp_path) > 100_000


def test_decoders_with_normed_heads_and_other_gpus(tmp_path):
    """Qwen3, and the GPU of an RTX 50; and decoding in one range with prompts."""
    bundle = shutil.copytree(bundle_for("rtx", "float16", "pool"), tmp_path / "bundle")
    assert built(ahead(bundle, "sm120"), SHARED, tmp_path) > 100_000


def test_opset_24_with_a_growing_cache(tmp_path):
    bundle = shutil.copytree(standard_concat(), tmp_path / "bundle")
    assert built(ahead(bundle), OWN, tmp_path) > 100_000


@pytest.mark.parametrize("family", ["query", "pool"])
def test_towers_and_connectors_build(family, tmp_path):
    bundle = shutil.copytree(bundle_for("rtx", "float16", family), tmp_path / "bundle")
    builder = ahead(bundle)
    for file in ("vision.onnx", "connector_1.onnx", "connector_36.onnx"):
        assert builder.engine(file, [ONE_PICTURE], tmp_path / "x.engine").engine_bytes > 1000


def test_jetpack_7_and_rtx_have_the_same_graphs():
    for precision in TARGETS["jetpack-7.2"].precisions["decode"]:
        ours, theirs = (bundle_for(name, precision) / "decoder.onnx" for name in ("jetpack-7.2", "rtx"))
        assert ours.read_bytes() == theirs.read_bytes()


def test_mvlm_build_ahead_of_time(mvlm, tmp_path):
    bundle = shutil.copytree(bundle_for("rtx", "int4"), tmp_path / "bundle")
    done = mvlm("build", bundle, "--gpu", "SM89", "--question-tokens", 24)
    assert done.exit_code == 0, done.output
    assert "next: on the machine with that GPU: mvlm bench" in done.output
    folder = next(path for path in (bundle / "engines").iterdir() if path.is_dir())
    facts = json.loads((folder / "engines.json").read_text())
    assert facts["fingerprint"]["capability"] == "sm89"
    assert facts["engines"]["decoder.onnx"]["engine_mib"] > 0
    assert facts["peak_memory_mib"] > 100
    assert "up to date" in mvlm("build", bundle, "--gpu", "sm89", "--question-tokens", 24).output
    lines = mvlm("build", bundle, "--gpu", "sm89", "--print-trtexec").output.splitlines()
    assert all(line.startswith("tensorrt_rtx --onnx=") for line in lines)


def test_a_gpu_that_it_does_not_build_for(mvlm, tmp_path):
    bundle = shutil.copytree(bundle_for("rtx", "int4"), tmp_path / "bundle")
    failed = mvlm("build", bundle, "--gpu", "sm87")
    assert failed.exit_code == 2
    assert "does not build for sm87: name one of sm75, sm80, sm86, sm89, sm120, sm121" in failed.output
    assert [path for path in (bundle / "engines").iterdir() if path.is_dir()] == []


def test_without_a_gpu_it_says_how_to_build_ahead(mvlm, tmp_path, monkeypatch):
    class NoCuda:
        def __init__(self) -> None:
            raise MvlmError("there is no libcudart here", code="no-cuda")

    monkeypatch.setattr("export.device.build.Cuda", NoCuda)
    failed = mvlm("build", shutil.copytree(bundle_for("rtx", "int4"), tmp_path / "bundle"))
    assert failed.exit_code == 2
    assert "no GPU can be used here (there is no libcudart here)" in failed.output
    assert "as in --gpu sm89" in failed.output


def test_a_graph_that_it_cannot_read(tmp_path):
    """What onnxruntime's dialect holds, and attention with more than one output, NVIDIA/TensorRT#4738."""
    bundle = shutil.copytree(pool_bundle().bundle, tmp_path / "bundle")
    builder = ahead(bundle)
    with pytest.raises(MvlmError, match=r"cannot read decoder\.onnx \("):
        builder.engine("decoder.onnx", [{}], tmp_path / "x.engine")
    tensors = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 2, 8, 16]) for name in "qkvy"}
    pasts = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 2, 4, 16]) for name in ("a", "b")}
    presents = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 2, 12, 16]) for name in ("c", "d")]
    node = helper.make_node("Attention", ["q", "k", "v", "", "a", "b"], ["y", "c", "d"])
    inputs = [tensors["q"], tensors["k"], tensors["v"], *pasts.values()]
    graph = helper.make_graph([node], "g", inputs, [tensors["y"], *presents])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10), bundle / "past.onnx"
    )
    with pytest.raises(MvlmError, match=r"cannot read past\.onnx \(.*one output"):
        builder.engine("past.onnx", [{}], tmp_path / "x.engine")


def test_what_compiles_not_says_why(tmp_path):
    """Attention in single precision is read, and has no kernel."""
    names = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 8, 16]) for name in "qkvy"}
    graph = helper.make_graph(
        [helper.make_node("Attention", ["q", "k", "v"], ["y"])], "g", list(names.values())[:3], [names["y"]]
    )
    bundle = shutil.copytree(pool_bundle().bundle, tmp_path / "bundle")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    onnx.save(model, bundle / "single.onnx")
    with pytest.raises(MvlmError, match=r"cannot build single\.onnx \((?!no reason given)"):
        ahead(bundle).engine("single.onnx", [{}], tmp_path / "x.engine")


def test_the_double_has_the_names_of_these_bindings():
    for name, members in API[f"rtx {trt.__version__}"].items() if f"rtx {trt.__version__}" in API else ():
        for member in members:
            holder = trt if name == "functions and constants" else getattr(trt, name)
            assert hasattr(holder, member), f"{name}.{member}"
