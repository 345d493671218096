"""This project's files of a real language model in each precision, as a peer of `real_beside.py` reads them.

Decoders are calibrated with this repository's own pages, as `real.py` does it, and written once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graphs.targets import FLOATS, PHASES, plan
from export.runtime.backends.onnx import Cache, Decoder, Device
from export.runtime.manifest import DecoderGraph, Graph

POSITIONS = 1024
# Written together: what is the same in two of them, as the head of a pair, lies in their file once.
_WRITTEN = ("float32", "int8", "int4", "int4-fast")


class Own:
    """One precision of `ort-cpu`, in the runtime's own decoder."""

    def __init__(self, model: Path, work: Path, precision: str, threads: int) -> None:
        import onnxruntime

        asked = plan("ort-cpu", precision, None, POSITIONS)
        by_phase = {phase: asked.precision[phase] for phase in PHASES}
        if not (work / "own.json").is_file():
            _write(model, work)
        facts = json.loads((work / "own.json").read_text())
        decode, prefill = (
            Graph(f"{by_phase[phase]}.onnx", facts["inputs"], {"logits": "logits"}) for phase in ("decode", "prefill")
        )
        graph = DecoderGraph(
            decode, tuple(facts["past"]), tuple(facts["present"]), facts["kv_heads"], facts["head_dim"], "in place",
            "float32", POSITIONS, prefill if asked.apart else None,
        )  # fmt: skip
        self._decoder = Decoder(work / decode.file, graph, Device(threads=threads))
        self._table = np.load(work / "table.npy", mmap_mode="r")
        self.about = {"onnxruntime": onnxruntime.__version__, "precision": precision}
        self.mib = _bytes_of(work, set(by_phase.values())) / 2**20

    def begin(self, ids: NDArray[Any]) -> NDArray[Any]:
        self._cache = Cache(self._decoder, POSITIONS)
        return self._decoder.step(np.asarray(self._table[ids]), self._cache)

    def read(self, token: int) -> NDArray[Any]:
        return self._decoder.step(np.asarray(self._table[[token]]), self._cache)


def _write(folder: Path, work: Path) -> None:
    """Decoders of a model of transformers, the embedding table, and what the runtime has to know of them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from benchmarks.decode.real import calibrated_rows, recipe_of
    from export.graphs.decoder import write_decoder
    from export.graphs.recipe import OTHERS, Recipe
    from export.graphs.weights import WeightFile

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    np.save(work / "table.npy", model.get_input_embeddings().weight.detach().numpy())
    dialect = plan("ort-cpu", "float32", None, POSITIONS).target.writer_dialect(POSITIONS)
    rows = calibrated_rows(model, AutoTokenizer.from_pretrained(folder))
    with WeightFile(work / "own.bin") as weights:
        for name in _WRITTEN:
            recipe = Recipe({OTHERS: "float"}) if name in FLOATS else recipe_of(folder, model, rows, name)[0]
            graph, facts = write_decoder(
                model, weights.tensor, dialect, f"{name}.onnx", product=recipe, positions=POSITIONS
            )
            onnx.save(graph, work / f"{name}.onnx")
    known = {
        "past": facts.past, "present": facts.present, "inputs": facts.graph.inputs, "kv_heads": facts.kv_heads,
        "head_dim": facts.head_dim,
    }  # fmt: skip
    (work / "own.json").write_text(json.dumps(known))


def _bytes_of(work: Path, names: set[str]) -> int:
    """Bytes of the weights of some graphs, those that they share once."""
    places = {}
    for name in names:
        for tensor in onnx.load(work / f"{name}.onnx", load_external_data=False).graph.initializer:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            if facts and not tensor.name.startswith("rotary."):
                places[facts["offset"]] = int(facts["length"])
    return sum(places.values())
