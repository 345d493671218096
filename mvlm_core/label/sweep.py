"""The sweep: every row at every scale. Stopped and started again it goes on where it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from export.runtime.artefact import (
    refuse_if_filled,
    sha256_json,
)
from export.runtime.errors import MvlmError
from export.runtime.features import (
    SIZE_FEATURES,
    image_feature_names,
    image_features,
    question_features,
    size_features,
)
from export.runtime.label_columns import ASKED, FEATURES, LABELS, OOD_PROBES, REFERENCES
from export.runtime.prompt import Prompt
from export.runtime.views.clip import overview_picture
from export.runtime.views.cutting import Size
from export.runtime.views.scale import ScaleWord, coarse_to_fine
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.data.labelled import label_questions
from mvlm_core.data.pictures import pictures_sha256
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import Row
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of
from mvlm_core.modeling.scales import require_scales
from mvlm_core.scoring.of_rows import RowMetrics, metrics_of
from mvlm_core.train.plan import Group

from .asked import asked_rows
from .asking import AskedPictures, Asking
from .beforehand import beside_of, cost, too_long
from .lines import LabelLines
from .packed_generation import answer_together, stop_ids
from .patches import PatchFiles
from .put_together import part_file, put_together, write_part
from .rescored import REFERENCES_FILE, reference_rows
from .resumable import finished, parts_folder, parts_of_first
from .sampled import sampled, worth
from .shares import ALONE, Share
from .shown_pictures import ShownPictures
from .swept import Sweep as Sweep
from .tower_share import tile_tokens

# Of so many pictures other kinds are made.
_OOD_PROBES = 64
# How long an answer may be at least, at most, and where no row says how long a right one is.
_FEWEST_NEW_TOKENS, _MOST_NEW_TOKENS, _UNKNOWN_NEW_TOKENS = 16, 256, 64


def label(
    sweep: Sweep, out: Path, *, overwrite: bool, progress: Callable[[int, int], None], share: Share = ALONE,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Write labels/ and return what labels.json says. `progress` is told (pictures done, pictures in all), and `say`
    what a sample is worth, and what the sweep will cost.

    With a `share` of several processes this one does its part; the first puts all parts together, and the others return
    nothing. Parts lie beside `out` until all are there. Raises `MvlmError` for scales that the model does not allow,
    when no row is of the splits asked for, and for a chat template that puts the question before the picture.
    """
    if share.first:
        refuse_if_filled(out, overwrite=overwrite)
    model, processor = load_run(sweep.run, device=sweep.device, dtype=sweep.precision)
    require_scales(sweep.scales, model.connector.scales)
    asking = Asking(processor)
    _require_picture_first(asking.prompt)
    rows = [row for row in read_rows(sweep.rows) if row.split in sweep.splits]
    if not rows:
        raise MvlmError(f"{sweep.rows} has no rows of the splits {', '.join(sweep.splits)}: name others with --splits")
    questions = label_questions(rows)
    asked = sampled(questions, sweep.max_rows)
    if sweep.max_rows:
        rows = asked
        say(worth(asked, of=len(questions)))
    sweep = replace(sweep, beside=beside_of(asked, sweep.beside, model, processor, sweep.scales))
    metrics, pictures = metrics_of(asked, sweep.metrics), asking.groups(asked)
    most = sweep.max_new_tokens or new_tokens(processor, asked)
    held = pictures_sha256(picture for row in asked for picture in row.pictures)
    sweep = replace(sweep, max_new_tokens=most, pictures_sha256=held)
    if faults := too_long(asked, asking, model, sweep.scales, sweep.beside, most):
        raise MvlmError(f"{sweep.rows}: {faults}")
    say(cost(asked, len(sweep.scales), sweep.samples, sweep.beside))

    folder = parts_folder(out, sweep.key()) if share.first else parts_of_first(out, sweep.key())
    if folder is None:  # all is done already
        return {}
    files = PatchFiles(folder, _table(model)) if sweep.patches else None
    starts = range(0, len(pictures), sweep.pictures_per_part)
    parts = Parts(model, processor, sweep, metrics, pictures, folder, files)
    try:
        for start in share.parts(starts):
            parts.do(start)
            progress(parts.pictures_done(starts), len(pictures))
    except FileNotFoundError:  # the first one has done this one's last part too, and put all together
        if share.first or not finished(out, sweep.key()):
            raise
    if not share.first:
        return {}

    write_part(folder / "ood_probes.parquet", _ood_probes(model, processor, pictures[:_OOD_PROBES]), OOD_PROBES)
    questions = [row for picture in pictures for row in picture.rows]
    write_part(folder / "asked.parquet", asked_rows(questions), ASKED)
    write_part(folder / REFERENCES_FILE, reference_rows(questions), REFERENCES)
    told = facts_of_views(model, processor, clips=any(row.has_clip for row in asked))
    counts = {"rows": len(rows), "groups": len(pictures), "splits": dict(Counter(row.split for row in rows))}
    return put_together(folder, out, sweep, starts, counts, metrics, files, told)


