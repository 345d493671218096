"""Servers under many callers as tables of the page of figures."""

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
