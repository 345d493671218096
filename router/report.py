"""An evaluation as a folder that a person decides from: report.json, plots, and one self-contained page."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime.artefact import describe, write_json

from .evaluate import ROUTER, Evaluation
from .plots import draw
from .summary import claims, verdict
from .table import Table

_EXAMPLES = 4
_LARGEST_PICTURE_BYTES = 200_000
_CAPTIONS = {
    "accuracy": "Right answers against mean cost. Black: fixed scales and what mixing two of them reaches. Red: the router,"
    " with 95 % intervals of its gain at the stated budgets.",
    "chosen": "What the router chooses at its default price, by kind of question.",
    "reliability": "What the router said against what was right, in bins of equally many questions.",
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1d21; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.verdict { font-size: 1.15rem; border-left: 4px solid #c8102e; padding: .3rem 1rem; background: #faf6f6 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e6e8eb; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr.router td { font-weight: 600; color: #c8102e }
img.plot { max-width: 100% } figure { margin: 1.2rem 0 } figcaption { color: #5b616b; font-size: .9rem }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem }
.example { border: 1px solid #e6e8eb; border-radius: .5rem; padding: .7rem; font-size: .88rem }
.example img { width: 100%; image-rendering: pixelated; border-radius: .3rem } small { color: #5b616b }
"""


def write_report(folder: Path, e: Evaluation, table: Table, sources: dict[str, str]) -> dict[str, Any]:
    """Write report.json, the plots and index.html into an empty folder; returns what report.json says.

    `sources` are the hashes of what the report was made from.
    """
    plots = draw(e, folder)
    facts = describe("report", verdict=verdict(e), claims=claims(e), **sources, **e.to_json())
    write_json(folder / "report.json", facts)
    body = [
        "<h1>How many visual tokens are enough?</h1>",
        f'<p class="verdict">{html.escape(verdict(e))}</p>',
        "<ul>" + "".join(f"<li>{html.escape(claim)}</li>" for claim in claims(e)) + "</ul>",
        _figure("accuracy", plots),
        "<h2>At stated budgets</h2>",
        f"<p>Points above mixing two fixed scales at the same mean {e.cost_unit}, with 95 % intervals paired by picture.</p>",
        _budget_table(e),
        f"<p>The oracle takes the cheapest right scale of each question: {100 * e.oracle[1]:.1f} % right at"
        f" {e.oracle[0]:.1f} {e.cost_unit}. Part of that is luck, and no router can reach it.</p>",
        "<h2>The ladder: right answers by kind of question</h2>",
        _ladder_table(e),
        _figure("chosen", plots),
        _figure("reliability", plots),
        "<h2>Examples</h2>",
        _examples(e, table),
        f"<p><small>{e.rows} test questions about {e.groups} pictures; intervals by bootstrap over pictures.</small></p>",
    ]
    page = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    page += f"<title>mvlm report</title><style>{_STYLE}</style><body>{''.join(body)}</body></html>\n"
    (folder / "index.html").write_text(page, encoding="utf-8")
    return facts


def _figure(name: str, plots: dict[str, Path]) -> str:
    data = base64.b64encode(plots[name].read_bytes()).decode()
    caption = html.escape(_CAPTIONS[name])
    return f'<figure><img class="plot" alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'


def _budget_table(e: Evaluation) -> str:
    head = ["", *(f"{at.budget:g} {e.cost_unit}" for at in e.policies[0].at)]
    rows = [[policy.name, *(at.gain.points() for at in policy.at)] for policy in e.policies]
    rows.insert(1, ["router: right, %", *(f"{100 * at.score:.1f}" for at in e.policy(ROUTER).at)])
    return _html_table(head, rows, marked=ROUTER)


def _ladder_table(e: Evaluation) -> str:
    rows = [
        [name + (" (not learned)" if name in e.not_learned else ""), *(f"{100 * step:.1f}" for step in steps)]
        for name, steps in e.ladder.items()
    ]
    return _html_table(["right, %", *(f"{m} tokens" for m in e.scales)], rows)


def _html_table(head: list[str], rows: list[list[str]], marked: str = "") -> str:
    def line(cells: list[str], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

    body = "".join(f'<tr class="{"router" if row[0] == marked else ""}">{line(row, "td")}</tr>' for row in rows)
    return f'<div class="wide"><table><tr>{line(head, "th")}</tr>{body}</table></div>'


def _examples(e: Evaluation, table: Table) -> str:
    """Where the router was right to look closer, right to stay cheap, and wrong."""
    test = table.test_rows
    n = np.arange(len(test))
    right = test.scores[n, e.choices] >= 1
    coarse_right = test.scores[:, 0] >= 1
    finest_right = test.scores[:, -1] >= 1
    chosen = {
        "Right to look closer": right & ~coarse_right & (e.choices > 0),
        "Right to stay cheap": right & (e.choices == 0),
        "Wrong, and more tokens would have helped": ~right & finest_right,
    }
    pictures, why_not = _pictures(table)
    parts = [f"<p>{html.escape(why_not)}</p>"] if why_not else []
    for title, mask in chosen.items():
        rows = np.flatnonzero(mask)
        picked = rows[np.linspace(0, len(rows) - 1, min(_EXAMPLES, len(rows))).astype(int)] if len(rows) else rows
        cards = "".join(_card(e, test, int(row), pictures) for row in picked)
        parts.append(f"<h3>{title} ({len(rows)} of {len(test)})</h3><div class='examples'>{cards}</div>")
    return "".join(parts)


def _card(e: Evaluation, test: Table, row: int, pictures: dict[str, tuple[Path, str]]) -> str:
    path, question = pictures.get(str(test.ids[row]), (None, str(test.ids[row])))
    shown = ""
    if path is not None and path.is_file() and path.stat().st_size <= _LARGEST_PICTURE_BYTES:
        kind = "jpeg" if path.suffix.lower() in {".jpg", ".jpeg"} else path.suffix.lower().lstrip(".")
        shown = f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}">'
    k = int(e.choices[row])
    answers = "  ".join(f"{m}: {test.predictions[row, i]}" for i, m in enumerate(test.scales))
    return (
        f'<div class="example">{shown}<b>{html.escape(question)}</b><br>right is {html.escape(str(test.answers[row]))};'
        f" chosen <b>{test.scales[k]}</b> tokens (P {e.probability[row, k]:.2f})<br><small>{html.escape(answers)}</small></div>"
    )


def _pictures(table: Table) -> tuple[dict[str, tuple[Path, str]], str]:
    """Picture and question of each row, where the rows folder that was labelled is still there."""
    folder = Path(str(table.facts.get("rows", "")))
    file = folder / "rows.jsonl"
    if not file.is_file():
        return {}, f"The rows ({folder}) are no longer where they were labelled, so no pictures are shown."
    wanted = set(table.test_rows.ids.tolist())
    found = {}
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row.get("id") in wanted:
                found[row["id"]] = ((folder / str(row.get("image"))), str(row.get("question")))
    return found, ""
