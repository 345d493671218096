"""A bundle that somebody sealed anew: what is wrong with it is said in one line, and nothing unnamed is read."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from export.runtime import MvlmError, Runtime, bundle_files
from export.runtime.graph_facts import data_files, operators
from export.runtime.manifest import SEAL, read_manifest, seal
from tests.runtime.test_manifest import edit, refused, reseal
from tests.support.bundles import Made, pool_bundle
from tests.support.tiny import QUESTIONS

MADE: Made = pool_bundle()


@pytest.fixture
def bundle(tmp_path) -> Path:
    return shutil.copytree(MADE.bundle, tmp_path / "bundle")


def test_data_in_a_file_without_a_hash(bundle):
    """As the weights of a graph would be swapped: the graph is named, the file beside it is not."""
    graph = onnx.load(bundle / "connector_9.onnx")
    onnx.save(graph, bundle / "connector_9.onnx", save_as_external_data=True, location="more.bin", size_threshold=0)
    assert data_files(bundle / "connector_9.onnx") == {"more.bin"}
    reseal(bundle, "connector_9.onnx")
    refused(bundle, r"connector_9\.onnx reads more\.bin, which bundle\.json gives no hash for")


def test_what_lies_in_graphs_inside_graphs_is_seen(tmp_path):
    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="deep.bin")
    inner = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "g", [], [])
    outer = helper.make_graph([helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner),
                               helper.make_node("Odd", ["z"], ["w"], domain="evil")], "f", [], [])  # fmt: skip
    onnx.save(helper.make_model(outer), tmp_path / "a.onnx")
    assert data_files(tmp_path / "a.onnx") == {"deep.bin"}
    assert operators(tmp_path / "a.onnx") == {"If", "Constant", "evil.Odd"}
    (tmp_path / "b.onnx").write_bytes(b"\x3a\x7f")
    with pytest.raises(MvlmError, match="cannot be opened"):
        operators(tmp_path / "b.onnx")


def test_connectors_that_were_swapped(bundle):
    """They load, and the scale that was asked for is not what would come out."""

    def swap(value: dict) -> None:
        connectors = value["graphs"]["connectors"]
        connectors["36"], connectors["144"] = connectors["144"], connectors["36"]

    edit(bundle, swap)
    runtime = Runtime.load(bundle, threads=1)
    with pytest.raises(MvlmError, match=r"connector_36\.onnx gives \(1, 36, 32\) and not \(1, 144, 32\)"):
        runtime.ask(MADE.picture(0), QUESTIONS[0], 144)


def test_a_router_with_a_loop(bundle):
    model = onnx.load(bundle / "router.onnx")
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"])], "b",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, [])],
    )  # fmt: skip
    model.graph.initializer.append(helper.make_tensor("trips", TensorProto.INT64, [], [2**62]))
    model.graph.initializer.append(helper.make_tensor("go", TensorProto.BOOL, [], [True]))
    model.graph.node.append(helper.make_node("Loop", ["trips", "go"], [], body=body))
    onnx.save(model, bundle / "router.onnx")
    reseal(bundle, "router.onnx")
    refused(bundle, r"operators that no router needs \(Identity, Loop\)")


@pytest.mark.parametrize("token", [1e308, 0.5, -1, 2**62, True, "1"])
def test_a_prompt_of_ids_that_are_none(bundle, token):
    """Half an id would be cut to one."""
    edit(bundle, lambda value: next(part for part in value["prompt"] if "ids" in part).update(ids=[token]))
    refused(bundle, "a prompt of ids that are none")


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_a_verification_that_is_none(bundle, text):
    (bundle / "verify.json").write_text(text)
    refused(bundle, r"verify\.json is not in order")
    (bundle / "verify.json").write_text('{"scales": {"9": {"points_lost": 3}}}')
    assert "is not in order" in Runtime.load(bundle, threads=1).verified(9)


def test_the_bundle_that_is_meant(bundle):
    sealed = json.loads((bundle / "bundle.json").read_text())[SEAL]
    assert Runtime.load(bundle, threads=1, sha256=sealed).manifest.sha256 == sealed
    edit(bundle, lambda value: value.update(max_length=value["max_length"] - 1))
    with pytest.raises(MvlmError, match="is another bundle than the one asked for") as caught:
        Runtime.load(bundle, sha256=sealed)
    assert caught.value.code == "wrong-bundle"


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """The names of files as they are hashed."""
    names: list[str] = []
    real = bundle_files.sha256_file
    monkeypatch.setattr(bundle_files, "sha256_file", lambda path: (names.append(path.name), real(path))[1])
    return names


def test_a_large_bundle_is_hashed_once(bundle, hashed, monkeypatch):
    monkeypatch.setattr(bundle_files, "_WORTH_REMEMBERING_BYTES", 0)
    everything = set(json.loads((bundle / "bundle.json").read_text())["files"])
    counts = []
    for verify in (None, "changed", "always", "never"):
        hashed.clear()
        read_manifest(bundle, verify=verify)
        counts.append(len(hashed))
    assert counts == [len(everything), 0, len(everything), 0]
    hashed.clear()
    os.utime(bundle / "weights.bin", ns=(1, 1))
    read_manifest(bundle)
    assert hashed == ["weights.bin"]
    data = bytearray((bundle / "vision.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "vision.onnx").write_bytes(data)
    refused(bundle, "vision.onnx was changed")
    for record in ("{", "[" * 100_000, '{"manifest_sha256": "other"}'):
        (bundle / "verified" / "files.json").write_text(record)
        refused(bundle, "vision.onnx was changed")


def test_a_small_bundle_is_hashed_each_time_and_leaves_nothing(bundle, hashed):
    for _ in range(2):
        read_manifest(bundle)
    assert len(hashed) == 2 * len(set(hashed))
    assert not (bundle / "verified").exists()
    with pytest.raises(MvlmError, match="there is no verify='often'"):
        read_manifest(bundle, verify="often")


VALUE = json.loads((MADE.bundle / "bundle.json").read_text())


def paths(value: Any, at: tuple = ()) -> list[tuple]:
    """Every place of a manifest, hashes and versions of packages left out."""
    found = [at] if at else []
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        if key not in ("versions", "files", SEAL):
            found += paths(part, (*at, key))
    return found


NASTY = [None, True, -1, 0, 1, 2**31, 2**62, 10**400, 0.5, -0.0, math.inf, math.nan, "", "x", "../x", "\ud83d", [],
         [[]], [None], {}, {"a": 1}, "router.onnx", [0.5], "1" * 5000]  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(paths(VALUE)), st.sampled_from(NASTY))
def test_any_value_of_a_manifest_is_in_order_or_refused_in_one_line(tmp_path_factory, path, nasty):
    folder = tmp_path_factory.mktemp("nasty")
    for file in MADE.bundle.iterdir():
        shutil.copy(file, folder / file.name)
    value = json.loads(json.dumps(VALUE))
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = nasty
    try:
        sealed = value | {SEAL: seal(value)}
    except UnicodeEncodeError:
        sealed = value
    (folder / "bundle.json").write_text(json.dumps(sealed))
    said = None
    try:
        answer = Runtime.load(folder, threads=1).ask(MADE.picture(0), QUESTIONS[0], 9, max_new_tokens=2)
        assert np.isfinite(answer.confidence)
    except MvlmError as error:
        said = str(error)
    finally:
        shutil.rmtree(folder)
    assert said is None or "\n" not in said
