"""An evaluation in words: what the terminal shows, and the sentences that head the page."""

from __future__ import annotations

from .evaluate import ROUTER, Evaluation
from .metrics import Interval


def verdict(e: Evaluation) -> str:
    """Is a router worth it here? One sentence."""
    finest, (spent, score) = e.ladder["all"][-1], e.default
    saved = 100 * (1 - spent / e.cost[-1])
    if e.flat:
        return (
            f"THE LADDER IS FLAT: from {tokens(e.scales[0])} to {e.scales[-1]} there are only {e.steepness.points()}"
            " points. A router is pointless here; use the cheapest scale."
        )
    winning = [at for at in e.policy(ROUTER).at if at.gain.low > 0]
    if not winning:
        return "The router does not beat mixing two fixed scales at any stated budget: use a fixed scale."
    best = max(winning, key=lambda at: at.gain.value)
    return (
        f"At its default price the router answers {100 * score:.1f} % right with {spent:.1f} {e.cost_unit} a question,"
        f" where always {tokens(e.scales[-1])} answers {100 * finest:.1f} %: {saved:.0f} % saved."
        f" At a mean of {best.budget:g} it is {best.gain.points()} points above mixing fixed scales."
    )


def tokens(scale: int) -> str:
    """A scale for people."""
    return f"{scale} token" if scale == 1 else f"{scale} tokens"


def claims(e: Evaluation) -> list[str]:
    """The claims that were tested, each with how it ended."""
    router = e.policy(ROUTER)
    # A claim about every mix holds where its weakest point holds.
    weakest = min(router.at, key=lambda at: at.gain.low)
    where = f"at the weakest budget, {weakest.budget:g} {e.cost_unit},"
    lines = [_held("the router lies above every mix of two fixed scales", weakest.gain, where)]
    sure = [f"{at.budget:g}" for at in router.at if at.gain.low > 0]
    if sure and len(sure) < len(router.at):
        lines.append(f"holds: it does so at {', '.join(sure)} {e.cost_unit}")
    lines.append(_held("averaged over the budgets, it lies above them", router.mean_gain))
    if e.picture_mean:
        kinds = ", ".join(e.picture_tasks)
        lines.append(
            _held(f"where the picture decides ({kinds}), reading it beats reading only the question", e.picture_mean)
        )
    else:
        lines.append(
            "not tested: whether reading the picture helps (no kind that the picture decides is named and learned)"
        )
    if e.not_learned:
        lines.append(f"left out, since even the finest scale has not learned them: {', '.join(e.not_learned)}")
    return lines


def lines(e: Evaluation) -> list[str]:
    """The whole evaluation for a terminal."""
    wide = max(len(name) for name in e.ladder)
    out = [verdict(e), "", f"right answers by kind and scale, {e.rows} test questions about {e.groups} pictures"]
    out.append(f"  {'':<{wide}}" + "".join(f"{m:>8}" for m in e.scales))
    for name, steps in e.ladder.items():
        mark = "   (not learned)" if name in e.not_learned else ""
        out.append(f"  {name:<{wide}}" + "".join(f"{step:8.3f}" for step in steps) + mark)
    out += [
        "",
        f"points above mixing fixed scales at equal mean {e.cost_unit}, with 95 % intervals, for stated budgets",
    ]
    out.append("(after @, the mean that was spent: a policy with few steps cannot spend a budget exactly)")
    budgets = [at.budget for at in e.policies[0].at]
    out.append(f"  {'':<16}" + "".join(f"{budget:>25g}" for budget in budgets))
    for policy in e.policies:
        cells = (f"{at.gain.points()} @{at.mean_cost:.0f}" for at in policy.at)
        out.append(f"  {policy.name:<16}" + "".join(f"{cell:>25}" for cell in cells))
    cost, score = e.oracle
    out.append(
        f"  oracle (cheapest right scale, part of it luck): {100 * score:.1f} % right at {cost:.1f} {e.cost_unit}"
    )
    if e.picture_gain:
        out.append("  router minus question only, where the picture decides:")
        out.append(f"  {'':<16}" + "".join(f"{gain.points():>25}" for _, gain in e.picture_gain))
    return [*out, "", *claims(e)]


def _held(claim: str, gain: Interval, where: str = "") -> str:
    measured = f"{where} {gain.points()} points".strip()
    return f"{'holds' if gain.low > 0 else 'NOT SHOWN'}: {claim} ({measured})"
