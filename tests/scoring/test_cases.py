"""Answers whose scores are known."""

import json
from pathlib import Path

import pytest

from mvlm_core.scoring import score

_LINES = (Path(__file__).parent / "cases.jsonl").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("case", [json.loads(line) for line in _LINES], ids=str)
def test_case(case):
    held = {name: case.get(name, ()) for name in ("answers", "votes", "options")}
    answers = held.pop("answers")
    assert score(case["prediction"], answers, case["metric"], **held) == pytest.approx(case["score"], abs=1e-9)
