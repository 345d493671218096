"""A step's pictures, scales and questions -> one pass without padding to speak of.

A *block* is what stands before the questions, the pictures in it shown at one scale, and behind that every question
that shares it, each a conversation of its own: positions restart behind the pictures, and a question sees the pictures
and itself. That makes a block the same as one row for each question, at the price of one copy of its visual tokens.
Blocks of all scales lie side by side in rows as long as the longest of them, and do not see each other.

Letters: B pictures, R runs of placeholders (a picture at a scale), N rows, S positions of a row, m visual tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from export.runtime.views.scale import ScaleWord
from mvlm_core.data.row import PicturePlace, Row
from mvlm_core.modeling.chat_encoding import Encoded
from mvlm_core.modeling.losses import IGNORED_LABEL
from mvlm_core.modeling.processing import MvlmProcessor
from mvlm_core.scenes.patch_tags import PatchTags

from .fitting import Fitting
from .plan import Planned
from .step_pictures import StepPictures

# Segments of a block: the pictures with what stands before and between them, then one number a question; and nothing.
PREFIX, PADDING = 0, -1


@dataclass(frozen=True)
class Block:
    """One scale of a group's pictures with the questions behind them; lists over the positions of the block."""

    pictures: tuple[int, ...]
    scale: ScaleWord
    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)

    def add(self, ids: Sequence[int], supervised: Sequence[bool], *, segment: int, start: int) -> None:
        if not self.ids:  # nothing stands before the first token of a block that could predict it
            supervised = [False, *supervised[1:]][: len(ids)]
        self.ids.extend(ids)
        self.labels.extend(i if s else IGNORED_LABEL for i, s in zip(ids, supervised, strict=True))
        self.positions.extend(range(start, start + len(ids)))
        self.segments.extend([segment] * len(ids))


class PicturesOnly:
    """Collates the pictures of a step and their tags, for the patch loss."""

    def __init__(self, processor: MvlmProcessor, tags: PatchTags) -> None:
        self.processor, self.tags = processor, tags

    def __call__(self, items: Sequence[Planned]) -> dict[str, Any]:
        pictures = [picture for item in items for picture in item.group.pictures]
        pixels = self.processor.image_processor([picture.read() for picture in pictures])["pixel_values"]
        return {"pixel_values": pixels, "word_tags": self.tags.of(pictures)}


class Packer:
    """Collates planned groups into what `forward` takes, with `blocks` and `segments` in place of a mask.

    Pictures are decoded here, each once. A step without pictures carries one that no placeholder stands for, so that
    every process of a distributed run uses the same weights.
    """

    def __init__(
        self, processor: MvlmProcessor, tags: PatchTags | None, *, max_tokens: int | None, positions: int | None = None
    ) -> None:
        self.processor, self.tags = processor, tags
        self.fitting = Fitting(processor, max_tokens=max_tokens, positions=positions)

    def __call__(self, items: Sequence[Planned]) -> dict[str, Any]:
        sources = list(dict.fromkeys(picture for item in items for picture in item.group.pictures))
        place = {picture: n for n, picture in enumerate(sources)}
        pictures = StepPictures(self.processor, sources)
        blocks = []
        for item in items:
            numbers = tuple(place[picture] for picture in item.group.pictures)
            conversations = self._conversations(item)
            for scale in item.scales:
                blocks += self._blocks(conversations, pictures, numbers, scale)
        rows = fill_rows(blocks)
        runs = [(picture, block.scale) for row in rows for block in row for picture in block.pictures]
        return {
            **pictures.inputs(runs),
            **_pad(rows, self.processor.tokenizer.pad_token_id or 0),  # (N, S)
            "word_tags": self.tags.of(sources) if self.tags else [],
        }

    def _conversations(self, item: Planned) -> list[Encoded]:
        """What is asked, with one placeholder a picture, and short enough at the scale that takes most tokens."""
        rows = [item.group.rows[i] for i in item.order]
        rows = [joined(rows)] if item.running else rows
        return [self.fitting.encode(row, item.scales) for row in rows]

    def _blocks(
        self, conversations: Sequence[Encoded], pictures: StepPictures, numbers: tuple[int, ...], scale: ScaleWord
    ) -> list[Block]:
        """Conversations that begin alike up to their last picture share a block.

        Those do not that have answers before its end, nor those that answer right behind it, as the captions of
        `plain` do: in a row, a token is predicted from the one to its left, and only one can follow the prefix.
        """
        image = self.processor.image_token_id
        behind: dict[tuple[int, ...], list[Encoded]] = defaultdict(list)
        for encoded in conversations:
            end = len(encoded.ids) - encoded.ids[::-1].index(image) if numbers else 0
            alone = (-1, len(behind)) if any(encoded.supervised[: end + 1]) else ()
            behind[(*encoded.ids[:end], *alone)].append(encoded)
        blocks = []
        for members in behind.values():
            first, block = members[0], Block(numbers, scale)
            end = len(first.ids) - first.ids[::-1].index(image) if numbers else 0
            shown = [pictures.ids(picture, scale) for picture in numbers]
            ids, supervised = _expand(first.ids[:end], first.supervised[:end], image, shown)
            block.add(ids, supervised, segment=PREFIX, start=0)
            for segment, member in enumerate(members, 1):
                block.add(member.ids[end:], member.supervised[end:], segment=segment, start=len(ids))
            blocks.append(block)
        return blocks


