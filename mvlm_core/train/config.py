"""What a training run is told: validated models, YAML, `key=value` on top, every error at once. No torch."""

from __future__ import annotations

import difflib
import os
import types
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from export.runtime.errors import MvlmError
from export.runtime.families import Family
from export.runtime.views.scale import ScaleWord, coarse_to_fine
from mvlm_core.modeling.scales import require_scales
from mvlm_core.scenes.drawn import WorldName
from mvlm_core.train.strict import Strict

from . import scale_sampling as policies
from .model_config import ModelConfig
from .scale_sampling import Word, possible_scales
from .stages import StageConfig


class AttentionConfig(Strict):
    """Which of transformers' attention functions each part runs on, by its name there.

    The language model reads packed rows, whose mask `sdpa` holds whole and `flex_attention` (CUDA) skips by blocks.
    FlashAttention knows no such mask, so it is to be had for the tower alone.
    """

    vision: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    text: Literal["sdpa", "eager", "flex_attention"] = "sdpa"


class TrainConfig(Strict):
    """A whole run: data, model, scales, stages. `rows` is relative to the file that says it.

    Attributes:
        stream: read the rows as they come instead of all at once (WebDataset tars, folders of parquet).
        precision: of the passes; weights are float32 in either case.
        scales: what the run is for: evaluated, labelled and exported at these unless others are named, and drawn from
            in every stage that does not say what it shows.
        attention, liger: kernels by name; what does not apply here is an error.
        report_to: trackers by the names that transformers has for them, beside metrics.jsonl.
        workers: processes that decode pictures for each training process; 0 decodes in its own.
        keep_checkpoints: leave the checkpoints of a run that ended well; else they go, since nothing goes on from them.
    """

    rows: Path = Path("rows")
    stream: bool = False
    seed: int = Field(0, ge=0, lt=2**63)
    precision: Literal["bf16", "float32"] = "bf16"
    attention: AttentionConfig = AttentionConfig()
    liger: bool = False
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    workers: int = Field(0, ge=0)
    keep_checkpoints: bool = False
    scales: tuple[Word, ...]
    model: ModelConfig
    stages: tuple[StageConfig, ...]

    @model_validator(mode="after")
    def _scales_fit(self) -> TrainConfig:
        if not self.scales or not self.stages:
            raise ValueError("a run needs at least one scale, and at least one of stages")
        if len(set(self.scales)) != len(self.scales):
            raise ValueError("scales: each stands once")
        allowed = self.model.allowed_scales()
        shown = set(self.scales).union(*(possible_scales(stage.show or ()) for stage in self.stages))
        try:
            if allowed is not None:
                require_scales(coarse_to_fine(shown), allowed)
        except MvlmError as error:
            raise ValueError(str(error)) from None
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("two stages have the same name")
        return self

    @model_validator(mode="after")
    def _streams(self) -> TrainConfig:
        if self.stream and self.model.start is None and "name" not in (self.model.text or {}):
            raise ValueError(
                "stream: a language model that starts from nothing needs a tokenizer made of all rows; name one, or"
                " read the rows at once"
            )
        if self.stream and (endless := [stage.name for stage in self.stages if stage.steps is None]):
            raise ValueError(f"stream: rows have no known end, so say steps, not epochs, of {', '.join(endless)}")
        if self.stream and any(stage.evaluate_every for stage in self.stages):
            raise ValueError("stream: rows of the split val are not kept, so leave evaluate_every out")
        return self


def read_config(file: Path, overrides: tuple[str, ...] = ()) -> TrainConfig:
    """Read a YAML configuration and put `key=value` overrides on top; keys go into the tree by dots (stages.0.steps=9).

    Raises `MvlmError` that lists every fault, with the nearest known key beside each unknown one.
    """
    if not file.is_file():
        raise MvlmError(
            f"there is no configuration {file}: `mvlm init ROWS` writes one for your rows, `mvlm data scenes` one for"
            " drawn ones"
        )
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise MvlmError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise MvlmError(f"{file} must hold keys and values, as in examples/configs")
    for override in overrides:
        _put(tree, override)
    return _validated(file, tree)


_RECIPES: dict[WorldName, str] = {
    "small": "scenes.yaml", "varied": "scenes.yaml", "large": "large.yaml", "clips": "clips.yaml"
}  # fmt: skip


def scenes_config(family: Family, *, rows: Path, seed: int, world: WorldName = "small") -> TrainConfig:
    """The recipe for a drawn world, for one family."""
    recipes = Path(__file__).parent / "recipes"
    recipe = recipes / _RECIPES[world]
    tree = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    if world == "varied":
        tree["stages"][-1] |= yaml.safe_load((recipes / "scenes_varied.yaml").read_text(encoding="utf-8"))
    if family != tree["model"]["connector"]:
        tree["model"] |= yaml.safe_load((recipes / f"scenes_{family}.yaml").read_text(encoding="utf-8"))
    return _validated(recipe, tree | {"seed": seed}).model_copy(update={"rows": rows.absolute()})


def run_scales(run: Path) -> tuple[ScaleWord, ...]:
    """The scales that a run was trained at, ascending."""
    return tuple(coarse_to_fine(read_config(run / "train.yaml").scales))


def _validated(file: Path, tree: dict[str, Any]) -> TrainConfig:
    try:
        config = TrainConfig.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(dict(fault))}" for fault in error.errors())
        raise MvlmError(f"{file} has {error.error_count()} faults:\n{faults}") from None
    folder = file.parent
    return config.model_copy(update={"rows": folder / config.rows, "model": config.model.found_from(folder)})


def write_config(file: Path, config: TrainConfig) -> None:
    """Write the resolved configuration as YAML that `read_config` reads back: with rows as seen from the file."""
    model = config.model.seen_from(file.parent.resolve())
    tree = config.model_copy(update={"model": model}).model_dump(mode="json", exclude_none=True)
    tree["rows"] = Path(os.path.relpath(config.rows, file.parent)).as_posix()
    file.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _put(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise MvlmError(f"{override!r} is not key=value, as in stages.0.steps=100")
    *parents, last = path.split(".")
    node: Any = tree
    try:
        for key in parents:  # what the file leaves out may be told all the same: it is checked with the rest
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[int(last) if isinstance(node, list) else last] = yaml.safe_load(text)
    except (AttributeError, IndexError, ValueError, TypeError, yaml.YAMLError):
        raise MvlmError(f"{override!r}: the configuration has no {path}") from None


def _fault(fault: dict[str, Any]) -> str:
    where = ".".join(str(key) for key in fault["loc"] if not _is_kind(key)) or "the configuration"
    if fault["type"] != "extra_forbidden":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
    known = _known_keys(fault["loc"][:-1])
    nearest = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
    return f"{where}: no such key" + (f"; did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(known)}")


def _is_kind(key: Any) -> bool:
    """Where a union was told apart, pydantic puts the kind of the entry among the keys."""
    return key in policies.KINDS


def _known_keys(path: tuple[Any, ...]) -> list[str]:
    model: Any = TrainConfig
    for key in path:
        if _is_kind(key):
            model = policies.KINDS[key]
        elif isinstance(key, str):
            model = _model_in(model.model_fields[key].annotation)
    return list(model.model_fields)


def _model_in(annotation: Any) -> Any:
    """The configuration class that an annotation holds, in a tuple or beside None; None where it holds none."""
    if get_origin(annotation) in (tuple, types.UnionType, Annotated):
        return next((inner for inner in map(_model_in, get_args(annotation)) if inner is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
