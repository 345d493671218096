"""An evaluation as a folder that a person decides from: report.json, plots, and one self-contained page."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from typing import Any

from export.runtime.artefact import describe, write_json
from router.table import Table

from . import summary
from .breakdown import worst
from .cards import examples
from .evaluate import ROUTER, Evaluation
from .learning import in_words
from .plots import draw
from .shown_rows import ShownRow
from .summary import claims, tokens, verdict

_CAPTIONS = {
    "accuracy": "Right answers against mean cost. Black: fixed scales, and the hull: the best that mixing two of them"
    " gives at a mean cost. Red: the router, with 95 % intervals of its gain over the hull at the stated budgets. A"
    " cascade asks at a coarse scale, and again at a finer one where the first token was unsure.",
    "chosen": "What the router chooses at its default price, by kind of question.",
    "reliability": "What the router said against what was right, in bins of equally many questions.",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1d21; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } h3 { font-size: 1rem }
.verdict { font-size: 1.15rem; border-left: 4px solid #c8102e; padding: .3rem 1rem; background: #faf6f6 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid #e6e8eb; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.router td { font-weight: 600; color: #c8102e }
figure { margin: 1.2rem 0 } figcaption { color: #5b616b; font-size: .9rem }
img.plot { width: 100% }
table.prose td, table.prose th { white-space: normal; text-align: left }
ul.answers { list-style: none; margin: .4rem 0 0; padding: 0; color: #5b616b; font-size: .85rem }
ul.answers li { overflow-wrap: anywhere }
.answers i { display: inline-block; height: .6em; margin-right: .4em; background: #c3c8d0 }
.answers .right { color: #1d7a3a; font-weight: 600 }
.answers .chosen { border-bottom: 2px solid #c8102e }
.examples { display: grid; grid-template-columns: repeat(4, 1fr); gap: .8rem }
@media (max-width: 48rem) {
  .examples { grid-template-columns: repeat(2, 1fr) }
  table { font-size: .72rem } th, td { white-space: normal; padding: .2rem .25rem }
}
.example { border: 1px solid #e6e8eb; border-radius: .5rem; padding: .7rem; font-size: .88rem }
.example img { width: 100%; image-rendering: pixelated; border-radius: .3rem } small { color: #5b616b }
"""


def write_report(
    folder: Path, e: Evaluation, table: Table, sources: dict[str, str], shown: tuple[dict[str, ShownRow], str]
) -> dict[str, Any]:
    """Write report.json, the plots and index.html into an empty folder; returns what report.json says.

    `sources` are the hashes of what the report was made from, `shown` what `shown_rows` gives.
    """
    plots = draw(e, folder)
    facts = describe("report", verdict=verdict(e), claims=claims(e), **sources, **e.to_json())
    write_json(folder / "report.json", facts)
    body = [
        "<h1>How many visual tokens are enough?</h1>",
        f'<p class="verdict">{html.escape(verdict(e))}</p>',
        f"<p>{html.escape(e.scored_by)}.</p>" if e.scored_by else "",
        "<ul>" + "".join(f"<li>{html.escape(claim)}</li>" for claim in claims(e)) + "</ul>",
        *([] if e.nothing_right else _compared(e, plots)),
        f"<h2>The ladder: {e.measures} by kind of question</h2>",
        _ladder_table(e),
        *([] if e.nothing_right else _decided(e, plots)),
        *_learning(e),
        "<h2>Examples</h2>",
        examples(e, table.test_rows, *shown),
        f"<p><small>{e.rows} test questions about {e.groups} pictures; intervals by bootstrap over pictures.</small>",
    ]
    page = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    page += f"<title>mvlm report</title><style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    (folder / "index.html").write_text(page, encoding="utf-8")
    return facts


def _compared(e: Evaluation, plots: dict[str, Path]) -> list[str]:
    """The router beside all that it must beat."""
    return [
        _figure("accuracy", plots),
        *(f"<p>{html.escape(line)}.</p>" for line in summary.counted(e)),
        "<h2>At stated budgets</h2>",
        _budget_table(e),
        "<ul>"
        + "".join(f"<li>{html.escape(line.strip())}</li>" for line in [summary.random_mix(e), *summary.oracles(e)])
        + "</ul>",
        _share(e),
        "<h2>Is this ladder worth a router?</h2>",
        f"<p>{html.escape(summary.worth_it(e))}</p>",
        _html_table(*summary.effort(e), kind="prose"),
    ]


