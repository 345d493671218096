"""Labels folders drawn from known probabilities, for the tests of `router`: quick, seeded, and with any fault wanted.

Letters: n rows, K scales.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import router.fit.fit
import router.report.evaluate
from export.runtime.artefact import describe, sha256_file, write_json
from export.runtime.features import FEATURE_VERSION, SIZE_FEATURES
from export.runtime.views.scale import Scale
from router.estimators.base import ScaleEstimator
from router.estimators.learned import PooledTrees, ScaleLogistic

IMAGE_FEATURES = ("energy_lost_0", "energy_kept", "log_energy")
QUESTION_FEATURES = ("tokens", "match0_peak", "match0_area", *(f"hash{word}" for word in range(6)))
ANSWERS = ("red", "blue", "green", "grey")
_SHARPNESS = 1.5
_BEST, _CHANCE = 0.95, 0.25


@dataclass(frozen=True)
class Kind:
    """A kind of question. `need` is the log2 of the tokens at which half of what can be learned is right."""

    need: float
    sight: str = "coarse"
    learned: bool = True


EASY, FINE = Kind(-3.0), Kind(3.5, "fine")
QUESTION_DECIDES = {"easy": EASY, "fine": FINE}


@dataclass(frozen=True)
class Recipe:
    """What a labels folder is drawn from. Half of the groups are the test split.

    `picture` is by how many steps of log2 tokens the picture moves the need of a row, to either side; the features of
    the match tell to which. With `tile_tokens` pictures have none, 4 or 16 tiles, and scales are words.
    """

    rows: int = 1600
    groups: int = 160
    scales: tuple[int | str, ...] = (1, 4, 9, 36)
    kinds: tuple[tuple[str, Kind], ...] = tuple(QUESTION_DECIDES.items())
    picture: float = 0.0
    seed: int = 0
    tile_tokens: float | None = None


def kinds(**named: Kind) -> tuple[tuple[str, Kind], ...]:
    return tuple(named.items())


# The need is the same for all rows, so whatever else the features say, nothing of them helps.
NOISE = Recipe(kinds=kinds(any=Kind(2.0)))
PICTURE_DECIDES = Recipe(
    scales=(1, 4, 9, 36, 144), kinds=kinds(colour=Kind(2.5, "picture"), letter=Kind(2.5, "picture")), picture=3.0
)
# Pictures of none, 4 or 16 tiles; what a row needs is a number of tokens over all of the picture.
TILED = Recipe(scales=(1, 4, 16, "4@4", "16@4", "16@16"), tile_tokens=10.0, rows=2400, groups=240)
FLAT = Recipe(kinds=kinds(easy=Kind(-8.0)))


def make_labels(folder: Path, recipe: Recipe = Recipe()) -> np.ndarray:
    """Write a labels folder; returns the probabilities that the scores were drawn from, (n, K)."""
    random = np.random.default_rng(recipe.seed)
    names, of_name = zip(*recipe.kinds, strict=True)
    kind = random.integers(len(names), size=recipe.rows)  # (n,)
    side = random.choice([-1.0, 1.0], size=recipe.rows)  # (n,)
    need = np.array([k.need for k in of_name])[kind] + recipe.picture * side
    group = np.arange(recipe.rows) % recipe.groups  # groups take turns, so that rows of one group lie apart
    tiles, detail = _tiles(recipe, group)  # (n, K) each
    rise = 1 / (1 + np.exp(-_SHARPNESS * (np.log2(detail) - need[:, None])))  # (n, K)
    learned = np.array([k.learned for k in of_name])[kind][:, None]
    probability = _CHANCE + (_BEST - _CHANCE) * rise * learned
    scores = (random.random(probability.shape) < probability).astype(float)

    image = random.standard_normal((recipe.rows, len(IMAGE_FEATURES)))
    question = np.zeros((recipe.rows, len(QUESTION_FEATURES)))
    question[:, 0] = random.integers(4, 9, recipe.rows)
    question[:, 1] = side + 0.3 * random.standard_normal(recipe.rows)
    question[:, 2] = random.random(recipe.rows)
    question[np.arange(recipe.rows), 3 + kind % 6] = 1

    names_of_image = IMAGE_FEATURES
    if recipe.tile_tokens is not None:
        sides = np.sqrt(np.maximum(tiles.max(axis=1), 1)) * 64  # (n,)
        image = np.column_stack([image, np.log2(sides), np.log2(sides)])
        names_of_image += SIZE_FEATURES
    answer = random.integers(len(ANSWERS), size=recipe.rows)
    wrong = (answer[:, None] + random.integers(1, len(ANSWERS), scores.shape)) % len(ANSWERS)
    parsed = [Scale.parse(scale) for scale in recipe.scales]
    tokens = (1 + tiles) * np.array([scale.tokens for scale in parsed])  # (n, K)
    labels = [
        {
            "id": f"r{row}", "group": f"g{group[row]}", "task": names[kind[row]],
            "split": "test" if group[row] % 2 else "val", "num_visual_tokens": int(tokens[row, k]),
            "score": scores[row, k],
            "loss": None, "confidence": None, "margin": None, "answer": ANSWERS[answer[row]],
            "prediction": ANSWERS[answer[row] if scores[row, k] else wrong[row, k]],
        }
        for row in range(recipe.rows)
        for k in range(len(recipe.scales))
    ]  # fmt: skip
    features = [
        {"id": f"r{row}", "image": image[row].tolist(), "question": question[row].tolist()}
        for row in range(recipe.rows)
    ]
    facts = {
        "scales": list(recipe.scales), "cost": (tokens + tiles * (recipe.tile_tokens or 0.0)).mean(axis=0).tolist(),
        "cost_unit": "tokens", "tile_tokens": recipe.tile_tokens,
        "model_sha256": "a model", "rows_sha256": "some rows", "rows": str(folder.parent / "rows"),
        "feature_version": FEATURE_VERSION,
        "feature_names": {"image": list(names_of_image), "question": list(QUESTION_FEATURES)},
        "counts": {"rows": recipe.rows, "groups": recipe.groups},
        "tasks": {name: {"sight": k.sight} for name, k in recipe.kinds},
    }  # fmt: skip
    if recipe.tile_tokens is not None:
        for n, line in enumerate(labels):
            row, k = divmod(n, len(recipe.scales))
            line |= {"scale": str(recipe.scales[k]), "tiles": int(tiles[row, k])}
    folder.mkdir(parents=True)
    _write(folder, labels, features, facts)
    return probability


def _tiles(recipe: Recipe, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many tiles each row shows at each scale, and in how many tokens it shows the whole picture: (n, K) each."""
    scales = [Scale.parse(scale) for scale in recipe.scales]
    most = np.array([0, 4, 16])[group // 2 % 3] if recipe.tile_tokens is not None else np.zeros(len(group), int)
    tiles = np.minimum(most[:, None], [scale.tiles or 0 for scale in scales])
    return tiles, np.maximum(tiles, 1) * np.array([scale.tokens for scale in scales])


Rows = list[dict[str, Any]]


def alter(
    folder: Path,
    *,
    labels: Callable[[Rows], Rows] = lambda rows: rows,
    features: Callable[[Rows], Rows] = lambda rows: rows,
    facts: dict[str, Any] | None = None,
) -> Path:
    """Write a labels folder again with something changed and every hash in order; returns the folder."""
    old = json.loads((folder / "labels.json").read_text())
    tables = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("labels", "features"))
    _write(folder, labels(next(tables)), features(next(tables)), old | (facts or {}))
    return folder


