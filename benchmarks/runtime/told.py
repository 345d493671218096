"""Servers under many callers, and what `auto` takes, as tables of the page of figures."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]
_PERCENTILES = ("p50", "p95", "p99")


def callers(found: Figures) -> str:
    """A row for each server and number of callers; how few answers stand behind it, and how busy others were."""
    lines = [
        f"**Many callers at one server**: answers of {found['tokens']} tokens; the random decoder ({found['decoder']})"
        f" is asked in text alone ({found['prompt_tokens']} tokens), the demo with a picture at {found['demo_scale']}."
        " Its weights are random: what a precision keeps of real ones stands under [real_weights](#real_weights)."
        f" Others kept {max(found['cores_of_others']):.1f} cores busy at most before a turn.\n",
        "| server | callers | answers | a second | first token, ms | between tokens, ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_callers in found["served"].items():
        for count, seen in by_callers.items():
            first, between = (
                " / ".join(f"{seen[what][p]:.0f}" for p in _PERCENTILES)
                for what in ("first_token_ms", "between_tokens_ms")
            )
            served = f"{count.split()[0]} | {seen['answers']} | {seen['answers_per_s']:.2f}"
            lines.append(f"| {name} | {served} | {first} | {between} |")
    absent = "; ".join(f"{name} ({why})" for name, why in found["absent"].items())
    return "\n".join([*lines, f"\nMilliseconds of half, 95 and 99 of 100.{f' Not there: {absent}.' if absent else ''}"])


def mixed(found: Figures) -> str:
    """What became of requests of every kind at once."""
    answered = ", ".join(f"{count} {kind}" for kind, count in found["answered"].items())
    memory, threads = (" / ".join(map(str, found[name])) for name in ("memory_mib", "threads"))
    return (
        f"**Everything at once over {found['connections']} connections** ({answered}): {found['lost']} lost,"
        f" {found['differ']} other than alone. The server's process held {memory} MiB before and after each part, with"
        f" {threads} threads."
    )


# What is wanted of `auto`: never slower than this, and at least so much faster than the finest scale and the best mix.
_NEVER_BELOW, _OVER_FINEST, _OVER_MIX = 0.98, 2.0, 1.3


def auto(found: Figures) -> str:
    """The rate of `auto` at equal accuracy, what falls short first."""
    modes = [name for name, part in found.items() if isinstance(part, dict) and "always choosing" in part]
    short = [
        f"- falls short: {name}, {said} {value} (wanted: {wanted})"
        for name in modes
        for said, value, wanted in _wanted(found[name]["auto"])
        if value is None or value < wanted
    ]
    errors = [abs(whole["error"]) for whole in found["whole_questions"].values()]
    lines = [
        f"**The rate of `auto` at equal accuracy**, on the demo's model padded to"
        f" {found['millions_of_multiplications_a_token']:g} million multiplications a token, {found['precision']};"
        f" {found['rows']} questions about {found['pictures']} pictures. Composed of measured parts, which miss whole"
        f" questions by {100 * sum(errors) / len(errors):.0f} % on average and {100 * max(errors):.0f} % at most; load"
        f" of the machine {found['load_before']:g} before and {found['load_after']:g} after.\n",
        *short, *([""] if short else []),
        "| questions | way | over fixed scales | over the best mix | over the finest, half a point less |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name in modes:
        for way in ("auto", "always choosing"):
            part = found[name][way]
            fixed = ", ".join(f"{m}: {_rate(ratio)}" for m, ratio in part["over_fixed"].items())
            mixes = part["over_mixes"]
            finest = _rate(part["over_finest_at_half_a_point_less"])
            lines.append(f"| {name} | {way} | {fixed} | {_rate(mixes['least'])} to {_rate(mixes['most'])} | {finest} |")
    return "\n".join(lines)


def _wanted(part: Figures) -> list[tuple[str, float | None, float]]:
    mixes = part["over_mixes"]
    return [
        ("the least rate over a mix is", mixes["least"], _NEVER_BELOW),
        *((f"the rate over {m} is", ratio, _NEVER_BELOW) for m, ratio in part["over_fixed"].items()),
        ("the most over the best mix is", mixes["most"], _OVER_MIX),
        ("over the finest at half a point less it is", part["over_finest_at_half_a_point_less"], _OVER_FINEST),
    ]


def _rate(ratio: float | None) -> str:
    return "not reached" if ratio is None else f"{ratio:.2f}"
