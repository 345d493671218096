"""Training with tiles: an imported family goes on, a toy begins with tiles; both resume as they would have gone on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from export.runtime.views.cutting import ClosestAspect
from export.runtime.views.spec import ViewSpec
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.data.pictures import PictureFile
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor
from mvlm_core.modeling.visual_lengths import VisualLengths
from mvlm_core.train.build import resolve_model
from mvlm_core.train.model_config import ImageConfig, ModelConfig
from tests.support.families import make, picture
from tests.support.tiny import SMALL_MODEL, metrics, tiny_processor

STAGE = {
    "name": "answers", "show": [4, "1@4", "4@native"], "steps": 4, "pictures": 2, "save_every": 2, "evaluate_every": 2,
    "max_tokens": 500, "lr": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    told = []
    for n, size in enumerate([(200, 90), (60, 60), (100, 240), (150, 150)]):
        picture(*size, seed=n).save(folder / f"{n}.png")
        for question, answer in (("what colour?", "red"), ("how many?", "two")):
            row = {"id": f"{n} {question}", "image": f"{n}.png", "question": question, "answers": [answer]}
            told.append(json.dumps(row | {"split": "val" if n == 3 else "train"}))
    (folder / "rows.jsonl").write_text("\n".join(told))
    return folder


def config_file(folder: Path, rows: Path, **told) -> Path:
    config = {"rows": str(rows), "precision": "float32", "scales": [4, "4@native", "1@4"], "stages": [STAGE],
              "keep_checkpoints": True, **told}  # fmt: skip
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    return folder / "train.yaml"


@pytest.mark.parametrize("kind", ["smolvlm", "internvl", "llava_onevision"])
def test_an_imported_family_goes_on_and_resumes(kind, rows, tmp_path, mvlm):
    begin = tmp_path / "begin"
    assert mvlm("import", make(kind, tmp_path / "checkpoint"), "--out", begin).exit_code == 0
    config = config_file(tmp_path, rows, model={"start": str(begin)})
    result = mvlm("train", config, "--out", tmp_path / "run")
    assert result.exit_code == 0, (result.output, result.exc_info)
    shown = {scale for line in metrics(tmp_path / "run") for scale in line.get("num_visual_tokens", [])}
    assert shown == {4, "1@4", "4@native"}
    processor = load_run(tmp_path / "run")[1]
    assert processor.image_processor.view_spec == load_run(begin)[1].image_processor.view_spec
    before, after = (load_file(folder / "model.safetensors") for folder in (begin, tmp_path / "run"))
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)

    cut = shutil.copytree(tmp_path / "run", tmp_path / "cut")
    (cut / "model.safetensors").unlink()
    shutil.rmtree(cut / "checkpoints" / "0-answers" / "checkpoint-4")
    result = mvlm("train", config, "--resume", "--out", cut)
    assert result.exit_code == 0, result.output
    again = load_file(cut / "model.safetensors")
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_a_toy_begins_with_tiles(scenes, tmp_path, mvlm):
    show = ('stages.1.show=[4, "4@4"]', "stages.0.steps=1", "stages.1.steps=2", "model.image.tiles=6")
    scales = 'scales=[4, "4@4", "native"]'
    result = mvlm("train", scenes.parent / "train.yaml", *SMALL_MODEL, *show, scales, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    model, processor = load_run(tmp_path / "run")
    side = processor.image_processor.view_spec.size_px
    inputs = processor(text=processor.ask("what?"), images=[picture(2 * side, 2 * side)], scale="4@4")
    assert len(inputs["pixel_values"]) == 5
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"image": {"size_px": 32}}, "model.image states size_px, and the views of the start stay"),
        ({"connector": "nested_pool"}, "puts the tokens of tiles together to a grid, which nested_pool has none of"),
    ],
)
def test_what_a_start_with_views_does_not_allow(told, message, rows, tmp_path, mvlm):
    begin = tmp_path / "begin"
    assert mvlm("import", make("llava_next", tmp_path / "checkpoint"), "--out", begin).exit_code == 0
    config = config_file(tmp_path, rows, model={"start": str(begin), **told})
    result = mvlm("train", config, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run").exists()


def test_a_scale_that_the_imported_grid_does_not_pool_to(rows, tmp_path, mvlm):
    begin = tmp_path / "begin"
    assert mvlm("import", make("smolvlm", tmp_path / "checkpoint"), "--out", begin).exit_code == 0
    result = mvlm(
        "train", config_file(tmp_path, rows, model={"start": str(begin)}, scales=["64@4"]), "--out", tmp_path / "r"
    )
    assert result.exit_code == 2
    assert "cannot show a picture in 64@4 tokens: it allows 1, 4, 16" in result.output


def test_nested_pool_takes_an_imported_projector_over(rows, tmp_path, mvlm):
    begin = tmp_path / "begin"
    assert mvlm("import", make("internvl", tmp_path / "checkpoint"), "--out", begin).exit_code == 0
    assert resolve_model(ModelConfig(start=begin)).pixel_shuffle == 2
    stage = STAGE | {"steps": 1, "show": [5, "5@4"], "save_every": None, "evaluate_every": None}
    told = {"model": {"start": str(begin), "connector": "nested_pool"}, "scales": [5, "16"], "stages": [stage]}
    result = mvlm("train", config_file(tmp_path, rows, **told), "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert load_run(tmp_path / "run")[0].config.connector == "nested_pool"


def test_tiles_are_stretched():
    with pytest.raises(ValueError, match="pictures with tiles are stretched over them, and fit is pad"):
        ImageConfig(tiles=4, fit="pad")
    assert MvlmImageProcessor().view_spec is None


def test_the_tokens_are_told_beforehand(rows, tmp_path, mvlm):
    begin = tmp_path / "begin"
    assert mvlm("import", make("smolvlm", tmp_path / "checkpoint"), "--out", begin).exit_code == 0
    result = mvlm("data", "check", rows, "--config", config_file(tmp_path, rows, model={"start": str(begin)}))
    assert result.exit_code == 0, (result.output, result.exc_info)
    processor = load_run(begin)[1]
    wide = processor(text=processor.ask("how many?"), images=[str(rows / "0.png")], scale="4@native")
    assert "4@native" in result.output
    alone = processor(text=processor.ask("how many?"), images=[str(rows / "0.png")], scale=4)
    assert wide["input_ids"].shape[1] > alone["input_ids"].shape[1]


def test_more_views_than_fit_are_named_before_a_step(rows, tmp_path, mvlm):
    begin = tmp_path / "begin"
    assert mvlm("import", make("smolvlm", tmp_path / "checkpoint"), "--out", begin).exit_code == 0
    stage = STAGE | {"show": ["4@native"], "max_tokens": 60}
    config = config_file(tmp_path, rows, model={"start": str(begin)}, stages=[stage])
    result = mvlm("train", config, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "tokens at scale 4@native do not fit into 60 without leaving out a picture" in result.output
    lengths = VisualLengths(load_run(begin)[1])
    told = re.findall(r"id (\d) .*: (\d+) tokens at scale 4@native .*; at (4\S*) it fits", result.output)
    assert told
    for name, needed, word in told:
        pictures = [PictureFile(rows / f"{name}.png")]
        assert int(needed) - lengths.of(pictures, "4@native") + lengths.of(pictures, word) <= 60


def test_as_many_views_as_fit(rows):
    images = MvlmImageProcessor(views=ViewSpec(8, 2, (0.5,) * 3, (0.5,) * 3, ClosestAspect(1, 12)).to_json())
    lengths, wide = VisualLengths(MvlmProcessor(images, tiny_processor().tokenizer)), [PictureFile(rows / "0.png")]
    every = [lengths.of(wide, f"4@{n}") for n in range(1, 13)]
    for room in range(4, every[-1] + 3):
        word = lengths.that_fits(wide, "4@12", room)
        assert lengths.of(wide, word) <= room
        slow = [n for n, length in enumerate(every, 1) if length <= room]
        assert lengths.of(wide, word) == (max(every[n - 1] for n in slow) if slow else 4)
    assert lengths.that_fits(wide, "4@12", 3) is None
    assert lengths.that_fits(wide, 4, 2) is None
    assert lengths.that_fits(wide, "native", 12) == lengths.that_fits(wide, "4@native", 12)


def test_the_size_of_a_picture_is_read_once_for_all_rows_and_scales(rows, monkeypatch):
    from mvlm_core.modeling import visual_lengths

    read = []
    measure = visual_lengths._size
    monkeypatch.setattr(visual_lengths, "_size", lambda file: (read.append(file), measure(file))[1])
    images = MvlmImageProcessor(views=ViewSpec(8, 2, (0.5,) * 3, (0.5,) * 3, ClosestAspect(1, 4)).to_json())
    lengths = visual_lengths.VisualLengths(MvlmProcessor(images, tiny_processor().tokenizer))
    told = [
        lengths.of([PictureFile(rows / f"{n}.png")], scale) for _ in range(3) for n in (0, 1) for scale in (1, "1@4")
    ]
    assert told == told[:4] * 3
    assert read == [rows / "0.png", rows / "1.png"]
