"""The drawn benchmark as a rows folder: pictures, rows, patch tags, a contact sheet, and a train.yaml that fits."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.runtime.artefact import describe, sha256_file, write_json
from mvlm_core.data.reading import ROWS_FILE, SPLITS

from .draw import SMALL
from .drawn import World, WorldName
from .large import LARGE
from .moving import CLIPS
from .varied import VARIED

TAGS_FILE = "patch_tags.npz"
WORLDS: dict[WorldName, World] = {"small": SMALL, "varied": VARIED, "large": LARGE, "clips": CLIPS}
_CHUNK = 200
_SHEET_COLUMNS, _SHEET_ROWS, _SHEET_GAP_PX, _SMALLEST_CELL_PX = 10, 6, 8, 96


@dataclass(frozen=True)
class SceneCounts:
    """Pictures of each split."""

    train: int = 16000
    val: int = 900
    test: int = 900

    def of(self, split: str) -> int:
        return {"train": self.train, "val": self.val, "test": self.test}[split]


def write_scenes(
    folder: Path, counts: SceneCounts, seed: int, progress: Callable[[int], None], world: WorldName = "small"
) -> dict[str, int]:
    """Draw the benchmark into an empty folder and return the number of rows of each kind.

    Every picture has a generator of its own, derived from the seed, its split and its number, so the folder does not
    depend on how the work was shared out. `progress` is told how many pictures were drawn.
    """
    drawn_by = WORLDS[world]
    jobs = [
        (folder, split, start, min(start + _CHUNK, counts.of(split)), seed, world)
        for split in SPLITS
        for start in range(0, counts.of(split), _CHUNK)
    ]
    kinds: Counter[str] = Counter()
    tags: dict[str, list[NDArray[np.uint8]]] = {group: [] for group in drawn_by.tag_words}
    names: list[str] = []
    with ProcessPoolExecutor(os.cpu_count()) as pool, (folder / ROWS_FILE).open("w", encoding="utf-8") as file:
        for lines, chunk_names, chunk_tags in pool.map(_draw_chunk, jobs):
            for line in lines:
                kinds[line["task"]] += 1
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            names += chunk_names
            for group, drawn in chunk_tags.items():
                tags[group].append(drawn)
            progress(len(chunk_names))
    arrays: dict[str, Any] = {group: np.concatenate(drawn) for group, drawn in tags.items()}
    np.savez_compressed(folder / TAGS_FILE, images=np.array(names), **arrays)
    _contact_sheet(folder, names, drawn_by.size_px)
    write_json(
        folder / "rows.json",
        describe(
            "rows",
            seed=seed,
            size_px=drawn_by.size_px,
            grid_side=drawn_by.grid_side,
            pictures={split: counts.of(split) for split in SPLITS},
            rows=dict(sorted(kinds.items())),
            tasks={kind: {"sight": sight} for kind, sight in drawn_by.kinds.items()},
            tag_words={group: list(words) for group, words in drawn_by.tag_words.items()},
            files={name: sha256_file(folder / name) for name in (ROWS_FILE, TAGS_FILE)},
        ),
    )
    return dict(kinds)


def _draw_chunk(
    job: tuple[Path, str, int, int, int, WorldName],
) -> tuple[list[dict], list[str], dict[str, NDArray[np.uint8]]]:
    folder, split, start, stop, seed, world = job
    lines, names = [], []
    tags: dict[str, list[NDArray[np.uint8]]] = {group: [] for group in WORLDS[world].tag_words}
    place = Path("pictures") / split / f"{start // _CHUNK:03d}"
    (folder / place).mkdir(parents=True, exist_ok=True)
    for number in range(start, stop):
        random = np.random.default_rng([seed, SPLITS.index(split), number])
        drawn = WORLDS[world].draw(random, split == "test")
        name = f"{split}-{number:05d}"
        files = [place / f"{name}.png"]
        if drawn.frames:
            files = [place / name / f"{frame}.png" for frame in range(len(drawn.frames))]
            (folder / place / name).mkdir()
        for file, picture in zip(files, drawn.frames or (drawn.image,), strict=True):
            picture.save(folder / file, compress_level=1)
        image = files[len(drawn.frames) // 2].as_posix()  # of a clip the middle frame
        shows = {"video": [file.as_posix() for file in files]} if drawn.frames else {"image": image}
        for i, asked in enumerate(drawn.questions):
            lines.append(
                {"id": f"{name}-{i}", **shows, "question": asked.text, "answers": [asked.answer],
                 "task": asked.kind, "group": name, "split": split}
            )  # fmt: skip
        names.append(image)
        for group, shown in drawn.tags.items():
            tags[group].append(shown)
    return lines, names, {group: np.stack(shown) for group, shown in tags.items()}


def _contact_sheet(folder: Path, names: list[str], size_px: int) -> None:
    """A page of pictures to look at, the test split first; large ones are made smaller."""
    shown = [*reversed(names)][: _SHEET_COLUMNS * _SHEET_ROWS]
    cell = max(size_px, _SMALLEST_CELL_PX) + _SHEET_GAP_PX
    sheet = Image.new("RGB", (_SHEET_COLUMNS * cell + _SHEET_GAP_PX, _SHEET_ROWS * cell + _SHEET_GAP_PX), "white")
    for i, name in enumerate(shown):
        row, column = divmod(i, _SHEET_COLUMNS)
        with Image.open(folder / name) as picture:
            picture.thumbnail((cell - _SHEET_GAP_PX,) * 2)
            sheet.paste(picture, (_SHEET_GAP_PX + column * cell, _SHEET_GAP_PX + row * cell))
    sheet.save(folder / "contact_sheet.png")
