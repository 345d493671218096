"""The sweep over tiles: what asking one row at one scale at a time gives, each view encoded once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import nn

from export.runtime import Runtime
from export.runtime.features import SIZE_FEATURES, image_feature_names, question_features
from export.runtime.routing.by_picture import in_tokens
from export.runtime.routing.router import Terms
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.data.pictures import PictureFile
from mvlm_core.label.shown_pictures import ShownPictures
from mvlm_core.label.tower_share import tile_tokens
from router.labels import read_table
from tests.support.families import make, picture
from tests.support.labels_maker import quick

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
                assert line["tiles"] == len(inputs["pixel_values"]) - 1


def test_the_costs_are_the_mean_of_what_rows_take_tokens_and_encoded_tiles(labelled):
    facts = json.loads((labelled / "labels" / "labels.json").read_text())
    assert facts["scales"] == list(SCALES)
    found, of_tile = lines(labelled), facts["tile_tokens"]
    for scale, cost in zip(facts["scales"], facts["cost"], strict=True):
        own = [line for (_, word), line in found.items() if word == str(scale)]
        taken = [line["num_visual_tokens"] + of_tile * line["tiles"] for line in own]
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


def test_the_features_say_how_large_a_picture_is(labelled):
    names = json.loads((labelled / "labels" / "labels.json").read_text())["feature_names"]["image"]
    assert names[-2:] == list(SIZE_FEATURES)
    seen = {line["id"]: line["image"] for line in pq.read_table(labelled / "labels/features.parquet").to_pylist()}
    for n, (width, height) in enumerate(SIZES):
        assert seen[f"{n} how many?"][-2:] == pytest.approx([math.log2(height), math.log2(width)])
        assert len(seen[f"{n} how many?"]) == len(names)


def test_what_a_tile_is_worth_in_tokens_is_counted(labelled):
    """Against the multiplications of linear layers and convolutions alone, which are most of all."""
    model, processor = load_run(labelled / "run")
    counted = []

    def count(layer, inputs, output):
        each = layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else layer.in_features
        counted.append(2 * output.numel() * each)

    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(count)
    spec = processor.image_processor.view_spec
    whole = tile_tokens(model, spec.size_px)
    counted.clear()
    with torch.no_grad():
        model.connector.words(model.encode_images(torch.zeros(1, 3, spec.size_px, spec.size_px)))
        of_view = sum(counted)
        counted.clear()
        model.language_model.base_model(inputs_embeds=torch.zeros(1, 64, model.config.text_config.hidden_size))
    assert whole == pytest.approx(of_view / (sum(counted) / 64), rel=0.35)
    assert whole == tile_tokens(model, spec.size_px)


def test_from_tiles_to_a_report(tmp_path, mvlm):
    """A tiny checkpoint comes in, is trained on, labelled over tiles, and a router is fitted and judged."""
    told = []
    for n in range(36):
        picture(*SIZES[n % 3], seed=n).save(tmp_path / f"{n}.png")
        split = ("train", "val", "test")[n // 12]
        told.append({"id": f"{n}", "image": f"{n}.png", "question": "what?", "answers": ["red"], "split": split})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, told)))
    make("smolvlm", tmp_path / "checkpoint")
    stage = {"name": "all", "show": [1, "4@4"], "steps": 2, "pictures": 2, "lr": 1e-3}
    config = {"rows": "rows.jsonl", "precision": "float32", "scales": [1, 4, "4@4"], "stages": [stage]}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config | {"model": {"start": "begin"}}))
    labels = tmp_path / "labels"
    for arguments in (
        ["import", tmp_path / "checkpoint", "--out", tmp_path / "begin"],
        ["train", tmp_path / "train.yaml", "--out", tmp_path / "run"],
        ["label", tmp_path / "run", "--scales", "1,4,16,4@4,16@4", "--metric", "exact", "--max-new-tokens", "2",
         "--rows", tmp_path / "rows.jsonl", "--out", labels],
    ):  # fmt: skip
        result = mvlm(*arguments)
        assert result.exit_code == 0, (result.output, result.exc_info)
    with quick():
        fitted = mvlm("fit-router", labels, "--out", tmp_path / "router")
        assert fitted.exit_code == 0, (fitted.output, fitted.exc_info)
        report = mvlm("report", tmp_path / "router", "--labels", labels, "--out", tmp_path / "report")
    assert report.exit_code == 0, (report.output, report.exc_info)
    assert "mvlm export" in report.output
    assert read_table(labels).scales == (1, 4, 16, "4@4", "16@4")
    chooses_on_a_device(tmp_path, mvlm)


def chooses_on_a_device(folder: Path, mvlm) -> None:
    """The bundle of a run with tiles and its router: `auto` is what the router says of the overview and these costs."""
    parts = ["--router", folder / "router", "--rows", folder / "rows.jsonl", "--out", folder / "bundle"]
    made = mvlm("export", folder / "run", *parts, "--verify-rows", 2)
    assert made.exit_code == 0, (made.output, made.exc_info)
    report = json.loads((folder / "bundle/verify.json").read_text())
    assert list(report["scales"]) == ["1", "4", "16", "4@4", "16@4"]
    assert report["router"] == {"asked": 2, "same": 2}
    assert report["pictures"]["other"] == 0
    assert len(report["pictures"]["views"]) > 2  # of the shapes that its pictures were cut to
    runtime = Runtime.load(folder / "bundle", threads=1)
    facts, worth = runtime.router.facts, runtime.router.facts.tile_tokens
    assert worth == json.loads((folder / "labels/labels.json").read_text())["tile_tokens"]
    for number, size in enumerate(SIZES):
        view = runtime.look(picture(*size, seed=number))
        costs = [len(view.at(s)) + worth * (view.at(s).laid.views - 1) for s in runtime.router.offered]
        features, words = view.image_features, runtime.prompt.question_ids("what?")
        assert len(features) == len(image_feature_names()) + len(SIZE_FEATURES)
        asked = question_features("what?", runtime.table.rows(words), view.words)
        for price in (0.0, 0.05, 0.5):
            wanted = runtime.router.choose(features, asked, Terms(price=price), costs=np.array(costs))
            found = view.choose("what?", price=price)
            assert (found.scale, found.cost) == (wanted.scale, wanted.cost)
            assert found.reason == wanted.reason
        assert len(view.seen._held) == 1  # choosing encodes no tile
        cheapest = min(costs)
        assert view.choose("what?", price=0.0, cap=cheapest).cost == cheapest
        view.ask("what?", "16@4", max_new_tokens=1)
        paid = view.choose("what?", price=0.0, cap=len(view.at("16@4"))).cost
        assert paid <= len(view.at("16@4"))  # tiles that are there cost nothing more
        assert in_tokens(runtime.router, view, anew=True).tolist() == costs
    assert facts.scales == (1, 4, 16, "4@4", "16@4")
