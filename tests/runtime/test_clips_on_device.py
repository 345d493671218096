"""Clips on a device: the middle frame first, others when a scale needs them, a camera's once while they are held."""

from __future__ import annotations

import gc
import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from export.bundle.files import write_bundle
from export.bundle.source import Source
from export.bundle.verify import verify_bundle
from export.graphs.targets import plan
from export.runtime import MvlmError, Runtime
from export.runtime.frames import Frame, LatestClip
from export.runtime.views.clip import Frames, Video
from mvlm_core.data.clips import ClipFrames
from mvlm_core.data.pictures import PictureFile
from mvlm_core.data.row import PicturePlace, Row, Turn
from tests.runtime.test_ask_verbs import Camera
from tests.support.bundles import pool_bundle
from tests.support.families import QUESTION, picture

SCALES = (4, 9, "4@4", "9@native")
FRAMES = [picture(60, 40, seed=n) for n in range(7)]


@pytest.fixture(scope="module")
def source() -> Source:
    return replace(pool_bundle().source, scales=SCALES, router=None)


@pytest.fixture(scope="module")
def runtime(source, tmp_path_factory) -> Runtime:
    folder = tmp_path_factory.mktemp("clips") / "bundle"
    folder.mkdir()
    write_bundle(source, plan("ort-cpu", None, None, source.positions), folder, lambda steps: None)
    return Runtime.load(folder, threads=1)


@torch.no_grad()
def torch_answer(source: Source, clip, scale) -> list[int]:
    processor, model = source.processor, source.model
    batch = processor(text=processor.ask(QUESTION), images=[clip], scale=scale)
    ids = model.generate(**batch, do_sample=False, max_new_tokens=6)[0, batch["input_ids"].shape[1] :].tolist()
    end = processor.tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


@pytest.mark.parametrize("count", [1, 3, 7])
def test_answers_and_pixels_are_torchs(runtime, source, count, encoded):
    clip = FRAMES[:count]
    view = runtime.look_clip(clip)
    assert encoded == [1]
    for scale in SCALES:
        answer = view.ask(QUESTION, scale, max_new_tokens=6)
        assert list(answer.token_ids) == torch_answer(source, Frames(tuple(clip)), scale)
        assert answer.views == min({4: 1, 9: 1, "4@4": 4, "9@native": count}[scale], count)
        assert answer.num_visual_tokens == answer.views * (4 if scale in (4, "4@4") else 9)
    assert sum(encoded) == len({v for scale in SCALES for v in view.at(scale).laid.shown.views})


def test_a_video_and_times(runtime, source, tmp_path):
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 2.0, (64, 48))
    for n in range(6):
        writer.write(np.asarray(picture(64, 48, seed=n))[:, :, ::-1].copy())
    writer.release()
    for path, times in ((file, None), (str(file), [0.0, 1.5, 2.0])):
        wanted = torch_answer(source, Video(file, None if times is None else tuple(times)), "4@4")
        assert list(runtime.look_clip(path, times).ask(QUESTION, "4@4", max_new_tokens=6).token_ids) == wanted


def test_verification_over_clips(runtime, source, tmp_path):
    files = []
    for n, frame in enumerate(FRAMES[:5]):
        frame.save(tmp_path / f"{n}.png")
        files.append(PictureFile(tmp_path / f"{n}.png"))
    row = Row("c", (ClipFrames(tuple(files)),), (Turn((PicturePlace(0), QUESTION), ("red",)),), None, "c", "test")
    report = verify_bundle(source, runtime.manifest.folder, [row], lambda steps: None)
    assert report["pictures"] == {"compared": 1, "views": [1, 4, 5], "other": 0}
    assert all(facts["same_answers"] == facts["answers"] == 1 for facts in report["scales"].values())


@pytest.mark.parametrize(
    ("clip", "times", "message"),
    [
        ([], None, "a clip without frames"),
        ([FRAMES[0]], [1.0], "times are of a video file"),
        (FRAMES[0], None, "a clip is a Image: give the path of a video, or a list of frames"),
        ("absent.avi", None, "there is no video absent.avi"),
        (["absent.png"], None, "there is no picture absent.png"),
    ],
)
def test_what_is_no_clip(runtime, clip, times, message):
    with pytest.raises(MvlmError, match=message):
        runtime.look_clip(clip, times)


def test_frames_of_several_sizes(runtime):
    view = runtime.look_clip([FRAMES[0], FRAMES[1], Image.new("RGB", (9, 9))])
    with pytest.raises(MvlmError, match="frames of several sizes"):
        view.ask(QUESTION, "4@4")
    assert view.ask(QUESTION, 4, max_new_tokens=1).views == 1  # nothing is lost


def test_a_bundle_of_one_view_and_pictures_at_scales_of_clips(runtime):
    alone = Runtime.load(pool_bundle().bundle, threads=1)
    with pytest.raises(
        MvlmError, match=r"no scale of several frames \(1, 4, 9, 36, 144\): export one with such"
    ) as told:
        alone.look_clip(FRAMES)
    assert told.value.code == "no-frames"
    with pytest.raises(MvlmError, match="this bundle shows a picture as a whole, and 4@4 is of clips: name the tokens"):
        runtime.look(FRAMES[0]).ask(QUESTION, "4@4")


def test_a_frame_of_a_camera_is_encoded_once(runtime, encoded):
    frames = [Frame(f"frame {n}", np.asarray(one), "rgb", time.monotonic()) for n, one in enumerate(FRAMES)]
    first = runtime.look_clip(frames[:4])
    wanted = runtime.look_clip(FRAMES[1:5]).ask(QUESTION, "4@4", max_new_tokens=6).token_ids
    first.ask(QUESTION, "4@4", max_new_tokens=1)
    encoded.clear()
    moved = runtime.look_clip(frames[1:5])  # one frame on
    assert moved.ask(QUESTION, "4@4", max_new_tokens=6).token_ids == wanted
    assert encoded == [1]  # the one that came
    assert len(runtime._encoded) == 5
    del frames, first, moved
    gc.collect()
    assert len(runtime._encoded) == 0  # nobody holds them


def test_the_last_frames_of_a_camera(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    with LatestClip(0, 3) as camera:
        clips = [camera.next() for _ in range(5)]
    assert [len(clip) for clip in clips] == [1, 2, 3, 3, 3]
    assert clips[3][:2] == clips[2][1:]
    assert all(a.taken_s <= b.taken_s for clip in clips for a, b in itertools.pairwise(clip))
    monkeypatch.setattr(Camera, "many", 2)
    with LatestClip(0, 3) as camera:
        time.sleep(0.1)
        camera.next()
        with pytest.raises(MvlmError, match="the camera gives no frames any more"):
            camera.next(wait_s=0.3)
    with pytest.raises(MvlmError, match="a clip of 0 frames has none: ask for at least 1"):
        LatestClip(0, 0)
