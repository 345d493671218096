"""The sweep: every row at every scale. Stopped and started again it goes on where it was."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from export.runtime.artefact import (
    describe,
    put_in_place,
    read_artefact,
    refuse_if_filled,
    sha256_file,
    sha256_json,
    write_json,
)
from export.runtime.errors import MvlmError, listed
from export.runtime.features import (
    FEATURE_VERSION,
    image_feature_names,
    image_features,
    question_feature_names,
    question_features,
)
from export.runtime.image import open_picture
from export.runtime.prompt import Prompt
from mvlm_core.checkpoints.run_folder import Precision, load_run, model_sha256
from mvlm_core.data.reading import read_rows, rows_sha256
from mvlm_core.data.row import Row, single_questions
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of, turn
from mvlm_core.modeling.scales import require_scales
from mvlm_core.scoring import score
from mvlm_core.train.plan import Group, group_rows

from .packed_generation import Answered, answer_together, stop_ids
from .resumable import parts_folder

_LABELS = pa.schema(
    [
        ("id", pa.string()), ("group", pa.string()), ("task", pa.string()), ("split", pa.string()),
        ("num_visual_tokens", pa.int32()), ("sample", pa.int32()), ("score", pa.float32()), ("loss", pa.float32()),
        ("probability", pa.float32()), ("confidence", pa.float32()), ("margin", pa.float32()),
        ("prediction", pa.string()), ("answer", pa.string()),
    ]
)  # fmt: skip
_FEATURES = pa.schema([("id", pa.string()), ("image", pa.list_(pa.float32())), ("question", pa.list_(pa.float32()))])
_STRANGE = pa.schema([("kind", pa.string()), ("image", pa.list_(pa.float32())), ("question", pa.list_(pa.float32()))])
_FILES = ("labels.parquet", "features.parquet", "ood_probes.parquet")
# Of so many pictures other kinds are made.
_OOD_PROBES = 64


@dataclass(frozen=True)
class Sweep:
    """What is labelled: the rows of some splits, at some scales, by one model.

    The first of `samples` answers greedily, as a device does; further ones are drawn at temperature 1.
    """

    run: Path
    rows: Path
    scales: tuple[int, ...]
    splits: tuple[str, ...]
    samples: int = 1
    max_new_tokens: int = 16
    pictures_per_part: int = 32
    device: str = "cpu"
    precision: Precision = "float32"

    def key(self) -> dict[str, Any]:
        """What a part already written must have been made from to be taken over."""
        return {
            "model_sha256": model_sha256(self.run), "rows_sha256": rows_sha256(self.rows),
            "scales": list(self.scales), "splits": list(self.splits), "samples": self.samples,
            "feature_version": FEATURE_VERSION,
            "max_new_tokens": self.max_new_tokens, "pictures_per_part": self.pictures_per_part,
            "precision": self.precision,
        }  # fmt: skip


def label(sweep: Sweep, out: Path, *, overwrite: bool, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Write labels/ and return what labels.json says. `progress` is told (pictures done, pictures in all).

    Parts lie beside `out` until all are there. Raises `MvlmError` for scales that the model does not allow, when no
    row is of the splits asked for, and for a chat template that puts the question before the picture.
    """
    refuse_if_filled(out, overwrite=overwrite)
    model, processor = load_run(sweep.run, device=sweep.device, dtype=sweep.precision)
    require_scales(sweep.scales, model.connector.scales)
    _require_picture_first(prompt_of(processor))
    rows = [row for row in read_rows(sweep.rows) if row.split in sweep.splits]
    if not rows:
        raise MvlmError(f"{sweep.rows} has no rows of the splits {', '.join(sweep.splits)}: name others with --splits")
    questions = single_questions(rows)
    _require_positions(questions, prompt_of(processor), model, sweep)
    pictures = group_rows(questions)

    folder = parts_folder(out, sweep.key())
    starts = range(0, len(pictures), sweep.pictures_per_part)
    for start in starts:
        chunk = pictures[start : start + sweep.pictures_per_part]
        if not _part(folder, "features", start).is_file():
            labels, features = sweep_pictures(model, processor, chunk, sweep)
            _write(_part(folder, "labels", start), labels, _LABELS)
            _write(_part(folder, "features", start), features, _FEATURES)
        progress(start + len(chunk), len(pictures))

    _write(folder / "ood_probes.parquet", _ood_probes(model, processor, pictures[:_OOD_PROBES]), _STRANGE)
    return _assemble(folder, out, sweep, starts, Counter(row.split for row in rows), len(pictures))


