"""An evaluation in words: what the terminal shows, and the sentences that head the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from export.runtime.views.scale import ScaleWord
from router.measures import RIGHT
from router.metrics import Interval

from .baselines import CascadePoint
from .budgets import LOOKUP
from .evaluate import HALF_A_POINT, ROUTER, Evaluation
from .learning import in_words


def verdict(e: Evaluation) -> str:
    """Is a router worth it here? One sentence."""
    finest, (spent, score) = e.ladder["all"][-1], e.default
    saved = 100 * (1 - spent / e.cost[-1])
    if e.nothing_right:
        return (
            "HARDLY AN ANSWER IS RIGHT at any scale, so nothing can be said of a router. Look at the answers: is it the"
            f" model, or the metric ({e.scored_by or 'not said'})? Longer answers want f1 or contains (docs/scores.md)."
        )
    if e.flat:
        return (
            f"THE LADDER IS FLAT: from {tokens(e.scales[0])} to {e.scales[-1]} there are only {e.steepness.points()}"
            " points. A router is pointless here; use the cheapest scale."
        )
    if e.undecided:
        return (
            f"It is not shown that more tokens help: from {tokens(e.scales[0])} to {e.scales[-1]} there are"
            f" {e.steepness.points()} points{_would_decide(e, e.steepness, 0.0)}. More test pictures would tell."
        )
    winning = [at for at in e.policy(ROUTER).at if at.gain.low > 0]
    if not winning:
        gain = e.policy(ROUTER).mean_gain
        return (
            "The router does not surely beat mixing two fixed scales at any stated budget (averaged"
            f" {gain.points()} points{_would_decide(e, gain, 0.0)}): until it does, use a fixed scale."
        )
    best = max(winning, key=lambda at: at.gain.value)
    return (
        f"At its default price the router {_reaches(e, score)} with {spent:.1f} {e.cost_unit} a question,"
        f" where always {tokens(e.scales[-1])} {_reaches(e, finest)}: {saved:.0f} % saved."
        f" At a mean of {best.budget:g} it is {best.gain.points()} points above mixing fixed scales."
    )


def _reaches(e: Evaluation, score: float) -> str:
    if e.measures == RIGHT:
        return f"answers {100 * score:.1f} % right"
    return f"reaches {100 * score:.1f} % {e.measures}"


def tokens(scale: ScaleWord) -> str:
    """A scale for people; one with tiles is its word."""
    if isinstance(scale, str):
        return scale
    return f"{scale} token" if scale == 1 else f"{scale} tokens"


def counted(e: Evaluation) -> list[str]:
    """What a cost counts, where that is more than tokens."""
    if e.tile_tokens is None:
        return []
    return [
        f"a cost is the tokens that the language model reads and {e.tile_tokens:.3g} for each tile that is encoded (the"
        " tower's share, by multiplications); the overview is encoded in any case"
    ]


def oracles(e: Evaluation) -> list[str]:
    """What no router can pass, with and without its luck."""
    luck = f"oracle (cheapest right scale, part of it luck): {100 * e.oracle.score:.1f} % at {e.oracle.mean_cost:.1f}"
    out = [f"  {luck} {e.cost_unit}"]
    if e.cross_sample_oracle:
        cross_sample = e.cross_sample_oracle
        out.append(
            f"  oracle without its luck (chosen on one run, judged on another): {100 * cross_sample.score:.1f} %"
            f" at {cross_sample.mean_cost:.1f} {e.cost_unit}"
        )
    else:
        out.append("  the oracle's luck cannot be taken out: there is one sample of each row; mvlm label --samples 2")
    return out


def random_mix(e: Evaluation) -> str:
    """The router's own choices, shuffled over the rows."""
    (cost, score), (spent, right) = e.random_mix, e.default
    return (
        f"a random mix of the router's own shares: {100 * score:.1f} % at {cost:.1f} {e.cost_unit}"
        f" (the router: {100 * right:.1f} % at {spent:.1f})"
    )


