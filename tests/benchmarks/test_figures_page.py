"""docs/figures.md is what the JSON files say, whatever files there are."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(ROOT / "benchmarks" / "page.py"))


def test_the_page_is_what_the_files_say(script):
    unmarked = script["unmarked"]  # what is stale changes with the code, and the figures do not
    assert unmarked(script["PAGE"].read_text()) == unmarked(script["page"]()), "python -m benchmarks.page"


def test_check_fails_when_it_is_not(script, tmp_path, monkeypatch):
    main = script["main"]
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0
    spoiled = tmp_path / "README.md"
    monkeypatch.setitem(main.callback.__globals__, "PAGE", spoiled)
    assert CliRunner().invoke(main, ["--check"]).exit_code == 1
    spoiled.write_text(script["page"]().replace("1", "2", 1))
    failed = CliRunner().invoke(main, ["--check"])
    assert failed.exit_code == 1
    assert "is not what the results say: python -m benchmarks.page" in failed.output
    assert CliRunner().invoke(main, []).exit_code == 0
    assert spoiled.read_text() == script["page"]()


def test_every_file_has_its_figures_machine_date_and_command(script):
    page = script["page"]()
    for file in RESULTS.glob("*.json"):
        facts = json.loads(file.read_text())
        section = page[page.index(f"\n## {facts['measured']}\n") :].split("\n## ")[1]
        assert f"`{facts['command']}`" in section
        assert facts["date"] in section
        assert facts["machine"]["processor"] in section
        assert f"](../benchmarks/results/{file.name})" in section
        assert len(section.splitlines()) > 4, file


def test_a_file_that_nobody_knows_is_shown_by_its_figures(script, tmp_path):
    facts = {
        "artefact": "benchmark", "measured": "novel", "command": "python novel.py", "date": "2026-01-02",
        "machine": {"processor": "A CPU", "cores": 3}, "versions": {"python": "3.11"},
        "ratio": 1.23456, "huge": 1234567.0, "none": None, "empty": [], "words": "a | b", "scales": [1, 9],
        "ways": {"ours": {"ms": 2.5, "deep": {"deeper": {"x": 1}}}}, "peers": [{"name": "them", "ms": 5.0}, {"ms": 6}],
        "curve": [[1, 2]] * 30, "many": {f"k{i}": i for i in range(80)},
    }  # fmt: skip
    (tmp_path / "novel.json").write_text(json.dumps(facts))
    (tmp_path / "novel_plot.png").touch()
    page = script["page"](tmp_path)
    for line in (
        "| [novel](#novel) | 2026-01-02, stale | 3 cores of A CPU | `python novel.py` |",
        "| ratio | 1.235 |", "| huge | 1.235e+06 |", "| none | null |", "| empty | none |", "| words | a / b |",
        "| scales | 1, 9 |", "| ways, ours, ms | 2.5 |", "| ways, ours, deep | 1 entries |", "| peers, them, ms | 5 |",
        "| peers, 6, ms | 6 |", "| curve | 30 entries |", "![novel_plot](../benchmarks/results/novel_plot.png)",
    ):  # fmt: skip
        assert line in page, line
    assert "more in the file." in page
    assert "versions" not in page