def _require_picture_first(prompt: Prompt) -> None:
    """Raise `MvlmError` for a template that puts the question before the picture: the sweep reads a picture once, for
    all its questions."""
    if prompt.before("a") != prompt.before("b"):
        raise MvlmError(
            "the chat template puts the question before the picture, and the sweep reads a picture once, before its"
            " questions: train with a template that does so too"
        )


def _require_positions(rows: Sequence[Row], prompt: Prompt, model: MvlmForConditionalGeneration, sweep: Sweep) -> None:
    """Raise `MvlmError` naming every row that is longer than the model was made for, its answer among it."""
    positions, finest = model.config.text_config.max_position_embeddings, max(sweep.scales)
    around = finest - 1 + sweep.max_new_tokens
    needed = {row.id: len(prompt.ids(row.question, 1, model.config.image_token_id)) + around for row in rows}
    if faults := [f"id {name}: {count} tokens" for name, count in needed.items() if count > positions]:
        raise MvlmError(
            f"{sweep.rows}: {len(faults)} rows at scale {finest}, with an answer of {sweep.max_new_tokens}, are more"
            f" than the {positions} positions of the language model: leave them or that scale out"
            f"{listed(faults, most=1000)}"
        )


def sweep_pictures(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, pictures: Sequence[Group], sweep: Sweep
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of labels.parquet and of features.parquet for some pictures, each encoded once."""
    prompt, image_id = prompt_of(processor), processor.image_token_id
    whole = [[prompt.ids(row.question, 1, image_id) for row in picture.rows] for picture in pictures]
    cut = whole[0][0].index(image_id)
    ids_before, ids_after = whole[0][0][:cut], [[ids[cut + 1 :] for ids in questions] for questions in whole]

    with torch.inference_mode():
        pixels = processor.image_processor([picture.pictures[0].read() for picture in pictures])["pixel_values"]
        values = model.encode_images(pixels.to(model.device, model.dtype))  # (B, P, ·)
        words = model.connector.words(values).float().cpu().numpy()  # (B, P, D)
    table = model.embedding_table.detach().float().cpu().numpy()
    features = [
        {"id": row.id, "image": of_picture, "question": _of_question(prompt, table, row.question, picture_words)}
        for picture, picture_words in zip(pictures, words, strict=True)
        for of_picture in [image_features(picture_words).tolist()]
        for row in picture.rows
    ]

    labels: dict[str, list[dict[str, Any]]] = {row.id: [] for picture in pictures for row in picture.rows}
    stops = stop_ids(model)
    references = [[_reference(processor, prompt, row, stops) for row in picture.rows] for picture in pictures]
    for scale in sweep.scales:
        with torch.inference_mode():
            visual = model.connector.tokens(values, scale)  # (B, m, D)
        for sample in range(sweep.samples):
            by = _draws(pictures[0].rows[0].id, scale, sample) if sample else None
            answers = answer_together(
                model, ids_before, visual, ids_after, sweep.max_new_tokens, by, None if sample else references
            )
            for picture, answered in zip(pictures, answers, strict=True):
                for row, answer in zip(picture.rows, answered, strict=True):
                    labels[row.id].append(_label(row, scale, sample, answer, prompt))
    return [line for lines in labels.values() for line in lines], features


def _reference(processor: MvlmProcessor, prompt: Prompt, row: Row, stops: Sequence[int]) -> list[int]:
    """The first answer as the model was taught it, with its end token; empty for a row without answers."""
    if not row.answers:
        return []
    asked = prompt.ids(row.question, 1, processor.image_token_id)
    whole = processor.encode(turn(row.question, row.answers[0])).ids
    told = whole[len(asked) :] if whole[: len(asked)] == asked else prompt.text_ids(row.answers[0])
    ends = next((n for n, token in enumerate(told) if token in stops), len(told))
    return [*told[:ends], *(told[ends : ends + 1] or stops[:1])]


def _label(row: Row, scale: int, sample: int, answer: Answered, prompt: Prompt) -> dict[str, Any]:
    prediction, read = prompt.answer(answer.token_ids), answer.reference
    return {
        "id": row.id, "group": row.group, "task": row.task, "split": row.split, "num_visual_tokens": scale,
        "sample": sample, "score": score(prediction, row.answers), "loss": read.mean_nats if read else None,
        "probability": read.probability if read else None, "confidence": answer.confidence, "margin": answer.margin,
        "prediction": prediction, "answer": row.answers[0],
    }  # fmt: skip


def _draws(first_id: str, scale: int, sample: int) -> torch.Generator:
    """Of one part at one scale in one sample, so that a sweep that was stopped draws what it would have drawn."""
    return torch.Generator().manual_seed(int(sha256_json([first_id, scale, sample])[:12], 16))


def _ood_probes(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, pictures: Sequence[Group]
) -> list[dict[str, Any]]:
    """What the router would see of pictures that are not of this kind, asked the questions of those that are.

    They show whether it notices: noise, and the same pictures as another camera or renderer might have drawn them.
    """
    prompt, table = prompt_of(processor), model.embedding_table.detach().float().cpu().numpy()
    random = np.random.default_rng(0)
    found = []
    for picture in pictures:
        drawn = open_picture(picture.pictures[0].read())
        noise = Image.fromarray(random.integers(0, 256, (drawn.height, drawn.width, 3), np.uint8))
        tiles = drawn.resize((max(1, drawn.width // 8), max(1, drawn.height // 8))).resize(
            drawn.size, Image.Resampling.NEAREST
        )
        kinds = {
            "noise": noise, "negative": ImageOps.invert(drawn), "outlines": drawn.filter(ImageFilter.FIND_EDGES),
            "tiles": tiles, "half noise": Image.blend(drawn, noise, 0.5),
        }  # fmt: skip
        pixels = processor.image_processor(list(kinds.values()))["pixel_values"]
        with torch.inference_mode():
            words = (
                model.connector.words(model.encode_images(pixels.to(model.device, model.dtype))).float().cpu().numpy()
            )
        for kind, of_kind in zip(kinds, words, strict=True):
            question = _of_question(prompt, table, picture.rows[0].question, of_kind)
            found.append({"kind": kind, "image": image_features(of_kind).tolist(), "question": question})
    return found


def _of_question(prompt: Prompt, table: NDArray[np.float32], question: str, words: NDArray[np.float32]) -> list[float]:
    token_rows = table[prompt.question_ids(question)]  # (T, D)
    return question_features(question, token_rows, words).tolist()


def _part(folder: Path, table: str, start: int) -> Path:
    return folder / f"{table}-{start:08d}.parquet"


def _write(file: Path, lines: list[dict[str, Any]], schema: pa.Schema) -> None:
    beside = file.with_suffix(".partial")
    pq.write_table(pa.Table.from_pylist(lines, schema), beside)
    beside.replace(file)


def _assemble(
    folder: Path, out: Path, sweep: Sweep, starts: Sequence[int], splits: Counter[str], groups: int
) -> dict[str, Any]:
    whole = folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    for table in ("labels", "features"):
        parts = [pq.read_table(_part(folder, table, start)) for start in starts]
        pq.write_table(pa.concat_tables(parts), whole / f"{table}.parquet")
    shutil.copyfile(folder / "ood_probes.parquet", whole / "ood_probes.parquet")
    known = read_artefact(sweep.rows, "rows") if (sweep.rows / "rows.json").is_file() else {}
    key = sweep.key()
    facts = describe(
        "labels",
        scales=list(sweep.scales),
        cost=[float(scale) for scale in sweep.scales],
        cost_unit="tokens",
        model_sha256=key["model_sha256"],
        rows_sha256=key["rows_sha256"],
        rows=str(sweep.rows),
        precision=sweep.precision,
        feature_version=FEATURE_VERSION,
        feature_names={"image": image_feature_names(), "question": question_feature_names()},
        samples=sweep.samples,
        counts={"rows": sum(splits.values()), "groups": groups, "splits": dict(splits)},
        tasks=known.get("tasks", {}),
        key_sha256=sha256_json(key),
        files={name: sha256_file(whole / name) for name in _FILES},
    )
    write_json(whole / "labels.json", facts)
    put_in_place(whole, out.absolute())
    shutil.rmtree(folder)
    return facts


def ladder(labels: Path) -> dict[int, float]:
    """Mean score at each scale of a labels folder."""
    table = pq.read_table(labels / "labels.parquet", columns=["num_visual_tokens", "score"])
    scales, scores = (np.asarray(column) for column in table.columns)
    return {int(scale): float(scores[scales == scale].mean()) for scale in np.unique(scales)}
