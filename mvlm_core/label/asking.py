"""What stands before, in place of and behind the pictures of a part, so that each question is answered as it stands.

Questions alone share what was read of their picture, and so do questions behind one system text. Of a row with several
pictures one is shown at the scale in question, and all others at one scale.

Letters: B pictures, L places of a picture in a row, D width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from export.runtime.chat_text import cut_at
from export.runtime.errors import MvlmError
from export.runtime.views.scale import ScaleWord
from mvlm_core.data.row import Row
from mvlm_core.modeling.chat_encoding import encode_text
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of
from mvlm_core.modeling.visual_lengths import VisualLengths
from mvlm_core.train.plan import Group

from .shown_pictures import ShownPictures


def others_of(row: Row) -> int:
    """How many pictures stand beside the one that a question is asked about."""
    return 0 if row.within is None else len(row.within.row.pictures) - 1


class Asking:
    """How questions become ids, with one placeholder for each picture."""

    def __init__(self, processor: MvlmProcessor) -> None:
        self.processor, self.prompt = processor, prompt_of(processor)
        self._lengths = VisualLengths(processor)

    def ids(self, row: Row) -> list[int]:
        """Raises `MvlmError` for a conversation that the chat template refuses."""
        if row.within is None:
            return self.prompt.ids(row.question, 1, self.processor.image_token_id)
        messages = row.within.row.messages()[:-1]
        try:
            text = self.processor.render(messages, add_generation_prompt=True)
            return encode_text(text, self.processor.tokenizer)[0]
        except MvlmError as error:
            raise MvlmError(f"id {row.id}: {error}") from None

    def cut(self, row: Row) -> list[list[int]]:
        """The ids before, between and behind the pictures. Raises `MvlmError` where the template leaves one out."""
        parts, pictures = cut_at(self.ids(row), self.processor.image_token_id), 1 + others_of(row)
        if len(parts) != pictures + 1:
            raise MvlmError(
                f"id {row.id}: the chat template shows {len(parts) - 1} of {pictures} pictures: leave the row out of"
                " the splits that are labelled"
            )
        return parts

    def length(self, row: Row, scales: Sequence[ScaleWord], beside: ScaleWord) -> int:
        """The positions that a question takes with its pictures, at the scale that takes most."""
        words = sum(map(len, self.cut(row)))
        beside_it = [] if row.within is None else [
            picture for n, picture in enumerate(row.within.row.pictures) if n != row.within.number
        ]  # fmt: skip
        others = self._lengths.of(beside_it, beside) if beside_it else 0
        return words + others + self._lengths.finest(row.pictures, scales)[1]

    def that_fits(self, row: Row, scales: Sequence[ScaleWord], over: int) -> ScaleWord | None:
        """With how many tiles or frames the picture in question takes `over` tokens fewer than at the finest scale."""
        finest, visual = self._lengths.finest(row.pictures, scales)
        return self._lengths.that_fits(row.pictures, finest, visual - over)

    def groups(self, rows: Sequence[Row]) -> list[Group]:
        """Rows that share what is read before their questions, in the order in which they first appear."""
        groups: dict[object, list[Row]] = defaultdict(list)
        for row in rows:
            groups[self._key(row)].append(row)
        return [Group(members[0].pictures, tuple(members)) for members in groups.values()]

    def _key(self, row: Row) -> object:
        if row.within is None:
            return row.image.key
        return row.id if others_of(row) else (row.image.key, tuple(self.cut(row)[0]))


@dataclass(frozen=True)
class Batch:
    """Groups whose questions are answered together, by their numbers.

    All have the ids `before` in front of `visual` (B, L, D); behind it `after` has those of each group's questions.
    """

    members: list[int]
    before: list[int]
    visual: Tensor
    after: list[list[list[int]]]


class AskedPictures:
    """The questions of a part."""

    def __init__(
        self, asking: Asking, model: MvlmForConditionalGeneration, groups: Sequence[Group], shown: ShownPictures,
        scales: Sequence[ScaleWord], beside: ScaleWord,
    ) -> None:  # fmt: skip
        """`shown` are the pictures that are asked about; all others are shown at `beside`, and encoded here."""
        self._asking, self._model, self._shown, self._groups = asking, model, shown, groups
        self._scales, self._beside = (*scales, *({beside} - {*scales})), beside
        self._cut = [[asking.cut(row) for row in group.rows] for group in groups]
        self._rows: dict[tuple[str, int], ShownPictures] = {}

    def batches(self, scale: ScaleWord) -> Iterator[Batch]:
        """Everything at one scale."""
        for members in self._shown.alike(scale):
            alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for n in members:
                if not others_of(self._groups[n].rows[0]):
                    alike[tuple(self._cut[n][0][0])].append(n)
            for before, found in alike.items():
                visual = self._shown.embeds(found, scale)
                yield Batch(found, list(before), visual, [[parts[1] for parts in self._cut[n]] for n in found])
        for n, group in enumerate(self._groups):
            if others_of(group.rows[0]):
                yield self._among(n, group.rows[0], scale)

    def _among(self, n: int, row: Row, scale: ScaleWord) -> Batch:
        """One picture of several at a scale, the others as they always are."""
        assert row.within is not None
        before, *between, after = self._cut[n][0]
        shown, embed = self._all_of(row.within.row), self._model.get_input_embeddings()
        pieces: list[Tensor] = []
        for number in range(len(row.within.row.pictures)):
            if number:
                ids = torch.tensor([between[number - 1]], dtype=torch.long, device=self._model.device)
                pieces.append(embed(ids).to(pieces[0].dtype))
            pieces.append(shown.embeds([number], scale if number == row.within.number else self._beside))
        return Batch([n], before, torch.cat(pieces, dim=1), [[after]])

    def _all_of(self, row: Row) -> ShownPictures:
        """All pictures of a row, encoded once for all that is asked about them."""
        key = (row.id, len(row.turns))
        if key not in self._rows:
            self._rows[key] = ShownPictures(self._model, self._asking.processor, row.pictures, self._scales)
        return self._rows[key]
