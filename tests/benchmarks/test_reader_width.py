"""The reader before wide language models: what is timed is a reader, and what is told follows from the figures."""

import numpy as np
import pytest

from benchmarks.router import told
from benchmarks.router.reader_width import Width, least_answer, measured, random_reader
from export.runtime.backends.onnx import Device, open_session
from router.graph.reader import picture_graph

TINY = Width("tiny", 256, 64, 512, 2, 300)


def test_the_graph_that_is_timed_is_the_reader_s(tmp_path):
    torch = pytest.importorskip("torch")
    from router.estimators.reader_training import Network

    reader = random_reader(TINY.hidden)
    (tmp_path / "reader.onnx").write_bytes(picture_graph(reader).SerializeToString())
    patches = np.random.default_rng(0).standard_normal((2, 144, TINY.hidden)).astype(np.float32)
    session = open_session(tmp_path / "reader.onnx", Device(threads=1))
    network = Network(reader.shape_, 0.0)
    network.load_state_dict({name: torch.from_numpy(weight) for name, weight in reader.weights_.items()})
    with torch.inference_mode():
        wanted = network.look(torch.from_numpy(patches @ reader.projection_)).numpy()
    # Weights lie in half precision.
    np.testing.assert_allclose(session.run(["picture"], {"patches": patches})[0], wanted, atol=2e-2)


def test_the_answer_is_all_layers_and_a_head_twice(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "benchmarks.router.reader_width._product_ms", lambda rows, shape, *_: seen.append((rows, shape)) or 1.0
    )
    assert least_answer(TINY, 1) == {"prompt_ms": 7 * TINY.layers + 1, "step_ms": 7 * TINY.layers + 1}
    assert {rows for rows, _ in seen} == {1, 33}
    assert seen.count((1, (TINY.hidden, TINY.vocabulary))) == 2


@pytest.mark.parametrize(("most", "said"), [(1e9, "Nowhere over"), (0.0, "Over 0 %: tiny")])
def test_told(most, said):
    one = measured(TINY, 1)
    parts = one["reader"]["averaging_ms"] + one["reader"]["graph_ms"]
    assert one["share"] == pytest.approx(parts / sum(one["least_answer"].values()))
    text = told.reader_width({"patches": 576, "prompt": 32, "most": most, "widths": {"tiny": one}})
    assert said in text
    assert f"{100 * one['share']:.2f} %" in text
