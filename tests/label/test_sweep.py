"""The sweep: batched behind shared pictures equals generate row by row; stopped and started again it ends the same."""

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from export.runtime.artefact import read_artefact, sha256_file
from export.runtime.errors import MvlmError
from export.runtime.families import FAMILIES
from export.runtime.image import open_picture
from mvlm_core.data.pictures import pictures_sha256
from mvlm_core.data.reading import read_rows
from mvlm_core.label import sweep as sweeping
from mvlm_core.label.packed_generation import answer_together
from mvlm_core.label.resumable import parts_folder
from mvlm_core.label.sweep import Sweep, label
from mvlm_core.train.plan import group_rows
from router.labels import read_table
from router.report.breakdown import without_luck
from tests.conftest import rewrite_rows
from tests.support.tiny import QUESTIONS, SCALES, drawn_picture, one_question, tiny_model, tiny_processor


def sweep(run: Path, rows: Path, **changes) -> Sweep:
    return Sweep(
        **{"run": run, "rows": rows, "scales": (1, 9), "splits": ("val", "test"), "pictures_per_part": 5, **changes}
    )


@pytest.fixture(scope="module")
def labelled(run, scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("labelled") / "labels"
    label(sweep(run, scenes), out, overwrite=False, progress=lambda done, whole: None)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_pictures_equal_generate_one_at_a_time(family):
    processor = tiny_processor()
    model = tiny_model(family, processor=processor)
    pictures = [drawn_picture(i) for i in range(2)]
    questions = [[QUESTIONS[0], QUESTIONS[3], QUESTIONS[1]], [QUESTIONS[2]]]
    ids = [
        [processor.tokenizer(processor.ask(q), add_special_tokens=False)["input_ids"] for q in qs] for qs in questions
    ]
    place = ids[0][0].index(processor.image_token_id)
    with torch.inference_mode():
        values = model.encode_images(processor.image_processor(pictures)["pixel_values"])
    for scale in SCALES:
        visual = model.connector.tokens(values, scale)
        fast = answer_together(model, ids[0][0][:place], visual, [[i[place + 1 :] for i in qs] for qs in ids], 8)
        for picture, asked, answered in zip(pictures, questions, fast, strict=True):
            for question, answer in zip(asked, answered, strict=True):
                one = processor(images=picture, text=processor.ask(question), num_visual_tokens=scale)
                with torch.inference_mode():
                    slow = model.generate(
                        **one, max_new_tokens=8, do_sample=False, output_scores=True, return_dict_in_generate=True
                    )
                likely = [step.softmax(-1).max().item() for step in slow.scores]
                wanted = slow.sequences[0, one["input_ids"].shape[1] :].tolist()
                stop = model.generation_config.eos_token_id
                assert answer.token_ids == (wanted[: wanted.index(stop)] if stop in wanted else wanted)
                assert answer.confidence == pytest.approx(math.prod(likely), rel=1e-3)


def test_labels_hold_every_row_at_every_scale(labelled, scenes, run):
    facts = read_artefact(labelled, "labels")
    labels = pq.read_table(labelled / "labels.parquet").to_pydict()
    features = pq.read_table(labelled / "features.parquet").to_pydict()
    assert facts["counts"]["rows"] == len(features["id"]) == len(labels["id"]) / 2
    assert set(zip(labels["id"], labels["num_visual_tokens"], strict=True)) == {
        (name, scale) for name in features["id"] for scale in (1, 9)
    }
    assert set(labels["split"]) == {"val", "test"}
    assert facts["files"]["labels.parquet"] == sha256_file(labelled / "labels.parquet")
    assert facts["model_sha256"] == sha256_file(run / "model.safetensors")
    assert facts["tasks"]["colour_of"] == {"sight": "picture"}
    for kind in ("image", "question"):
        assert {len(values) for values in features[kind]} == {len(facts["feature_names"][kind])}


def test_labels_hold_pictures_of_other_kinds_and_the_margin_of_first_tokens(labelled):
    ood_probes = pq.read_table(labelled / "ood_probes.parquet").to_pydict()
    assert set(ood_probes["kind"]) == {"noise", "negative", "outlines", "tiles", "half noise"}
    features = pq.read_table(labelled / "features.parquet").to_pydict()
    for kind in ("image", "question"):
        assert {len(values) for values in ood_probes[kind]} == {len(features[kind][0])}
        assert np.isfinite(ood_probes[kind]).all()
    labels = pq.read_table(labelled / "labels.parquet").to_pydict()
    assert all(0 <= margin <= 1 for margin in labels["margin"])
    # The first token's lead is at most its probability, and that at least the probability of the whole answer.
    assert all(margin >= 2 * confidence - 1 - 1e-6 for margin, confidence in
               zip(labels["margin"], labels["confidence"], strict=True))  # fmt: skip


def test_pictures_of_other_kinds_are_made_of_the_picture_as_it_is_read(tmp_path):
    """Upright, and 16 bits as 8: a picture that was turned or wide makes the probes that the plain one makes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.asarray(drawn_picture(3, 40).convert("L").resize((40, 20))).astype(np.uint16) << 8
    Image.fromarray(wide).save(tmp_path / "turned.png", exif=exif)
    open_picture(tmp_path / "turned.png").save(tmp_path / "plain.png")
    processor = tiny_processor()
    probes = [
        sweeping._ood_probes(tiny_model(processor=processor), processor, group_rows([row]))
        for row in [one_question("1", tmp_path / name, QUESTIONS[0], "red") for name in ("turned.png", "plain.png")]
    ]
    assert probes[0] == probes[1]


def test_a_question_before_the_picture_is_refused(run, scenes, tmp_path):
    """What stands before the picture is read once for all questions, which it would have to be part of."""
    turned = shutil.copytree(run, tmp_path / "run")
    for file in turned.glob("chat_template.jinja"):
        file.write_text(
            "{% for message in messages %}{% if message.role == 'user' %}<user>{{ message.content[1].text }}<image>"
            "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
        )
    with pytest.raises(MvlmError, match="puts the question before the picture"):
        label(sweep(turned, scenes), tmp_path / "labels", overwrite=False, progress=lambda done, whole: None)
    assert not (tmp_path / "labels").exists()


def test_stopped_and_started_again_ends_the_same(labelled, run, scenes, tmp_path, monkeypatch):
    out = tmp_path / "labels"
    swept = []
    slow_way = sweeping.sweep_pictures

    def counted(*told):
        if len(swept) == 2:
            raise KeyboardInterrupt
        swept.append(told[2])
        return slow_way(*told)

    monkeypatch.setattr(sweeping, "sweep_pictures", counted)
    with pytest.raises(KeyboardInterrupt):
        label(sweep(run, scenes), out, overwrite=False, progress=lambda done, whole: None)
    assert not out.exists()
    monkeypatch.setattr(sweeping, "sweep_pictures", lambda *a: (swept.append(a[2]), slow_way(*a))[1])
    label(sweep(run, scenes), out, overwrite=False, progress=lambda done, whole: None)
    assert sum(map(len, swept)) == 24  # no picture was swept twice
    for name in ("labels.parquet", "features.parquet", "ood_probes.parquet"):
        assert (out / name).read_bytes() == (labelled / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


def test_further_runs_are_drawn_and_the_first_is_the_greedy_one(labelled, run, scenes, tmp_path):
    """Each picture's draws are its own part's, so a sweep that was stopped goes on as if it had not been."""
    for name in ("one", "another"):
        label(sweep(run, scenes, samples=3), tmp_path / name, overwrite=False, progress=lambda done, whole: None)
    assert (tmp_path / "one/labels.parquet").read_bytes() == (tmp_path / "another/labels.parquet").read_bytes()
    table = pq.read_table(tmp_path / "one/labels.parquet")
    by_sample = [table.filter(pa.compute.equal(table["sample"], number)).drop_columns("sample") for number in range(3)]
    assert by_sample[0].equals(pq.read_table(labelled / "labels.parquet").drop_columns("sample"))
    said = [part["prediction"].to_pylist() for part in by_sample]
    assert said[0] != said[1]
    assert said[1] != said[2]
    assert read_artefact(tmp_path / "one", "labels")["samples"] == 3
    read = read_table(tmp_path / "one")
    assert read.samples.shape[1] == 3
    assert without_luck(read) is not None
    assert without_luck(read_table(labelled)) is None


def test_answers_are_drawn_as_often_as_the_model_thinks_them_right():
    """First tokens over many draws, against the probabilities of one look."""
    processor = tiny_processor()
    model = tiny_model(processor=processor)
    ids = processor.tokenizer(processor.ask(QUESTIONS[0]), add_special_tokens=False)["input_ids"]
    place = ids.index(processor.image_token_id)
    with torch.inference_mode():
        pixels = processor.image_processor([drawn_picture(0)])["pixel_values"]
        visual = model.connector.tokens(model.encode_images(pixels), 9)
    asked = [[ids[place + 1 :]] * 500]
    drawn = answer_together(model, ids[:place], visual, asked, 1, torch.Generator().manual_seed(0))[0]
    stop = model.generation_config.eos_token_id
    first = [answer.token_ids[0] if answer.token_ids else stop for answer in drawn]
    told = {token: answer.confidence for token, answer in zip(first, drawn, strict=True)}
    often = max(told, key=lambda token: first.count(token))
    assert len(told) > 1
    assert first.count(often) / 500 == pytest.approx(told[often], abs=0.08)


def test_parts_of_another_sweep_are_not_taken_over(labelled, run, scenes, tmp_path):
    out = tmp_path / "labels"
    parts = parts_folder(out, {"model_sha256": "another"})
    (parts / "features-00000000.parquet").write_bytes(b"another's")
    label(sweep(run, scenes), out, overwrite=False, progress=lambda done, whole: None)
    assert (out / "features.parquet").read_bytes() == (labelled / "features.parquet").read_bytes()


def test_parts_of_other_pictures_are_not_taken_over(run, scenes, tmp_path):
    rows = shutil.copytree(scenes, tmp_path / "rows")
    pictures = [picture for row in read_rows(rows) for picture in row.pictures]
    before = pictures_sha256(pictures)
    assert before == pictures_sha256(picture for row in read_rows(scenes) for picture in row.pictures)
    out, key = tmp_path / "labels", sweep(run, rows, pictures_sha256=before).key()
    (parts_folder(out, key) / "part").write_text("")
    assert (parts_folder(out, key) / "part").exists()
    file = pictures[0].read()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    after = sweep(run, rows, pictures_sha256=pictures_sha256(pictures)).key()
    assert not (parts_folder(out, after) / "part").exists()


def test_parts_that_say_nothing_are_thrown_away(tmp_path):
    for told in ("{", "[" * 100_000, "\udcff"):
        folder = parts_folder(tmp_path / "labels", {"a": 1})
        (folder / "key.json").write_text(told, errors="surrogateescape")
        (folder / "old").write_text("")
        assert not (parts_folder(tmp_path / "labels", {"a": 1}) / "old").exists()


def test_half_precision_by_name(run, scenes, tmp_path, labelled):
    """Other numbers, near the ones in float32; parts of one precision are not taken over by the other."""
    half = sweep(run, scenes, precision="bfloat16")
    facts = label(half, tmp_path / "half", overwrite=False, progress=lambda done, whole: None)
    assert facts["precision"] == "bfloat16"
    assert half.key() != sweep(run, scenes).key()
    found, wanted = (
        np.array(pq.read_table(folder / "features.parquet")["image"].to_pylist())
        for folder in (tmp_path / "half", labelled)
    )
    assert not np.array_equal(found, wanted)
    np.testing.assert_allclose(found, wanted, atol=0.1 * np.abs(wanted).max())


def test_what_cannot_be_labelled(run, scenes, tmp_path, mvlm):
    def refused(**changes) -> str:
        with pytest.raises(MvlmError) as error:
            label(
                sweep(run, **{"rows": scenes, **changes}),
                tmp_path / "x",
                overwrite=False,
                progress=lambda done, whole: None,
            )
        return str(error.value)

    assert "cannot show a picture in 10 tokens: it allows 1, 4, 9" in refused(scales=(10,))
    rows = rewrite_rows(
        shutil.copytree(scenes, tmp_path / "rows"), lambda rows: [r for r in rows if r["split"] == "val"]
    )
    assert "no rows of the splits test" in refused(rows=Path(rows), splits=("test",))
    result = mvlm("label", run, "--rows", scenes, "--scales", "1,9", "--splits", "dev", "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert "no split is called dev" in result.output
    result = mvlm("label", run, "--rows", scenes, "--out", tmp_path / "x")
    assert result.exit_code == 2  # no train.yaml that would name the scales
    assert "there is no configuration" in result.output
    assert not (tmp_path / "x").exists()


def test_the_verb_says_when_the_ladder_is_flat(run, scenes, tmp_path, mvlm, monkeypatch):
    monkeypatch.setattr("mvlm_core.commands.train_label._NOTHING_RIGHT", 0)  # this model has learned nothing
    result = mvlm("label", run, "--rows", scenes, "--scales", "1,9", "--out", tmp_path / "labels")
    assert result.exit_code == 0, result.output
    assert "The ladder looks flat" in result.output
    assert f"next: mvlm fit-router {tmp_path / 'labels'}" in result.output
    assert "is not empty" in mvlm("label", run, "--rows", scenes, "--scales", "1", "--out", tmp_path / "labels").output
