"""Scales with tiles: what each row pays, and that every part of the way from labels to the device counts it alike."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from export.runtime.backends.onnx import Device
from export.runtime.errors import MvlmError
from export.runtime.manifest import RouterFacts
from export.runtime.routing.policy import Policy, Seen
from export.runtime.routing.router import Router, Terms
from router.alike import left_out
from router.labels import read_table
from router.metrics import Resamples, gain_samples
from router.policy import Costs, Outcome, best_mix, choose, costs_of, follow, price_for_budget
from router.report.baselines import _by_size, knows_sizes
from router.report.evaluate import evaluate, router_of_labels, stated_budgets
from router.report.report import write_report
from router.report.summary import lines
from tests.support.judged import fit_into
from tests.support.labels_maker import TILED, alter, make_labels, quick

SCALES = (1, 4, 16, "4@4", "16@4", "16@16")


@cache
def made():
    folder = Path(tempfile.mkdtemp())
    make_labels(folder / "labels", TILED)
    table = read_table(folder / "labels")
    with quick():
        fit_into(folder / "router", table)
        facts = router_of_labels(folder / "router", table, folder / "labels")
        return folder, table, facts, evaluate(folder / "router", facts, table, lambda steps: None)


def test_each_row_pays_for_the_tiles_that_its_picture_has():
    _, table, _, _ = made()
    assert table.scales == SCALES
    for row in range(12):
        most = [0, 4, 16][int(table.groups[row][1:]) // 2 % 3]
        tiles = [min(most, n) for n in (0, 0, 0, 4, 4, 16)]
        wanted = [m * (1 + n) + 10.0 * n for m, n in zip((1, 4, 16, 4, 16, 16), tiles, strict=True)]
        assert table.row_cost[row].tolist() == wanted
    np.testing.assert_allclose(table.row_cost.mean(axis=0), table.cost)
    assert table.sizes == tuple(table.cost.tolist())
    some = table.take(np.arange(5))
    assert some.costs.of_rows.tolist() == table.row_cost[:5].tolist()
    assert some.costs.unit == table.cost.max()  # a price means the same on every part of the rows


def test_scales_stand_in_the_order_of_their_costs(tmp_path):
    make_labels(tmp_path / "labels", TILED)
    alter(
        tmp_path / "labels",
        facts={"scales": list(SCALES[::-1]), "cost": read_table(tmp_path / "labels").cost[::-1].tolist()},
    )
    assert read_table(tmp_path / "labels").scales == SCALES


def test_choosing_by_what_each_row_pays_against_a_loop():
    random = np.random.default_rng(0)
    probability, cost = random.random((200, 5)), np.sort(random.random((200, 5)) * 50 + 1, axis=1)
    costs = Costs(cost.mean(axis=0), cost)
    for price in (0.0, 0.3, 2.0):
        slow = [int(np.argmax(p - price * c / costs.unit)) for p, c in zip(probability, cost, strict=True)]
        assert choose(probability, costs, price).tolist() == slow
        spent = follow(np.array(slow), probability, costs).cost
        assert spent.tolist() == [cost[n, k] for n, k in enumerate(slow)]
    price = price_for_budget(probability, costs, 20.0)
    assert costs.spent(choose(probability, costs, price)).mean() == pytest.approx(20.0, abs=0.5)
    assert costs.spent(choose(probability, costs, price)).mean() <= 20.0
    same = costs_of(costs.usual)
    repeated = Costs(costs.usual, np.tile(costs.usual, (200, 1)))
    assert choose(probability, same, 0.4).tolist() == choose(probability, repeated, 0.4).tolist()


def test_caps_strangers_and_second_looks_by_row_against_a_loop():
    random = np.random.default_rng(1)
    probability, cost = random.random((60, 4)), np.sort(random.random((60, 4)) * 20 + 1, axis=1)
    rule = {"now": [0.1, 1.0, 0.5, 0.0], "finer": [0.2, 0.3, 0.1, 1.5]}
    seen = Seen(probability, random.random(60) < 0.2, random.random((60, 4)), cost)
    policy = Policy(cost.mean(axis=0), float(cost.mean(axis=0).max()), rule)
    for cap in (25.0, np.inf):
        whole = policy.decide(seen, 0.3, cap=cap)
        for n in range(60):
            alone = Policy(cost[n], policy.unit_cost, rule).decide(
                Seen(probability[n : n + 1], seen.strange[n : n + 1], seen.margin[n : n + 1]), 0.3, cap=cap
            )
            assert [whole.first[n], whole.last[n], whole.cost[n]] == [alone.first[0], alone.last[0], alone.cost[0]]


def test_the_hull_of_scales_that_change_places_against_every_mix():
    random = np.random.default_rng(2)
    for _ in range(20):
        cost, score = np.append(1.0, random.random(3) * 9 + 1.5), random.random(4)
        for budget in (1.0, 3.0, 6.0):
            mixes = [
                share * score[a] + (1 - share) * score[b]
                for a in range(4) for b in range(4) for share in np.linspace(0, 1, 401)
                if share * cost[a] + (1 - share) * cost[b] <= budget + 1e-9
            ]  # fmt: skip
            assert best_mix(cost, score, budget) == pytest.approx(max(mixes), abs=0.01)


def test_gains_are_over_mixes_that_cost_what_these_rows_pay():
    _, table, _, _ = made()
    test = table.test_rows
    resamples = Resamples(test.groups)
    for k in range(len(SCALES)):  # a fixed scale is never above the hull of all of them
        fixed = follow(np.full(len(test), k), test.scores, test.costs)
        assert gain_samples(fixed, test.scores, test.costs, resamples).max() <= 1e-12
    free = Outcome(test.scores[:, -1], np.full(len(test), float(test.cost[0])))
    assert gain_samples(free, test.scores, test.costs, resamples)[0] > 0


def test_the_graph_takes_costs_by_row_and_for_all_rows():
    folder, table, facts, _ = made()
    session = onnxruntime.InferenceSession(folder / "router" / "router.onnx")
    rows = table.take(np.arange(40))
    cost = rows.row_cost.astype(np.float32)
    feeds = {
        "image": rows.image, "question": rows.question, "price": np.asarray(0.3, np.float32),
        "unit_cost": np.asarray(table.costs.unit, np.float32),
    }  # fmt: skip
    probability, choice = session.run(["probability", "choice"], feeds | {"cost": cost})
    for n in range(40):
        alone = {name: value[n : n + 1] if np.ndim(value) else value for name, value in feeds.items()}
        assert session.run(["choice"], alone | {"cost": cost[n : n + 1]})[0].tolist() == [choice[n]]
    assert choice.tolist() == choose(probability, rows.costs, np.float32(0.3)).tolist()
    usual = session.run(["choice"], feeds | {"cost": table.cost.astype(np.float32)[None]})[0]
    assert usual.tolist() == choose(probability, table.cost, np.float32(0.3)).tolist()
    assert facts["scales"] == list(SCALES)
    assert facts["tile_tokens"] == 10.0


@pytest.mark.parametrize("device", [Device(), None])
def test_the_device_chooses_by_what_its_picture_costs(device):
    folder, table, facts, _ = made()
    known = RouterFacts("router.onnx", table.scales, tuple(facts["costs"]), "tokens", facts["default_price"])
    router = Router(folder / "router" / "router.onnx", known, SCALES, device)
    rows = table.take(np.arange(30))
    for n in range(len(rows)):
        chosen = router.choose(rows.image[n], rows.question[n], Terms(price=0.3), costs=rows.row_cost[n])
        probability = np.array(list(chosen.probabilities.values()))
        assert list(chosen.probabilities) == list(SCALES)
        if not chosen.out_of_distribution:
            best = SCALES[int(np.argmax(probability - 0.3 * rows.row_cost[n] / table.costs.unit))]
            assert chosen.scale == best
        assert chosen.cost == rows.row_cost[n, SCALES.index(chosen.scale)]
        assert chosen.reason.startswith((f"{chosen.scale}:", f"{chosen.scale} token"))
    part = Router(folder / "router" / "router.onnx", known, ("16@4", 4), device)
    assert part.offered == (4, "16@4")
    whole = router.choose(rows.image[0], rows.question[0]).probabilities
    told = part.choose(rows.image[0], rows.question[0]).probabilities
    assert told == pytest.approx({scale: whole[scale] for scale in (4, "16@4")}, abs=1e-5)
    with pytest.raises(MvlmError, match=r"was fitted for 1, 4, 16, 4@4, 16@4, 16@16, and not for 9@4"):
        Router(folder / "router" / "router.onnx", known, ("9@4",), device)


def test_the_report_says_what_a_cost_counts_and_compares_with_the_size_of_the_picture(tmp_path):
    _, table, _, e = made()
    told = "\n".join(lines(e))
    assert "10 for each tile that is encoded" in told
    assert "picture size" in [policy.name for policy in e.policies]
    assert "16@16" in told
    assert [at.budget for at in e.policy("router").at] == stated_budgets(table)
    assert e.policy("router").mean_gain.low > 0
    np.testing.assert_allclose(e.cost, table.test_rows.row_cost.mean(axis=0))
    facts = write_report(tmp_path, e, table, {}, ({}, ""))
    assert facts["tile_tokens"] == 10.0
    assert (tmp_path / "accuracy.png").is_file()


def test_the_rule_by_picture_size_against_means_by_hand():
    _, table, _, _ = made()
    fit, test = table.fit_rows, table.test_rows
    assert knows_sizes(table)
    of_fit, of_test = _by_size(fit, test)
    area = test.image[:, -2:].sum(axis=1)
    for size in np.unique(area):
        rows = fit.scores[fit.image[:, -2:].sum(axis=1) == size]
        shrunk = (rows.sum(axis=0) + 20 * fit.scores.mean(axis=0)) / (len(rows) + 20)
        np.testing.assert_allclose(of_test[area == size], np.tile(shrunk, ((area == size).sum(), 1)))
    assert of_fit.shape == fit.scores.shape


def test_labels_of_one_view_cannot_be_said_to_have_tiles(tmp_path):
    make_labels(tmp_path / "labels")
    alter(tmp_path / "labels", facts={"tile_tokens": 10.0})
    with pytest.raises(MvlmError, match="has no column tiles"):
        read_table(tmp_path / "labels")


def test_of_scales_that_show_every_row_alike_one_is_kept(tmp_path, mvlm):
    """Where no picture has more than four tiles, up to sixteen are no other scale."""
    make_labels(tmp_path / "labels", TILED)

    def few(rows):
        four = {row["id"]: row for row in rows if row["scale"] == "16@4"}
        return [four[row["id"]] | {"scale": "16@16"} if row["scale"] == "16@16" else row for row in rows]

    before = read_table(tmp_path / "labels")
    alter(tmp_path / "labels", labels=few, facts={"cost": [*before.cost[:5].tolist(), float(before.cost[4])]})
    table = read_table(tmp_path / "labels")
    assert table.scales == SCALES[:5]
    assert table.cost.tolist() == before.cost[:5].tolist()
    for name in ("samples", "margins", "predictions", "row_cost"):
        np.testing.assert_array_equal(getattr(table, name), getattr(before, name)[..., :5])
    assert left_out(table) == ["  16@16 shows every labelled row as a scale before it does, and is left out"]
    assert left_out(before) == []
    with quick():
        fitted = mvlm("fit-router", tmp_path / "labels", "--out", tmp_path / "router")
    assert fitted.exit_code == 0, (fitted.output, fitted.exc_info)
    assert left_out(table)[0] in fitted.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": {"tile_tokens": -30.0}}, "costs that are not above 0: r"),
        ({"labels": lambda rows: [row | {"tiles": None} for row in rows]}, "costs that are not above 0: r"),
        ({"facts": {"cost": [1.0, 4.0, 16.0, 16.0, 90.0, 200.0]}}, "must both increase"),
    ],
)  # fmt: skip
def test_labels_that_are_not_in_order(change, message, tmp_path):
    make_labels(tmp_path / "labels", TILED)
    alter(tmp_path / "labels", **change)
    with pytest.raises(MvlmError, match=message):
        read_table(tmp_path / "labels")
