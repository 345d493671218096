"""docs/figures.md from the JSON files alone: `python -m benchmarks.page` writes it, `--check` compares.

A file that figures.py knows how to tell is told as in the README; any other is shown by its figures, as they stand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.figures import RESULTS, Figures, machine, read, told, unmarked, when, where

_RESULTS = "../benchmarks/results"  # as the page sees it
PAGE = Path(__file__).parents[1] / "docs" / "figures.md"
_HEAD = """# What was measured

Made from `results/*.json` by `python -m benchmarks.page`; a test holds it to them. Every file names the machine, the
date and the command that makes it again. Where a figure fell short, it stands here as it fell. *Stale* says that the
code it measures has changed since; `make figures` lists what is.
"""
# What every file says, and what stands elsewhere on the page.
_COMMON = {"artefact", "format_version", "measured", "command", "date", "machine", "versions", "code", "took_s"}
_DEEPEST, _LONGEST, _MOST_ROWS = 3, 8, 60


def page(results: Path = RESULTS) -> str:
    """Markdown: a table of all files, and a section for each."""
    found = [(file, read(file)) for file in sorted(results.glob("*.json"))]
    lines = [_HEAD, "| measured | date | machine | command |", "|---|---|---|---|"]
    for _, figures in found:
        name = figures["measured"]
        lines.append(f"| [{name}](#{name.lower()}) | {when(figures)} | {machine(figures)} | `{figures['command']}` |")
    return "\n".join([*lines, *(_section(file, figures) for file, figures in found)]) + "\n"


def _section(file: Path, figures: Figures) -> str:
    name = figures["measured"]
    plots = [f"![{plot.stem}]({_RESULTS}/{plot.name})" for plot in sorted(file.parent.glob(f"{name}*.png"))]
    body = told(figures) or _as_it_stands(figures)
    parts = [
        f"\n## {name}",
        f"{where(figures)}. All of it: [{file.name}]({_RESULTS}/{file.name}).",
        body,
        *plots,
    ]
    return "\n\n".join(parts)


def _as_it_stands(figures: Figures) -> str:
    """Every figure that can be read in a table; long lists and deep trees are left to the file."""
    rows = list(_rows("", {key: value for key, value in figures.items() if key not in _COMMON}, 1))
    lines = ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows[:_MOST_ROWS])]
    rest = len(rows) - _MOST_ROWS
    return "\n".join([*lines, *([f"\n{rest} more in the file."] if rest > 0 else [])])


def _rows(name: str, value: Any, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and depth <= _DEEPEST:
        for key, inner in value.items():
            yield from _rows(f"{name}, {key}" if name else str(key), inner, depth + 1)
    elif isinstance(value, list) and value and depth <= _DEEPEST and _are_entries(value):
        for entry in value:
            yield from _rows(f"{name}, {_title(entry)}", {k: v for k, v in entry.items() if k != "name"}, depth + 1)
    else:
        yield name, _shown(value)


def _are_entries(value: list[Any]) -> bool:
    return len(value) <= _LONGEST and all(isinstance(entry, dict) and entry for entry in value)


def _title(entry: dict[str, Any]) -> str:
    """An entry of a list by its name, or by what it says first."""
    return str(entry.get("name", next(iter(entry.values()))))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
    held = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    if len(held) > _LONGEST or any(isinstance(inner, list | dict) for inner in held):
        return f"{len(held)} entries"
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_shown(inner)}" for key, inner in value.items()) or "none"
    return str(value).replace("|", "/").replace("\n", " ") if isinstance(value, str) else json.dumps(value)


@click.command()
@click.option("--check", is_flag=True, help="Exit 1 when the page is not what the files say.")
def main(check: bool) -> None:
    """Write docs/figures.md from the results."""
    if not check:
        PAGE.write_text(page(), encoding="utf-8")
        click.echo(str(PAGE))
    elif not PAGE.is_file() or unmarked(PAGE.read_text(encoding="utf-8")) != unmarked(page()):
        raise click.ClickException("docs/figures.md is not what the results say: python -m benchmarks.page")


if __name__ == "__main__":
    main()
