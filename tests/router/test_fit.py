"""The fit: folds by picture, one candidate chosen, calibrated, checked against its graph, and constant on noise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
from onnx import numpy_helper

import router.fit.fit
import router.fit.write
from export.runtime import MvlmError
from export.runtime.errors import CheckFailed
from router.estimators.base import ScaleEstimator
from router.estimators.candidates import Blend, OnBasis
from router.estimators.learned import PooledTrees, ScaleLogistic
from router.fit.fit import DEFAULT_LOSS, FOLDS, Candidate, features, fit_count, fit_table, out_of_fold
from router.fit.risk_bound import Wanted, set_apart
from router.fit.write import OUT_OF_FOLD, PARITY, write_router
from router.graph.ask import ask_graph
from router.labels import read_table
from router.policy import choose, follow
from tests.support.labels_maker import FLAT, NOISE, PICTURE_DECIDES, Recipe, make_labels, quick, quick_candidates

pytestmark = pytest.mark.usefixtures("_quickly")


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    with quick():
        yield


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The rows to fit on, by what decides how many tokens they need."""
    folder = tmp_path_factory.mktemp("tables")
    recipes = {"question": Recipe(), "picture": PICTURE_DECIDES, "noise": NOISE, "flat": FLAT}
    found = {}
    for name, recipe in recipes.items():
        make_labels(folder / name / "labels", recipe)
        found[name] = read_table(folder / name / "labels").fit_rows
    return found


@pytest.fixture(scope="module")
def fits(tables):
    return {name: fit_table(table, seed=0, progress=lambda fits: None) for name, table in tables.items()}


class Recorder(ScaleEstimator):
    """Keeps which rows it was fitted on and asked about, by the number in their first feature."""

    met: list[tuple[set[float], set[float]]] = []  # noqa: RUF012

    def fit(self, x, y, tasks=None):
        self.seen = set(x[:, 0].tolist())
        self.scales = y.shape[1]
        return self

    def margins(self, x):
        self.met.append((self.seen, set(x[:, 0].tolist())))
        return np.tile(x[:, :1], (1, self.scales))


def test_no_picture_is_in_a_fit_and_beside_it(tables):
    table = tables["question"]
    x = np.arange(len(table), dtype=float)[:, None]
    numbered = replace(table, image=np.column_stack([x, table.image[:, 1:]]))
    Recorder.met.clear()
    margins = out_of_fold(Recorder(), numbered)
    assert len(Recorder.met) == FOLDS
    group_of = dict(zip(x[:, 0].tolist(), table.groups.tolist(), strict=True))
    held_out = []
    for seen, asked in Recorder.met:
        assert not {group_of[row] for row in seen} & {group_of[row] for row in asked}
        assert seen | asked == set(group_of)
        held_out += asked
    assert sorted(held_out) == x[:, 0].tolist()
    # Each row has its own margin, at its own place.
    np.testing.assert_array_equal(margins, np.tile(x, (1, 4)))


def test_a_question_that_decides_gives_a_gain(fits):
    fitted = fits["question"]
    assert not fitted.constant
    assert fitted.gain.low > 0.02
    assert "points over mixing fixed scales" in fitted.why


def test_a_picture_that_decides_gives_a_gain(fits):
    assert not fits["picture"].constant
    assert fits["picture"].gain.low > 0.005


