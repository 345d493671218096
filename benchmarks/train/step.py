"""One training step at every scale: packed into one pass, beside M3's own way, and one scale after another.

`python -m benchmarks.train.step` builds a model from nothing, draws pictures with running conversations, and takes
forward and backward passes in turns, so that whatever slows the machine slows all three:

- `m3`: the picture is encoded and the language model run once for each scale, rows padded, logits at every position,
  one backward pass through all of it (matryoshka-mm, llava_llama.py; reference/papers.md 2.2 and 2.5). The tower
  trains, which M3's released code forbids.
- `encoded once`: the same, with one encoding of the picture for all scales.
- `packed`: this package's step (mvlm_core/train/packing.py), as `mvlm train` takes it.

All three see the same conversations, and their losses are compared. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig

from benchmarks.machine import keep
from mvlm_core.backbones.byte_tokenizer import train_tokenizer
from mvlm_core.data.row import PicturePlace, Row, Turn
from mvlm_core.modeling.losses import IGNORED_LABEL
from mvlm_core.modeling.model import MvlmConfig, MvlmForConditionalGeneration, MvlmOutput
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor
from mvlm_core.train.metrics_file import peak_memory_mib
from mvlm_core.train.packing import PADDING, Packer, mask_for
from mvlm_core.train.plan import Planned, group_rows

SCALES = (1, 9, 36, 144, 576)
_WORDS = ("the", "red", "blue", "large", "disc", "star", "left", "above", "how", "many", "what", "colour", "is", "it")
# Width, feed-forward width, layers and heads of the tower and of the language model, and its vocabulary.
_SIZES = {
    "tiny": ((64, 128, 2, 2), (64, 128, 2, 2), 512),
    "0.2B": ((768, 3072, 12, 12), (768, 2048, 12, 12), 32_000),
    "0.5B": ((1024, 4096, 24, 16), (896, 4864, 24, 14), 151_936),
    "1.5B": ((1152, 4304, 27, 16), (1536, 8960, 28, 12), 151_936),
}


@dataclass(frozen=True)
class Picture:
    """Pixels in memory: what a step costs is wanted, and not what decoding does."""

    number: int
    pixels: bytes

    @property
    def key(self) -> str:
        return str(self.number)

    def read(self) -> Any:
        return np.frombuffer(self.pixels, np.uint8).reshape(336, 336, 3)


Built = tuple[MvlmForConditionalGeneration, MvlmProcessor]


def build(size: str, device: str, *, start_there: bool = False) -> Built:
    """A model from nothing; weights that start on the device are there sooner, and others than on the CPU."""
    (width, inner, layers, heads), (text_width, text_inner, text_layers, text_heads), vocabulary = _SIZES[size]
    processor = MvlmProcessor(MvlmImageProcessor(size_px=336), train_tokenizer([" ".join(_WORDS)]))
    vision = AutoConfig.for_model(
        "clip_vision_model", hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, image_size=336, patch_size=14,
    )  # fmt: skip
    text = AutoConfig.for_model(
        "llama", hidden_size=text_width, intermediate_size=text_inner, num_hidden_layers=text_layers,
        num_attention_heads=text_heads, vocab_size=vocabulary, tie_word_embeddings=True, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    config = MvlmConfig(vision_config=vision, text_config=text, image_token_id=processor.image_token_id, grid_side=24)
    with torch.device(device if start_there else "cpu"):
        model = MvlmForConditionalGeneration(config).to(device)
    return model.train(), processor


def conversations(pictures: int, turns: int) -> list[Row]:
    """Running conversations of unequal length about pictures of noise, as LLaVA's data has them."""
    random = np.random.default_rng(0)

    def said(low: int, high: int) -> str:
        return " ".join(random.choice(_WORDS, random.integers(low, high)))

    rows = []
    for n in range(pictures):
        picture = Picture(n, random.integers(0, 256, (336, 336, 3), np.uint8).tobytes())
        told = [Turn((said(5, 15),), (said(3, 30),)) for _ in range(random.integers(1, 2 * turns))]
        first = Turn((PicturePlace(0), *told[0].content), told[0].answers)
        rows.append(Row(str(n), (picture,), (first, *told[1:]), None, str(n), "train"))
    return rows


class Step:
    """The three ways to the same loss."""

    def __init__(self, size: str, pictures: int, turns: int, device: str, built: Built | None = None) -> None:
        self.model, self.processor = built or build(size, device)
        self.device, self.bf16 = device, device == "cuda"
        self.attention = {"packed": "flex_attention" if device == "cuda" else "sdpa"}
        self._groups = group_rows(conversations(pictures, turns))
        self._pack = Packer(self.processor, None, max_tokens=None)
        self.batch = self._batch(self._pack, self._groups, SCALES)
        self.tokens = int((self.batch["segments"] >= 0).sum())

    @cached_property
    def single(self) -> list[dict[str, Any]]:
        """The pictures at one scale after another, a row for each."""
        return [self._batch(self._pack, self._groups, (scale,), rows=len(self._groups)) for scale in SCALES]

    def _batch(self, pack: Packer, groups: Any, scales: tuple[int, ...], rows: int | None = None) -> dict[str, Any]:
        batch = pack([Planned(group, scales, np.arange(len(group.rows)), False) for group in groups])
        if rows is not None and len(batch["input_ids"]) != rows:  # short rows were put together: take them apart
            single = [self._batch(pack, [group], scales) for group in groups]
            batch = _stacked(single, self.processor.tokenizer.pad_token_id)
        return {key: v.to(self.device) if isinstance(v, Tensor) else v for key, v in batch.items()}

    def packed(self) -> Tensor:
        seen = mask_for(self.attention["packed"], self.batch["segments"], self.batch["blocks"])
        return self._read(self.batch, attention_mask=seen, labels=self.batch["labels"], return_logits=False).loss

    def m3(self) -> Tensor:
        losses = []
        for batch in self.single:
            seen = (batch["blocks"] != PADDING).long()  # (B, S): plain rows, padded at their end
            logits = self._read(batch, attention_mask=seen).logits[:, :-1]  # (B, S - 1, V)
            labels = batch["labels"][:, 1:]
            losses.append(functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()))
        return torch.stack(losses).mean()

    def encoded_once(self) -> Tensor:
        values = self.model.encode_images(self.batch["pixel_values"])  # (B, P, ·)
        encode, self.model.encode_images = self.model.encode_images, lambda pixels: values  # type: ignore[method-assign]
        loss = self.m3()
        self.model.encode_images = encode  # type: ignore[method-assign]
        return loss

    def _read(self, batch: dict[str, Any], **told: Any) -> MvlmOutput:
        inputs = {key: value for key, value in batch.items() if key not in ("segments", "blocks", "labels")}
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.model(**inputs, **told, use_cache=False)


