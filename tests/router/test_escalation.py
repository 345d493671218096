"""An escalation: taken where the first token is unsure, and off where that does not pay."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from export.runtime.routing.policy import escalation_features, escalations
from router.fit.escalation import fit_escalation, fit_rule, look_twice
from router.policy import choose, follow

COST = np.array([1.0, 4.0, 36.0])


def drawn(*, telling: bool, rows: int = 3000):
    """Probabilities that say little of a row (n, K), margins that tell whether an answer is right or not, scores."""
    random = np.random.default_rng(0)
    truth = np.sort(random.random((rows, 3)) ** 0.7, axis=1)
    scores = (random.random((rows, 1)) < truth).astype(np.float32)
    probability = np.clip(truth.mean(axis=0) + 0.02 * random.standard_normal((rows, 3)), 0.05, 0.95)
    margin = expit((4 * scores - 2 if telling else 0) + random.standard_normal((rows, 3)))
    groups = (np.arange(rows) // 3).astype(str)
    return probability, margin, scores, groups


def test_it_pays_where_the_margin_tells():
    probability, margin, scores, groups = drawn(telling=True)
    found = fit_escalation(probability, margin, scores, COST, groups)
    assert found.pays
    assert found.gain.value > 0.02
    outcome = look_twice(found.rule, probability, margin, scores, COST, 0.3)
    first = choose(probability, COST, 0.3)
    alone = follow(first, scores, COST)
    assert outcome.score.mean() > alone.score.mean()
    assert set(np.unique(outcome.cost - alone.cost)) <= {0.0, 4.0, 36.0}
    # Unsure answers are looked at again, sure ones are not.
    again = outcome.cost > alone.cost
    at = margin[np.arange(len(first)), first]
    assert at[again].mean() < at[~again].mean() - 0.2


def test_it_is_off_where_the_margin_says_nothing():
    probability, margin, scores, groups = drawn(telling=False)
    assert not fit_escalation(probability, margin, scores, COST, groups).pays


def test_the_rule_is_two_logistic_regressions():
    probability, margin, scores, _ = drawn(telling=True)
    rule = fit_rule(probability, margin, scores)
    pairs = [(0, 1), (0, 2), (1, 2)]
    x = np.concatenate([
        np.column_stack([logit(margin[:, a].clip(1e-6, 1 - 1e-6)), logit(probability[:, a]), logit(probability[:, b])])
        for a, b in pairs
    ])  # fmt: skip
    for name, which in (("now", 0), ("finer", 1)):
        y = np.concatenate([scores[:, pair[which]] for pair in pairs])
        theirs = LogisticRegression(C=1e6, tol=1e-8).fit(x, y).predict_proba(x)[:, 1]
        ours = expit(np.column_stack([np.ones(len(x)), x]) @ rule[name])
        assert np.abs(ours - theirs).mean() < 0.01


@pytest.mark.parametrize("keeps_cache", [False, True])
@pytest.mark.parametrize("cap", [None, 0.4])
def test_escalations_one_by_one(keeps_cache, cap):
    probability, margin, scores, _ = drawn(telling=True, rows=200)
    rule, relative, price = fit_rule(probability, margin, scores), COST / 36, 0.05
    at = np.random.default_rng(1).integers(3, size=200)
    rows = np.arange(200)
    found = escalations(rule, margin[rows, at], probability, at, relative, price, keeps_cache=keeps_cache, cap=cap)
    assert len(set(found.tolist())) > 1
    for row in rows:
        best, slow = 0.0, -1
        for dear in range(at[row] + 1, 3):
            seen = escalation_features(margin[row, at[row]], probability[row, at[row]], probability[row, dear])[0]
            extra = relative[dear] - keeps_cache * relative[at[row]]
            worth = expit(seen @ rule["finer"]) - expit(seen @ rule["now"]) - price * extra
            if worth > best and (cap is None or relative[at[row]] + extra <= cap):
                best, slow = worth, dear
        assert found[row] == slow
