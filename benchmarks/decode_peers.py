"""Everybody who takes part in `decode.py`, each at its best setting: how it writes a model, opens it and steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx

from export.runtime.manifest import DecoderGraph, Graph
from export.runtime.sessions import Cache, Decoder, Device, open_session
from export.targets import plan

# Of a prompt, beside the visual ones; and the longest conversation.
TEXT_TOKENS, POSITIONS = 32, 1024
EVERY_SCALE = (1, 9, 36, 144, 576)


class Peer(Protocol):
    """One way to run a language model."""

    bytes_a_token: float
    write_s: float
    open_s: float

    def write(self, model: Any) -> None:
        """Make this peer's files of a model of transformers."""

    def open(self) -> None: ...

    def prefill(self, tokens: int) -> None:
        """Begin a conversation with so many positions, up to the first logits."""

    def step(self) -> None:
        """One more token, up to the choice of the next."""


def random_model(folder: Path, size: Any) -> Any:
    """A Llama of a size, with random weights; saved for peers that read files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        max_position_embeddings=POSITIONS, tie_word_embeddings=size.tied,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    _tokenizer(size.vocabulary).save_pretrained(folder)
    return model


class Own:
    """This project's files in its runtime's `Decoder`, greedy as `generate` is."""

    precision = "int4"

    def __init__(self, folder: Path, size: Any, threads: int) -> None:
        self._folder, self._size, self._device = folder / type(self).__name__, size, Device(threads=threads)

    def write(self, model: Any) -> None:
        from export.decoder import write_decoder
        from export.weights import WeightFile

        self._folder.mkdir()
        asked = plan("ort-cpu", self.precision, None, POSITIONS)
        dialect = asked.target.writer_dialect(POSITIONS)
        with WeightFile(self._folder / "weights.bin") as weights:
            for phase, file in self._files(asked).items():
                product = asked.target.product(asked.precision[phase])
                graph, facts = write_decoder(
                    model, weights.tensor, dialect, file, product=product, positions=POSITIONS
                )  # fmt: skip
                onnx.save(graph, self._folder / file)
                self._facts = facts
            table = model.get_input_embeddings().weight.detach().numpy()
            place = weights.place(table)
        facts = {"past": self._facts.past, "present": self._facts.present, "inputs": self._facts.graph.inputs}
        table_at = {"offset": place.offset, "shape": table.shape}
        (self._folder / "facts.json").write_text(json.dumps(facts | {"table": table_at, "two": asked.apart}))

    def open(self) -> None:
        value = json.loads((self._folder / "facts.json").read_text())
        graph = Graph("decoder.onnx", value["inputs"], {"logits": "logits"})
        prefill = Graph("prefill.onnx", value["inputs"], {"logits": "logits"}) if value["two"] else None
        facts = DecoderGraph(
            graph, tuple(value["past"]), tuple(value["present"]), self._size.kv_heads,
            self._size.hidden // self._size.heads, "in place", "float32", POSITIONS, prefill,
        )  # fmt: skip
        self._decoder = Decoder(self._folder / "decoder.onnx", facts, self._device)
        place = value["table"]
        self._table = np.memmap(self._folder / "weights.bin", np.float32, "r", place["offset"], tuple(place["shape"]))
        self.bytes_a_token = weight_bytes(self._folder / "decoder.onnx")

    def prefill(self, tokens: int) -> None:
        self._cache = Cache(self._decoder, POSITIONS)
        ids = np.arange(tokens) % self._size.vocabulary
        self._token = int(self._decoder.step(np.asarray(self._table[ids]), self._cache).argmax())

    def step(self) -> None:
        row = np.asarray(self._table[[self._token]])
        self._token = int(self._decoder.step(row, self._cache).argmax())

    def _files(self, asked: Any) -> dict[str, str]:
        return {"decode": "decoder.onnx"} | ({"prefill": "prefill.onnx"} if asked.apart else {})


class OwnInt8(Own):
    """8 bits in both phases."""

    precision = "int8"


class OwnTwo(Own):
    """8 bits for prompts, 4 for single tokens, over one cache."""

    precision = "prefill=int8,decode=int4"


class OwnFloat32(Own):
    """As it was trained."""

    precision = "float32"


class GenAi:
    """onnxruntime-genai, 4 bits by its own builder, accuracy level 4."""

    def __init__(self, folder: Path, size: Any, threads: int) -> None:
        self._from, self._folder, self._size, self._threads = folder / "transformers", folder / "genai", size, threads

    def write(self, model: Any) -> None:
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", "int4"]
        places = ["-i", str(self._from), "-o", str(self._folder), "-c", str(self._folder)]
        options = ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
        done = subprocess.run(
            [*builder, *places, *options], env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True
        )
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

    def prefill(self, tokens: int) -> None:
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(max_length=POSITIONS, min_length=POSITIONS, do_sample=False)
        self._generator = self._library.Generator(self._model, parameters)
        self._generator.append_tokens(np.arange(tokens, dtype=np.int32)[None] % self._size.vocabulary)
        self._generator.generate_next_token()

    def step(self) -> None:
        self._generator.generate_next_token()


class Transformers:
    """transformers in float32 with its static cache."""

    dtype = "float32"

    def __init__(self, folder: Path, size: Any, threads: int) -> None:
        self._folder, self._size, self._threads = folder / "transformers", size, threads

    def write(self, model: Any) -> None:
        pass

    def open(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(self._threads)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(self._folder, dtype=self.dtype, local_files_only=True).eval()
        table = self._model.get_input_embeddings().weight.numel() * (not self._size.tied)
        numbers = sum(weight.numel() for weight in self._model.parameters()) - table
        self.bytes_a_token = numbers * self._model.dtype.itemsize

    def prefill(self, tokens: int) -> None:
        from transformers import StaticCache

        self._cache = StaticCache(config=self._model.config, max_cache_len=POSITIONS)
        self._ids = self._torch.arange(tokens)[None] % self._size.vocabulary
        self.step()

    def step(self) -> None:
        with self._torch.inference_mode():
            outputs = self._model(self._ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._ids = outputs.logits[:, -1].argmax(-1)[None]


class TransformersHalf(Transformers):
    """The same in bfloat16."""

    dtype = "bfloat16"


def weight_bytes(file: Path, leaving: str = "\0") -> float:
    """Bytes of the weights that a graph reads for each token."""
    tensors = onnx.load(file, load_external_data=False).graph.initializer
    return float(
        sum(
            int(entry.value)
            for tensor in tensors
            if leaving not in tensor.name and not tensor.name.startswith("rotary.")
            for entry in tensor.external_data
            if entry.key == "length"
        )
    )


def connectors(folder: Path, size: Any, scales: tuple[int, ...]) -> list[Any]:
    """Open sessions of the connectors that `write_connectors` wrote."""
    return [open_session(folder / f"connector_{m}.onnx", Device(threads=1)) for m in scales]


def write_connectors(folder: Path, size: Any, scales: tuple[int, ...]) -> None:
    """Pooling connectors of a grid of 24 x 24."""
    import torch

    from export.towers import PoolGraph, trace
    from mvlm_core.connectors import PoolConnector

    connector, values = PoolConnector(24, 8, size.hidden, positions=False), torch.randn(2, 576, size.hidden)
    for m in scales:
        graph = trace(PoolGraph(connector, m), {"values": (values, {0: "batch"})}, ["tokens"])
        onnx.save(graph, folder / f"connector_{m}.onnx")


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="t1", eos_token="t2", pad_token="t0", unk_token="t0")


PEERS: dict[str, Any] = {
    "own int8 + int4": OwnTwo, "own int4": Own, "own int8": OwnInt8, "own float32": OwnFloat32,
    "genai int4": GenAi, "transformers float32": Transformers, "transformers bfloat16": TransformersHalf,
}  # fmt: skip
