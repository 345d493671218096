"""The demo of sheets with tiles as tables of the page of figures."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]


def large(found: Figures) -> str:
    """The ladder over scales with their costs, what was claimed, and more tiles against more tokens."""
    scales, ladder = found["scales"], found["ladder"]
    trained = " and ".join(f"{steps} steps of {stage}" for stage, steps in found["trained"].items())
    lines = [
        f"**Sheets of up to sixteen tiles**: {trained}; {found['labelled']['rows']} rows labelled, {found['rows']} of"
        f" them test questions about {found['groups']} pictures. A tile counts as {found['tile_tokens']:.0f} tokens.\n",
        "| right answers, % | " + " | ".join(map(str, scales)) + " |",
        "|---" * (len(scales) + 1) + "|",
        "| *mean cost* | " + " | ".join(f"{cost:.0f}" for cost in found["cost"]) + " |",
    ]
    for kind, steps in ladder.items():
        mark = ", not learned" if kind in found["not_learned"] else ""
        lines.append(f"| {kind}{mark} | " + " | ".join(f"{100 * step:.1f}" for step in steps) + " |")
    lines += ["", found["verdict"], "", *(f"- {claim}" for claim in found["claims"]), ""]
    lines += ["| more tiles against more tokens each | pictures | tokens | difference, points |", "|---|---|---|---|"]
    for pair in found["more_tiles"]:
        tokens = " against ".join(f"{count:.0f}" for count in pair["tokens"])
        points = " ".join(f"{100 * pair['difference'][end]:+.1f}" for end in ("value", "low", "high"))
        value, low, high = points.split()
        lines.append(
            f"| {pair['many']} against {pair['few']} | {pair['pictures']} | {tokens} | {value} [{low}, {high}] |"
        )
    return "\n".join(lines)
