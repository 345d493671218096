"""Building a bundle with a version of TensorRT, and following its decoder, for the tests that do."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from export.device.build import Builder, Order
from export.runtime.manifest import read_manifest
from export.runtime.prompt import Prompt
from tests.support.bundles import query_bundle
from tests.support.tensorrt_double import VERSIONS

# Which bundle a version is tried with: opset 20 and a growing cache before 10.15, opset 24 and a cache in place after.
TARGET_OF = {key: "jetpack-6.2" if key.startswith(("8", "10.3", "10.13")) else "jetpack-7.2" for key in VERSIONS}


TARGET_OF["rtx 1.7.1.116"] = "rtx"


JETPACK_6, JETPACK_7, RTX = "10.3.0", "10.16.1.11", "rtx 1.7.1.116"


def builder_of(bundle, order: Order | None = None, gpu: str | None = None) -> Builder:
    manifest = read_manifest(bundle)
    prompt = Prompt.from_json(manifest.prompt, Tokenizer.from_file(str(manifest.path(manifest.tokenizer))))
    return Builder.of(manifest, prompt, order or Order(24, "auto"), gpu)


def follow(decoder, cache, prompt, table, steps: int) -> tuple[list[int], list[np.ndarray]]:
    """A greedy answer and the logits on the way."""
    seen = [decoder.step(prompt, cache).copy()]
    ids = [int(seen[-1].argmax())]
    while len(ids) < steps:
        seen.append(decoder.step(table[[ids[-1]]], cache).copy())
        ids.append(int(seen[-1].argmax()))
    return ids, seen


def embeddings(count: int, seed: int = 0) -> np.ndarray:
    width = query_bundle().source.model.config.text_config.hidden_size
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
