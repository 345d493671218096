"""A whole random model of a size becomes a bundle, in a process of its own: seconds, as `decode.py` prints them."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.decode.own import EVERY_SCALE
from benchmarks.tiny_models import tiny_model, tiny_processor
from export.bundle.files import write_bundle
from export.bundle.source import read_source
from export.graphs.targets import plan
from export.runtime import Runtime
from mvlm_core.modeling.model import MvlmForConditionalGeneration

# A CLIP tower of twelve layers on pictures of 24 x 24 patches.
_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SIDE, _PATCH_PX = 24, 14
_PRECISION = "tower=int8,prefill=int8,decode=int4"


def main(asked: str) -> None:
    """`asked` is JSON: the language model's size, and threads."""
    size, threads = json.loads(asked)
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        run, bundle = Path(name) / "run", Path(name) / "bundle"
        random_run(run, size)
        bundle.mkdir()
        source, read_s = _timed(lambda: read_source(run, None, EVERY_SCALE))
        asked_for = plan("ort-cpu", _PRECISION, None, source.positions)
        _, write_s = _timed(functools.partial(write_bundle, source, asked_for, bundle, lambda steps: None))
        facts = {"read_s": read_s, "write_s": write_s, "export_s": read_s + write_s}
        _, facts["load_s"] = _timed(lambda: Runtime.load(bundle, threads=threads))
        facts["bundle_mib"] = sum(path.stat().st_size for path in bundle.iterdir()) / 2**20
    print(json.dumps(facts), flush=True)


def random_run(folder: Path, size: dict[str, Any]) -> None:
    """A pooled model with a real tower and a language model of this size, as `mvlm train` leaves it."""
    size_px = _SIDE * _PATCH_PX
    processor = tiny_processor()
    processor.image_processor.size_px = size_px
    config = copy.deepcopy(tiny_model("pool", tower="clip", language="llama", processor=processor).config)
    config.grid_side, config.vision_feature_layer = _SIDE, -2
    config.vision_config = AutoConfig.for_model(
        "clip_vision_model", **_TOWER, image_size=size_px, patch_size=_PATCH_PX
    )  # fmt: skip
    config.text_config.update(
        {"hidden_size": size["hidden"], "intermediate_size": size["feed_forward"], "vocab_size": size["vocabulary"],
         "num_hidden_layers": size["layers"], "num_attention_heads": size["heads"],
         "head_dim": size["hidden"] // size["heads"],
         "num_key_value_heads": size["kv_heads"], "tie_word_embeddings": size["tied"],
         "max_position_embeddings": 1024}
    )  # fmt: skip
    model = MvlmForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    done = call()
    return done, time.perf_counter() - started
