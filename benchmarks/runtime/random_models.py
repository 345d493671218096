"""A random model whose language model is large enough that tokens cost, and its bundle."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.tiny_models import drawn_picture, tiny_model, tiny_processor
from export.bundle.files import write_bundle
from export.bundle.source import read_source
from export.graphs.targets import plan
from export.runtime.families import Family
from mvlm_core.modeling.model import MvlmForConditionalGeneration

_SCALES = (9, 36, 144)
_HEAD = 64


@dataclass(frozen=True)
class RandomRun:
    """A run, its bundle, and a picture to ask about."""

    folder: Path
    bundle: Path
    picture: Path


def random_run(
    folder: Path, family: Family, width: int, layers: int, precision: str = "float32",
    language: Literal["qwen3", "llama"] = "qwen3",
) -> RandomRun:  # fmt: skip
    processor = tiny_processor()
    config = copy.deepcopy(tiny_model(family, language=language, processor=processor).config)
    config.text_config.update(
        {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "head_dim": _HEAD,
         "num_attention_heads": width // _HEAD, "num_key_value_heads": max(1, width // _HEAD // 2),
         "initializer_range": 0.05}
    )  # fmt: skip
    if language == "qwen3":
        config.text_config.layer_types = ["full_attention"] * layers
    torch.manual_seed(0)
    model = MvlmForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    run = RandomRun(folder / "run", folder / "bundle", folder / "picture.png")
    model.save_pretrained(run.folder)
    processor.save_pretrained(run.folder)
    drawn_picture(0).save(run.picture)
    write_precision(run, precision, run.bundle)
    return run


def write_precision(run: RandomRun, precision: str, bundle: Path) -> None:
    """A bundle of a run in a precision."""
    bundle.mkdir(parents=True)
    source = read_source(run.folder, None, _SCALES)
    write_bundle(source, plan("ort-cpu", precision, None, source.positions), bundle, lambda steps: None)


def torch_seconds(run: RandomRun, question: str, scale: int, tokens: int, threads: int, rounds: int) -> list[float]:
    """Seconds of transformers' `generate` on the same question, picture included, after one round to warm up."""
    source = read_source(run.folder, None, _SCALES)
    model: Any = source.model
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    took = []
    try:
        for _ in range(rounds + 1):
            started = time.perf_counter()
            text = source.processor.ask(question)
            batch = source.processor(images=[run.picture], text=[text], num_visual_tokens=scale)
            model.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
            took.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return took[1:]