def half(e: Evaluation) -> str:
    """Half of the finest scale's tokens for at most half a point less: whether it is so, and if not what bounds it."""
    spent = e.half_cost
    text = f"at a price read from the {e.rows_labelled:,} rows of the fit alone, the test rows spend"
    text += f" {100 * spent / e.cost[-1]:.1f} % of the finest scale's {e.cost_unit},"
    text += f" {e.half.points()} points from it"
    if spent <= e.cost[-1] / 2 and e.half.low >= -HALF_A_POINT:
        return f"holds: half the {e.cost_unit} for at most half a point less ({text})"
    if spent <= e.cost[-1] / 2 and e.half.value > -HALF_A_POINT:
        more = _would_decide(e, e.half, -HALF_A_POINT)
        return f"NOT SHOWN: half the {e.cost_unit} for at most half a point less ({text}{more})"
    bound = e.cross_sample_oracle or e.oracle
    what = "the oracle without its luck" if e.cross_sample_oracle else "the oracle, luck included"
    return (
        f"NOT SHOWN: half the {e.cost_unit} for at most half a point less ({text}); {what} reaches"
        f" {100 * bound.score:.1f} % at {bound.mean_cost:.1f}, and of its gain the features give"
        f" {100 * (e.share or 0):.0f} %"
    )


def effort(e: Evaluation) -> tuple[list[str], list[list[str]]]:
    """What each way of choosing asks for, and what it brings: head and rows."""
    middle = [at.budget for at in e.policy(ROUTER).at]

    def brings(name: str) -> str:
        return e.policy(name).mean_gain.points()

    labelled = f"{e.rows_labelled:,} rows at {len(e.scales)} scales"
    rows = [
        ["one fixed scale", "nothing", "0 (the scales themselves)"],
        ["mixing two fixed scales", "nothing", "0 (what gains are counted from)"],
    ]
    if e.tasks:
        rows.append(["a table by task", f"the task of each question; {labelled}", brings(LOOKUP)])
    rows.append(["the router", f"{labelled}; a fit on a CPU", brings(ROUTER)])
    if e.cascade:
        rows.append(["a cascade", "a second answer, finer, where the first token was unsure", "see the plot"])
    budgets = ", ".join(f"{budget:g}" for budget in middle)
    return ["way", "effort", f"points over mixing two fixed scales, mean of budgets {budgets}"], rows


def worth_it(e: Evaluation) -> str:
    """Is this ladder worth a router at all? One sentence."""
    if e.nothing_right:
        return "It cannot be said: hardly an answer is right."
    if e.flat:
        return "No: the ladder is flat, and the cheapest scale does as well."
    router, lookup = e.policy(ROUTER).mean_gain, e.policy(LOOKUP).mean_gain
    if router.low <= 0:
        more = _would_decide(e, router, 0.0)
        return f"Not shown: the router is not surely above mixing two fixed scales ({router.points()} points{more})."
    if not e.tasks:
        return f"Yes: {router.points()} points over mixing two fixed scales."
    if router.value - lookup.value < HALF_A_POINT:
        return "Only just: a table by task, where the task is known, brings about as much."
    return f"Yes: {router.points()} points over mixing fixed scales, where a table by task brings {lookup.points()}."


def out_of_distribution(e: Evaluation) -> list[list[str]]:
    """What share of each kind of picture is sent to the finest scale as out of distribution."""
    return [["ordinary test rows", f"{100 * e.strange:.1f}"]] + [
        [kind, f"{100 * share:.1f}"] for kind, share in e.out_of_distribution.items()
    ]


def ood_cost(e: Evaluation) -> list[str]:
    """What sending ordinary rows there costs: by the fit, and on the test rows."""
    costs = ", ".join(f"{lost.points()} at {budget:g}" for budget, lost in e.ood_costs)
    return [*e.ood_words, f"points that this costs the ordinary test rows at exactly a mean of so many: {costs}"]


def kept(e: Evaluation) -> list[str]:
    """Each risk bound, and what the test rows say of it."""
    said = []
    for risk_bound in e.risk_bounds:
        came = "" if risk_bound.loss is None else (
            f"; on the test rows it lost {risk_bound.loss.points()} points at a mean of {risk_bound.mean_cost:.1f}"
            f" {e.cost_unit}"
        )  # fmt: skip
        said.append(f"{risk_bound.words}{came}")
    return said or ["nothing was bounded: fit with --within 1% to have a bound"]


