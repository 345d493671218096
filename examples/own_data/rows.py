"""A small real data set: photographs and drawn pages as files, and rows of two formats about them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from .drawn import chart, form, letter
from .photographs import photographs

_TURNED = 6  # of EXIF: as a telephone that was held upright stores it
_DRAWN = (letter, form, chart)


def write_rows(file: Path, pictures: int, stamps: Path, seed: int = 0) -> int:
    """Write rows about so many pictures, a third of them photographs, and the pictures beside the file.

    Returns how many are photographs: none where the package that holds them is not installed. Every other photograph
    is stored turned, and says so, as cameras do.
    """
    random = Random(seed)
    place = file.parent / f"{file.stem}-pictures"
    place.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    taken = list(photographs(stamps, pictures // 3, random))
    for number, one in enumerate(taken):
        name = place / f"photograph{number:03d}.jpg"
        _save_photograph(one.picture, name, turned=number % 2 == 1)
        image = name.relative_to(file.parent).as_posix()
        said = [{"from": "human", "value": "<image>\nDescribe the picture."}, {"from": "gpt", "value": one.caption}]
        rows.append({"id": f"caption{number}", "image": image, "task": "caption", "conversations": said})
        rows.append({"id": f"kind{number}", "image": image, "task": "kind", "question": "What does the picture show?",
                     "answers": [one.kind], "options": one.kinds})  # fmt: skip
    for number in range(pictures - len(taken)):
        drawn = _DRAWN[number % len(_DRAWN)](random)
        name = place / f"drawn{number:03d}.png"
        drawn.picture.save(name)
        image = name.relative_to(file.parent).as_posix()
        rows += [{"id": f"drawn{number}-{n}", "image": image, **asked} for n, asked in enumerate(drawn.asked)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return len(taken)


def _save_photograph(picture: Image.Image, file: Path, *, turned: bool) -> None:
    exif = Image.Exif()
    if turned:
        picture = picture.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = _TURNED
    picture.save(file, quality=90, exif=exif)
