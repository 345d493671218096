"""`mvlm run`, as typed: pictures, folders, videos, cameras."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from export.runtime import MvlmError, Runtime, frames
from tests.support.bundles import Made, pool_bundle
from tests.support.tiny import QUESTIONS, SCALES

QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def made() -> Made:
    return pool_bundle()


@pytest.fixture
def folder(made, tmp_path):
    for number in range(3):
        shutil.copy(made.picture(number), tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_run_prints_the_answer_first_and_then_why(made, mvlm):
    asked = mvlm("run", made.picture(0), QUESTIONS[0], "--bundle", made.bundle, "--price", "0.2")
    assert asked.exit_code == 0, asked.output
    answer = Runtime.load(made.bundle).ask(made.picture(0), QUESTIONS[0], price=0.2)
    assert asked.stdout == f"{answer.text}\n"
    assert answer.reason in asked.stderr
    assert "P(right) by scale" in asked.stderr
    assert "prefill" in asked.stderr


def test_run_as_json(made, mvlm):
    asked = mvlm("run", made.picture(0), QUESTIONS[0], "--bundle", made.bundle, "--scale", "36", "--json")
    value = json.loads(asked.stdout)
    assert value["num_visual_tokens"] == 36
    assert (value["scale"], value["views"], value["separators"]) == (36, 1, 0)
    assert value["probability"] is None
    assert set(value) == {
        "picture", "text", "num_visual_tokens", "reason", "probability", "probabilities", "confidence",
        "out_of_distribution", "escalated",
        "finish", "choices", "token_ids", "logprobs", "timings", "scales", "prompt_tokens", "new_tokens",
        "dropped_turns", "scale", "views", "separators", "tiles",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--scale", "much"], "neither auto nor a number"),
        (["--scale", "25"], "no scale 25"),
        (["--price", "nan"], "the price is nan"),
        (["--price", "-1"], "the price is -1"),
        (["--bundle", "absent"], "absent holds no bundle.json"),
        (["--max-new-tokens", "9999"], "the decoder has 512"),
    ],
)
def test_what_run_refuses(made, mvlm, more, says):
    refused = mvlm("run", made.picture(0), QUESTIONS[0], "--bundle", made.bundle, *more)
    assert refused.exit_code == 2
    assert says in refused.output
    assert len(refused.output.strip().splitlines()) == 1


def test_a_folder_is_asked_picture_by_picture(made, mvlm, folder):
    asked = mvlm("run", folder, QUESTION, "--bundle", made.bundle, "--scale", "9", "--max-new-tokens", "4")
    runtime = Runtime.load(made.bundle)
    assert asked.stdout.splitlines() == [
        f"{i}.png: {runtime.ask(made.picture(i), QUESTION, 9, max_new_tokens=4).text}" for i in range(3)
    ]
    assert "next: mvlm serve" in asked.stderr


def test_a_broken_picture_of_many_is_said_and_the_others_are_answered(made, mvlm, folder):
    (folder / "1.png").write_bytes(b"no picture")
    asked = mvlm("run", folder, QUESTION, "--bundle", made.bundle, "--json")
    assert asked.exit_code == 1
    assert [json.loads(line)["picture"] for line in asked.stdout.splitlines()] == ["0.png", "2.png"]
    assert "1.png:" in asked.stderr
    assert "1 of 3 pictures could not be answered" in asked.stderr


def test_explain_shows_what_each_scale_was_worth(made, mvlm):
    asked = mvlm("run", made.picture(0), QUESTION, "--bundle", made.bundle, "--price", "0.3", "--explain")
    answer = Runtime.load(made.bundle).ask(made.picture(0), QUESTION, price=0.3)
    rows = [line.split() for line in asked.stderr.splitlines() if line.split()[:1] and line.split()[0].isdecimal()]
    assert [int(row[0]) for row in rows if len(row) >= 4][-len(SCALES) :] == list(SCALES)
    table = {int(row[0]): row for row in rows if len(row) >= 4}
    worth = {m: float(table[m][3]) for m in SCALES}
    assert max(worth, key=worth.get) == answer.num_visual_tokens
    assert "answered" in table[answer.num_visual_tokens]
    assert "match0_peak" in asked.stderr
    assert "hash" not in asked.stderr
    assert re.search(r"as strange as this were \d+(\.\d+)? % of the validation questions", asked.stderr)


def test_choices(made, mvlm):
    asked = mvlm("run", made.picture(0), QUESTION, "--bundle", made.bundle, "--choices", "red, blue")
    assert asked.stdout.strip() in {"red", "blue"}
    assert "share by choice" in asked.stderr


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for shade in range(30):
        writer.write(np.full((48, 64, 3), (0, 0, 8 * shade), np.uint8))  # BGR: red that grows
    writer.release()
    return path


def test_a_video_is_sampled_in_seconds(made, mvlm, video):
    asked = mvlm("run", video, QUESTION, "--bundle", made.bundle, "--scale", "1", "--every", "1", "--json")
    assert [json.loads(line)["picture"] for line in asked.stdout.splitlines()] == [
        f"film.avi frame {number}" for number in (0, 10, 20)
    ]
    red = [frame.picture[..., 2].mean() for frame in frames.frames(str(video), 1.0)]
    assert red == sorted(red)
    assert red[-1] > 100
    assert {frame.order for frame in frames.frames(str(video))} == {"bgr"}


class Camera:
    """Gives a frame every few milliseconds, and stops after `many`."""

    many = 10**9

    def __init__(self, number) -> None:
        self.opened, self.given = number != 9, 0

    def isOpened(self) -> bool:
        return self.opened

    def read(self):
        time.sleep(0.002)
        self.given += 1
        return self.given <= self.many, np.full((48, 64, 3), self.given % 256, np.uint8)

    def release(self) -> None:
        self.opened = False


@pytest.fixture
def camera(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)


def number_of(frame: frames.Frame) -> int:
    return int(frame.name.split()[1])


def test_the_latest_frame_wins(camera):
    before = threading.active_count()
    with frames.LatestFrame(0) as latest:
        first = latest.next()
        while latest.dropped <= 5:
            time.sleep(0.005)
        late = latest.next()
        assert number_of(late) > number_of(first) + 5
        assert latest.next().name != late.name
    assert threading.active_count() == before


def test_a_camera_is_asked_until_enough(made, mvlm, camera):
    asked = mvlm("run", "0", QUESTION, "--bundle", made.bundle, "--scale", "1", "--frames", "3", "--json")
    assert len(asked.stdout.splitlines()) == 3


def test_a_camera_that_stops(camera, monkeypatch):
    monkeypatch.setattr(Camera, "many", 2)
    with frames.LatestFrame(0) as latest:
        time.sleep(0.1)
        latest.next()
        with pytest.raises(MvlmError, match="no frames any more"):
            latest.next(wait_s=0.5)


def test_a_frame_that_is_too_old_is_not_given_out(camera):
    with frames.LatestFrame(0, oldest_ms=-1) as latest, pytest.raises(MvlmError, match="no frames any more"):
        latest.next()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("9", "camera 9 cannot be opened"),
        ("absent.mp4", "no video absent.mp4"),
        ("absent.png", "no picture absent.png"),
        ("empty", "empty holds no pictures"),
        ("broken.mp4", "broken.mp4 cannot be opened"),
    ],
)
def test_sources_that_are_none(made, mvlm, camera, tmp_path, monkeypatch, source, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    if source == "broken.mp4":
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    refused = mvlm("run", source, QUESTION, "--bundle", made.bundle)
    assert refused.exit_code == 2
    assert says in refused.output


def test_opencv_is_not_installed(made, mvlm, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    refused = mvlm("run", "0", QUESTION, "--bundle", made.bundle)
    assert refused.exit_code == 2
    assert 'pip install "mvlm[camera]"' in refused.output


def test_pictures_come_as_they_are(made):
    (frame,) = frames.frames(str(made.picture(0)))
    with Image.open(made.picture(0)) as opened, Image.open(frame.picture) as again:
        assert opened.tobytes() == again.tobytes()
