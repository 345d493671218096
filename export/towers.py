"""Vision tower and connectors as thin modules, traced to ONNX.

Letters: B pictures, P patches, m visual tokens, D width of the language model. The batch axis is named `batch`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.runtime.errors import MvlmError
from mvlm_core.connectors import QueryConnector
from mvlm_core.model import MvlmForConditionalGeneration, vision_width

# Tracing may take a size of 1 for a constant, so the batch that is traced has two pictures.
_TRACED_BATCH = 2


class VisionGraph(nn.Module):
    """The model without its language model: (B, 3, H, W) -> values (B, P, ·) and, if they differ, words (B, P, D)."""

    encode_images: Any = MvlmForConditionalGeneration.encode_images  # it asks for nothing that is not here

    def __init__(self, model: MvlmForConditionalGeneration) -> None:
        super().__init__()
        self.config = model.config
        self.vision_tower = model.vision_tower
        self.connector = model.connector

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        values = self.encode_images(pixel_values)
        if isinstance(self.connector, QueryConnector):
            return values, self.connector.words(values)
        return (values,)


class ConnectorGraph(nn.Module):
    """One scale of a connector: values (B, P, ·) -> tokens (B, m, D)."""

    def __init__(self, model: MvlmForConditionalGeneration, num_visual_tokens: int) -> None:
        super().__init__()
        self.connector = model.connector
        self.num_visual_tokens = num_visual_tokens
        if isinstance(self.connector, QueryConnector):  # its keys hold no picture, so its attention is a constant
            self.register_buffer("attention", self.connector.attention(num_visual_tokens))  # (H, m, P)

    def forward(self, values: Tensor) -> Tensor:
        if isinstance(self.connector, QueryConnector):
            return self.connector.tokens(values, self.num_visual_tokens, self.get_buffer("attention"))
        return self.connector.tokens(values, self.num_visual_tokens)


def vision_outputs(model: MvlmForConditionalGeneration) -> dict[str, str]:
    """What the outputs of the vision graph are called: for a connector whose values are words, one serves for both."""
    return {"values": "values", "words": "words" if isinstance(model.connector, QueryConnector) else "values"}


@torch.no_grad()
def vision_model(model: MvlmForConditionalGeneration, size_px: int) -> onnx.ModelProto:
    """The vision tower, with what the connector does to every patch."""
    pixels = torch.randn(_TRACED_BATCH, 3, size_px, size_px)  # (B, 3, H, W)
    names = list(dict.fromkeys(vision_outputs(model).values()))
    return trace(VisionGraph(model), pixels, "pixel_values", names)


@torch.no_grad()
def connector_model(model: MvlmForConditionalGeneration, num_visual_tokens: int) -> onnx.ModelProto:
    """One scale of the connector."""
    config = model.config
    pooled = config.connector == "pool"  # its values are words already
    width = config.text_config.hidden_size if pooled else vision_width(config.vision_config)
    values = torch.randn(_TRACED_BATCH, config.grid_side**2, width)  # (B, P, width)
    return trace(ConnectorGraph(model, num_visual_tokens), values, "values", ["tokens"])


def trace(module: nn.Module, example: Tensor, input_name: str, output_names: Sequence[str]) -> onnx.ModelProto:
    """An ONNX graph of `module`, without the stack traces that the exporter leaves in it.

    Raises `MvlmError` when the exporter cannot follow the module.
    """
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                module.eval(), (example,), dynamo=True, verbose=False, input_names=[input_name],
                output_names=list(output_names), dynamic_shapes=({0: "batch"},),
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0][:200]
        raise MvlmError(f"{type(module).__name__} cannot be traced to ONNX ({reason}): use another tower") from None
    model = program.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout, in warnings and in logs; whoever exports wants to see one progress bar."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        silence = io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
