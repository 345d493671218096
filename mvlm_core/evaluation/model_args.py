"""What `--model_args` of lmms-eval says, checked whole: `run=FOLDER,scale=36` or `bundle=FOLDER,scale=auto`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from export.runtime.errors import MvlmError


class ModelArgs(BaseModel):
    """Of `run` and `bundle` one is named.

    Attributes:
        scale: how many visual tokens, or `auto`.
        router: folder of the router, for a run at auto; a bundle holds its own.
        max_new_tokens: the longest answer where a task names none.
        answers: a file that gets a line for each answer: task, sample, and in how many tokens it was shown.
        batch_size: samples that a run answers at once.
        device, precision: of a run, as torch names them.
        provider, threads: of a bundle.
        max_batch_size: what lmms-eval hands to every model; here `batch_size` says it all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Path | None = None
    bundle: Path | None = None
    scale: int | Literal["auto"]
    router: Path | None = None
    max_new_tokens: int = Field(128, ge=1)
    answers: Path | None = None
    batch_size: int = Field(1, ge=1)
    max_batch_size: None = None
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    provider: str = "cpu"
    threads: int | None = None

    @model_validator(mode="after")
    def _one_model(self) -> ModelArgs:
        if (self.run is None) == (self.bundle is None):
            raise ValueError("name run=FOLDER or bundle=FOLDER, one of them")
        if self.bundle is not None:
            for_runs = {"router", "batch_size", "device", "precision"} & self._told_otherwise()
            if for_runs:
                raise ValueError(f"{', '.join(sorted(for_runs))} is for a run, and a bundle is named")
        elif for_bundles := {"provider", "threads"} & self._told_otherwise():
            raise ValueError(f"{', '.join(sorted(for_bundles))} is for a bundle, and a run is named")
        return self

    def _told_otherwise(self) -> set[str]:
        """Options that differ from what they are when left out: lmms-eval hands some of them over unasked."""
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}


def read_model_args(told: dict[str, Any]) -> ModelArgs:
    """Raises `MvlmError`, one line, for an option that is not known, missing, or no value of its kind."""
    known = list(ModelArgs.model_fields)
    for name in told:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise MvlmError(f"model_args knows no {name!r}: {hint}")
    try:
        return ModelArgs.model_validate({name: _as_text(name, value) for name, value in told.items()})
    except ValidationError as error:
        fault = error.errors()[0]
        where = f"{fault['loc'][0]}: " if fault["loc"] else ""
        raise MvlmError(f"model_args: {where}{fault['msg'].removeprefix('Value error, ')}") from None


def _as_text(name: str, value: Any) -> Any:
    """lmms-eval turns what looks like a number into one, the names of folders too."""
    return str(value) if name in ("run", "bundle", "router", "answers") and value is not None else value
