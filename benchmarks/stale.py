"""Which figures measured another code than stands here, and what renewing each takes: `python -m benchmarks.stale`."""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.code import is_stale
from benchmarks.figures import README, RESULTS, Figures, inserted, read
from benchmarks.page import PAGE, page


@click.command()
def main() -> None:
    """List every file of results, the stale ones first, and mark the pages that show them."""
    for line in listed(RESULTS):
        click.echo(line)
    README.write_text(inserted(README.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


def listed(results: Path) -> list[str]:
    """A line for each file: whether it is stale, its date, how long it took, and its command."""
    found = [(is_stale(figures), figures) for figures in map(read, sorted(results.glob("*.json")))]
    lines = [
        f"{'stale' if stale else 'fresh'}  {figures['date']}  {_took(figures):>9}  {figures['command']}"
        for stale, figures in sorted(found, key=lambda one: (not one[0], one[1]["measured"]))
    ]
    return [*lines, f"{sum(stale for stale, _ in found)} of {len(found)} are stale"]


def _took(figures: Figures) -> str:
    return f"{figures['took_s']} s" if "took_s" in figures else "not kept"


if __name__ == "__main__":
    main()
