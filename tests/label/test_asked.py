"""What labels keep for a report: the questions of the test rows, and a small picture of each."""

import io
from dataclasses import replace

from PIL import Image

from mvlm_core.data.pictures import PictureBytes
from mvlm_core.label import asked
from mvlm_core.label.asked import asked_rows, small_picture
from tests.support.tiny import one_question


def row(name: str, size: tuple[int, int], key: str = "", split: str = "test"):
    data = io.BytesIO()
    Image.new("RGBA", size, (9, 9, 9, 255)).save(data, "PNG")
    made = one_question(name, None, f"what is {name}?", "it", split=split)
    return replace(made, pictures=(PictureBytes(key or name, data.getvalue()),))


def test_test_rows_alone_and_each_picture_once():
    told = asked_rows(
        [row("a", (8, 8), "one"), row("b", (8, 8), "one"), row("c", (8, 8)), row("d", (8, 8), split="val")]
    )
    assert [(one["id"], one["question"], one["picture_of"]) for one in told] == [
        ("a", "what is a?", "a"), ("b", "what is b?", "a"), ("c", "what is c?", "c"),
    ]  # fmt: skip
    assert [one["picture"] is None for one in told] == [False, True, False]


def test_pictures_are_small_and_drawn_ones_sharp():
    large, small = (Image.open(io.BytesIO(small_picture(row("a", size)))) for size in ((900, 300), (96, 96)))
    assert (large.format, large.size) == ("JPEG", (256, 85))
    assert (small.format, small.size) == ("PNG", (96, 96))


def test_of_very_many_pictures_some_are_kept(monkeypatch):
    monkeypatch.setattr(asked, "_MOST_PICTURES", 3)
    told = asked_rows([row(str(n), (8, 8)) for n in range(7)])
    assert [one["id"] for one in told if one["picture"]] == ["0", "3", "6"]