@pytest.mark.parametrize("table", ["noise", "flat"])
def test_nothing_to_learn_ships_the_constant_router(fits, tables, table):
    fitted = fits[table]
    assert fitted.constant
    assert fitted.name == "constant"
    assert fitted.gain.low <= 0
    assert "no candidate beats mixing fixed scales" in fitted.why
    probability = fitted.calibration.probability(fitted.estimator.margins(features(tables[table])))
    assert (probability == probability[0]).all()
    np.testing.assert_allclose(probability[0], tables[table].scores.mean(axis=0), atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_other_rows_gain_nothing(tables, seed):
    table = tables["question"]
    order = np.random.default_rng(seed).permutation(len(table))
    shuffled = replace(table, samples=table.samples[order])
    fitted = fit_table(shuffled, seed=0, progress=lambda fits: None)
    assert fitted.constant
    assert fitted.gain.value < 0.01


def test_progress_is_told_of_every_fit(tables):
    told = []
    fit_table(tables["noise"], seed=0, progress=told.append)
    assert sum(told) == fit_count(tables["noise"]) == 3


def test_of_equals_the_simplest_is_taken(tables, monkeypatch):
    def twins(scales, seed):
        return {name: quick_candidates(scales, seed)["trees-small"] for name in ("simple", "flexible")}

    monkeypatch.setattr(router.fit.fit, "candidates", twins)
    fitted = fit_table(tables["picture"], seed=0, progress=lambda fits: None)
    assert fitted.name == "simple"
    assert (fitted.candidates[0].regret == fitted.candidates[1].regret).all()


@pytest.mark.parametrize(("regret_behind", "log_loss_behind", "taken"), [
    (0.9, 0.9, "simple"), (1.1, 0.0, "flexible"), (0.0, 1.1, "flexible"), (-3.0, 0.9, "simple"),
])  # fmt: skip
def test_a_simpler_one_is_taken_within_one_standard_error(regret_behind, log_loss_behind, taken):
    """Paired by group: what both find hard is wide, and what lies between them is what counts."""
    random = np.random.default_rng(0)
    hard = 10 * random.standard_normal(400)

    def behind(standard_errors):
        lies_between = random.standard_normal(400)
        lies_between = (lies_between - lies_between.mean()) / lies_between.std()
        return hard + lies_between + standard_errors / 20

    simple = Candidate("simple", ScaleLogistic(), np.zeros((0, 4)), behind(regret_behind), behind(log_loss_behind))
    flexible = Candidate("flexible", ScaleLogistic(), np.zeros((0, 4)), hard, hard)
    assert router.fit.fit._simplest_that_keeps_up([simple, flexible]).name == taken


def test_a_blend_is_the_mean_of_its_parts(tables, monkeypatch):
    """Its margins out of fold are taken from its parts, which is what fitting it in every fold gives."""
    parts = {"logistic": ScaleLogistic(3.0), "trees": PooledTrees((1, 4, 9, 36, 144), num_trees=10)}
    blend = OnBasis(Blend(parts))
    monkeypatch.setattr(
        router.fit.fit, "candidates", lambda scales, seed: {n: OnBasis(p) for n, p in parts.items()} | {"blend": blend}
    )
    table = tables["picture"]
    fitted = fit_table(table, seed=0, progress=lambda fits: None)
    slow = out_of_fold(blend, table)
    np.testing.assert_allclose(fitted.candidates[2].margins, slow, atol=1e-9)


def test_a_candidate_that_is_clearly_worse_is_not_taken(tables, monkeypatch):
    class Backwards(Recorder):
        def margins(self, x):
            return np.tile(np.linspace(3, -3, self.scales), (len(x), 1))

    def both(scales, seed):
        return {"simple": Backwards(), "flexible": quick_candidates(scales, seed)["logistic"]}

    monkeypatch.setattr(router.fit.fit, "candidates", both)
    fitted = fit_table(tables["question"], seed=0, progress=lambda fits: None)
    assert fitted.name == "flexible"
    simple, flexible = fitted.candidates
    assert not simple.keeps_up_with(flexible, "regret")


def test_probabilities_that_mean_less_are_not_taken_even_where_decisions_are_as_good(tables, monkeypatch):
    class Vague(ScaleLogistic):
        """Noise on all scales of a row alike: probabilities mean less."""

        def margins(self, x):
            return super().margins(x) + 2.0 * np.random.default_rng(0).standard_normal((len(x), 1))

    def both(scales, seed):
        return {"simple": Vague(3.0), "flexible": ScaleLogistic(3.0)}

    monkeypatch.setattr(router.fit.fit, "candidates", both)
    fitted = fit_table(tables["question"], seed=0, progress=lambda fits: None)
    simple, flexible = fitted.candidates
    assert not simple.keeps_up_with(flexible, "log_loss")
    assert fitted.name == "flexible"


def test_probabilities_out_of_fold_mean_what_they_say(tmp_path):
    known = make_labels(tmp_path / "labels", Recipe(rows=4000, groups=400, seed=5))
    table = read_table(tmp_path / "labels")
    fitted = fit_table(table.fit_rows, seed=0, progress=lambda fits: None)
    assert np.abs(fitted.out_of_fold - known[table.splits != "test"]).mean() < 0.05


def test_the_default_price_costs_little_of_the_finest_scale(fits, tables):
    for name, fitted in fits.items():
        scores, cost = tables[name].scores, tables[name].cost
        finest = scores.mean(axis=0)[-1]
        at = next(point for point in fitted.prices if point.price == fitted.default_price)
        assert at.score >= finest - DEFAULT_LOSS
        assert all(p.score < finest - DEFAULT_LOSS for p in fitted.prices if p.price > fitted.default_price)
        assert at.mean_cost < cost[-1] or fitted.default_price == 0
        choice = choose(fitted.out_of_fold, cost, fitted.default_price)
        outcome = follow(np.where(fitted.strange, len(cost) - 1, choice), scores, cost)
        assert outcome.mean[1] == at.score
        assert outcome.mean[0] == pytest.approx(at.mean_cost, rel=0.1)  # of what ships, and not of its folds


def test_what_is_written(fits, tables, tmp_path):
    fitted, table = fits["question"], tables["question"]
    facts = write_router(tmp_path, fitted, table, "the hash")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        OUT_OF_FOLD, "report.json", "router.json", "router.onnx",
    ]  # fmt: skip
    assert json.loads((tmp_path / "router.json").read_text()) == facts
    assert facts["scales"] == [1, 4, 9, 36]
    assert facts["labels_sha256"] == "the hash"
    assert facts["fitted_on"] == {"rows": 800, "groups": 80, "splits": ["val"]}
    assert facts["parity_max_difference"] <= PARITY
    assert facts["default_price"] in [point["price"] for point in facts["price_table"]]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [c["name"] for c in report["candidates"]] == ["logistic", "trees-small"]
    assert report["chosen"] == facts["estimator"] == fitted.name
    kept = pq.read_table(tmp_path / OUT_OF_FOLD)
    assert kept["id"].to_pylist() == table.ids.tolist()
    np.testing.assert_array_equal(kept["probability"].to_pylist(), fitted.out_of_fold)


