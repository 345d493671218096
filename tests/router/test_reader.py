"""The reader: it learns what no feature tells, is refused where it does not pay, and its graphs are its trainer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.runtime.artefact import read_artefact
from export.runtime.backends.onnx import Device
from export.runtime.errors import CheckFailed, MvlmError
from export.runtime.routing.numpy_onnx import GraphWalk
from export.runtime.routing.reading import Read
from export.runtime.routing.router import Router, Terms
from export.runtime.routing.router_folder import READER_FILE, read_router
from router.estimators import reader as readers
from router.estimators.reader import Reader, grid_sides, why_not
from router.fit.fit import READER, contenders, fit_count, fit_table, seen_by
from router.fit.write import PARITY, write_router
from router.graph.ask import ask_graph, p_values
from router.reading import NO_TOKEN
from router.report.evaluate import evaluate
from tests.support.labels_maker import quick
from tests.support.reading_maker import SCALES, read_recipe


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return read_recipe(tmp_path_factory.mktemp("reading"), pictures=240, wide=24)


@pytest.fixture(scope="module", autouse=True)
def few():
    """Fewer pictures and epochs than a reader is worth."""
    with pytest.MonkeyPatch.context() as patch, quick():
        patch.setattr(readers, "FEWEST_PICTURES", 100)
        patch.setattr(Reader.__init__, "__defaults__", ((1,), 8, 0))
        yield


@pytest.fixture(scope="module")
def fitted(table, tmp_path_factory):
    """A router that reads, and its folder."""
    found = fit_table(table.fit_rows, seed=0, progress=lambda fits: None)
    folder = tmp_path_factory.mktemp("router")
    return found, folder, write_router(folder, found, table.fit_rows, "")


def test_what_only_the_picture_tells_is_read(fitted):
    found, _, facts = fitted
    assert found.name == facts["estimator"] == READER
    assert facts["reader"] == READER_FILE
    assert found.gain.low > 0.005
    others = [c for c in found.candidates if c.name != READER]
    assert min(c.log_loss.mean() for c in others) > found.candidates[-1].log_loss.mean() + 0.02


def test_it_is_refused_where_it_does_not_pay(table, monkeypatch):
    """Patches of other pictures tell nothing: what reads features keeps up."""
    part = table.fit_rows
    other = np.random.default_rng(0).permutation(len(part.reading.patches))
    torn = replace(part, reading=replace(part.reading, patches=part.reading.patches[other]))
    told = []
    monkeypatch.setattr(Reader.__init__, "__defaults__", ((1,), 2, 0))
    found = fit_table(torn, seed=0, progress=told.append)
    assert sum(told) == fit_count(torn) == 4
    assert found.name != READER


def test_the_graphs_are_the_trainer(fitted, table):
    found, folder, facts = fitted
    assert facts["parity_max_difference"] <= PARITY
    test = table.test_rows
    probability, choice, p_value = ask_graph(folder / "router.onnx", test, 0.1)
    said = found.calibration.probability(found.estimator.margins(seen_by(found.estimator, test)))
    np.testing.assert_allclose(probability, said, atol=PARITY)
    utility = probability - 0.1 * test.cost / test.cost.max()
    assert (choice == utility.argmax(axis=1)).mean() > 0.999
    np.testing.assert_allclose(p_values(folder / "router.onnx", test.image, test.question, test.cost), p_value)


def test_numpy_walks_what_onnxruntime_runs(fitted, table):
    _, folder, _ = fitted
    known = read_router(folder, "a model").known
    test = table.test_rows
    routers = [Router(folder / "router.onnx", known, SCALES, device) for device in (Device(threads=1), None)]
    assert isinstance(routers[1]._reader, GraphWalk)
    wide = test.reading.projection.T
    probability, *_ = ask_graph(folder / "router.onnx", test, 0.0)
    for n in range(0, len(test), 50):
        words = test.reading.patches[test.reading.picture[n]].astype(np.float32) @ wide
        tokens = test.reading.tokens[n]
        question = test.reading.words[tokens[tokens != NO_TOKEN]].astype(np.float32) @ wide
        for router in routers:
            read = Read(router.look(words), question)
            said = router.probabilities(test.image[n], test.question[n], read)
            np.testing.assert_allclose(said, probability[n], atol=PARITY)
            cheaper = router.with_costs({m: float(m + 5) for m in SCALES}, "ms")
            chosen = cheaper.choose(test.image[n], test.question[n], Terms(price=0.1), read)
            np.testing.assert_allclose(list(chosen.probabilities.values()), probability[n], atol=PARITY)
        with pytest.raises(MvlmError, match="reads pictures, and was given none"):
            router.choose(test.image[n], test.question[n])


def test_a_report_judges_what_ships(fitted, table):
    _, folder, facts = fitted
    e = evaluate(folder, facts, table, lambda steps: None)
    ahead = e.policy("router").mean_ahead
    assert ahead.value > 0.01
    assert ahead.low > 0
    with pytest.raises(MvlmError, match="the labels hold no patches"):
        evaluate(folder, facts, replace(table, reading=None), lambda steps: None)


def test_weights_of_another_rounding_are_noticed(fitted, table, tmp_path):
    """The parity of a fit can fail: an estimator that is not quite what the graph holds."""
    found, *_ = fitted
    estimator = found.estimator
    changed = Reader(SCALES)
    changed.__dict__ |= estimator.__dict__
    kept = Reader.on_device
    changed.on_device = lambda name: kept(estimator, name) * np.float16(1.01)
    (tmp_path / "router").mkdir()
    with pytest.raises(CheckFailed, match=r"router.onnx and the fitted estimator differ"):
        write_router(tmp_path / "router", replace(found, estimator=changed), table.fit_rows, "")


def test_a_router_whose_reader_is_missing_or_another(fitted, tmp_path):
    _, folder, _ = fitted
    for name in ("router.onnx", "router.json", "out_of_fold.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(MvlmError, match=r"reader.onnx is missing or was changed"):
        read_router(tmp_path, "a model")
    text = (tmp_path / "router.json").read_text()
    (tmp_path / "router.json").write_text(text.replace(f'"reader": "{READER_FILE}"', '"reader": "../x.onnx"'))
    assert read_artefact(tmp_path, "router")["reader"] == "../x.onnx"
    with pytest.raises(MvlmError, match=r"names '../x.onnx' as its reader"):
        read_router(tmp_path, "a model")


def test_when_there_is_no_reader_and_why(table, monkeypatch):
    assert READER in contenders(table, 0)
    assert "hold no patches" in why_not(None)
    assert READER not in contenders(replace(table, reading=None), 0)
    some = table.take(np.arange(40))
    assert "pictures are labelled, and it takes at least 100" in why_not(some.reading)
    monkeypatch.setattr(readers, "find_spec", lambda name: None)
    assert "torch is not installed" in why_not(table.reading)


def test_the_same_seed_reads_the_same(table):
    some = table.take(np.arange(300))
    one, two, other = (
        Reader(SCALES, epochs=1, seed=seed).fit(seen_by(Reader(), some), some.targets) for seed in (0, 0, 1)
    )
    rows = seen_by(Reader(), some)
    np.testing.assert_array_equal(one.margins(rows), two.margins(rows))
    assert not np.array_equal(one.margins(rows), other.margins(rows))


def test_the_grids_are_those_of_the_scales():
    assert grid_sides(12, (1, 4, 9, 36, 144)) == (12, 6, 3, 2, 1)
    assert grid_sides(7, (1, 49, 20)) == (7, 1)
    assert grid_sides(8, (1, 9, 16)) == (8, 4, 2, 1)