def _stacked(batches: list[dict[str, Any]], pad: int) -> dict[str, Any]:
    """One row a picture, padded to the longest, as M3 has them."""
    length = max(batch["input_ids"].shape[1] for batch in batches)
    filler = {"input_ids": pad, "labels": IGNORED_LABEL, "position_ids": 0, "segments": -1, "blocks": -1}
    stacked: dict[str, Any] = {
        key: torch.cat([functional.pad(b[key], (0, length - b[key].shape[1]), value=nothing) for b in batches])
        for key, nothing in filler.items()
    }
    stacked |= {"pixel_values": torch.cat([batch["pixel_values"] for batch in batches]), "word_tags": []}
    scales = [batch["num_visual_tokens"][0] for batch in batches]
    return stacked | {"picture_of_run": list(range(len(batches))), "num_visual_tokens": scales}


WAYS: dict[str, Callable[[Step], Tensor]] = {"m3": Step.m3, "encoded once": Step.encoded_once, "packed": Step.packed}


def take(step: Step, way: str) -> tuple[float, float]:
    """Seconds of a forward and a backward pass, and the loss."""
    step.model.language_model.set_attn_implementation(step.attention.get(way, "sdpa"))
    step.model.zero_grad(set_to_none=True)
    _wait(step.device)
    start = time.perf_counter()
    loss = WAYS[way](step)
    loss.backward()
    _wait(step.device)
    return time.perf_counter() - start, loss.item()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def flops_of(step: Step) -> float:
    """Matrix products of the packed step, forward and backward, by torch's own count."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step.packed().backward()
    return float(counter.get_total_flops())


def matrix_peak(device: str) -> float:
    """Floating-point operations a second in one large matrix product, at the precision of the step."""
    n, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds)


@click.command()
@click.option("--size", type=click.Choice(list(_SIZES)), default="0.2B", show_default=True)
@click.option("--pictures", default=4, show_default=True, help="Pictures of a step.")
@click.option("--turns", default=3, show_default=True, help="Turns of a conversation, on average.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--memory-of", type=click.Choice(list(WAYS)), hidden=True, help="One step alone, for its memory.")
def main(size: str, pictures: int, turns: int, rounds: int, memory_of: str | None) -> None:
    """Take steps in turns and keep how they compare."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = Step(size, pictures, turns, device)
    if memory_of:
        before = peak_memory_mib()
        take(step, memory_of)
        click.echo(json.dumps({"peak_mib": peak_memory_mib(), "before_mib": before}))
        return
    for way in WAYS:
        take(step, way)
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with click.progressbar(range(rounds), label="steps in turns") as bar:
        for _ in bar:
            for way in WAYS:
                taken[way].append(take(step, way))
    flops, peak = flops_of(step), matrix_peak(device)
    del step
    ways = {}
    for way, times in taken.items():
        seconds = [second for second, _ in times]
        alone = [
            sys.executable,
            "-m",
            "benchmarks.train.step",
            "--size",
            size,
            "--pictures",
            str(pictures),
            "--turns",
            str(turns),
        ]
        memory = subprocess.run([*alone, "--memory-of", way], check=True, capture_output=True, text=True).stdout
        ways[way] = {"seconds": median(seconds), "best_seconds": min(seconds), "loss": times[-1][1]}
        ways[way] |= json.loads(memory)
    ratio = ways["m3"]["seconds"] / ways["packed"]["seconds"]
    fraction = flops / ways["packed"]["seconds"] / peak
    for way, figures in ways.items():
        click.echo(
            f"{way:<14} {figures['seconds']:7.2f} s   {figures['peak_mib']:6.0f} MiB   loss {figures['loss']:.5f}"
        )
    click.echo(f"packed is {ratio:.2f} times as fast as m3, at {fraction:.2f} of the measured matrix peak")
    if size != "tiny":
        command = f"python -m benchmarks.train.step --size {size} --pictures {pictures} --turns {turns}"
        name = f"train_step_{size.replace('.', '_')}_{device}"
        figures = {"scales": list(SCALES), "device": device, "pictures": pictures, "rounds": rounds, "ways": ways}
        click.echo(keep(name, command, **figures, ratio=ratio, packed_flops=flops, matrix_peak=peak, fraction=fraction))


if __name__ == "__main__":
    main()
