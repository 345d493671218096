"""What is kept for a router that reads pictures, against the model's own numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from export.runtime.artefact import read_artefact, sha256_file, write_json
from export.runtime.errors import MvlmError
from export.runtime.label_columns import READING
from export.runtime.routing.reading import MOST_TOKENS, read_patches, read_side
from mvlm_core.label import patches as keeping
from mvlm_core.label.patches import MOST_BYTES, PatchFiles, projection_of
from mvlm_core.label.sweep import Sweep, label
from mvlm_core.modeling.processing import prompt_of
from router.labels import read_table
from router.reading import NO_TOKEN, read_reading
from tests.support.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def labelled(scenes, tmp_path_factory):
    """(labels folder, model, processor) of a tiny run."""
    folder = tmp_path_factory.mktemp("patches")
    processor = tiny_processor()
    model = tiny_model(processor=processor)
    model.save_pretrained(folder / "run")
    processor.save_pretrained(folder / "run")
    sweep = Sweep(folder / "run", scenes, (1, 9), ("val", "test"), pictures_per_part=5)
    label(sweep, folder / "labels", overwrite=False, progress=lambda done, whole: None)
    return folder / "labels", model, processor


def test_each_row_has_its_picture_and_its_words(labelled, scenes):
    from mvlm_core.data.reading import read_rows

    folder, model, processor = labelled
    table = read_table(folder)
    reading, table_of_words = table.reading, model.embedding_table.detach().numpy()
    rows = {row.id: row for row in read_rows(scenes)}
    for n in range(0, len(table), 11):
        row = rows[str(table.ids[n])]
        pixels = processor.image_processor([row.pictures[0].read()])["pixel_values"]
        words = model.connector.words(model.encode_images(pixels))[0].detach().numpy()
        np.testing.assert_allclose(reading.patches[reading.picture[n]], read_patches(words), atol=2e-3)
        asked = table_of_words[prompt_of(processor).question_ids(row.question)]
        kept = reading.questions(np.array([n]))[0]
        np.testing.assert_allclose(kept, asked[:MOST_TOKENS], atol=2e-3)
    assert len(reading.patches) == len(set(table.groups.tolist()))
    some = table.take(table.splits == "test").reading
    np.testing.assert_array_equal(some.picture, reading.picture[table.splits == "test"])


def test_bytes_are_said_beforehand_and_bounded(labelled):
    facts = read_artefact(labelled[0], "labels")["reading"]
    assert facts["bytes_a_picture"] == 2 * facts["width"] * facts["cells"] <= MOST_BYTES


def test_labels_without_patches_still_open(labelled, tmp_path):
    folder = tmp_path / "labels"
    facts = read_artefact(labelled[0], "labels")
    folder.mkdir()
    for name in ("labels.parquet", "features.parquet", "ood_probes.parquet"):
        (folder / name).write_bytes((labelled[0] / name).read_bytes())
    write_json(folder / "labels.json", {key: value for key, value in facts.items() if key != "reading"})
    assert read_table(folder).reading is None


def test_patches_that_were_changed_or_are_of_other_rows(labelled, tmp_path):
    folder = labelled[0]
    facts, ids = read_artefact(folder, "labels"), read_table(folder).ids
    with pytest.raises(MvlmError, match=r"not of its rows .2 rows without patches"):
        read_reading(folder, facts, np.append(ids, ["x", "y"]))
    for name in READING:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    questions = pq.read_table(tmp_path / "questions.parquet")
    wrong = pa.array([10**6] * len(questions), pa.int32())
    pq.write_table(questions.set_column(1, "picture", wrong), tmp_path / "questions.parquet")
    with pytest.raises(MvlmError, match="missing or was changed"):
        read_reading(tmp_path, facts, ids)
    facts["files"]["questions.parquet"] = sha256_file(tmp_path / "questions.parquet")
    with pytest.raises(MvlmError, match="that are named are not there"):
        read_reading(tmp_path, facts, ids)


def test_a_wide_model_is_projected_and_keeps_its_products(tmp_path, monkeypatch):
    """Patches and words that lie in few directions keep their matches; the same projection is used to the end."""
    monkeypatch.setattr(keeping, "WIDTH", 8)
    random = np.random.default_rng(0)
    few = random.standard_normal((6, 40))
    words = (random.standard_normal((4, 16, 6)) @ few).astype(np.float32)  # (B, P, D)
    table = (random.standard_normal((30, 6)) @ few).astype(np.float32)
    for start in (0, 2):
        files = PatchFiles(tmp_path, table)  # as a sweep that was stopped in between
        files.write(start, words[start : start + 2], [[(f"r{start + i}", [3, 5, 7])] for i in range(2)])
    whole = tmp_path / "whole"
    whole.mkdir()
    told = files.assemble(whole, (0, 2))
    assert told == {"width": 8, "cells": 16, "dtype": "float16", "bytes_a_picture": 256}
    facts = {"reading": told, "files": {name: sha256_file(whole / name) for name in READING}}
    reading = read_reading(whole, facts, np.array(["r2", "r0"]))
    assert reading.picture.tolist() == [2, 0]
    np.testing.assert_allclose(
        reading.questions(slice(None))[0] @ reading.patches[2].T.astype(np.float32),
        table[[3, 5, 7]] @ words[2].T, rtol=0.02, atol=0.3,
    )  # fmt: skip
    np.testing.assert_allclose(reading.projection.T @ reading.projection, np.eye(8), atol=1e-5)


def test_a_narrow_model_is_kept_as_it_is():
    np.testing.assert_array_equal(projection_of(np.zeros((3, 5)), np.zeros((2, 5))), np.eye(5))


def test_questions_of_several_lengths_end_in_zeros(labelled):
    reading = read_table(labelled[0]).reading
    lengths = (reading.tokens != NO_TOKEN).sum(axis=1)
    assert lengths.min() < lengths.max()
    short = int(lengths.argmin())
    rows = np.array([short, int(lengths.argmax())])
    words = reading.questions(rows)
    assert words.shape[1] == lengths.max()
    assert not words[0, lengths[short] :].any()
    assert words[0, : lengths[short]].any(axis=-1).all()


def test_a_fine_grid_is_averaged_to_what_a_reader_sees():
    assert [read_side(side) for side in (1, 6, 7, 12, 14, 16, 24, 27, 32)] == [1, 6, 7, 12, 7, 8, 12, 9, 8]
    words = np.arange(24 * 24 * 2, dtype=np.float32).reshape(-1, 2)
    grid = words.reshape(24, 24, 2)
    slow = [grid[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean(axis=(0, 1)) for r in range(12) for c in range(12)]
    np.testing.assert_allclose(read_patches(words), slow, rtol=1e-6)
    with pytest.raises(MvlmError, match="7 patches do not fill a square grid"):
        read_patches(np.zeros((7, 2), np.float32))
