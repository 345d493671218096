"""What lies in a bundle: one weight file, a manifest that answers for every file, and the sources it was made from."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, numpy_helper

from export.bundle.files import stop_ids, write_bundle
from export.bundle.source import read_source
from export.bundle.verify import sample_rows, verify_bundle
from export.graphs.targets import plan
from export.graphs.weights import WeightFile
from export.runtime import MvlmError, Runtime
from export.runtime.artefact import sha256_file
from export.runtime.manifest import read_manifest
from mvlm_core.data.reading import read_rows
from tests.support.bundles import Made, pool_bundle, query_bundle, write_router, write_run


def graphs(made: Made) -> dict[str, onnx.ModelProto]:
    files = [path for path in made.bundle.glob("*.onnx") if path.name != "router.onnx"]
    return {path.name: onnx.load(path, load_external_data=False) for path in files}


@pytest.mark.parametrize("make", [pool_bundle, query_bundle])
def test_every_float_lies_in_the_one_weight_file_once(make):
    made = make()
    places: dict[bytes, set[str]] = {}
    for model in graphs(made).values():
        for tensor in model.graph.initializer:
            if tensor.data_type != TensorProto.FLOAT:
                continue
            facts = {entry.key: entry.value for entry in tensor.external_data}
            assert facts["location"] == "weights.bin"
            assert int(facts["offset"]) % 4096 == 0
            external_data_helper.load_external_data_for_tensor(tensor, str(made.bundle))
            places.setdefault(numpy_helper.to_array(tensor).tobytes(), set()).add(facts["offset"])
    assert all(len(offsets) == 1 for offsets in places.values())
    bytes_needed = sum(-(-len(data) // 4096) * 4096 for data in places)
    table = made.source.model.get_input_embeddings().weight.detach().numpy().tobytes()
    bytes_needed += 0 if table in places else -(-len(table) // 4096) * 4096
    assert (made.bundle / "weights.bin").stat().st_size <= bytes_needed


def test_the_embedding_table_is_where_the_manifest_says():
    made = query_bundle()
    place = read_manifest(made.bundle).embedding
    table = np.memmap(made.bundle / place.file, place.dtype, "r", place.offset, place.shape)
    assert np.array_equal(table, made.source.model.get_input_embeddings().weight.detach().numpy())


def test_the_manifest_says_what_the_bundle_is():
    made = query_bundle()
    manifest = json.loads((made.bundle / "bundle.json").read_text())
    assert manifest["family"] == "query"
    assert manifest["scales"] == [1, 4, 9, 36, 144]
    assert manifest["max_length"] == 512
    assert manifest["model_sha256"] == sha256_file(made.run / "model.safetensors")
    assert manifest["router_sha256"] == sha256_file(made.router / "router.json")
    assert manifest["graphs"]["vision"]["outputs"] == {"values": "values", "words": "words"}
    assert manifest["stop_ids"] == [made.source.processor.tokenizer.eos_token_id]
    assert json.loads((pool_bundle().bundle / "bundle.json").read_text())["graphs"]["vision"]["outputs"] == {
        "values": "values", "words": "values",
    }  # fmt: skip


def test_equal_bytes_are_written_once(tmp_path):
    with WeightFile(tmp_path / "weights.bin") as weights:
        first = weights.place(np.arange(6, dtype=np.float32))
        assert weights.place(np.arange(6, dtype=np.float32).reshape(2, 3)) == first
        assert weights.place(np.ones(3, np.float32)).offset == 4096
    assert (tmp_path / "weights.bin").stat().st_size == 4096 + 12


def test_stop_ids():
    model = pool_bundle().source.model
    before = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [2, 5]
        assert stop_ids(model) == [2, 5]
        model.generation_config.eos_token_id = None
        with pytest.raises(MvlmError, match="no token that ends an answer"):
            stop_ids(model)
    finally:
        model.generation_config.eos_token_id = before


def test_scales_come_from_the_router_or_are_named(tmp_path):
    made = pool_bundle()
    write_router(tmp_path / "router", made.run, (9, 36))
    assert read_source(made.run, tmp_path / "router", None).scales == (9, 36)
    assert read_source(made.run, made.router, [36, 1]).scales == (1, 36)
    assert read_source(made.run, None, [4]).router is None


def test_scales_between_those_of_the_router(tmp_path):
    """Any m between the router's ends: it is exported, verified and chosen."""
    made = query_bundle()
    write_router(tmp_path / "router", made.run, (1, 9, 36))
    source = read_source(made.run, tmp_path / "router", [2, 5, 23])
    assert source.scales == (2, 5, 23)
    (tmp_path / "bundle").mkdir()
    write_bundle(source, plan("ort-cpu", None, None, source.positions), tmp_path / "bundle", lambda steps: None)
    report = verify_bundle(source, tmp_path / "bundle", sample_rows(read_rows(made.rows), 1), lambda steps: None)
    assert report["router"] == {"asked": 1, "same": 1}
    view = Runtime.load(tmp_path / "bundle").look(made.picture(0))
    seen = {price: view.ask("what?", max_new_tokens=1, price=price).num_visual_tokens for price in (0.0, 100.0)}
    assert seen[100.0] == 2
    assert set(seen.values()) <= {2, 5, 23}
    with pytest.raises(MvlmError, match="stay between its ends"):
        read_source(made.run, tmp_path / "router", [9, 37])


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"model_sha256": "another"}, "was fitted for another model"),
        ({"feature_version": 0}, "features of version 0"),
        ({"files": {"router.onnx": "another"}}, "is missing or was changed"),
        ({"scales": [1, 4]}, "hold the scales 1, 9, and the router .* was fitted for 1, 4"),
    ],
)
def test_a_router_that_does_not_belong(tmp_path, facts, says):
    made = pool_bundle()
    write_router(tmp_path / "router", made.run, **facts)
    with pytest.raises(MvlmError, match=says):
        read_source(made.run, tmp_path / "router", [1, 9])


def test_a_router_that_says_too_little(tmp_path):
    made = pool_bundle()
    write_router(tmp_path / "router", made.run)
    file = tmp_path / "router" / "router.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "costs"}))
    with pytest.raises(MvlmError, match=r"router\.json says nothing of costs: make the folder again"):
        read_source(made.run, tmp_path / "router", [1, 9])


def test_neither_router_nor_scales():
    with pytest.raises(MvlmError, match="name them with --scales"):
        read_source(pool_bundle().run, None, None)


def test_no_router(tmp_path):
    with pytest.raises(MvlmError, match=r"there is no router .*--no-router"):
        read_source(pool_bundle().run, tmp_path / "absent", [9])


def test_a_scale_that_the_connector_does_not_allow():
    with pytest.raises(MvlmError, match="cannot show a picture in 25 tokens"):
        read_source(pool_bundle().run, None, [9, 25])


def test_a_run_without_a_fast_tokenizer(tmp_path):
    write_run(tmp_path / "run", "pool", "resnet", "qwen3")
    (tmp_path / "run" / "tokenizer.json").unlink()
    with pytest.raises(MvlmError, match=r"holds no tokenizer\.json"):
        read_source(tmp_path / "run", None, [9])
