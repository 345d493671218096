"""What the tokens look at, as pictures: the ladder, the words of the cells, constant attention, and gradients."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is asked for

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.paper.world import GRID_SIDE, SCALES, SIZE_PX
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.data.row import Row
from mvlm_core.label.sweep import Sweep, sweep_pictures
from mvlm_core.modeling.connectors import Connector, QueryConnector
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of
from mvlm_core.modeling.vision_towers import patch_features
from mvlm_core.scenes.draw import TAG_WORDS
from mvlm_core.train.plan import Group

_RIGHT, _WRONG = "#1a7f37", "#b3261e"
_ASKED = ("time_of_day", "colour_of", "where", "smallest", "number", "letter")
# What a place in the picture decides, so that a gradient can be right or wrong about it.
_HANGING = ("colour_of", "where", "number", "letter")
# Of the words that a patch may say, those that a glance at the picture confirms.
_SAID = ("colour", "shape", "character", "sky")
_DPI = 110
_LINE = 36  # letters under a picture
_LOOKED_AT = 40


def draw_gallery(runs: dict[str, Path], pictures: Sequence[Group], rows: Path, folder: Path) -> list[Path]:
    """Of each family whose run is there, as paper_*.png; `pictures` are what to choose from."""
    shown = telling(pictures, 4)
    files = []
    for family, run in runs.items():
        model, processor = load_run(run)
        model.requires_grad_(False)
        sweep = Sweep(run, rows, SCALES, ("test",), max_new_tokens=6)
        files.append(_save(_ladder(model, processor, shown, sweep), folder / f"paper_{family}_ladder.png"))
        told = telling_questions(model, processor, pictures[:_LOOKED_AT], sweep)
        files.append(_save(_gradients(model, processor, told), folder / f"paper_{family}_gradients.png"))
        if isinstance(model.connector, QueryConnector):
            files.append(_save(_attention(model.connector), folder / "paper_query_attention.png"))
    return files


def telling(pictures: Sequence[Group], count: int) -> list[Group]:
    """The pictures that are asked most kinds of question, the first of the split first."""
    return sorted(pictures, key=lambda picture: -len({row.task for row in picture.rows} & set(_ASKED)))[:count]


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file, dpi=_DPI, pil_kwargs={"optimize": True})
    plt.close(figure)
    return file


def _ladder(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, pictures: Sequence[Group], sweep: Sweep
) -> Figure:
    """Each picture as it is, then as every scale has it, with the answers."""
    labels, _ = sweep_pictures(model, processor, pictures, sweep)
    answers = {(line["id"], line["num_visual_tokens"]): (line["prediction"], line["score"]) for line in labels}
    room = 0.13 + 0.082 * len(_ASKED)  # for the questions under each row, in heights of a picture
    figure, panes = plt.subplots(
        len(pictures), 1 + len(SCALES), figsize=(12, 2.3 * (1 + room) * len(pictures)), squeeze=False
    )
    figure.subplots_adjust(
        left=0.01, right=0.99, top=0.975, bottom=room / (1 + room) / len(pictures), hspace=room + 0.04
    )
    for row, picture in zip(panes, pictures, strict=True):
        pixels = _pixels(picture)
        asked = _one_of_each(picture)
        row[0].imshow(pixels)
        for place, question in enumerate(asked):
            row[0].text(0, _line(place), str(question.turns[0].content[-1]), transform=row[0].transAxes, fontsize=6.2,
                        va="center")  # fmt: skip
        values, _ = _values(model, processor, picture)
        for axes, m in zip(row[1:], SCALES, strict=True):
            _mosaic(axes, model, processor, pixels, values, m)
            _answers(axes, [answers[r.id, m] for r in asked])
        for axes, title in zip(row, ("the picture", *(f"m = {m}" for m in SCALES)), strict=True):
            _bare(axes, title)
    return figure


def _mosaic(
    axes: Axes, model: MvlmForConditionalGeneration, processor: MvlmProcessor, pixels: NDArray[np.uint8],
    values: Tensor, m: int,
) -> None:  # fmt: skip
    """Every patch in the mean colour of what the tokens that look at it see, and the word nearest to each token."""
    size = SIZE_PX // GRID_SIDE
    looks = gathering(model.connector, m)  # (m, P)
    patches = pixels.reshape(GRID_SIDE, size, GRID_SIDE, size, 3).mean(axis=(1, 3)).reshape(-1, 3)  # (P, 3)
    seen = (looks / looks.sum(axis=0)).T @ (looks @ patches)  # (P, 3)
    axes.imshow(np.kron(seen.reshape(GRID_SIDE, GRID_SIDE, 3), np.ones((size, size, 1))).astype(np.uint8))
    middles = (np.stack(np.divmod(np.arange(GRID_SIDE**2), GRID_SIDE), axis=1) + 0.5) * size - 0.5  # (P, 2)
    for word, (y, x) in zip(_words(model, processor, values, m), looks @ middles, strict=True):
        dark = seen[int(y) // size * GRID_SIDE + int(x) // size].mean() < 110
        axes.text(x, y, word, ha="center", va="center", color="white" if dark else "black",
                  fontsize=max(4.2, 10 - 0.8 * np.log2(m)))  # fmt: skip


def gathering(connector: Connector, m: int) -> NDArray[np.float32]:
    """How much each of m tokens takes of each patch, (m, P): a query's attention, or the averages of its cell.

    The first m tokens of nested_pool hold what those averages hold, so they are shown as them.
    """
    if isinstance(connector, QueryConnector):
        return connector.attention(m).mean(dim=0).detach().numpy()
    side = round(m**0.5)
    step = GRID_SIDE // side
    cell = np.kron(np.arange(m).reshape(side, side), np.ones((step, step), int)).reshape(-1)  # (P,)
    return (cell == np.arange(m)[:, None]).astype(np.float32) / step**2


def _words(model: MvlmForConditionalGeneration, processor: MvlmProcessor, values: Tensor, m: int) -> list[str]:
    """For each token the word whose embedding it is nearest to; none where all are farther than nothing's zero."""
    connector = model.connector
    if isinstance(connector, QueryConnector):
        tokens = connector.tokens(values, m)[0]  # (m, D)
    else:
        tokens = torch.from_numpy(gathering(connector, m)) @ connector.words(values)[0]
    known = [word for group in _SAID for word in TAG_WORDS[group]]
    ids = [processor.tokenizer.encode(f" {word}", add_special_tokens=False)[-1] for word in known]
    best = (tokens @ model.embedding_table[ids].T).max(dim=1)
    return [known[i] if s > 0 else "" for i, s in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def _answers(axes: Axes, answers: Sequence[tuple[str, float]]) -> None:
    for place, (said, score) in enumerate(answers):
        axes.text(0, _line(place), said or "(nothing)", transform=axes.transAxes, fontsize=8, va="center",
                  color=_RIGHT if score else _WRONG)  # fmt: skip


def _line(place: int) -> float:
    """Where the text of a question stands under its picture, in heights of that."""
    return -0.085 - 0.082 * place


def telling_questions(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, pictures: Sequence[Group], sweep: Sweep
) -> list[tuple[Group, Row]]:
    """Of each kind that a place decides, one that the finest scale answers rightly; each from a picture of its own."""
    labels, _ = sweep_pictures(model, processor, pictures, replace(sweep, scales=SCALES[-1:]))
    right = {line["id"] for line in labels if line["score"]}
    chosen: dict[str, tuple[Group, Row]] = {}
    for kind in _HANGING:
        taken = {id(picture) for picture, _ in chosen.values()}
        able = (
            (picture, row) for picture in pictures for row in picture.rows
            if row.task == kind and row.id in right and id(picture) not in taken
        )  # fmt: skip
        if found := next(able, None):
            chosen[kind] = found
    return list(chosen.values())


def _gradients(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, chosen: Sequence[tuple[Group, Row]]
) -> Figure:
    """Which patches the right answer hangs on at every scale: gradient times feature, as MQT's Grad-CAM pictures."""
    figure, panes = plt.subplots(
        max(1, len(chosen)),
        1 + len(SCALES),
        figsize=(11, 2.8 * max(1, len(chosen))),
        layout="constrained",
        squeeze=False,
    )
    for row, (picture, asked) in zip(panes, chosen, strict=False):
        pixels = _pixels(picture)
        row[0].imshow(pixels)
        question = textwrap.fill(str(asked.turns[0].content[-1]), _LINE)
        row[0].set_xlabel(f"{question}\n{asked.turns[0].answers[0]}", fontsize=7)
        for axes, m in zip(row[1:], SCALES, strict=True):
            heat = relevance(model, processor, picture, asked, m)
            axes.imshow(pixels.mean(axis=2), cmap="gray", vmin=-120, vmax=300)
            axes.imshow(heat, cmap="magma", alpha=0.6, extent=(-0.5, SIZE_PX - 0.5, SIZE_PX - 0.5, -0.5), vmin=0)
        for axes, title in zip(row, ("the picture", *(f"m = {m}" for m in SCALES)), strict=True):
            _bare(axes, title)
    return figure


def relevance(
    model: MvlmForConditionalGeneration, processor: MvlmProcessor, picture: Group, asked: Row, m: int
) -> NDArray[np.float32]:
    """On which patches the right answer hangs, (G, G): |gradient · feature| of its log probability."""
    _, features = _values(model, processor, picture)
    features = features.requires_grad_(True)  # (1, P, D_vision)
    tokens = model.connector.tokens(model.connector.values(features), m)  # (1, m, D)
    prompt = prompt_of(processor)
    ids = prompt.ids(str(asked.turns[0].content[-1]), 1, processor.image_token_id)
    cut = ids.index(processor.image_token_id)
    embed = model.get_input_embeddings()
    right = processor.tokenizer.encode(f" {asked.turns[0].answers[0]}", add_special_tokens=False)
    before, after = (embed(torch.tensor([part])) for part in (ids[:cut], [*ids[cut + 1 :], *right[:-1]]))
    read = torch.cat([before, tokens, after], dim=1)  # (1, S, D)
    logits = model.language_model(inputs_embeds=read, logits_to_keep=len(right)).logits[0]  # (answer, V)
    (gradient,) = torch.autograd.grad(logits.log_softmax(-1)[range(len(right)), right].sum(), features)
    return (gradient * features).sum(-1).abs().detach().reshape(GRID_SIDE, GRID_SIDE).numpy()


def _attention(connector: QueryConnector) -> Figure:
    """How each query looks at the patches, whatever the picture, in the order in which a prefix takes them."""
    seen = connector.attention(SCALES[-1]).mean(dim=0).detach().numpy()  # (M, P)
    figure, panes = plt.subplots(8, 8, figsize=(8.2, 8.6), layout="constrained")
    for place, (axes, of_query) in enumerate(zip(panes.flat, seen, strict=True)):
        axes.imshow(of_query.reshape(GRID_SIDE, GRID_SIDE), cmap="magma")
        _bare(axes, str(place + 1), size=7)
    figure.suptitle("the constant attention of every query (learned, the same for every picture)", fontsize=10)
    return figure


def _bare(axes: Axes, title: str, *, size: int = 9) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=size)


def _one_of_each(picture: Group) -> list[Row]:
    """The first question of every kind that the gallery shows."""
    by_kind = {row.task: row for row in reversed(picture.rows)}
    return [by_kind[kind] for kind in _ASKED if kind in by_kind]


def _pixels(picture: Group) -> NDArray[np.uint8]:
    """(H, W, 3), in the size that the model sees."""
    with Image.open(picture.pictures[0].read()) as opened:
        return np.asarray(opened.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC))


def _values(model: MvlmForConditionalGeneration, processor: MvlmProcessor, picture: Group) -> tuple[Tensor, Tensor]:
    """What each patch contributes (1, P, ·), and the tower's features of it (1, P, D_vision)."""
    pixels = processor.image_processor([picture.pictures[0].read()])["pixel_values"]
    features = patch_features(model.vision_tower(pixels).last_hidden_state, GRID_SIDE, 0)
    return model.connector.values(features), features
