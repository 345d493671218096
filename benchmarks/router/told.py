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


def reader_width(found: Figures) -> str:
    """The reader's part of a picture beside the least that an answer takes, by the language model's width."""
    lines = [
        f"**A reader before wide language models**: {found['patches']} patches, once a picture, beside the products of"
        f" an answer that reads one visual token and {found['prompt']} of a prompt and writes one more; one thread,"
        " float32.\n",
        "| sizes of | width | averaging, ms | its graph, ms | reader.onnx, kB | least answer, ms | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found["widths"].items():
        reader, answer = one["reader"], sum(one["least_answer"].values())
        lines.append(
            f"| {name} | {one['width']} | {reader['averaging_ms']:.2f} | {reader['graph_ms']:.2f} |"
            f" {reader['bytes'] / 1e3:.0f} | {answer:.0f} | {100 * one['share']:.2f} % |"
        )
    over = [name for name, one in found["widths"].items() if one["share"] > found["most"]]
    bound = f"{100 * found['most']:.0f} %"
    said = f"over {bound}: {', '.join(over)}" if over else f"nowhere over {bound}, so the projection stays where it is"
    return "\n".join([*lines, "", f"{said[0].upper()}{said[1:]}."])


def ood_rule(found: Figures) -> str:
    """What the rule costs ordinary rows, and what it still notices, by table."""
    tables = found["tables"]
    some = next(iter(tables.values()))
    budgets = "/".join(f"{budget:.3g}" for budget in some["budgets"])
    moved = list(some["other_rows"]["as asked"]["noticed"])
    lines = [
        "**What is out of distribution, and what the rule for it costs**: on rows that it was not chosen on, by known"
        f" probabilities; {100 * found['asked']:.2g} % of ordinary rows may be taken for such.\n",
        f"| table | share | ordinary, % | points lost at {budgets} | "
        + " | ".join(f"noticed at {by} sd, %" for by in moved)
        + " |",
        "|---" * (4 + len(moved)) + "|",
    ]
    for name, table in tables.items():
        for how, at in table["other_rows"].items():
            lost = "/".join(f"{100 * cost:.2f}" for cost in at["costs"])
            noticed = " | ".join(f"{100 * share:.0f}" for share in at["noticed"].values())
            lines.append(f"| {name} | {how} | {100 * at['ordinary']:.2f} | {lost} | {noticed} |")
    return "\n".join(lines)


def features(found: Figures) -> str:
    """What each group of the router's features brings."""
    estimators = list(found["every_feature"])
    lines = [
        f"**The router's features** ({found['measured'].removeprefix('features_')}): log loss out of fold, for the"
        f" {' and the '.join(estimators)}, of the words of the question with one group, and of all but that group.\n",
        "| group | " + " | ".join(f"words and it, {name} | all but it, {name}" for name in estimators) + " |",
        "|---" * (2 * len(estimators) + 1) + "|",
    ]
    for group, of in found["groups"].items():
        cells = [f"{of[part][name]['log_loss']:.4f}" for name in estimators for part in ("words_and_it", "all_but_it")]
        lines.append(f"| {group} | " + " | ".join(cells) + " |")
    ends = [f"{found[part][name]['log_loss']:.4f}" for name in estimators for part in ("words_alone", "every_feature")]
    lines.append("| words alone; every feature | " + " | ".join(ends) + " |")
    spent = ", ".join(f"{what} {us:.0f} µs" for what, us in found["microseconds"].items())
    return "\n".join([*lines, f"\n{spent[0].upper()}{spent[1:]}."])


def agreement(found: Figures) -> str:
    """Both routers at each budget, and what the one without answers is behind."""
    lines = [
        "**A router fitted without answers**, on what the finest scale says, beside one fitted on right answers: points"
        f" above mixing two fixed scales, judged by the right answers of {found['rows']} test questions about"
        f" {found['pictures']} pictures, with 95 % intervals by picture.\n",
        "| mean tokens | " + " | ".join(f"{budget:g}" for budget in found["budgets"]) + " |",
        "|---" * (len(found["budgets"]) + 1) + "|",
    ]
    rows = {f"fitted on {name}": gains for name, gains in found["gains"].items()}
    for name, gains in (rows | {"agreement less right answers": found["agreement_minus_right"]}).items():
        lines.append(f"| {name} | " + " | ".join(in_points(gain) for gain in gains) + " |")
    mean = in_points(found["mean_agreement_minus_right"])
    return "\n".join([*lines, f"\nAveraged over the budgets, agreement less right answers: {mean} points."])


def in_points(gain: Figures) -> str:
    """A gain with its interval."""
    return f"{gain['value']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"
