"""The numpy walk of router.onnx against onnxruntime: every estimator's graph, and files that are none."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.runtime import MvlmError
from export.runtime.routing.numpy_onnx import GraphWalk
from tests.router.test_graph import COST, D_IMAGE, KINDS, fitted, model_of, rows

__all__ = ["rows"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_walk_is_onnxruntime(kind, rows, tmp_path):
    file = tmp_path / "router.onnx"
    onnx.save(model_of(fitted(kind, rows)), file)
    walk, session = GraphWalk(file), onnxruntime.InferenceSession(file)
    names = [value.name for value in session.get_outputs()]
    for some in (rows[0], rows[0][:1]):
        for more in (
            {"price": 0.0}, {"price": 0.2}, {"price": 0.2, "cap": 9.0}, {"price": 0.0, "least_probability": 0.6},
            {"price": 0.1, "least_p_value": 0.3},
        ):  # fmt: skip
            feeds = {"image": some[:, :D_IMAGE], "question": some[:, D_IMAGE:], "cost": COST[None]}
            feeds |= {name: np.asarray(value, np.float32) for name, value in more.items()}
            for name, ours, theirs in zip(names, walk.run(None, feeds), session.run(None, feeds), strict=True):
                assert ours.dtype == theirs.dtype, name
                if name == "choice":
                    assert (ours != theirs).mean() < 0.005
                else:
                    np.testing.assert_allclose(ours, theirs, atol=1e-5 if name == "probability" else 0.01)
    assert walk.metadata == session.get_modelmeta().custom_metadata_map


def test_integers_and_floats_that_are_not_raw(tmp_path):
    """Other writers pack values into typed fields, and numbers below 0 take ten bytes."""
    tensor = helper.make_tensor
    constants = [
        tensor("back", TensorProto.INT64, [2], [-1, 2]), tensor("two", TensorProto.FLOAT, [2], [2.0, 0.5]),
    ]  # fmt: skip
    nodes = [helper.make_node("Reshape", ["x", "back"], ["y"]), helper.make_node("Mul", ["y", "two"], ["z"])]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [4])], [info("z", TensorProto.FLOAT, ["n", 2])], constants
    )
    onnx.save(helper.make_model(graph), tmp_path / "some.onnx")
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(GraphWalk(tmp_path / "some.onnx").run(["z"], {"x": x})[0], [[0, 0.5], [4, 1.5]])


def test_files_that_are_none(tmp_path, rows):
    whole = model_of(fitted("logistic", rows)).SerializeToString()
    for name, data in (("empty", b""), ("cut", whole[: len(whole) // 2]), ("text", b"no graph at all")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MvlmError, match="is no router"):
            GraphWalk(tmp_path / name)
    with pytest.raises(MvlmError, match="is missing, or too large"):
        GraphWalk(tmp_path / "absent")


def test_an_operator_that_it_does_not_know(tmp_path):
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Erf", ["x"], ["y"])], "g",
        [info("x", TensorProto.FLOAT, [1])], [info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph), tmp_path / "some.onnx")
    with pytest.raises(MvlmError, match=r"operators that numpy cannot walk \(Erf\): upgrade mvlm"):
        GraphWalk(tmp_path / "some.onnx")