def _write(folder: Path, labels: Rows, features: Rows, facts: dict[str, Any]) -> None:
    text = dict.fromkeys(("id", "group", "task", "split", "prediction", "answer"), pa.string())
    number = dict.fromkeys(("score", "loss", "confidence", "margin"), pa.float32())
    sample = {"sample": pa.int32()} if labels and "sample" in labels[0] else {}
    if labels and "metric" in labels[0]:
        text["metric"] = pa.string()
    if labels and "probability" in labels[0]:
        number["probability"] = pa.float32()
    tiled = {"scale": pa.string(), "tiles": pa.int32()} if labels and "tiles" in labels[0] else {}
    columns = pa.schema(list({**text, **number, "num_visual_tokens": pa.int32(), **sample, **tiled}.items()))
    vectors = pa.schema([("id", pa.string()), *((kind, pa.list_(pa.float32())) for kind in ("image", "question"))])
    pq.write_table(pa.Table.from_pylist(labels, columns), folder / "labels.parquet")
    pq.write_table(pa.Table.from_pylist(features, vectors), folder / "features.parquet")
    files = {name: sha256_file(folder / name) for name in ("labels.parquet", "features.parquet")}
    write_json(folder / "labels.json", describe("labels", **{**facts, "files": files}))


def write_rows(labels: Path, question: str) -> Path:
    """The rows that a labels folder was made from, with one small picture each group; returns their folder."""
    folder = labels.parent / "rows"
    folder.mkdir()
    lines = []
    seen = {row["id"]: row["group"] for row in pq.read_table(labels / "labels.parquet").to_pylist()}
    for name, group in seen.items():
        picture = folder / f"{group}.png"
        if not picture.is_file():
            Image.new("RGB", (8, 8), (len(lines) % 256, 90, 120)).save(picture)
        lines.append(json.dumps({"id": name, "image": picture.name, "question": question}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    alter(labels, facts={"rows": str(folder), "rows_sha256": sha256_file(folder / "rows.jsonl")})
    return folder


def quick_candidates(scales: tuple[float, ...], seed: int) -> dict[str, ScaleEstimator]:
    """The candidates of `router.estimators.candidates`, smaller."""
    return {
        "logistic": ScaleLogistic(l2=3.0),
        "trees-small": PooledTrees(scales, num_trees=20, num_leaves=7, rate=0.06, seed=seed),
    }


@contextmanager
def quick() -> Iterator[None]:
    """Within this, fits and evaluations use `quick_candidates`."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (router.fit.fit, router.report.evaluate):
            patch.setattr(module, "candidates", quick_candidates)
        yield
