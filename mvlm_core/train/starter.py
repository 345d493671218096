"""A whole train.yaml for one's own rows: the parts as they were named, and what suits pretrained parts, with reasons.

A stage is left out where it has nothing to do: a connector alone is trained first only where the parts around it are
pretrained (LLaVA, arXiv 2310.03744).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mvlm_core.modeling.scales import family_scales, nested_sides

from .build import positions_of, resolve_model
from .model_config import ModelConfig

_PICTURES, _MOST_TOKENS = 16, 2048
# What one picture of a pass takes, roughly, with a language model of half a billion weights.
_GIB_A_PICTURE = 1.0
_QUERY_SCALES = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class Start:
    """What the model begins from: `start`, a checkpoint, or `vision` and `text` by name; None is made from nothing."""

    start: Path | None = None
    vision: str | None = None
    text: str | None = None
    family: str = "pool"

    @property
    def pretrained(self) -> bool:
        return self.start is not None or self.text is not None

    def model(self) -> dict[str, Any]:
        """The section `model` of the configuration."""
        if self.start is not None:
            return {"start": str(self.start)}
        told: dict[str, Any] = {"connector": self.family, "image": {"fit": "pad"}}
        for part, name in (("vision", self.vision), ("text", self.text)):
            told[part] = {"name": name} if name else demo_part(part)
        if self.vision is None:
            told["image"] |= {"size_px": 96}
            told["connector_positions"] = True
        return told


def demo_part(part: str) -> dict[str, Any]:
    """The small part that the drawn benchmark is trained with."""
    recipe = Path(__file__).parent / "recipes" / "scenes.yaml"
    return yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"][part]


def starter(start: Start, rows: str, has_val: bool, free_gib: float) -> str:
    """The text of a train.yaml. Reads the configurations of the parts, and no weights.

    Raises `MvlmError` for parts that are not there or cannot be built.
    """
    told = start.model()
    model = resolve_model(ModelConfig.model_validate(told))
    scales = starting_scales(model)
    longest = min(_MOST_TOKENS, positions_of(model))
    stages = [_connector_stage(start, scales)] if start.pretrained and start.start is None else []
    stages.append(_answers_stage(start, scales, longest, has_val, accumulation(free_gib)))
    return "\n".join(
        [
            f"# Written by `mvlm init` for {rows}. Every key is explained in docs/reference/configuration.md.",
            f"rows: {_flow(rows)}",
            "seed: 0",
            "precision: bf16  # of the passes; weights stay float32",
            "# How many tokens a picture may be shown in, coarse to fine: all of them learn in every step.",
            f"scales: {list(scales)}",
            "model:",
            *_indented(yaml.safe_dump(told, sort_keys=False).splitlines()),
            "stages:",
            *(line for stage in stages for line in stage),
            "",
        ]
    )


def starting_scales(model: ModelConfig) -> tuple[int, ...]:
    """At most six scales, from the coarsest to the finest, each several times the one before."""
    if model.connector == "query":
        return tuple(scale for scale in _QUERY_SCALES if scale <= model.num_queries)
    side = model.grid_side or 1
    allowed = family_scales(model.connector, side, model.num_queries)
    return tuple(s * s for s in nested_sides(side) if s * s in allowed)[-6:]


def accumulation(free_gib: float) -> int:
    """Into how many passes a step of pictures is cut, so that one fits the memory that is free."""
    at_once = max(1.0, free_gib / _GIB_A_PICTURE)
    return next(cut for cut in (1, 2, 4, 8, 16) if _PICTURES / cut <= at_once)


def free_memory_gib() -> float:
    """Memory of the GPU where there is one, else of the machine, that is free now."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0] / 2**30
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def _connector_stage(start: Start, scales: Sequence[int]) -> list[str]:
    frozen = "vision_tower, language_model" if start.vision else "language_model"
    return [
        "  - name: connector  # pretrained parts stay as they are until what is between them fits",
        f"    show: {list(scales)}",
        f"    frozen: [{frozen}]",
        "    epochs: 1",
        f"    pictures: {_PICTURES}",
        "    questions: 4",
        "    lr: 1.0e-3",
        "    betas: [0.9, 0.999]",
        "    warmup: 0.03",
    ]


def _answers_stage(start: Start, scales: Sequence[int], longest: int, has_val: bool, accumulate: int) -> list[str]:
    rate = "2.0e-5  # pretrained weights forget at the rates that new ones want" if start.pretrained else "2.0e-3"
    tower = "2.0e-6" if start.start or start.vision else "6.0e-4"
    return [
        "  - name: answers",
        f"    show: {list(scales)}",
        f"    epochs: {2 if start.pretrained else 20}",
        f"    pictures: {_PICTURES}",
        f"    accumulate: {accumulate}  # passes of a step, for the memory that was free here; more need less",
        "    questions: 8",
        f"    max_tokens: {longest}",
        f"    lr: {rate}",
        f"    lr_of: {{vision_tower: {tower}}}",
        "    betas: [0.9, 0.999]",
        "    warmup: 0.03",
        "    save_every: 200",
        *(["    evaluate_every: 200  # the loss at each scale on rows of the split val"] if has_val else []),
    ]


def _flow(text: str) -> str:
    """Text as one scalar of YAML."""
    return yaml.safe_dump(text, default_flow_style=True).removesuffix("...\n").strip()


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]
