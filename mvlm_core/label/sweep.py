"""The sweep: every row at every scale. Stopped and started again it goes on where it was."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    SIZE_FEATURES,
    image_feature_names,
    image_features,
    question_feature_names,
    question_features,
    size_features,
)
from export.runtime.image import open_picture
from export.runtime.label_columns import ASKED, FEATURES, FLOATS, LABELS, OOD_PROBES, READING
from export.runtime.prompt import Prompt
from export.runtime.views.cutting import Size
from export.runtime.views.scale import Scale, ScaleWord, coarse_to_fine
from mvlm_core.checkpoints.run_folder import Precision, load_run, model_sha256
from mvlm_core.data.reading import read_rows, rows_sha256
from mvlm_core.data.row import Row, single_questions
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of
from mvlm_core.modeling.scales import require_scales
from mvlm_core.modeling.visual_lengths import VisualLengths
from mvlm_core.scoring.of_rows import RowMetrics, metrics_of
from mvlm_core.train.plan import Group, group_rows

from .asked import asked_rows
from .lines import LabelLines
from .packed_generation import answer_together, stop_ids
from .patches import PatchFiles
from .resumable import parts_folder
from .shown_pictures import ShownPictures
from .tower_share import tile_tokens

_FILES = ("labels.parquet", "features.parquet", "ood_probes.parquet", "asked.parquet")
# Of so many pictures other kinds are made.
_OOD_PROBES = 64
# How long an answer may be at least, at most, and where no row says how long a right one is.
_FEWEST_NEW_TOKENS, _MOST_NEW_TOKENS, _UNKNOWN_NEW_TOKENS = 16, 256, 64


@dataclass(frozen=True)
class Sweep:
    """What is labelled: the rows of some splits, at some scales, by one model.

    The first of `samples` answers greedily, as a device does; further ones are drawn at temperature 1. `metrics` are
    those of rows that name none, see `metrics_of`. Without `max_new_tokens` answers may be as long as the longest that
    a row is to be answered by, and half as long again. With `patches` a router can be fitted that reads the pictures.
    """

    run: Path
    rows: Path
    scales: tuple[ScaleWord, ...]
    splits: tuple[str, ...]
    samples: int = 1
    max_new_tokens: int | None = None
    metrics: tuple[str, ...] = ()
    pictures_per_part: int = 32
    device: str = "cpu"
    precision: Precision = "float32"
    patches: bool = True

    def key(self) -> dict[str, Any]:
        """What a part already written must have been made from to be taken over."""
        return {
            "model_sha256": model_sha256(self.run), "rows_sha256": rows_sha256(self.rows),
            "scales": list(self.scales), "splits": list(self.splits), "samples": self.samples,
            "feature_version": FEATURE_VERSION,
            "max_new_tokens": self.max_new_tokens, "metrics": list(self.metrics),
            "pictures_per_part": self.pictures_per_part, "precision": self.precision, "patches": self.patches,
            "columns": list(LABELS),
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
    asked = single_questions(rows)
    metrics, pictures = metrics_of(asked, sweep.metrics), group_rows(asked)
    most = sweep.max_new_tokens or new_tokens(processor, asked)
    sweep = replace(sweep, max_new_tokens=most)
    _require_positions(asked, processor, model, sweep, most)

    folder = parts_folder(out, sweep.key())
    files = PatchFiles(folder, _table(model)) if sweep.patches else None
    starts = range(0, len(pictures), sweep.pictures_per_part)
    for start in starts:
        chunk = pictures[start : start + sweep.pictures_per_part]
        if not _part(folder, "features", start).is_file():
            shown = ShownPictures(model, processor, [picture.pictures[0] for picture in chunk], sweep.scales)
            labels, features = sweep_pictures(model, processor, chunk, sweep, metrics, shown)
            if files:
                prompt = prompt_of(processor)
                asked_of = [[(row.id, prompt.question_ids(row.question)) for row in picture.rows] for picture in chunk]
                files.write(start, _words(shown), asked_of)
            _write(_part(folder, "labels", start), labels, LABELS)
            _write(_part(folder, "features", start), features, FEATURES)
        progress(start + len(chunk), len(pictures))

    _write(folder / "ood_probes.parquet", _ood_probes(model, processor, pictures[:_OOD_PROBES]), OOD_PROBES)
    _write(folder / "asked.parquet", asked_rows([row for picture in pictures for row in picture.rows]), ASKED)
    told = facts_of_views(model, processor)
    return _assemble(
        folder, out, sweep, starts, Counter(row.split for row in rows), len(pictures), metrics, files, told
    )


def new_tokens(processor: MvlmProcessor, rows: Sequence[Row]) -> int:
    """How many tokens an answer may take: half as many again as the longest reference of the rows."""
    prompt = prompt_of(processor)
    longest = max((1 + len(prompt.text_ids(row.answers[0])) for row in rows if row.answers), default=0)
    fewest = _FEWEST_NEW_TOKENS if longest else _UNKNOWN_NEW_TOKENS
    return min(max(fewest, longest + longest // 2), _MOST_NEW_TOKENS)


def _require_picture_first(prompt: Prompt) -> None:
    """Raise `MvlmError` for a template that puts the question before the picture: the sweep reads a picture once, for
    all its questions."""
    if prompt.before("a") != prompt.before("b"):
        raise MvlmError(
            "the chat template puts the question before the picture, and the sweep reads a picture once, before its"
            " questions: train with a template that does so too"
        )


def _require_positions(
    rows: Sequence[Row], processor: MvlmProcessor, model: MvlmForConditionalGeneration, sweep: Sweep, most: int
) -> None:
    """Raise `MvlmError` naming every row that is longer than the model was made for, its answer among it."""
    prompt = prompt_of(processor)
    positions, finest = model.config.text_config.max_position_embeddings, coarse_to_fine(sweep.scales)[-1]
    lengths = VisualLengths(processor)
    needed = {
        row.id: len(prompt.ids(row.question, 1, model.config.image_token_id)) - 1 + most
        + lengths.finest(row.pictures, sweep.scales)[1]
        for row in rows
    }  # fmt: skip
    if faults := [f"id {name}: {count} tokens" for name, count in needed.items() if count > positions]:
        raise MvlmError(
            f"{sweep.rows}: {len(faults)} rows at scale {finest}, with an answer of {most}, are more"
            f" than the {positions} positions of the language model: leave them or that scale out"
            f"{listed(faults, most=1000)}"
        )


def sweep_pictures(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, pictures: Sequence[Group], sweep: Sweep,
    metrics: RowMetrics | None = None, shown: ShownPictures | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """The lines of labels.parquet and of features.parquet for some pictures, each encoded once.

    `metrics` are those of all rows of the sweep; left out, they are chosen by these pictures alone. `shown` are the
    pictures, where they were encoded already.
    """
    metrics = metrics or metrics_of([row for picture in pictures for row in picture.rows], sweep.metrics)
    most = sweep.max_new_tokens or _FEWEST_NEW_TOKENS
    prompt, image_id = prompt_of(processor), processor.image_token_id
    whole = [[prompt.ids(row.question, 1, image_id) for row in picture.rows] for picture in pictures]
    cut = whole[0][0].index(image_id)
    ids_before, ids_after = whole[0][0][:cut], [[ids[cut + 1 :] for ids in questions] for questions in whole]

    shown = shown or ShownPictures(model, processor, [picture.pictures[0] for picture in pictures], sweep.scales)
    words, table = _words(shown), _table(model)
    features = [
        {"id": row.id, "image": of_picture, "question": _of_question(prompt, table, row.question, words[n])}
        for n, picture in enumerate(pictures)
        for of_picture in [_of_picture(processor, words[n], shown.size(n))]
        for row in picture.rows
    ]

    maker = LabelLines(processor, prompt, stop_ids(model), metrics.of)
    lines: dict[str, dict[ScaleWord, list[dict[str, Any]]]] = {
        row.id: {} for picture in pictures for row in picture.rows
    }
    for scale in reversed(coarse_to_fine(sweep.scales)):
        for members in shown.alike(scale):
            visual, after = shown.embeds(members, scale), [ids_after[n] for n in members]  # (B, L, D)
            references = [[maker.reference(row) for row in pictures[n].rows] for n in members]
            for sample in range(sweep.samples):
                by = _draws(pictures[members[0]].rows[0].id, scale, sample) if sample else None
                answers = answer_together(model, ids_before, visual, after, most, by, None if sample else references)
                for n, answered in zip(members, answers, strict=True):
                    for row, answer in zip(pictures[n].rows, answered, strict=True):
                        taken = shown.count(n, scale), shown.tiles(n, scale)
                        line = maker.line(row, scale, taken, sample, answer)
                        lines[row.id].setdefault(scale, []).append(line)
    return [line for of_row in lines.values() for scale in sweep.scales for line in of_row[scale]], features


def _draws(first_id: str, scale: ScaleWord, sample: int) -> torch.Generator:
    """Of one part at one scale in one sample, so that a sweep that was stopped draws what it would have drawn."""
    return torch.Generator().manual_seed(int(sha256_json([first_id, scale, sample])[:12], 16))


def _ood_probes(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, pictures: Sequence[Group]
) -> list[dict[str, Any]]:
    """What the router would see of pictures that are not of this kind, asked the questions of those that are.

    They show whether it notices: noise, and the same pictures as another camera or renderer might have drawn them.
    """
    prompt, table = prompt_of(processor), _table(model)
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
            seen = _of_picture(processor, of_kind, (drawn.height, drawn.width))
            found.append({"kind": kind, "image": seen, "question": question})
    return found


def _words(shown: ShownPictures) -> NDArray[np.float32]:
    """Every patch as the language model would read it: (B, P, D)."""
    return shown.words.float().cpu().numpy()


def _of_picture(processor: MvlmProcessor, words: NDArray[np.float32], size: Size) -> list[float]:
    """What a router sees of a picture: of its overview (P, D), and of a model with tiles how large the picture is."""
    seen: list[float] = image_features(words).tolist()
    return seen if processor.image_processor.views is None else [*seen, *size_features(*size).tolist()]


def picture_feature_names(processor: MvlmProcessor) -> list[str]:
    """The names of what `_of_picture` gives."""
    return image_feature_names() + ([] if processor.image_processor.views is None else list(SIZE_FEATURES))


def _table(model: MvlmForConditionalGeneration) -> NDArray[np.float32]:
    return model.embedding_table.detach().float().cpu().numpy()


def _of_question(prompt: Prompt, table: NDArray[np.float32], question: str, words: NDArray[np.float32]) -> list[float]:
    token_rows = table[prompt.question_ids(question)]  # (T, D)
    return question_features(question, token_rows, words).tolist()


def _part(folder: Path, table: str, start: int) -> Path:
    return folder / f"{table}-{start:08d}.parquet"


def _write(file: Path, lines: list[dict[str, Any]], columns: Mapping[str, str]) -> None:
    beside = file.with_suffix(".partial")
    floats = pa.list_(pa.float32())
    types = [(name, floats if kind == FLOATS else pa.type_for_alias(kind)) for name, kind in columns.items()]
    pq.write_table(pa.Table.from_pylist(lines, pa.schema(types)), beside)
    beside.replace(file)


def _assemble(
    folder: Path,
    out: Path,
    sweep: Sweep,
    starts: Sequence[int],
    splits: Counter[str],
    groups: int,
    metrics: RowMetrics,
    patches: PatchFiles | None,
    views: dict[str, Any],
) -> dict[str, Any]:
    whole = folder / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    for table in ("labels", "features"):
        parts = [pq.read_table(_part(folder, table, start)) for start in starts]
        pq.write_table(pa.concat_tables(parts), whole / f"{table}.parquet")
    for name in _FILES[2:]:
        shutil.copyfile(folder / name, whole / name)
    reading = patches.assemble(whole, starts) if patches else None
    known = read_artefact(sweep.rows, "rows") if (sweep.rows / "rows.json").is_file() else {}
    key = sweep.key()
    facts = describe(
        "labels",
        scales=list(sweep.scales),
        cost=_mean_costs(whole / "labels.parquet", sweep.scales, views["tile_tokens"]),
        tile_tokens=views["tile_tokens"],
        cost_unit="tokens",
        model_sha256=key["model_sha256"],
        rows_sha256=key["rows_sha256"],
        rows=sweep.rows.as_posix(),
        run=sweep.run.as_posix(),
        metrics_said=list(sweep.metrics),
        precision=sweep.precision,
        feature_version=FEATURE_VERSION,
        reading=reading,
        feature_names={"image": views["picture_features"], "question": question_feature_names()},
        samples=sweep.samples,
        **metrics.facts(),
        max_new_tokens=sweep.max_new_tokens,
        counts={"rows": sum(splits.values()), "groups": groups, "splits": dict(splits)},
        tasks=known.get("tasks", {}),
        key_sha256=sha256_json(key),
        files={name: sha256_file(whole / name) for name in (*_FILES, *(READING if reading else ()))},
    )
    write_json(whole / "labels.json", facts)
    put_in_place(whole, out.absolute())
    shutil.rmtree(folder)
    return facts


def facts_of_views(model: MvlmForConditionalGeneration, processor: MvlmProcessor) -> dict[str, Any]:
    """What labels.json says where a picture may be several views: what a tile is worth in tokens; None without."""
    spec = processor.image_processor.view_spec
    return {
        "tile_tokens": None if spec is None else tile_tokens(model, spec),
        "picture_features": picture_feature_names(processor),
    }


def _mean_costs(labels: Path, scales: Sequence[ScaleWord], of_tile: float | None) -> list[float]:
    """What a row costs on average at each scale: its tokens, and the encoding of its tiles. What a small picture does
    not have, it does not cost; the overview is encoded in any case."""
    columns = ["scale", "num_visual_tokens", "tiles"]
    words, tokens, tiles = (np.asarray(column) for column in pq.read_table(labels, columns=columns).columns)
    cost = tokens + tiles * (of_tile or 0.0)
    return [float(cost[words == str(scale)].mean()) for scale in scales]


def ladder(labels: Path) -> dict[ScaleWord, float]:
    """Mean score at each scale of a labels folder."""
    scales, scores = (
        np.asarray(column) for column in pq.read_table(labels / "labels.parquet", columns=["scale", "score"]).columns
    )
    found = coarse_to_fine(Scale.parse(word).word for word in np.unique(scales).tolist())
    return {scale: float(scores[scales == str(scale)].mean()) for scale in found}
