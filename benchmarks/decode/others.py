"""Peers of `decode.py` that are other libraries' own: onnxruntime-genai, transformers, optimum."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode.own import weight_bytes
from benchmarks.decode.peers import POSITIONS

_BUILD_S = 150


class GenAi:
    """onnxruntime-genai, 4 bits by its own builder, accuracy level 4 and its own blocks of 32."""

    block = 32

    def __init__(self, folder: Path, size: Any, threads: int) -> None:
        self._from, self._folder = folder / "transformers", folder / f"genai_{self.block}"
        self._size, self._threads = size, threads

    def write(self, model: Any) -> None:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", "int4"]
        places = ["-i", str(self._from), "-o", str(self._folder), "-c", str(self._folder)]
        options = ["--extra_options", "accuracy_level=4", f"block_size={self.block}"]
        done = subprocess.run(
            [*builder, *places, *options], env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
            timeout=_BUILD_S,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        file = self._folder / "genai_config.json"
        config = json.loads(file.read_text())
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = self._threads
        file.write_text(json.dumps(config))

    def open(self) -> None:
        import onnxruntime_genai

        self._library = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(self._folder))
        self.bytes_a_token = weight_bytes(self._folder / "model.onnx", leaving="embed_tokens")
        self.about = {"onnxruntime-genai": onnxruntime_genai.__version__, "blocks": str(self.block)}

    def prefill(self, tokens: int) -> None:
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(max_length=POSITIONS, min_length=POSITIONS, do_sample=False)
        self._generator = self._library.Generator(self._model, parameters)
        self._generator.append_tokens(np.arange(tokens, dtype=np.int32)[None] % self._size.vocabulary)
        self._generator.generate_next_token()

    def step(self) -> None:
        self._generator.generate_next_token()


class GenAiWide(GenAi):
    """The same with blocks of 128."""

    block = 128


class Transformers:
    """transformers in float32 with its static cache."""

    dtype, compiled = "float32", False

    def __init__(self, folder: Path, size: Any, threads: int) -> None:
        self._folder, self._size, self._threads = folder / "transformers", size, threads

    def write(self, model: Any) -> None:
        pass

    def open(self) -> None:
        import torch
        import transformers

        torch.set_num_threads(self._threads)
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            self._folder, dtype=self.dtype, local_files_only=True
        ).eval()
        table = self._model.get_input_embeddings().weight.numel() * (not self._size.tied)
        numbers = sum(weight.numel() for weight in self._model.parameters()) - table
        self.bytes_a_token = numbers * self._model.dtype.itemsize
        self.about = {"transformers": transformers.__version__, "torch": torch.__version__}
        self._cache = transformers.StaticCache(config=self._model.config, max_cache_len=POSITIONS)
        self._step = self._model
        if self.compiled:
            self._compile()

    def prefill(self, tokens: int) -> None:
        with self._torch.inference_mode():
            self._cache.reset()
        self._ids = self._torch.arange(tokens)[None] % self._size.vocabulary
        self._read(self._model)

    def step(self) -> None:
        self._read(self._step)

    def _compile(self) -> None:
        """Single tokens only, as `generate` does: prompts have a shape each."""
        self._step = self._torch.compile(self._model, dynamic=False)
        self.prefill(40)
        for _ in range(3):
            self.step()
        self.about |= {"compiled": "torch.compile of the step of one token, inductor"}

    def _read(self, model: Any) -> None:
        from mvlm_core.modeling.kv_cache import cache_argument  # torch, which not every peer has

        with self._torch.inference_mode():
            outputs = model(self._ids, use_cache=True, logits_to_keep=1, **cache_argument(self._cache))
            self._ids = outputs.logits[:, -1].argmax(-1)[None]


class TransformersCompiled(Transformers):
    compiled = True


class TransformersHalf(Transformers):
    dtype = "bfloat16"


class TransformersHalfCompiled(TransformersHalf):
    compiled = True


class Optimum:
    """optimum's own export, float32; opens where the transformers beside it is one that it knows."""

    def __init__(self, folder: Path, size: Any, threads: int) -> None:
        self._from, self._size, self._threads = folder / "transformers", size, threads

    def write(self, model: Any) -> None:
        import optimum.onnxruntime  # noqa: F401  where it is missing, or too old for this transformers, it says so

    def open(self) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        self._torch = torch
        self._model = ORTModelForCausalLM.from_pretrained(self._from, export=True, session_options=options)
        self.bytes_a_token = 4.0 * sum(np.prod(shape) for shape in _matrix_shapes(self._size))
        self.about = {"optimum": "by its ORTModelForCausalLM"}

    def prefill(self, tokens: int) -> None:
        self._past = None
        self._ids = self._torch.arange(tokens)[None] % self._size.vocabulary
        self._seen = 0
        self.step()

    def step(self) -> None:
        self._seen += self._ids.shape[1]
        mask = self._torch.ones(1, self._seen, dtype=self._torch.int64)
        outputs = self._model(self._ids, attention_mask=mask, past_key_values=self._past, use_cache=True)
        self._past = outputs.past_key_values
        self._ids = outputs.logits[:, -1].argmax(-1)[None]


def _matrix_shapes(size: Any) -> list[tuple[int, int]]:
    """Of every matrix that a token meets: (N, K) each."""
    heads = (size.heads + 2 * size.kv_heads) * (size.hidden // size.heads)
    layer = [
        (heads, size.hidden), (size.hidden, size.hidden), (size.feed_forward, size.hidden),
        (size.feed_forward, size.hidden), (size.hidden, size.feed_forward),
    ]  # fmt: skip
    return [*(size.layers * layer), (size.vocabulary, size.hidden)]