@dataclass(frozen=True)
class Parts:
    """The parts of a sweep, each of some pictures; what is done stays done."""

    model: MvlmForConditionalGeneration
    processor: MvlmProcessor
    sweep: Sweep
    metrics: RowMetrics
    pictures: Sequence[Group]
    folder: Path
    files: PatchFiles | None

    def do(self, start: int) -> None:
        """Write the part that begins with a picture, if it is not there."""
        if part_file(self.folder, "features", start).is_file():
            return
        chunk = self.pictures[start : start + self.sweep.pictures_per_part]
        shown = self._shown(chunk, self.sweep.scales)
        labels, features = sweep_pictures(self.model, self.processor, chunk, self.sweep, self.metrics, shown)
        if self.files:
            if start and not self.files.begun:  # what projects is made of the first part, whoever does that
                first = self.pictures[: self.sweep.pictures_per_part]
                self.files.begin(_words(self._shown(first, ())), self._asked_of(first))
            self.files.write(start, _words(shown), self._asked_of(chunk))
        write_part(part_file(self.folder, "labels", start), labels, LABELS)
        write_part(part_file(self.folder, "features", start), features, FEATURES)

    def pictures_done(self, starts: Sequence[int]) -> int:
        """How many pictures are done by all processes together."""
        done = sum(part_file(self.folder, "features", start).is_file() for start in starts)
        return min(done * self.sweep.pictures_per_part, len(self.pictures))

    def _shown(self, chunk: Sequence[Group], scales: Sequence[ScaleWord]) -> ShownPictures:
        return ShownPictures(self.model, self.processor, [picture.pictures[0] for picture in chunk], scales)

    def _asked_of(self, chunk: Sequence[Group]) -> list[list[tuple[str, list[int]]]]:
        prompt = prompt_of(self.processor)
        return [[(row.id, prompt.question_ids(row.question)) for row in picture.rows] for picture in chunk]


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
    asking = Asking(processor)
    prompt = asking.prompt
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
    beside = coarse_to_fine(sweep.scales)[-1] if sweep.beside is None else sweep.beside
    asked = AskedPictures(asking, model, pictures, shown, sweep.scales, beside)
    for scale in reversed(coarse_to_fine(sweep.scales)):
        for batch in asked.batches(scale):
            members = batch.members
            references = [[maker.reference(row) for row in pictures[n].rows] for n in members]
            for sample in range(sweep.samples):
                by = _draws(pictures[members[0]].rows[0].id, scale, sample) if sample else None
                taught = None if sample else references
                answers = answer_together(model, batch.before, batch.visual, batch.after, most, by, taught)
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
        drawn = overview_picture(picture.pictures[0].read())
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


def facts_of_views(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, *, clips: bool
) -> dict[str, Any]:  # fmt: skip
    """What labels.json says where a picture may be several views, tiles or frames: what one of them is worth in tokens;
    None without."""
    spec = processor.image_processor.view_spec
    side = spec.size_px if spec else processor.image_processor.size_px
    return {
        "tile_tokens": tile_tokens(model, side) if spec or clips else None,
        "picture_features": picture_feature_names(processor),
    }
