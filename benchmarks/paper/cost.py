"""What each scale costs: FLOPs by part, and milliseconds of one picture and one question on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from benchmarks.paper.cells import Family
from benchmarks.paper.flops import decoder_flops, prefill_flops
from benchmarks.paper.theirs import M3_COST
from benchmarks.paper.world import QUESTION_TOKENS, SCALES, SIZE_PX
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.modeling.model import MvlmForConditionalGeneration

_TIMES = 60
_TEXT = round(QUESTION_TOKENS)


def measure(run: Path, family: Family) -> dict[str, Any]:
    """Of one model: FLOPs and milliseconds of tower, connector and decoder at each scale (medians, interleaved)."""
    model, _ = load_run(run)
    torch.set_num_threads(1)
    flops = {m: prefill_flops(model.config, SIZE_PX, m, _TEXT) for m in SCALES}
    return {
        "family": family, "scales": SCALES, "text_tokens": _TEXT,
        "gflops": {part: [asdict(flops[m])[part] / 1e9 for m in SCALES] for part in ("tower", "connector", "decoder")},
        "ms": _milliseconds(model),
    }  # fmt: skip


@torch.inference_mode()
def _milliseconds(model: MvlmForConditionalGeneration) -> dict[str, list[float]]:
    """A part after the other, every scale in each round, so that a busy moment hits all of them."""
    pixels = torch.zeros(1, 3, SIZE_PX, SIZE_PX)
    values = model.encode_images(pixels)
    text = torch.zeros(1, _TEXT, model.config.text_config.hidden_size)
    spent: dict[str, list[list[float]]] = {part: [[] for _ in SCALES] for part in ("tower", "connector", "decoder")}
    for _ in range(_TIMES):
        for place, m in enumerate(SCALES):
            tokens = model.connector.tokens(values, m)
            prompt = torch.cat([tokens, text], dim=1)
            spent["tower"][place].append(_timed(lambda: model.vision_tower(pixels)))
            spent["connector"][place].append(_timed(lambda m=m: model.connector.tokens(values, m)))
            spent["decoder"][place].append(_timed(lambda prompt=prompt: model.language_model(
                inputs_embeds=prompt, logits_to_keep=1)))  # fmt: skip
    return {part: [float(np.median(times)) for times in at] for part, at in spent.items()}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def of_their_size() -> dict[str, Any]:
    """The same count for the language model of LLaVA-1.5-7B with 30 tokens of text, beside M3's own figures."""
    vicuna = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=32, vocab_size=32000)  # fmt: skip
    ours = [decoder_flops(vicuna, m + 30) / 1e12 for m in M3_COST["tokens"]]
    return {"tokens": M3_COST["tokens"], "tflops": ours, "their_tflops": M3_COST["tflops"], "their_ms": M3_COST["ms"]}
