"""What the files of a language model are compared with: torch holding the same rounded weights, and the bytes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, external_data_helper, numpy_helper
from torch import nn
from transformers import PreTrainedModel

from export.graphs.decoder import write_decoder
from export.graphs.targets import FLOATS, Plan
from export.graphs.writer import Array, Product
from export.runtime.manifest import Manifest


def rounded_model(model: PreTrainedModel, plan: Plan, phase: str) -> PreTrainedModel:
    """The language model as a phase's graph knows it: itself, or a copy whose linear layers hold rounded weights."""
    precision = plan.precision[phase]
    if precision in FLOATS:
        return model
    product: Product = plan.target.product(precision)
    twin: Any = copy.deepcopy(model)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.Linear):
                # A tied head must not take the embedding table with it, so each gets a tensor of its own.
                rounded = product.rounded_head if module is twin.lm_head else product.rounded
                module.weight = nn.Parameter(rounded(module.weight), requires_grad=False)
    return twin


def weight_faults(model: PreTrainedModel, plan: Plan, phase: str, file: Path) -> list[str]:
    """Which tensors of a decoder's file are not what the model's weights come to: the graph is written once more, and
    every tensor held against the file's instead of being stored. A node that is not as written is named too.
    """
    found = onnx.load(file, load_external_data=False)
    there = {tensor.name: tensor for tensor in found.graph.initializer}
    faults: list[str] = []

    def compare(
        name: str, array: Array, onnx_type: int | None = None, shape: Sequence[int] | None = None
    ) -> TensorProto:
        if name not in there or not np.array_equal(_bytes(there[name], file.parent), _flat(array)):
            faults.append(f"{name} is not the model's")
        return TensorProto(name=name)

    graph, _ = write_decoder(
        model, compare, plan.target.writer_dialect(plan.positions), file.name,
        product=plan.target.product(plan.precision[phase]), floats=plan.floats, positions=plan.positions,
    )  # fmt: skip
    small = [tensor for tensor in graph.graph.initializer if tensor.raw_data]  # shapes and constants of the writer's
    faults += [f"{tensor.name} is another number" for tensor in small if there.get(tensor.name) != tensor]
    pairs = zip(graph.graph.node, found.graph.node, strict=False)
    faults += [f"{wanted.name} is another node" for wanted, node in pairs if wanted != node]
    if len(graph.graph.node) != len(found.graph.node):
        faults.append(f"{len(found.graph.node)} nodes instead of {len(graph.graph.node)}")
    return faults


def table_faults(model: Any, plan: Plan, manifest: Manifest) -> list[str]:
    """Whether the embedding table is the model's."""
    place = manifest.embedding
    found = np.memmap(manifest.path(place.file), place.dtype, "r", place.offset, place.shape)
    wanted = model.get_input_embeddings().weight.detach().float().cpu().numpy().astype(plan.floats)
    return [] if np.array_equal(wanted, found) else ["the embedding table is not the model's"]


def _bytes(tensor: TensorProto, folder: Path) -> Array:
    if tensor.data_location != TensorProto.EXTERNAL:
        return _flat(numpy_helper.to_array(tensor))
    facts = external_data_helper.ExternalDataInfo(tensor)
    return np.memmap(folder / facts.location, np.uint8, "r", int(facts.offset or 0), (int(facts.length or 0),))


def _flat(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
