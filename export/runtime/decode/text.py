"""Generated ids as text that grows: no character cut, no stop string let through, nothing taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\ufffd"  # what a decoder makes of bytes that are not a whole character yet


class GrowingText:
    """The text of an answer, token by token.

    `decode` makes the whole text of all ids so far. A piece is given out once nothing that follows can change it:
    white space at the end, half a character, and what may be the start of a stop string are held back.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self.given = ""
        self.stopped = False

    def grow(self, ids: Sequence[int]) -> str:
        """What can be given out now that the answer has these ids. Sets `stopped` once a stop string stands in it."""
        text = self._cut(self._decode(ids))
        return self._give(text if self.stopped else self._settled(text))

    def end(self, ids: Sequence[int]) -> str:
        """What was held back, now that nothing follows."""
        return self._give(self._cut(self._decode(ids)))

    def _cut(self, text: str) -> str:
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        self.stopped = bool(found)
        return text[: min(found)] if found else text

    def _settled(self, text: str) -> str:
        text = text.rstrip(_UNFINISHED)
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        return text[: len(text) - held]

    def _give(self, text: str) -> str:
        """The part of `text` that is new; the white space around an answer is no part of it."""
        text = text.strip()
        if not text.startswith(self.given):  # a decoder that rewrites what stood before: wait until it settles
            return ""
        piece = text[len(self.given) :]
        self.given = text
        return piece


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the start of `stop`."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
