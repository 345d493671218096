"""The demo's model with the costs of a larger one: every answer stays what it was, since all that is added is zero.

On a model as small as the demo's a token hardly costs, and a model large enough that tokens cost cannot be trained in
the time of a benchmark. So the feed-forward of each layer is widened with rows that give nothing, and layers are put
behind that add nothing. What the router chooses between is then real, and so is what it costs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from export.bundle.files import write_bundle
from export.bundle.source import read_source
from export.graphs.targets import plan
from export.runtime.routing.router_folder import read_router
from mvlm_core.checkpoints.run_folder import model_sha256
from mvlm_core.modeling.model import MvlmForConditionalGeneration


@dataclass(frozen=True)
class Padded:
    """A bundle with the answers of a small model and the costs of a larger one."""

    bundle: Path
    millions_of_multiplications_a_token: float


def padded_bundle(demo: Path, out: Path, layers: int, feed_forward: int, precision: str = "float32") -> Padded:
    """The bundle of a finished demo's run and router, its language model padded to so many layers, each so wide."""
    millions = padded_run(demo / "run", out / "run", layers, feed_forward)
    router = read_router(demo / "router", model_sha256(demo / "run"))
    source = replace(read_source(out / "run", None, router.scales), router=router)
    bundle = out / "bundle"
    bundle.mkdir()
    write_bundle(source, plan("ort-cpu", precision, None, source.positions), bundle, lambda steps: None)
    return Padded(bundle, millions)


def padded_run(run: Path, out: Path, layers: int, feed_forward: int) -> float:
    """Write the run with so many layers, each so wide inside: multiplications a token, in millions.

    Raises `ValueError` when that is not larger than the run's own.
    """
    model = AutoModelForImageTextToText.from_pretrained(run, local_files_only=True).eval()
    config = copy.deepcopy(model.config)
    text = config.text_config
    if layers < text.num_hidden_layers or feed_forward < text.intermediate_size:
        raise ValueError(f"{run} has {text.num_hidden_layers} layers of {text.intermediate_size} already")
    text.update({"num_hidden_layers": layers, "intermediate_size": feed_forward})
    text.update({"layer_types": ["full_attention"] * layers})
    larger = MvlmForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in larger.language_model.named_parameters():
            if name.split(".")[-2] in ("o_proj", "gate_proj", "up_proj", "down_proj"):
                weight.zero_()
        weights = dict(larger.named_parameters())
        for name, known in model.named_parameters():
            weights[name][tuple(slice(length) for length in known.shape)] = known
        for (_, buffer), (_, known) in zip(larger.named_buffers(), model.named_buffers(), strict=True):
            buffer.copy_(known)
    larger.generation_config = model.generation_config
    larger.save_pretrained(out)
    AutoProcessor.from_pretrained(run, local_files_only=True).save_pretrained(out)
    linear = [part for part in larger.language_model.modules() if isinstance(part, nn.Linear)]
    return sum(part.weight.numel() for part in linear) / 1e6
