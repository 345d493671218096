"""What the rule for what is out of distribution costs ordinary rows, as asked for and as the fit takes it.

`python -m benchmarks.router.ood_rule`: on the tables of `benchmarks.router`, whose probabilities are known, the rule is
chosen on some rows and judged on others, by the probabilities themselves. What it still notices is counted on rows that
were moved away from all others, by so many standard deviations of every feature in a drawn direction.

Letters: n rows, d features, K scales.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import click
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.machine import keep
from export.runtime.routing.policy import Policy, Seen, is_strange
from router.estimators.novelty import Familiarity
from router.fit.fit import LEAST_P_VALUE, features
from router.fit.ood_rule import OodRule, fit_ood_rule
from router.policy import exactly

from .__main__ import CASES, COST, Case, Floats, draw

_ROWS, _TEST_ROWS, _MOVED_ROWS = 8000, 8000, 1000
_MOVED = (1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Judged:
    """A threshold for p-values on rows that it was not chosen on: the share of ordinary rows below it, the right
    answers that this costs at each budget, and the share noticed of rows that were moved, by how far."""

    least_p_value: float
    ordinary: float
    costs: list[float]
    noticed: dict[str, float]


def judged(
    least: float, rule: OodRule, usual: Familiarity, x: Floats, truth: Floats, random: np.random.Generator
) -> Judged:  # fmt: skip
    """The rule with another threshold, on the features (n, d) and true probabilities (n, K) of new rows."""
    policy = Policy(COST, float(COST[-1]))
    strange = is_strange(usual.p_value(x), least)
    never = Seen(truth, np.zeros(len(x), bool))
    marked = replace(never, strange=strange)
    costs = [
        float(exactly(policy, never, truth, b).score.mean() - exactly(policy, marked, truth, b).score.mean())
        for b in rule.budgets
    ]
    away = random.standard_normal((_MOVED_ROWS, x.shape[1])).astype(np.float32)
    away *= x.std(axis=0) * np.sqrt(x.shape[1]) / np.linalg.norm(away, axis=1, keepdims=True)
    some = x[:_MOVED_ROWS]
    noticed = {f"{by:g}": float(is_strange(usual.p_value(some + by * away), least).mean()) for by in _MOVED}
    return Judged(least, float(strange.mean()), costs, noticed)


def measured(case: Case, asked: float, seed: int = 0) -> dict[str, Any]:
    """One table: the rule that the fit takes, and it and the whole share asked for on other rows."""
    random = np.random.default_rng(seed)
    table, truth = draw(case, _ROWS, random)
    test, test_truth = draw(case, _TEST_ROWS, random)
    usual = Familiarity(table.image.shape[1]).fit(features(table), table.groups)
    seen = Seen(truth, np.zeros(_ROWS, bool))
    policy, rows = Policy(COST, float(COST[-1])), len(usual.calibration_)
    rule = fit_ood_rule(policy, seen, usual.out_of_fold_, table.scores, asked, rows=rows)
    on_test = {
        name: asdict(judged(least, rule, usual, features(test), test_truth, np.random.default_rng(seed + 1)))
        for name, least in (("as asked", asked), ("as taken", rule.least_p_value))
    }
    return {"budgets": list(rule.budgets), "fit": asdict(rule), "other_rows": on_test}


@click.command()
@click.option("--asked", default=LEAST_P_VALUE, show_default=True, help="The share that may be taken for such.")
def main(asked: float) -> None:
    """Measure every table and keep the figures."""
    with threadpool_limits(1):
        found = {case.name: measured(case, asked) for case in CASES}
    for name, one in found.items():
        for how, at in one["other_rows"].items():
            click.echo(f"{name}, {how}: {100 * max(at['costs']):.2f} points at most, noticed {at['noticed']}")
    click.echo(keep("ood_rule", f"python -m benchmarks.router.ood_rule --asked {asked:g}", asked=asked, tables=found))


if __name__ == "__main__":
    main()
