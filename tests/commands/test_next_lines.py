"""The `next:` line of every verb, typed as it is printed: from a file of rows to a bundle that is served."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from export.runtime.serve import server
from tests.support.backbones import write_language_model
from tests.support.labels_maker import quick
from tests.support.tiny import QUESTIONS, drawn_picture

_PICTURES, _MOST = 48, 12


def write_llava(file: Path) -> None:
    """A picture and a question each, as LLaVA's files have it: without splits, tasks, or a metric."""
    told = []
    for number in range(_PICTURES):
        drawn_picture(number).save(file.with_name(f"{number}.png"))
        asked = {"from": "human", "value": f"<image>\n{QUESTIONS[number % len(QUESTIONS)]}"}
        answer = {"from": "gpt", "value": ("red", "blue", "two")[number % 3]}
        told.append({"id": str(number), "image": f"{number}.png", "conversations": [asked, answer]})
    file.write_text(json.dumps(told))


def shorten(file: Path) -> None:
    """What a person in a hurry would change in the configuration that `init` wrote."""
    told = yaml.safe_load(file.read_text())
    told["scales"] = [1, 9]
    for stage in told["stages"]:
        stage |= {"show": [1, 9], "steps": 1, "epochs": None, "pictures": 2, "accumulate": 1, "questions": 1}
        stage.pop("evaluate_every", None)
    file.write_text(yaml.safe_dump(told))


def following(said: str) -> list[str]:
    """The last line of a verb, as a shell reads it."""
    found = re.findall(r"^next: mvlm (.+)$", said, re.MULTILINE)
    assert found, said
    return shlex.split(found[-1])


@pytest.mark.slow
def test_each_line_that_is_printed_works(tmp_path, monkeypatch, mvlm):
    monkeypatch.chdir(tmp_path)
    served = []
    monkeypatch.setattr(server, "serve_forever", lambda runtime, settings, **told: served.append(runtime))
    write_llava(Path("my photographs.json"))
    language = write_language_model(tmp_path / "language", "smollm2")
    words = ["init", "my photographs.json", "--text", str(language)]
    typed = []
    with quick():
        while not served and len(typed) < _MOST:
            typed.append(" ".join(words[:2]) if words[0] == "data" else words[0])
            done = mvlm(*words)
            assert done.exit_code == 0, f"mvlm {shlex.join(words)}: {done.output}"
            if words[0] == "init":
                shorten(Path("train.yaml"))
            if words[0] != "serve":
                words = following(done.output)
        assert typed == [
            "init", "data split", "data check", "train", "label", "fit-router", "report", "export", "run", "serve",
        ]  # fmt: skip
    words = ["verify"]  # which finds what the others left
    for less in (["--verify-rows", "2"], ["--rounds", "1"], []):
        done = mvlm(*words, *less)
        assert done.exit_code == 0, f"mvlm {shlex.join(words)}: {done.output}"
        words = following(done.output) if words[0] != "serve" else []
    assert len(served) == 2
