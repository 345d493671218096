"""Text that grows: against the whole text, cut anywhere, with stop strings over token borders."""

from __future__ import annotations

import random

import pytest

from export.runtime.decode.text import GrowingText


def by_bytes(data: bytes, sizes: list[int]):
    """A tokenizer whose tokens are pieces of the text's bytes: the hardest that a byte-level one can be."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    return pieces, lambda ids: b"".join(pieces[i] for i in ids).decode(errors="replace")


def grown(pieces, decode, stop=()):
    text, given = GrowingText(decode, stop), []
    for n in range(1, len(pieces) + 1):
        given.append(text.grow(range(n)))
        if text.stopped:
            return given, text
    given.append(text.end(range(len(pieces))))
    return given, text


@pytest.mark.parametrize("seed", range(40))
def test_pieces_are_the_whole_text_and_no_character_is_cut(seed):
    chance = random.Random(seed)
    whole = "".join(chance.choice("aé形🙂 \n") for _ in range(20))
    data = whole.encode()
    pieces, decode = by_bytes(data, [chance.randint(1, 3) for _ in range(len(data))])
    given, text = grown(pieces, decode)
    assert "".join(given) == whole.strip() == text.given
    assert "\ufffd" not in "".join(given)
    assert any(given[:-1])  # it is not all held back until the end


@pytest.mark.parametrize("seed", range(40))
def test_a_stop_string_ends_the_text_wherever_the_borders_lie(seed):
    chance = random.Random(seed)
    data = b"one two STOP three"
    pieces, decode = by_bytes(data, [chance.randint(1, 4) for _ in range(10)])
    given, text = grown(pieces, decode, ["STOP", "never"])
    assert text.stopped
    assert "".join(given) == "one two"


def test_the_earliest_of_two_stop_strings_counts():
    pieces, decode = by_bytes(b"abcdef", [6])
    given, _ = grown(pieces, decode, ["ef", "cd"])
    assert "".join(given) == "ab"


def test_the_start_of_a_stop_string_that_comes_to_nothing_is_given_out():
    pieces, decode = by_bytes(b"a ST", [1, 1, 1])
    given, text = grown(pieces, decode, ["STOP"])
    assert not text.stopped
    assert given == ["a", "", "", "", " ST"]


def test_bytes_that_never_become_a_character_are_shown_at_the_end():
    pieces, decode = by_bytes(b"a\xf0\x9f", [1, 1])
    assert "".join(grown(pieces, decode)[0]) == "a\ufffd"


def test_a_decoder_that_takes_something_back_waits_until_it_settles():
    texts = ["ab", "aX", "abc"]
    text = GrowingText(lambda ids: texts[len(ids) - 1])
    assert [text.grow(range(n)) for n in (1, 2, 3)] == ["ab", "", "c"]