def claims(e: Evaluation) -> list[str]:
    """The claims that were tested, each with how it ended."""
    if e.nothing_right:
        return ["not tested: nothing, since hardly an answer is right"]
    router = e.policy(ROUTER)
    # A claim about every mix holds where its weakest point holds.
    weakest = min(router.at, key=lambda at: at.gain.low)
    where = f"at the weakest budget, {weakest.budget:g} {e.cost_unit},"
    lines = [_held(e, "the router lies above every mix of two fixed scales", weakest.gain, where)]
    sure = [f"{at.budget:g}" for at in router.at if at.gain.low > 0]
    if sure and len(sure) < len(router.at):
        lines.append(f"holds: it does so at {', '.join(sure)} {e.cost_unit}")
    lines.append(_held(e, "averaged over the budgets, it lies above them", router.mean_gain))
    if e.tasks:
        by_kind = "at equal cost it beats a lookup by the kind of question, averaged over the budgets"
        lines.insert(0, _held(e, by_kind, router.mean_ahead))
    lines.append(half(e))
    if e.picture_mean:
        kinds = ", ".join(e.picture_tasks)
        lines.append(
            _held(e, f"where the picture decides ({kinds}), reading it beats reading only the question", e.picture_mean)
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
    out = [verdict(e), "", f"{e.measures} by kind and scale, {e.rows} test questions about {e.groups} pictures"]
    out += [e.scored_by] if e.scored_by else []
    out += counted(e)
    out.append(f"  {'':<{wide}}" + "".join(f"{m:>8}" for m in e.scales))
    for name, steps in e.ladder.items():
        mark = "   (not learned)" if name in e.not_learned else ""
        out.append(f"  {name:<{wide}}" + "".join(f"{step:8.3f}" for step in steps) + mark)
    if e.nothing_right:
        return [*out, "", *claims(e)]  # of nothing there is nothing to compare
    out += ["", *at_budgets(e)]
    out.append(f"  {random_mix(e)}")
    out += [
        f"  cascade on the first token, budget {c.budget:g}: {100 * c.score:.1f} % at {c.mean_cost:.1f} {e.cost_unit}"
        f" ({c.first}, then {c.then})"
        for c in _unlike(e.cascade)
    ]
    out += oracles(e)
    if e.picture_gain:
        out.append("  router minus question only, where the picture decides:")
        out.append(f"  {'':<16}" + "".join(f"{gain.points():>25}" for _, gain in e.picture_gain))
    out += [
        "",
        "sent to the finest scale as out of distribution (%): "
        + ", ".join(f"{k} {v}" for k, v in out_of_distribution(e)),
        *ood_cost(e),
    ]
    out += [f"risk bound: {line}" for line in kept(e)]
    out += in_words(e.learning) or ["how many pictures are worth labelling: mvlm report --learning-curve says"]
    return [*out, "", *claims(e)]


def _unlike(points: Sequence[CascadePoint]) -> list[CascadePoint]:
    """Without those that are what the one before them is, though at another budget."""
    found: list[CascadePoint] = []
    for point in points:
        if not found or replace(point, budget=found[-1].budget) != found[-1]:
            found.append(point)
    return found


def at_budgets(e: Evaluation) -> list[str]:
    """Every policy at exactly the stated budgets: over the lookup by kind first, then over mixing fixed scales."""
    budgets = [at.budget for at in e.policies[0].at]
    wide = max(len(policy.name) for policy in e.shown)
    head = f"  {'':<{wide}}" + "".join(f"{budget:>22g}" for budget in budgets)
    out = []
    over_lookup = [("the lookup by task", "ahead")] if e.tasks else []
    for what, of in (*over_lookup, ("mixing two fixed scales", "gain")):
        out += [f"points above {what} at exactly a mean of so many {e.cost_unit}, with 95 % intervals", head]
        for policy in e.shown:
            cells = "".join(f"{getattr(at, of).points():>22}" for at in policy.at)
            out.append(f"  {policy.name:<{wide}}{cells}")
    if e.ceiling and e.tasks:
        cells = "".join(f"{ahead.points():>22}" for _, ahead in e.ceiling)
        out.insert(2 + len(e.shown), f"  {'knows P(right)':<{wide}}{cells}")
    spent = ", ".join(f"{at.asked_cost:.2f} for {at.budget:g}" for at in e.policy(ROUTER).at)
    return [*out, f"  asked of the router, and spent on the test rows: {spent} {e.cost_unit}"]


def _held(e: Evaluation, claim: str, gain: Interval, where: str = "") -> str:
    measured = f"{where} {gain.points()} points".strip()
    if gain.low > 0:
        return f"holds: {claim} ({measured})"
    return f"NOT SHOWN: {claim} ({measured}{_would_decide(e, gain, 0.0)})"


def _would_decide(e: Evaluation, gain: Interval, bound: float) -> str:
    """How many test pictures would put the interval above the bound, were the figure to stay: its width falls as the
    root of their number. Nothing where the figure itself is not above it."""
    if gain.value <= bound or gain.low > bound:
        return ""
    needed = math.ceil(e.groups * ((gain.value - gain.low) / (gain.value - bound)) ** 2)
    return f"; about {needed:,} test pictures would decide, and there are {e.groups:,}"
