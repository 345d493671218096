"""Every verb once, on next to nothing: what must work with whatever versions are installed (`.ci/versions`)."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from mvlm_core.cli import main

pytestmark = pytest.mark.smoke
FAMILIES = ("pool", "query")
SCALE = 9


class _Said(logging.Handler):
    """What transformers says by its logger rather than as a warning, where the wrong name of a thing is often told."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module", autouse=True)
def nothing_of_ours_is_deprecated():
    said = _Said()
    logging.getLogger("transformers").addHandler(said)
    yield
    logging.getLogger("transformers").removeHandler(said)
    assert not [line for line in said.lines if "deprecated" in line]


def mvlm(*words: str | Path) -> str:
    """Run a verb and return what it printed; anything but success fails the test."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, f"mvlm {words}: {result.output}"
    return result.output


@dataclass(frozen=True)
class Made:
    """What the verbs wrote, one after another, and a question about a picture."""

    folder: Path
    picture: Path
    question: str


@pytest.fixture(scope="module", params=FAMILIES)
def made(request, tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    rows, run, labels, router = (folder / name for name in ("rows", "run", "labels", "router"))
    mvlm("data", "scenes", "--out", rows, "--family", request.param, "--train", 30, "--val", 16, "--test", 12)
    config = folder / "train.yaml"
    told = yaml.safe_load(config.read_text())
    told["stages"] = [stage | {"steps": 2, "activation_checkpointing": True} for stage in told["stages"]]
    config.write_text(yaml.safe_dump(told))
    mvlm("data", "check", rows, "--config", config)
    mvlm("train", config, "--out", run)
    mvlm("label", run, "--rows", rows, "--scales", f"1,{SCALE},36", "--out", labels)
    mvlm("fit-router", labels, "--out", router)
    mvlm("report", router, "--labels", labels, "--out", folder / "report")
    mvlm("export", run, "--router", router, "--rows", rows, "--verify-rows", 2, "--out", folder / "bundle")
    row = json.loads((rows / "rows.jsonl").read_text().splitlines()[0])
    return Made(folder, rows / row["image"], row["question"])


def test_the_bundle_is_what_the_run_is(made):
    run, rows = made.folder / "run", made.folder / "rows"
    mvlm("verify", made.folder / "bundle", "--run", run, "--rows", rows, "--verify-rows", 2)


def test_the_bundle_answers(made):
    told = mvlm("run", made.picture, made.question, "--bundle", made.folder / "bundle", "--scale", SCALE)
    assert f"{SCALE} tokens: the scale that was named" in told
    assert "P(right)" in mvlm("run", made.picture, made.question, "--bundle", made.folder / "bundle")


def test_generate_of_transformers_answers_as_the_runtime(made):
    """By the Auto classes, from the folder of a run, with its KV cache and without."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import mvlm_core.model  # noqa: F401 - registers the Auto classes
    from export.runtime import Runtime

    model = AutoModelForImageTextToText.from_pretrained(made.folder / "run").eval()
    processor = AutoProcessor.from_pretrained(made.folder / "run")
    batch = processor(images=Image.open(made.picture), text=processor.ask(made.question), num_visual_tokens=SCALE)
    told = {"max_new_tokens": 6, "do_sample": False}
    with torch.inference_mode():
        ids, slow = (model.generate(**batch, **told, use_cache=use)[0].tolist() for use in (True, False))
    assert ids == slow
    asked = Runtime.load(made.folder / "bundle", threads=1).ask(
        made.picture, made.question, scale=SCALE, max_new_tokens=6
    )
    new = ids[batch["input_ids"].shape[1] :]
    assert list(asked.token_ids) == [i for i in new if i != model.generation_config.eos_token_id]


def test_the_server_answers(made):
    from export.runtime import Runtime
    from tests.support.serving import body, serving

    with serving(Runtime.load(made.folder / "bundle", threads=1)) as server:
        status, answer = server.chat(body(made.picture.read_bytes(), made.question, f"mvlm-{SCALE}", max_tokens=4))
    assert status == 200
    assert answer["usage"]["completion_tokens"] <= 4


def test_a_published_checkpoint_comes_in_and_goes_out(tmp_path):
    from benchmarks.tiny_models import byte_words
    from tests.support.checkpoints import FINEST, stock_llava, write_original

    words = byte_words()
    checkpoint = write_original(tmp_path / "checkpoint", stock_llava(len(words)))
    words.save_pretrained(checkpoint)
    mvlm("import", checkpoint, "--out", tmp_path / "run")
    mvlm("export-checkpoint", tmp_path / "run", "--scale", FINEST, "--out", tmp_path / "llava")


def test_the_runtime_reads_what_opencv_writes(made, tmp_path):
    import cv2
    import numpy as np

    from export.runtime import Runtime
    from export.runtime.frames import LatestFrame

    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 32))
    for brightness in range(0, 250, 10):
        film.write(np.full((32, 32, 3), brightness, np.uint8))
    film.release()
    runtime = Runtime.load(made.folder / "bundle", threads=1)
    with LatestFrame(str(tmp_path / "film.avi"), oldest_ms=1e6) as camera:
        frame = camera.next()
    asked = runtime.look(frame.picture, frame.order).ask(made.question, scale=1, max_new_tokens=1)
    assert asked.num_visual_tokens == 1


def test_lmms_eval_scores_a_bundle(made, tmp_path):
    tasks = tmp_path / "tasks"
    mvlm("data", "to-lmms-eval", "--rows", made.folder / "rows", "--split", "test", "--out", tasks)
    told = mvlm(
        "benchmark", made.folder / "bundle", "--scales", SCALE, "--tasks", "rows", "--include-path", tasks,
        "--limit", 2, "--out", tmp_path / "scores",
    )  # fmt: skip
    assert "| rows, score | measured |" in told
