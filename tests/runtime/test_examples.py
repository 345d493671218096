"""The examples, run as they stand; and the codes that the runtime's page lists."""

from __future__ import annotations

import re
import runpy
import shutil
import time
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest

from export.graphs.targets import TARGETS
from export.runtime import Answer, Runtime
from export.runtime.request import Options
from tests.support.bundles import Made, pool_bundle

ROOT = Path(__file__).parents[2]
QUESTION = "is it day or night?"


@pytest.fixture(scope="module")
def made() -> Made:
    return pool_bundle()


def example(name: str) -> dict:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


class Camera:
    """Gives grey frames, a few milliseconds apart."""

    def __init__(self, source) -> None:
        self.source = source

    def isOpened(self) -> bool:
        return True

    def read(self):
        time.sleep(0.002)
        return True, np.full((48, 64, 3), 90, np.uint8)

    def release(self) -> None:
        self.source = None


def test_the_camera_loop_asks_about_the_latest_frame(made, capsys, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    example("camera_loop")["main"](str(made.bundle), "0", QUESTION, frames=3)
    lines = [line for line in capsys.readouterr().out.split("\n") if "mean ms" in line]
    assert len(lines) == 3
    assert all("waited" in line and "prefill" in line and "dropped" in line for line in lines)


def test_the_alert_turns_once_it_is_sure_and_back(made, tmp_path, monkeypatch):
    shares = [0.9, 0.9, 0.5, 0.9, 0.9, 0.9, 0.6, 0.3, 0.3, 0.3, 0.9]
    for number in range(len(shares)):
        shutil.copy(made.picture(number % 6), tmp_path / f"{number:02}.png")
    runtime, told = Runtime.load(made.bundle), iter(shares)
    asked = []

    def ask(view, question, **options) -> Answer:
        asked.append((question, options))
        yes = next(told)
        return Answer("yes", 9, "", choices={"yes": yes, "no": 1 - yes})

    monkeypatch.setattr("export.runtime.view.View.ask", ask)
    turned = list(example("alert")["alerts"](runtime, str(tmp_path), QUESTION))
    assert turned == [("05.png", True, 0.9), ("09.png", False, 0.3)]
    assert asked[0] == (QUESTION, {"choices": ["yes", "no"]})


def test_the_alert_on_a_real_bundle(made, tmp_path):
    shutil.copy(made.picture(0), tmp_path / "0.png")
    runtime = Runtime.load(made.bundle)
    for name, on, share in example("alert")["alerts"](runtime, str(tmp_path), QUESTION, in_a_row=1):
        assert (name, on) == ("0.png", True)
        assert share == runtime.ask(made.picture(0), QUESTION, choices=["yes", "no"]).choices["yes"]


def test_container_files_say_that_nobody_built_them_here():
    files = sorted((ROOT / "examples" / "containers").glob("*.Dockerfile"))
    assert [file.stem for file in files] == ["jetpack-6.2", "jetpack-7.2"]
    for file in files:
        first = file.read_text().split("\n")[0]
        assert "not built here" in first
        assert TARGETS[file.stem].device.rpartition(" by ")[2] in first
        assert TARGETS[file.stem].provider == "tensorrt"


def test_the_page_of_the_runtime_lists_what_there_is():
    page = (ROOT / "docs" / "runtime.md").read_text()
    for name in Options.__annotations__:
        assert f"`{name}" in page, name
    for field in fields(Answer):
        assert f"`{field.name}`" in page, field.name
    server = (ROOT / "docs" / "server.md").read_text()
    code = "".join(path.read_text() for path in (ROOT / "export" / "runtime").rglob("*.py"))
    listed = set()
    for table in (page[page.index("| code | when |") :], server[server.index("| code | status | when |") :]):
        cells = [row.split("|")[1] for row in table.split("\n\n")[0].splitlines()[2:]]
        listed |= {name for cell in cells for name in re.findall(r"`([a-z_-]+)`", cell)}
    assert listed == set(re.findall(r'code="([a-z_-]+)"', code))