def joined(rows: Sequence[Row]) -> Row:
    """Single questions about the same pictures as one conversation, which shows them once."""
    turns = list(rows[0].turns)
    for row in rows[1:]:
        first, *rest = row.turns
        words = tuple(part for part in first.content if not isinstance(part, PicturePlace))
        turns += [replace(first, content=words), *rest]
    return replace(rows[0], turns=tuple(turns))


def _expand(
    ids: Sequence[int], supervised: Sequence[bool], image: int, shown: Sequence[Sequence[int]]
) -> tuple[list[int], list[bool]]:
    """Each placeholder becomes the ids that stand for its picture: `shown`, in their order."""
    pictures = iter(shown)
    parts = [next(pictures) if i == image else (i,) for i in ids]
    return (
        [i for part in parts for i in part],
        [s for s, part in zip(supervised, parts, strict=True) for _ in part],
    )


def fill_rows(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks into rows no longer than the longest block: first fit, the long ones first."""
    length = max(len(block.ids) for block in blocks)
    rows: list[list[int]] = []
    room: list[int] = []
    for n in sorted(range(len(blocks)), key=lambda n: -len(blocks[n].ids)):
        size = len(blocks[n].ids)
        row = next((r for r, left in enumerate(room) if left >= size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(n)
        room[row] -= size
    return [[blocks[n] for n in sorted(row)] for row in sorted(rows, key=min)]


def _pad(rows: Sequence[Sequence[Block]], pad_token_id: int) -> dict[str, Tensor]:
    length = max(sum(len(block.ids) for block in row) for row in rows)

    def padded(name: str, nothing: int) -> Tensor:
        lists = [[value for block in row for value in getattr(block, name)] for row in rows]
        return torch.tensor([values + [nothing] * (length - len(values)) for values in lists])  # (N, S)

    numbers = [[n for n, block in enumerate(row) for _ in block.ids] for row in rows]
    return {
        "input_ids": padded("ids", pad_token_id),
        "position_ids": padded("positions", 0),
        "labels": padded("labels", IGNORED_LABEL),
        "segments": padded("segments", PADDING),
        "blocks": torch.tensor([n + [PADDING] * (length - len(n)) for n in numbers]),
    }


def block_mask(segments: Tensor, blocks: Tensor | None = None) -> Tensor:
    """Who may look at whom: back, in one's own block, at the pictures and at one's own segment.

    `segments` and `blocks` (N, S) -> (N, 1, S, S) bool; without `blocks`, each row is one.
    """
    seen = (segments[:, None, :] == PREFIX) | (segments[:, :, None] == segments[:, None, :])  # (N, S, S)
    if blocks is not None:
        seen &= blocks[:, :, None] == blocks[:, None, :]
    return seen.tril()[:, None]


def mask_for(attention: str, segments: Tensor, blocks: Tensor) -> Any:
    """`block_mask` as one of transformers' attention functions reads it, by its name: `eager` adds it to the logits."""
    if attention == "flex_attention":
        return flex_mask(segments, blocks)
    seen = block_mask(segments, blocks)
    if attention != "eager":
        return seen
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)


def flex_mask(segments: Tensor, blocks: Tensor) -> Any:
    """`block_mask` as FlexAttention wants it, which skips what is hidden instead of computing it."""
    from torch.nn.attention.flex_attention import create_block_mask

    def seen(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (segments[row, key] == PREFIX) | (segments[row, query] == segments[row, key])
        return (query >= key) & (blocks[row, query] == blocks[row, key]) & own

    rows, length = segments.shape
    return create_block_mask(seen, rows, None, length, length, device=segments.device)
