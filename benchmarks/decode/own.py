"""This project's files in its runtime's `Decoder`, greedy as `generate` is; and the connectors beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.decode.peers import POSITIONS
from export.graphs.targets import plan
from export.runtime.backends.onnx import Cache, Decoder, Device, open_session
from export.runtime.manifest import DecoderGraph, Graph

EVERY_SCALE = (1, 9, 36, 144, 576)


class Own:
    """4 bits in both phases. Peers of this kind share a folder, and what one has written the others read."""

    precision = "int4"

    def __init__(self, folder: Path, size: Any, threads: int) -> None:
        self._folder, self._size, self._device = folder / "own", size, Device(threads=threads)
        self._plan = plan("ort-cpu", self.precision, None, POSITIONS)

    def write(self, model: Any) -> None:
        from export.graphs.decoder import write_decoder
        from export.graphs.weights import WeightFile

        self._folder.mkdir(exist_ok=True)
        dialect = self._plan.target.writer_dialect(POSITIONS)
        for precision in set(self._phases().values()):
            if self._graph(precision).is_file():
                continue
            with WeightFile(self._folder / f"{precision}.bin") as weights:
                product = self._plan.target.product(precision)
                graph, facts = write_decoder(
                    model, weights.tensor, dialect, f"{precision}.onnx", product=product, positions=POSITIONS
                )
            onnx.save(graph, self._graph(precision))
        table = model.get_input_embeddings().weight.detach().numpy()
        if not (self._folder / "table.npy").is_file():
            np.save(self._folder / "table.npy", table)
            names = {"past": facts.past, "present": facts.present, "inputs": facts.graph.inputs}
            (self._folder / "names.json").write_text(json.dumps(names))

    def open(self) -> None:
        import onnxruntime

        names = json.loads((self._folder / "names.json").read_text())
        by_phase = self._phases()
        decode, prefill = (
            Graph(f"{by_phase[phase]}.onnx", names["inputs"], {"logits": "logits"}) for phase in ("decode", "prefill")
        )
        facts = DecoderGraph(
            decode, tuple(names["past"]), tuple(names["present"]), self._size.kv_heads,
            self._size.hidden // self._size.heads, "in place", "float32", POSITIONS,
            prefill if self._plan.apart else None,
        )  # fmt: skip
        self._decoder = Decoder(self._graph(by_phase["decode"]), facts, self._device)
        self._table = np.load(self._folder / "table.npy", mmap_mode="r")
        self.bytes_a_token = weight_bytes(self._graph(by_phase["decode"]))
        self.about = {"onnxruntime": onnxruntime.__version__, "precision": self.precision}

    def prefill(self, tokens: int) -> None:
        self._cache = Cache(self._decoder, POSITIONS)
        self._read(np.arange(tokens) % self._size.vocabulary)

    def step(self) -> None:
        self._read(np.asarray([self._token]))

    def _read(self, ids: np.ndarray[Any, Any]) -> None:
        self._token = int(self._decoder.step(np.asarray(self._table[ids]), self._cache).argmax())

    def _phases(self) -> dict[str, str]:
        return {phase: self._plan.precision[phase] for phase in ("prefill", "decode")}

    def _graph(self, precision: str) -> Path:
        return self._folder / f"{precision}.onnx"


class OwnWide(Own):
    """4 bits in wide blocks."""

    precision = "int4-fast"


class OwnTwo(Own):
    """8 bits for prompts, 4 for single tokens, over one cache."""

    precision = "prefill=int8,decode=int4"


class OwnTwoWide(Own):
    """The same with wide blocks."""

    precision = "prefill=int8,decode=int4-fast"


class OwnFloat32(Own):
    """As it was trained."""

    precision = "float32"


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


def connectors(folder: Path, scales: tuple[int, ...]) -> list[Any]:
    """Open sessions of the connectors that `write_connectors` wrote."""
    return [open_session(folder / f"connector_{m}.onnx", Device(threads=1)) for m in scales]


def write_connectors(folder: Path, width: int, scales: tuple[int, ...]) -> None:
    """Pooling connectors of a grid of 24 x 24."""
    import torch

    from export.graphs.vision import PoolGraph, trace
    from mvlm_core.modeling.connectors import PoolConnector

    connector, values = PoolConnector(24, 8, width, positions=False), torch.randn(2, 576, width)
    for m in scales:
        graph = trace(PoolGraph(connector, m), {"values": (values, {0: "batch"})}, ["tokens"])
        onnx.save(graph, folder / f"connector_{m}.onnx")
