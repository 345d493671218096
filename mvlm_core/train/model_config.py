"""What a configuration says of the model: its two parts, the connector between them, how pictures come in. No torch.

What is left out here and can be read off the parts, the grid and the size of the pictures, is None until
`build.resolve_model` has looked at them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from export.runtime.families import POOLED, Family, current_name
from mvlm_core.modeling.chat_templates import TEMPLATES
from mvlm_core.modeling.scales import family_scales
from mvlm_core.train.strict import Strict

# What a part that is loaded may say besides; everything else is the part's own.
_NAMED_KEYS = {"name", "revision"}
_WORDS = {*_NAMED_KEYS, "model_type"}
Spread = Annotated[float, Field(gt=0)]


class ImageConfig(Strict):
    """How a picture becomes the tower's input; see `export.runtime.image.ImageSpec`.

    What is None comes from the preprocessor_config.json of a tower that is loaded, and else from the tower's
    configuration, a half, and the cubic filter. `tiles` is the most tiles that a picture is cut into (its grid is the
    one whose shape is closest to the picture's); 0 leaves the overview alone.
    """

    size_px: int | None = Field(default=None, gt=0)
    mean: tuple[float, float, float] | None = None
    std: tuple[Spread, Spread, Spread] | None = None
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    resample: Literal["bicubic", "bilinear"] | None = None
    tiles: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _tiles_are_stretched(self) -> ImageConfig:
        if self.tiles and self.fit != "stretch":
            raise ValueError(f"pictures with tiles are stretched over them, and fit is {self.fit}: leave it out")
        return self


class ModelConfig(Strict):
    """The model to build, or to start from.

    Attributes:
        start: a run, or an imported checkpoint, whose weights the model starts with. Its parts are then given, its
            pictures too but for what `image` states, and a connector that is told otherwise than the start's is new.
        vision, text: the parts. `{name: ...}` is a folder or a name on the hub (with `revision` if need be) whose
            weights are loaded; `{model_type: ..., ...}` is a configuration of transformers, and starts from nothing.
        grid_side: patches along a side. Derived from the tower; where it is stated, it must be the tower's.
        vision_feature_layer: which hidden state of the tower is read (LLaVA reads the last but one, -2).
        chat_template: the name of one of `templates`, or a file; None lets the tokenizer's own, or the one that fits
            its special tokens, be taken.
        pixel_shuffle: patches along a side of a token; the start's.
        connector_positions, num_queries, num_heads, value_mlp, query_start: see `MvlmConfig`.
    """

    start: Path | None = None
    vision: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    connector: Family = "pool"
    grid_side: int | None = Field(default=None, gt=0)
    vision_feature_layer: int = -1
    connector_positions: bool = False
    num_queries: int = Field(256, gt=0)
    num_heads: int = Field(16, gt=0)
    value_mlp: bool = False
    pixel_shuffle: int = Field(1, gt=0)
    query_start: Literal["random", "pyramid"] = "random"
    chat_template: str | None = None
    image: ImageConfig = ImageConfig()

    @field_validator("connector", mode="before")
    @classmethod
    def _by_its_name_of_today(cls, connector: Any) -> Any:
        return current_name(connector) if isinstance(connector, str) else connector

    @model_validator(mode="after")
    def _parts_are_told(self) -> ModelConfig:
        for part in ("vision", "text"):
            told: dict[str, Any] | None = getattr(self, part)
            if self.start:
                if told is not None:
                    raise ValueError(f"{part} comes with start: leave one of the two out")
            elif told is None or not ("name" in told) ^ ("model_type" in told):
                raise ValueError(
                    f"{part} needs either a name (of a folder, or on the hub) or a model_type, as in transformers"
                    " (resnet, clip_vision_model, qwen3, llama)"
                )
            elif wrong := [key for key in told if key in _WORDS and not (isinstance(told[key], str) and told[key])]:
                raise ValueError(f"{part}.{wrong[0]} is no text")
            elif "name" in told and (more := sorted(set(told) - _NAMED_KEYS)):
                raise ValueError(f"{part} is loaded by its name, and takes no {', '.join(more)} besides")
        return self

    def allowed_scales(self) -> Sequence[int] | None:
        """The scales that the connector allows; None while the grid is not known."""
        if self.connector in POOLED and not self.grid_side:
            return None
        return family_scales(self.connector, (self.grid_side or 0) // self.pixel_shuffle, self.num_queries)

    def found_from(self, folder: Path) -> ModelConfig:
        """With every path as it is found from `folder`; a name that is no folder there is left to the hub."""
        return self._with_places(lambda place: str(found) if (found := (folder / place).resolve()).exists() else place)

    def seen_from(self, folder: Path) -> ModelConfig:
        """The opposite of `found_from`, for a file to be written in `folder`."""
        return self._with_places(
            lambda place: Path(os.path.relpath(place, folder)).as_posix() if Path(place).is_absolute() else place
        )

    def _with_places(self, change: Any) -> ModelConfig:
        changed: dict[str, Any] = {}
        if self.start:
            changed["start"] = Path(change(str(self.start)))
        if self.chat_template and self.chat_template not in TEMPLATES:
            changed["chat_template"] = change(self.chat_template)
        for part in ("vision", "text"):
            told = getattr(self, part)
            if told and "name" in told:
                changed[part] = told | {"name": change(told["name"])}
        # What was stated stays what was stated: it says what of `start` is replaced.
        return self.model_copy(update=changed)
