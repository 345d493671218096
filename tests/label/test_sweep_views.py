"""The sweep over tiles: what asking one row at one scale at a time gives, each view encoded once."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.data.pictures import PictureFile
from mvlm_core.label.shown_pictures import ShownPictures
from router.labels import read_table
from tests.support.families import make, picture

SCALES = (1, 4, "1@4", "4@native")
SIZES = [(200, 140), (40, 30), (100, 240)]
QUESTIONS = ("what colour?", "how many?")


@pytest.fixture(scope="module", params=["smolvlm", "internvl", "llava_onevision"])
def labelled(request, tmp_path_factory):
    from click.testing import CliRunner

    from mvlm_core.cli import main

    folder = tmp_path_factory.mktemp(request.param)
    told = []
    for n, size in enumerate(SIZES):
        picture(*size, seed=n).save(folder / f"{n}.png")
        told += [
            {"id": f"{n} {question}", "image": f"{n}.png", "question": question, "answers": ["red"], "split": "val"}
            for question in QUESTIONS
        ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, told)))
    make(request.param, folder / "checkpoint")
    for arguments in (
        ["import", folder / "checkpoint", "--out", folder / "run"],
        ["label", folder / "run", "--rows", folder / "rows.jsonl", "--scales", ",".join(map(str, SCALES)),
         "--splits", "val", "--out", folder / "labels", "--metric", "exact", "--max-new-tokens", "5"],
    ):  # fmt: skip
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, (result.output, result.exc_info)
    return folder


def lines(folder: Path) -> dict[tuple[str, str], dict]:
    return {(line["id"], line["scale"]): line for line in pq.read_table(folder / "labels/labels.parquet").to_pylist()}


@torch.no_grad()
def test_as_one_row_at_one_scale_at_a_time(labelled):
    model, processor = load_run(labelled / "run")
    found = lines(labelled)
    assert len(found) == len(SIZES) * len(QUESTIONS) * len(SCALES)
    for n in range(len(SIZES)):
        for question in QUESTIONS:
            for scale in SCALES:
                inputs = processor(text=processor.ask(question), images=[str(labelled / f"{n}.png")], scale=scale)
                told = model.generate(
                    **inputs, do_sample=False, max_new_tokens=5, return_dict_in_generate=True, output_scores=True
                )
                line = found[f"{n} {question}", str(scale)]
                likely = torch.stack(told.scores)[:, 0].softmax(dim=-1).topk(2).values  # (new, 2)
                margins = likely[:, 0] - likely[:, 1]
                assert line["margin"] == pytest.approx(float(margins[0]), abs=1e-5)
                if margins.min() > 1e-5:  # a random model is undecided now and then
                    ids = told.sequences[0, inputs["input_ids"].shape[1] :]
                    assert line["prediction"] == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
                alone = len(processor.tokenizer(processor.ask(question), add_special_tokens=False)["input_ids"])
                assert line["num_visual_tokens"] == inputs["input_ids"].shape[1] - alone + 1


def test_the_costs_are_the_mean_of_what_rows_take(labelled):
    facts = json.loads((labelled / "labels" / "labels.json").read_text())
    assert facts["scales"] == list(SCALES)
    found = lines(labelled)
    for scale, cost in zip(facts["scales"], facts["cost"], strict=True):
        taken = [line["num_visual_tokens"] for (_, word), line in found.items() if word == str(scale)]
        assert cost == pytest.approx(sum(taken) / len(taken))
    assert found["1 what colour?", "1@4"]["num_visual_tokens"] == found["1 what colour?", "1"]["num_visual_tokens"]


def test_each_view_is_encoded_once(labelled, monkeypatch):
    model, processor = load_run(labelled / "run")
    encoded = []
    encode = type(model).encode_images
    monkeypatch.setattr(type(model), "encode_images", lambda self, p: (encoded.append(len(p)), encode(self, p))[1])
    sources = [PictureFile(labelled / f"{n}.png") for n in range(len(SIZES))]
    shown = ShownPictures(model, processor, sources, SCALES)
    views = {(n, view) for n in range(len(SIZES)) for scale in SCALES for view in shown.pictures.shown(n, scale).views}
    assert sum(encoded) == len(views)


def test_a_scale_that_the_model_does_not_allow(labelled, tmp_path, mvlm):
    rows = labelled / "rows.jsonl"
    for scales, message in (("25@4", "cannot show a picture in 25@4 tokens"), ("4@x", "is not a scale")):
        result = mvlm("label", labelled / "run", "--rows", rows, "--scales", scales, "--out", tmp_path / "labels")
        assert result.exit_code == 2
        assert message in result.output


def test_a_router_of_tiles_is_refused_by_name(labelled):
    with pytest.raises(
        MvlmError, match=r"has scales with tiles \(1@4, 4@native\), and a router chooses among those of"
    ):
        read_table(labelled / "labels")
