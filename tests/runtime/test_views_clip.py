"""Frames of a clip: which are shown, and how they are read."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from export.runtime import frames as frames_module
from export.runtime.errors import MvlmError
from export.runtime.views.clip import Frames, Video, frames_of, number_of, overview_picture
from export.runtime.views.cutting import OVERVIEW
from export.runtime.views.scale import Scale

LEVELS = [20, 60, 100, 140, 180, 220]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Six frames, two a second, each of one grey."""
    cv2 = pytest.importorskip("cv2")
    file = tmp_path_factory.mktemp("video") / "grey.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 2.0, (64, 48))
    for level in LEVELS:
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    return file


def greys(pictures) -> list[int]:
    return [int(min(LEVELS, key=lambda level: abs(level - np.asarray(picture).mean()))) for picture in pictures]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 30])
@pytest.mark.parametrize("word", ["4", "4@1", "4@3", "4@8", "4@native", "native"])
def test_frames_stand_in_the_middle_of_equal_parts(count, word):
    scale = Scale.parse(word)
    wanted = {None: count, 0: 1}.get(scale.tiles, min(scale.tiles or 1, count))
    numbers = [number_of(view, count) for view in frames_of(count, scale)]
    assert len(numbers) == len(set(numbers)) == wanted
    assert numbers == sorted(numbers)
    for n, number in enumerate(numbers):
        assert n * count / wanted <= number + 0.5 <= (n + 1) * count / wanted
    if wanted == 1:
        assert frames_of(count, scale) == [OVERVIEW]


def test_a_list_of_pictures():
    pictures = tuple(Image.new("RGB", (8, 6), (level,) * 3) for level in LEVELS)
    clip = Frames(pictures)
    assert (clip.size, clip.count) == ((6, 8), 6)
    assert greys(clip.at([5, 0])) == [220, 20]
    assert greys([overview_picture(clip), overview_picture(pictures[0])]) == [140, 20]
    with pytest.raises(MvlmError, match="frames of several sizes: the first is 8 x 6, and frame 1 is 4 x 6"):
        Frames((pictures[0], Image.new("RGB", (4, 6)))).at([1])
    with pytest.raises(MvlmError, match="a clip without frames"):
        Frames(())


def test_a_file(video):
    clip = Video(video)
    assert (clip.size, clip.count) == ((48, 64), 6)
    assert greys(clip.at([0, 5, 2])) == [20, 220, 100]
    timed = Video(video, (0.0, 1.5))
    assert timed.count == 2
    assert greys(timed.at([0, 1])) == [20, 140]


def test_what_cannot_be_read(video, tmp_path, monkeypatch):
    with pytest.raises(MvlmError, match=r"has no frame at 9 s: it is 3 s long"):
        Video(video, (9.0,)).at([0])
    with pytest.raises(MvlmError, match="there is no video"):
        Video(tmp_path / "none.mp4").count  # noqa: B018
    (tmp_path / "text.mp4").write_text("no clip")
    with pytest.raises(MvlmError, match="is no video that OpenCV reads"):
        Video(tmp_path / "text.mp4").count  # noqa: B018
    monkeypatch.setattr(Video, "_read", lambda self, wanted: {})
    with pytest.raises(MvlmError, match="says that it has 6 frames, and frame 1 cannot be read"):
        Video(video).at([1])
    monkeypatch.setattr(Video, "_opened", lambda self: (Nothing(), Nothing()))
    with pytest.raises(MvlmError, match="is a clip without frames"):
        Video(video).count  # noqa: B018


class Nothing:
    """A capture, and OpenCV, that know of no frame."""

    CAP_PROP_FRAME_COUNT = CAP_PROP_FPS = 0

    def get(self, name):
        return 0

    def release(self):
        pass


def test_without_opencv(video, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MvlmError, match="needs OpenCV"):
        frames_module.opencv()
    with pytest.raises(MvlmError, match="needs OpenCV"):
        Video(video).count  # noqa: B018
