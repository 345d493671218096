"""Which rows fit into the positions of the language model: known, with their names, before a step is spent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

from export.runtime.errors import MvlmError
from export.runtime.views.scale import ScaleWord
from mvlm_core.data.pictures import PictureSource
from mvlm_core.data.row import PicturePlace, Row, Turn
from mvlm_core.modeling.chat_encoding import Encoded, require_positions, truncate
from mvlm_core.modeling.processing import MvlmProcessor
from mvlm_core.modeling.visual_lengths import VisualLengths

# Of each turn's content, what is text; and whether there is a system text.
_Shape = tuple[tuple[tuple[bool, ...], ...], bool]


class Fitting:
    """Rows as ids, as long as a stage lets them be: `max_tokens` of it, and at most the model's `positions`."""

    def __init__(self, processor: MvlmProcessor, *, max_tokens: int | None, positions: int | None) -> None:
        self.processor, self.max_tokens, self.positions = processor, max_tokens, positions
        self.lengths = VisualLengths(processor)
        self._encode = lru_cache(maxsize=200_000)(self._encode_texts)
        self._frame = lru_cache(self._frame_of)

    def encode(self, row: Row, scales: Sequence[ScaleWord]) -> Encoded:
        """A row with the pictures at one placeholder each, so that it fits at each of the scales.

        Raises `MvlmError` naming a row that does not.
        """
        image = self.processor.image_token_id
        try:
            encoded = self._encode(row.system, row.turns)
            pictures = _pictures(row)
            finest, visual = self.lengths.finest(pictures, scales)
            fits = partial(self.lengths.that_fits, pictures, finest)
            if self.max_tokens is not None:
                encoded = truncate(encoded, self.max_tokens, finest, image, visual, fits)
            if not any(encoded.supervised):
                raise MvlmError("nothing is supervised: the chat template marks no answer of it")
            require_positions(encoded.length_with(visual, image), self.positions, finest, visual, fits)
        except MvlmError as error:
            raise MvlmError(f"id {row.id}: {error}") from None
        return encoded

    def faults(self, rows: Iterable[Row], scales: Sequence[ScaleWord]) -> list[str]:
        """The rows that do not fit, a line each. Only those that might not are encoded for it."""
        found = []
        for row in rows:
            if not self._surely_fits(row, scales):
                try:
                    self.encode(row, scales)
                except MvlmError as error:
                    found.append(str(error))
        return found

    def _surely_fits(self, row: Row, scales: Sequence[ScaleWord]) -> bool:
        """Whether a row would fit if each byte of its texts were a token, as at worst it is."""
        most = min((bound for bound in (self.max_tokens, self.positions) if bound is not None), default=None)
        if most is None:
            return False  # what is supervised must be looked at all the same
        texts = row.texts()
        contents = tuple(tuple(isinstance(part, str) for part in turn.content) for turn in row.turns)
        frame = self._frame((contents, row.system is not None))
        visual = self.lengths.finest(_pictures(row), scales)[1]
        words = sum(len(self._normalised(text).encode()) + 1 for text in texts)
        return frame + words + visual - len(_pictures(row)) <= most

    def _frame_of(self, shape: _Shape) -> int:
        """The tokens of a row of one letter a text; more than any row may have when the template has no use for it."""
        turns = tuple(
            Turn(tuple("a" if is_text else PicturePlace(0) for is_text in content), ("a",)) for content in shape[0]
        )
        try:
            return len(self.encode(_row("a" if shape[1] else None, turns), (1,)).ids)
        except MvlmError:
            return 2**62

    def _normalised(self, text: str) -> str:
        """As the tokenizer spells it before it cuts it: an accent may become a character of its own."""
        backend: Any = self.processor.tokenizer.backend_tokenizer
        return backend.normalizer.normalize_str(text) if backend.normalizer else text

    def _encode_texts(self, system: str | None, turns: tuple[Turn, ...]) -> Encoded:
        return self.processor.encode(_row(system, turns).messages())


def _row(system: str | None, turns: tuple[Turn, ...]) -> Row:
    return Row("", (), turns, None, "", "", system)


def _pictures(row: Row) -> list[PictureSource | None]:
    """One for each place in the turns; None where the row does not say which, as only its length is asked for."""
    places = [part.number for turn in row.turns for part in turn.content if isinstance(part, PicturePlace)]
    return [row.pictures[number] if number < len(row.pictures) else None for number in places]