@pytest.mark.parametrize("name", ["question", "picture", "noise"])
def test_the_file_chooses_as_the_policy_does(fits, tables, name, tmp_path):
    table = tables[name]
    write_router(tmp_path, fits[name], table, "")
    for price in (0.0, fits[name].default_price, 0.2):
        probability, choice, _ = ask_graph(tmp_path / "router.onnx", table, price)
        single = probability.astype(np.float32)
        np.testing.assert_array_equal(choice, choose(single, table.cost.astype(np.float32), np.float32(price)))


def test_the_same_seed_gives_the_same_file_and_another_does_not(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(
        router.fit.fit, "candidates", lambda scales, seed: {"trees": quick_candidates(scales, seed)["trees-small"]}
    )
    files = {}
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        (tmp_path / name).mkdir()
        fitted = fit_table(tables["question"], seed=seed, progress=lambda fits: None)
        write_router(tmp_path / name, fitted, tables["question"], "")
        files[name] = (tmp_path / name / "router.onnx").read_bytes()
    assert files["one"] == files["same"]
    assert files["one"] != files["other"]


@pytest.mark.parametrize("wrong", [0.05, float("nan")], ids=["a leaf", "no number"])
def test_a_graph_that_is_not_the_estimator_is_not_kept(fits, tables, tmp_path, monkeypatch, wrong):
    written = router.fit.write.router_graph

    def corrupted(*arguments, **named):
        model = written(*arguments, **named)
        for constant in model.graph.initializer:
            if constant.name == "intercept":
                constant.CopyFrom(
                    numpy_helper.from_array(numpy_helper.to_array(constant) + np.float32(wrong), "intercept")
                )
        return model

    monkeypatch.setattr(router.fit.write, "router_graph", corrupted)
    with pytest.raises(CheckFailed, match=r"router\.onnx and the fitted estimator differ by .*, and 1e-05 is allowed"):
        write_router(tmp_path, fits["question"], tables["question"], "")
    assert not (tmp_path / "router.json").exists()


def test_one_leaf_of_one_tree_is_noticed(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(
        router.fit.fit, "candidates", lambda scales, seed: {"trees": quick_candidates(scales, seed)["trees-small"]}
    )
    fitted = fit_table(tables["question"], seed=0, progress=lambda fits: None)
    written = router.fit.write.router_graph

    def corrupted(*arguments, **named):
        model = written(*arguments, **named)
        trees = next(node for node in model.graph.node if node.op_type == "TreeEnsembleRegressor")
        weights = next(attribute for attribute in trees.attribute if attribute.name == "target_weights")
        weights.floats[3] += 1e-3
        return model

    monkeypatch.setattr(router.fit.write, "router_graph", corrupted)
    with pytest.raises(CheckFailed, match="differ by"):
        write_router(tmp_path, fitted, tables["question"], "")


def test_the_written_graph_is_valid(fits, tables, tmp_path):
    write_router(tmp_path, fits["question"], tables["question"], "")
    onnx.checker.check_model(onnx.load(tmp_path / "router.onnx"), full_check=True)


def test_a_table_of_one_scale_is_constant(tmp_path):
    make_labels(tmp_path / "labels", Recipe(rows=200, groups=40, scales=(9,)))
    fitted = fit_table(read_table(tmp_path / "labels").fit_rows, seed=0, progress=lambda fits: None)
    assert fitted.constant


@pytest.mark.parametrize("by_task", [False, True])
def test_a_risk_bound_sets_rows_apart_and_decides_the_default_price(tables, tmp_path, by_task):
    table = tables["question"]
    wanted = Wanted((0.2, 0.001), 0.9, by_task=by_task)
    fitted = fit_table(table, seed=0, progress=lambda fits: None, wanted=wanted)
    assert len(fitted.candidates[0].margins) == (~fitted.apart).sum()
    assert not set(table.groups[fitted.apart]) & set(table.groups[~fitted.apart])
    tasks = [None, "easy", "fine"] if by_task else [None]
    assert [(p.within, p.task) for p in fitted.risk_bounds] == [(w, task) for w in (0.2, 0.001) for task in tasks]
    kept = [p.price for p in fitted.risk_bounds if p.within == 0.2]
    assert None not in kept
    assert fitted.default_price == min(kept)
    facts = write_router(tmp_path, fitted, table, "")
    assert facts["calibration_rows"] == fitted.apart.sum()
    assert facts["risk_bounds"][0]["words"].startswith("within 20 points of the finest at 90 % confidence")
    known = json.loads(onnx.load(tmp_path / "router.onnx").metadata_props[0].value)
    assert known["risk_bounds"] == [{"within": 0.2, "price": min(kept)}]


def test_a_risk_bound_that_cannot_be_given_leaves_the_safest_price(tables):
    fitted = fit_table(tables["question"], seed=0, progress=lambda fits: None, wanted=Wanted((0.001,)))
    assert fitted.risk_bounds[0].price is None
    assert fitted.default_price == 0


def test_the_rows_of_a_risk_bound_are_seen_by_no_fit(tables):
    """Whatever their scores are, the router is the same."""
    table = tables["question"]
    apart = set_apart(table.groups, 0)
    spoilt = replace(table, samples=np.where(apart[:, None, None], 0, table.samples))
    one, other = (fit_table(t, seed=0, progress=lambda fits: None, wanted=Wanted((0.05,))) for t in (table, spoilt))
    np.testing.assert_array_equal(one.out_of_fold, other.out_of_fold)
    assert (one.name, one.gain) == (other.name, other.gain)


def test_check_failed_is_one_of_ours():
    assert issubclass(CheckFailed, MvlmError)
