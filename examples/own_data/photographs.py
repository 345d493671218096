"""The photographs of Debian's package tuxpaint-stamps-default, each with a caption, as rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

STAMPS = Path("/usr/share/tuxpaint/stamps")
# The folders that hold photographs rather than drawings, and what a person would call what they show.
KINDS = {
    "animals/birds": "a bird", "animals/insects": "an insect", "animals/fish": "a fish", "animals/mammals": "a mammal",
    "food/fruit": "a fruit", "food/vegetables": "a vegetable", "plants/flowers": "a flower",
    "household/tools": "a tool", "hobbies/music": "an instrument", "town/monuments": "a monument",
}  # fmt: skip
_OTHERS = 3


@dataclass(frozen=True)
class Photograph:
    """A picture on white, what it shows in a sentence, and of which kind that is, among others."""

    picture: Image.Image
    caption: str
    kind: str
    kinds: list[str]


def photographs(stamps: Path, count: int, random: Random) -> Iterator[Photograph]:
    """Some of the photographs, of every kind; none where the package is not installed."""
    found = [(file, kind) for folder, kind in KINDS.items() for file in sorted((stamps / folder).glob("*.png"))]
    random.shuffle(found)
    told = [(file, kind) for file, kind in found if file.with_suffix(".txt").is_file()]
    for file, kind in told[:count]:
        # The first line is in English; the others are translations.
        caption = file.with_suffix(".txt").read_text(encoding="utf-8").splitlines()[0].strip()
        kinds = [kind, *random.sample([other for other in KINDS.values() if other != kind], _OTHERS)]
        random.shuffle(kinds)
        yield Photograph(_on_white(file), caption, kind, kinds)


def _on_white(file: Path) -> Image.Image:
    with Image.open(file) as opened:
        cut_out = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", cut_out.size, "white"), cut_out).convert("RGB")
