"""Tokens a second and prefill of a small language model in torch with CUDA graphs: what engines should reach.

Three ways, the surest first: operation after operation; the same as one CUDA graph for each length; and compiled, which
fuses what lies between the matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from benchmarks.gpu.flops import copy_bandwidth
from benchmarks.gpu.record import Record, Told, seconds_of
from mvlm_core.modeling.kv_cache import cache_argument

# SmolLM2-135M, which is what is decoded where no weights are given: speed does not ask what they are.
SHAPE = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1, "vocab_size": 512}  # fmt: skip
_TEXT_TOKENS = 20
_VISUAL_TOKENS = (36, 144, 576)
_ROOM = 1536  # the longest prompt twice: what is captured was read once before


Forward = Callable[[Tensor, Tensor], Tensor]


def run(record: Record, told: Told) -> None:
    """Decoding and prefill in each way: a way that fails, or takes the rest of the time, leaves those before it."""
    dtype = torch.bfloat16 if told.device == "cuda" else torch.float32
    if told.weights:
        model = AutoModelForCausalLM.from_pretrained(told.weights, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **(TINY if told.rehearse else SHAPE)))
    model = model.to(told.device, dtype).eval()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    record.add(weights_bytes=weights, dtype=str(dtype), tokens_per_s_of_memory=copy_bandwidth() / weights)
    ways = {"plain": lambda forward: forward}
    if told.device == "cuda":
        ways |= {"graphs": Captured, "compiled": lambda forward: torch.compile(forward, mode="reduce-overhead")}
    for name, way in ways.items():
        decoder = Decoder(model, way)
        record.attempt(f"{name} decode", lambda decoder=decoder: decoding(decoder, 5 if told.rehearse else 100))
        for visual in _VISUAL_TOKENS if name != "compiled" else ():  # compiling every length takes minutes
            record.attempt(f"{name} prefill {visual}", lambda decoder=decoder, n=visual: prefill(decoder, n))


class Decoder:
    """One conversation on a cache that is laid out once, so that a step is the same work on the same memory."""

    def __init__(self, model: Any, way: Callable[[Forward], Forward]) -> None:
        self.model, self.device = model, model.device
        self.cache = StaticCache(config=model.config, max_cache_len=_ROOM)
        self.prefill: Forward = self._forward
        self.read(8)  # the cache is laid out before anything is captured
        self.step = way(self._forward)
        if isinstance(self.step, Captured):
            self.prefill = self.step

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The likeliest token behind the last position: (1, S) and (1, S) -> (1, 1)."""
        told = {"input_ids": ids, "position_ids": positions, "use_cache": True, "logits_to_keep": 1}
        output = self.model(**told, **cache_argument(self.cache))
        return output.logits[:, -1:].argmax(-1)

    @torch.no_grad()
    def read(self, tokens: int) -> Tensor:
        """Read a prompt from the start: the next token (1, 1)."""
        self.cache.reset()
        places = torch.arange(tokens, device=self.device)[None]  # (1, S)
        return self.prefill(places % self.model.config.vocab_size, places).clone()

    @torch.no_grad()
    def write(self, token: Tensor, place: int, steps: int) -> Tensor:
        """Write some tokens, each read again as the next one's input."""
        places = torch.arange(place, place + steps, device=self.device)
        for step in range(steps):
            token = self.step(token, places[step].view(1, 1)).clone()
        return token


class Captured:
    """A forward pass as one CUDA graph for each length, replayed on its own inputs."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        length = ids.shape[1]
        if length not in self.graphs:
            self.graphs[length] = self._capture(ids.clone(), positions.clone())
            return self.forward(ids, positions)
        graph, held_ids, held_positions, token = self.graphs[length]
        held_ids.copy_(ids)
        held_positions.copy_(positions)
        graph.replay()
        return token

    def _capture(self, ids: Tensor, positions: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]:
        """The first pass on another stream lays out what the library sets up at its first use."""
        other = torch.cuda.Stream()
        other.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(other):
            self.forward(ids, positions)
        torch.cuda.current_stream().wait_stream(other)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            token = self.forward(ids, positions)
        return graph, ids, positions, token


def decoding(decoder: Decoder, steps: int) -> dict[str, Any]:
    """Behind a prompt of 36 visual tokens; with what was written, which every way must agree on."""
    prompt = _VISUAL_TOKENS[0] + _TEXT_TOKENS

    def written() -> None:
        decoder.write(decoder.read(prompt), prompt, steps)

    both, reading = seconds_of(written, rounds=3, warm=2), seconds_of(lambda: decoder.read(prompt), rounds=5)
    last = decoder.write(decoder.read(prompt), prompt, 5).item()
    return {
        "tokens_per_s": steps / (both - reading), "step_ms": 1e3 * (both - reading) / steps, "fifth_token": last,
        "peak_mib": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None,
    }  # fmt: skip


def prefill(decoder: Decoder, visual_tokens: int) -> dict[str, float]:
    """Milliseconds to the first token."""
    return {"ms": 1e3 * seconds_of(lambda: decoder.read(visual_tokens + _TEXT_TOKENS), rounds=5, warm=3)}
