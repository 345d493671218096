"""The cards of a report: where the router was right to look closer, right to stay cheap, and wrong."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from router.measures import AGREEING
from router.table import Table

from .evaluate import Evaluation
from .shown_rows import ShownRow
from .summary import tokens

_CARDS = 4


def examples(e: Evaluation, test: Table, shown: Mapping[str, ShownRow], why_not: str) -> str:
    """Cards of some of the test rows, those first whose picture can be shown."""
    coarsest, finest = test.scores[:, 0], test.scores[:, -1]
    score = test.scores[np.arange(len(test)), e.choices]
    chosen = {
        "Right to look closer": score > coarsest,
        "Right to stay cheap": (e.choices == 0) & (score > 0) & (score >= finest),
        "Wrong, and more tokens would have helped": score < finest,
    }
    seen = np.array([(row := shown.get(str(name))) is not None and row.held is not None for name in test.ids])
    parts = [
        "<p>Under each question, what each scale answered, and how likely the router held it to be right (P, the bar):"
        " green is right, underlined is what was chosen.</p>"
    ]
    if why_not:
        parts.append(f"<p>{html.escape(why_not)}</p>")
    for title, mask in chosen.items():
        rows = np.flatnonzero(mask & seen) if (mask & seen).any() else np.flatnonzero(mask)
        cards = "".join(_card(e, test, int(row), shown) for row in _spread(rows))
        parts.append(f'<h3>{title} ({mask.sum()} of {len(test)})</h3><div class="examples">{cards}</div>')
    return "".join(parts)


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most `_CARDS` of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(_CARDS, len(rows))).astype(int)]


def _card(e: Evaluation, test: Table, row: int, shown: Mapping[str, ShownRow]) -> str:
    name = str(test.ids[row])
    asked = shown.get(name, ShownRow(name, None))
    k = int(e.choices[row])
    answers = []
    for i, m in enumerate(test.scales):
        marks = [word for word, true in (("right", test.scores[row, i] >= 1), ("chosen", i == k)) if true]
        said, score = f"{e.probability[row, i]:.2f}", float(test.scores[row, i])
        partly = f", score {score:.2f}" if 0 < score < 1 else ""
        answers.append(
            f'<li class="{" ".join(marks)}"><i style="width:{said}em"></i>{m}: '
            f"{html.escape(str(test.predictions[row, i]))} <small>P {said}{partly}</small></li>"
        )
    picture = f'<img alt="" src="{asked.picture}">' if asked.picture else ""
    wanted = "the finest scale says" if test.measures == AGREEING else "right is"
    return (
        f'<div class="example">{picture}<b>{html.escape(asked.question)}</b><br>'
        f"{wanted} {html.escape(str(test.answers[row]))}; chosen <b>{tokens(test.scales[k])}</b>"
        f'<ul class="answers">{"".join(answers)}</ul></div>'
    )
