"""Rows -> batches: which pictures and which scale each step takes, and all questions of a picture behind one copy.

Letters: B pictures of a step, m visual tokens (the scale), S positions of a packed row, G side of the patch grid.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from export.runtime.artefact import read_artefact
from export.runtime.errors import MvlmError

from .config import StageConfig
from .model import IGNORED_LABEL
from .pictures import PictureSource
from .processing import Encoded, MvlmProcessor, turn
from .row import Row, single_questions
from .scene_rows import TAGS_FILE

# Segments of a packed row: the picture and what stands before it, then one number a question; and nothing.
PREFIX, PADDING = 0, -1


# What each patch shows of one group of words: the words' ids (W,), (B, P) with 0 for nothing and i for the i-th word,
# and how much the group counts. A bare tuple, so that whoever moves batches to a device finds the tensors.
TagGroup = tuple[Tensor, Tensor, float]


@dataclass(frozen=True)
class Batch:
    """One step. `attention_mask` (B, 1, S, S) is True where a position may look; the rest of a row is (B, S)."""

    pixel_values: Tensor
    tags: list[TagGroup]
    num_visual_tokens: int
    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Picture:
    """A picture and all its questions."""

    source: PictureSource
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Planned:
    """One picture of one step: its place in the data, the scale of the step, and the order of its questions."""

    picture: int
    scale: int
    order: NDArray[np.int64]
    running: bool


def group_pictures(rows: Sequence[Row]) -> list[Picture]:
    by_picture: dict[PictureSource, list[Row]] = defaultdict(list)
    for row in single_questions(rows):
        by_picture[row.image].append(row)
    return [Picture(source, tuple(group)) for source, group in by_picture.items()]


class Plan(Dataset[Planned]):
    """All the chance of a stage, drawn beforehand: item i is picture i of the run of steps.

    Read in order, so a run that is stopped and goes on sees what an uninterrupted one would have seen.
    """

    def __init__(self, pictures: Sequence[Picture], scales: Sequence[int], stage: StageConfig, *, seed: int) -> None:
        random = np.random.default_rng(seed)
        epochs = -(-stage.steps * stage.pictures // len(pictures))
        taken = np.concatenate([random.permutation(len(pictures)) for _ in range(epochs)])
        self.scale_of_step: list[int] = random.choice(np.asarray(scales), stage.steps).tolist()
        running = (random.random(stage.steps) < stage.running_share).tolist()
        self.items = []
        for n, picture in enumerate(taken[: stage.steps * stage.pictures].tolist()):
            step = n // stage.pictures
            order = _draw(random, pictures[picture], stage)
            self.items.append(Planned(picture, self.scale_of_step[step], order, running[step]))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Planned:
        return self.items[index]


def _draw(random: Generator, picture: Picture, stage: StageConfig) -> NDArray[np.int64]:
    """Which questions of a picture are asked, in which order."""
    weights = np.array([stage.task_weights.get(row.task or "", 1.0) for row in picture.rows])
    count = min(stage.questions or len(weights), len(weights))
    return random.choice(len(weights), count, replace=False, p=weights / weights.sum())


class PatchTags:
    """The patch tags of a rows folder, and the ids of the words they are told in."""

    def __init__(self, folder: Path, processor: MvlmProcessor, weights: dict[str, float]) -> None:
        file = folder / TAGS_FILE
        if not file.is_file():
            raise MvlmError(f"{file} is missing: the loss `patches` needs tags, as `mvlm data scenes` writes them")
        stored = np.load(file, allow_pickle=False)
        self._index = {str(name): i for i, name in enumerate(stored["images"])}
        self._folder = folder
        groups = read_artefact(folder, "rows")["tag_words"]
        self._words = {group: torch.tensor([_word_id(processor, w) for w in words]) for group, words in groups.items()}
        self._shown = {group: stored[group] for group in groups}
        self._weights = {group: weights.get(group, 1.0) for group in groups}

    def of(self, pictures: Sequence[Picture]) -> list[TagGroup]:
        places = [self._index[Path(p.source.key).relative_to(self._folder).as_posix()] for p in pictures]
        return [
            (
                ids,
                torch.from_numpy(self._shown[group][places].astype(np.int64)).flatten(1),
                self._weights[group],
            )  # (B, P)
            for group, ids in self._words.items()
        ]


def _word_id(processor: MvlmProcessor, word: str) -> int:
    """The token that stands for a word after a space; of a word of several tokens, the last."""
    return processor.tokenizer.encode(f" {word}", add_special_tokens=False)[-1]


class Packer:
    """Planned pictures -> a `Batch`, every question a conversation of its own behind one copy of its picture.

    The block mask and the restarted positions make this the same as one row at a time, at the price of one picture.
    A running step packs the questions as one conversation instead.
    """

    def __init__(self, pictures: Sequence[Picture], processor: MvlmProcessor, tags: PatchTags | None) -> None:
        self.pictures, self.processor, self.tags = pictures, processor, tags
        self._encode = lru_cache(maxsize=200_000)(self._encode_row)

    def __call__(self, items: Sequence[Planned]) -> dict[str, Any]:
        pictures = [self.pictures[item.picture] for item in items]
        scale = items[0].scale
        rows = [self._pack(self.pictures[item.picture], item) for item in items]
        pixels = self.processor.image_processor([picture.source.read() for picture in pictures])["pixel_values"]
        batch = Batch(
            pixel_values=pixels,
            tags=self.tags.of(pictures) if self.tags else [],
            num_visual_tokens=scale,
            **_pad(rows, self.processor.tokenizer.pad_token_id),
        )
        return {field.name: getattr(batch, field.name) for field in fields(Batch)}

    def _encode_row(self, question: str, answer: str, with_picture: bool) -> Encoded:
        return self.processor.encode(turn(question, answer, with_picture=with_picture))

    def _pack(self, picture: Picture, item: Planned) -> _Packed:
        rows = [picture.rows[i] for i in item.order]
        first = self._encode(rows[0].question, rows[0].answers[0], True)
        place = first.ids.index(self.processor.image_token_id)
        packed = _Packed()
        packed.add(first.ids[:place] + [self.processor.image_token_id] * item.scale, segment=PREFIX)
        for number, row in enumerate(rows, 1):
            encoded = self._encode(row.question, row.answers[0], not (item.running and number > 1))
            after = 0 if item.running and number > 1 else place + 1
            segment = 1 if item.running else number
            packed.add(encoded.ids[after:], segment=segment, supervised=encoded.supervised[after:])
        return packed


class _Packed:
    """A row being packed: parallel lists over S."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.segments: list[int] = []
        self.positions: list[int] = []
        self.labels: list[int] = []

    def add(self, ids: list[int], *, segment: int, supervised: Sequence[bool] | None = None) -> None:
        # A segment goes on where it stood, and a new one right behind the picture.
        goes_on = segment in self.segments
        start = len(self.ids) if goes_on else self.segments.count(PREFIX)
        supervised = supervised or [False] * len(ids)
        self.positions += range(start, start + len(ids))
        self.ids += ids
        self.segments += [segment] * len(ids)
        self.labels += [i if s else IGNORED_LABEL for i, s in zip(ids, supervised, strict=True)]


def _pad(rows: Sequence[_Packed], pad_token_id: int) -> dict[str, Tensor]:
    length = max(len(row.ids) for row in rows)

    def padded(lists: list[list[Any]], value: Any) -> Tensor:
        return torch.tensor([items + [value] * (length - len(items)) for items in lists])  # (B, S)

    segments = padded([row.segments for row in rows], PADDING)
    return {
        "input_ids": padded([row.ids for row in rows], pad_token_id),
        "position_ids": padded([row.positions for row in rows], 0),
        "attention_mask": block_mask(segments),
        "labels": padded([row.labels for row in rows], IGNORED_LABEL),
    }


def block_mask(segments: Tensor) -> Tensor:
    """Who may look at whom: back at the picture and at one's own segment. (B, S) -> (B, 1, S, S) bool."""
    own = segments[:, :, None] == segments[:, None, :]  # (B, S, S)
    picture = segments[:, None, :] == PREFIX
    return ((own | picture).tril())[:, None]
