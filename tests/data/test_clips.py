"""Clips in rows: a list of frames, a file, a file with stated times; and what is none of these."""

from __future__ import annotations

import json

import pytest

from export.runtime.errors import MvlmError
from export.runtime.views.clip import Frames, Video
from mvlm_core.data.clips import ClipFile, ClipFrames
from mvlm_core.data.formats import Origin, read_row
from mvlm_core.evaluation.export_task import _picture_file
from tests.support.tiny import drawn_picture

ASKED = {"id": "a", "question": "what moves?", "answers": ["a disc"]}


def row(tmp_path, **held):
    return read_row(ASKED | held, Origin("line 1", tmp_path))


def test_a_list_of_frames_and_a_file(tmp_path):
    listed = row(tmp_path, video=["0.png", "1.png"]).image
    assert isinstance(listed, ClipFrames)
    assert listed.frames == 2
    assert listed.read() == Frames((tmp_path / "0.png", tmp_path / "1.png"))
    assert listed == row(tmp_path, video={"frames": ["0.png", "1.png"]}).image
    assert listed.key != row(tmp_path, video=["1.png", "0.png"]).image.key
    assert row(tmp_path, video="a.mp4").image == ClipFile(tmp_path / "a.mp4")
    timed = row(tmp_path, video={"path": "a.mp4", "times": [0, 1.5]}).image
    assert timed.read() == Video(tmp_path / "a.mp4", (0.0, 1.5))
    assert timed.frames == 2
    assert row(tmp_path, video="a.mp4").has_clip
    assert not row(tmp_path, image="0.png").has_clip


def test_a_clip_in_a_message(tmp_path):
    content = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "what moves?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "a disc"}]
    told = read_row({"id": "a", "messages": messages}, Origin("line 1", tmp_path))
    assert told.image == ClipFile(tmp_path / "a.mp4")
    content[0] = {"type": "video"}
    told = read_row({"id": "a", "messages": messages, "video": ["0.png"]}, Origin("line 1", tmp_path))
    assert told.image.frames == 1
    with pytest.raises(MvlmError, match="more places for clips in the content than clips"):
        read_row({"id": "a", "messages": messages}, Origin("line 1", tmp_path))


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"video": []}, "a clip without frames"),
        ({"video": "a.mp4", "image": "0.png"}, "it holds a clip and pictures: a row has one of them"),
        ({"video": 3}, "video is 3: give a file, or a list of frames"),
        ({"video": {"frames": ["0.png"], "times": [1]}}, "a clip of listed frames has no times"),
        ({"video": {"path": "a.mp4", "times": []}}, "the times of a clip are"),
        ({"video": {"path": "a.mp4", "times": [-1]}}, "give seconds from 0 up"),
        ({"video": [["0.png"]]}, "a picture is given as list"),
    ],
)
def test_what_is_no_clip(held, message, tmp_path):
    with pytest.raises(MvlmError, match=message):
        row(tmp_path, **held)


def test_a_task_of_others_shows_pictures(tmp_path):
    with pytest.raises(MvlmError, match="is a clip, and a task shows pictures: leave its rows out"):
        _picture_file(row(tmp_path, video=["0.png"]).image, tmp_path, tmp_path)


def test_the_check_opens_every_frame(tmp_path, mvlm):
    for n in range(3):
        drawn_picture(n).save(tmp_path / f"{n}.png")
    drawn_picture(9).resize((20, 20)).save(tmp_path / "small.png")
    clips = {"a": ["0.png", "1.png"], "b": ["2.png", "small.png"], "c": "none.mp4"}
    lines = [ASKED | {"id": name, "video": video, "split": "train"} for name, video in clips.items()]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = mvlm("data", "check", tmp_path / "rows.jsonl")
    assert result.exit_code == 1
    assert "frames of several sizes: the first is" in result.output
    assert "there is no video" in result.output
    assert "id a" not in result.output
