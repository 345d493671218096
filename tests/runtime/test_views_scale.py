"""The grammar of scales: one word, read and written alike; what is no scale is refused."""

import pytest

from export.runtime.errors import MvlmError
from export.runtime.views.scale import Scale, parse_words


@pytest.mark.parametrize(
    ("word", "tokens", "tiles"),
    [("36", 36, 0), (9, 9, 0), ("16@4", 16, 4), ("16@native", 16, None), ("native", None, None), (" 1 ", 1, 0)],
)
def test_a_word_says_tokens_and_tiles(word, tokens, tiles):
    scale = Scale.parse(word)
    assert (scale.tokens, scale.tiles) == (tokens, tiles)
    assert Scale.parse(str(scale)) == scale == Scale.parse(scale)


@pytest.mark.parametrize(
    "word", ["", "0", "-1", "16@0", "16@", "@4", "native@4", "4@all", "1.5", "1e3", "٣", None, True, 1.5, "9" * 12]
)
def test_what_is_no_scale_is_refused(word):
    with pytest.raises(MvlmError, match="is not a scale: write tokens a view"):
        Scale.parse(word)


def test_a_list_is_sorted_from_coarse_to_fine():
    scales = parse_words("native, 16@16,1-3,16@4,16,4@native")
    assert [str(scale) for scale in scales] == ["1", "2", "3", "16", "16@4", "16@16", "4@native", "native"]


@pytest.mark.parametrize("text", ["4,4", "1-3,2"])
def test_a_scale_stands_once(text):
    with pytest.raises(MvlmError, match="each must stand once"):
        parse_words(text)


@pytest.mark.parametrize("text", ["", "4,,9", "4-2,x", "-"])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(MvlmError, match="is not a "):
        parse_words(text)