def _decided(e: Evaluation, plots: dict[str, Path]) -> list[str]:
    """What the router decides, how sure it is, and what was promised of it."""
    return [
        _figure("chosen", plots),
        _parts(e),
        _figure("reliability", plots),
        "<h2>What was bounded</h2>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in summary.kept(e)) + "</ul>",
        "<h2>What is out of distribution</h2>",
        "<p>Pictures unlike those of the fit get the finest scale that the cap allows. The share (%) that was sent"
        " there:</p>",
        _html_table(["pictures", "sent, %"], summary.out_of_distribution(e)),
        *(f"<p>{html.escape(line)}.</p>" for line in summary.ood_cost(e)),
    ]


def _learning(e: Evaluation) -> list[str]:
    told = in_words(e.learning)
    return ["<h2>How many labels</h2>", *(f"<p>{html.escape(line)}.</p>" for line in told)] if told else []


def _figure(name: str, plots: dict[str, Path]) -> str:
    data = base64.b64encode(plots[name].read_bytes()).decode()
    caption = html.escape(_CAPTIONS[name])
    shown = f'<div class="wide"><img class="plot" alt="{caption}" src="data:image/png;base64,{data}"></div>'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def _budget_table(e: Evaluation) -> str:
    """At exactly each budget: points over the lookup and over the hull, right answers, and what asking for it takes."""
    ours = e.policy(ROUTER).at
    head = ["", *(f"{at.budget:g} {e.cost_unit}" for at in ours)]
    right = [f"router: {e.measures}, %", *(f"{100 * at.score:.1f}" for at in ours)]
    asked = ["router: spent when asked", *(f"{at.asked_cost:.2f}" for at in ours)]
    ahead = [[policy.name, *(at.ahead.points() for at in policy.at)] for policy in e.shown]
    if e.ceiling:
        ahead.append(["knows P(right)", *(points.points() for _, points in e.ceiling)])
    gains = [[policy.name, *(at.gain.points() for at in policy.at)] for policy in e.shown]
    unit, over = html.escape(e.cost_unit), "points over mixing two fixed scales"
    how = f"Every policy at exactly the same mean {unit}, with 95 % intervals paired by picture"
    if not e.tasks:
        return f"<p>{how}: {over}.</p>" + _html_table(head, [*gains, right, asked], marked=ROUTER)
    return "".join((
        f"<p>{how}: points over a lookup by the kind of question.</p>",
        _html_table(head, [*ahead, right, asked], marked=ROUTER),
        f"<p>{over.capitalize()}.</p>", _html_table(head, gains, marked=ROUTER),
    ))  # fmt: skip


def _share(e: Evaluation) -> str:
    if e.share is None:
        return ""
    which = "the oracle without its luck" if e.cross_sample_oracle else "the oracle, luck included,"
    return f"<p>At its default price the router reaches {100 * e.share:.0f} % of what {which} gains there.</p>"


def _parts(e: Evaluation) -> str:
    """Tasks and kinds of answers that have rows enough; nothing where none has."""
    least = worst(e.parts)
    if least is None:
        return ""
    rows = [
        [f"{part.kind}: {part.name}", str(part.rows), f"{part.mean_cost:.1f}", f"{100 * part.score:.1f}",
         f"{100 * part.finest:.1f}", part.difference.points()]
        for part in e.parts
    ]  # fmt: skip
    return "".join((
        "<h2>By task and by kind of answer</h2><p>At the default price, beside always the finest scale.</p>",
        _html_table(["", "rows", f"mean {e.cost_unit}", "right, %", "finest, %", "difference"], rows),
        f"<p>The worst group is {html.escape(least.kind)} {html.escape(least.name)}.</p>",
    ))  # fmt: skip


def _ladder_table(e: Evaluation) -> str:
    rows = [
        [name + (" (not learned)" if name in e.not_learned else ""), *(f"{100 * step:.1f}" for step in steps)]
        for name, steps in e.ladder.items()
    ]
    return _html_table([f"{e.measures}, %", *map(tokens, e.scales)], rows)


def _html_table(head: list[str], rows: list[list[str]], marked: str = "", kind: str = "figures") -> str:
    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = "".join(f'<tr class="{"router" if row[0] == marked else ""}">{line(row, "td")}</tr>' for row in rows)
    return f'<div class="wide"><table class="{kind}"><tr>{line(head, "th")}</tr>{body}</table></div>'
