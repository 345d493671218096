"""Answering at five scales beside answering at the finest alone: `python -m benchmarks.train.label_sweep`.

The sweep of `mvlm label` encodes each picture once for all scales, and all questions of a picture read one copy of its
visual tokens, so what remains is the language model's reading. The limit is what that alone would allow: the tokens
read at all scales over those read at the finest, with the tower counted once for both. The model and the pictures are
those of train_step.py: random weights, so answers run on to their last token.
"""

from __future__ import annotations

import time
from statistics import median

import click
import numpy as np
import torch

from benchmarks.machine import keep
from benchmarks.train.step import SCALES, Built, build
from mvlm_core.label.packed_generation import answer_together
from mvlm_core.modeling.processing import prompt_of

_QUESTIONS = ("what colour is the large disc", "how many", "is the red star left the blue disc")


class Pictures:
    """Pictures of noise, each with the same questions."""

    def __init__(self, size: str, pictures: int, new_tokens: int, built: Built | None = None) -> None:
        self.model, processor = built or build(size, "cuda" if torch.cuda.is_available() else "cpu")
        self.model.eval()
        self.model.generation_config.eos_token_id = -1  # no answer ends early
        self.new_tokens = new_tokens
        random = np.random.default_rng(0)
        noise = [random.integers(0, 256, (336, 336, 3), np.uint8) for _ in range(pictures)]
        self.pixels = processor.image_processor(noise)["pixel_values"].to(self.model.device, self.model.dtype)
        ids = [prompt_of(processor).ids(question, 1, processor.image_token_id) for question in _QUESTIONS]
        place = ids[0].index(processor.image_token_id)
        self.before, self.after = ids[0][:place], [[question[place + 1 :] for question in ids]] * pictures

    @torch.inference_mode()
    def sweep(self, scales: tuple[int, ...]) -> tuple[float, float]:
        """Seconds in all, and of the tower alone."""
        start = time.perf_counter()
        values = self.model.encode_images(self.pixels)  # (B, P, ·)
        encoded = time.perf_counter() - start
        for scale in scales:
            visual = self.model.connector.tokens(values, scale)  # (B, m, D)
            answer_together(self.model, self.before, visual, self.after, self.new_tokens)
        return time.perf_counter() - start, encoded

    def tokens(self, scales: tuple[int, ...]) -> int:
        """What the language model reads of one picture, answers and all."""
        asked = sum(len(question) + self.new_tokens for question in self.after[0])
        return sum(len(self.before) + scale + asked for scale in scales)


@click.command()
@click.option("--size", type=click.Choice(["tiny", "0.2B", "0.5B"]), default="0.2B", show_default=True)
@click.option("--pictures", default=4, show_default=True)
@click.option("--new-tokens", default=4, show_default=True, help="Tokens of an answer.")
@click.option("--rounds", default=5, show_default=True)
def main(size: str, pictures: int, new_tokens: int, rounds: int) -> None:
    """Sweep in turns at the finest scale and at all, and keep how they compare."""
    shown = Pictures(size, pictures, new_tokens)
    ways = {"finest": (SCALES[-1],), "all": SCALES}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for scales in ways.values():
        shown.sweep(scales)
    with click.progressbar(range(rounds), label="sweeping in turns") as bar:
        for _ in bar:
            for name, scales in ways.items():
                taken[name].append(shown.sweep(scales))
    seconds = {name: median(whole for whole, _ in times) for name, times in taken.items()}
    tower = median(encoded for times in taken.values() for _, encoded in times)
    ratio = seconds["all"] / seconds["finest"]
    tokens = {name: shown.tokens(scales) for name, scales in ways.items()}
    limit = (tower + (seconds["finest"] - tower) * tokens["all"] / tokens["finest"]) / seconds["finest"]
    click.echo(f"{len(SCALES)} scales take {ratio:.2f} times the finest alone; by their tokens, {limit:.2f}")
    if size != "tiny":
        command = (
            f"python -m benchmarks.train.label_sweep --size {size} --pictures {pictures} --new-tokens {new_tokens}"
        )
        figures = {"scales": list(SCALES), "rounds": rounds, "seconds": seconds, "tower_seconds": tower}
        click.echo(keep("label_sweep", command, **figures, ratio=ratio, limit=limit, tokens=tokens))


if __name__ == "__main__":
    main()
