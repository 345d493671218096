"""A router folder, as `mvlm fit-router` writes it: checked to be whole, and to belong to a model and its features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.runtime.artefact import read_artefact, require_facts, sha256_file
from export.runtime.errors import MvlmError
from export.runtime.features import FEATURE_VERSION
from export.runtime.manifest import RouterFacts
from export.runtime.views.scale import ScaleWord

ROUTER_FILE = "router.onnx"
# What depends on the picture of a router that reads pictures.
READER_FILE = "reader.onnx"
_FACTS = ("scales", "costs", "cost_unit", "default_price", "feature_version", "model_sha256", "files")


@dataclass(frozen=True)
class RouterSource:
    """A router folder and its description."""

    folder: Path
    facts: dict[str, Any]

    @property
    def scales(self) -> tuple[ScaleWord, ...]:
        return tuple(self.facts["scales"])

    @property
    def known(self) -> RouterFacts:
        """The description as the runtime takes it."""
        costs, unit, price = (self.facts[key] for key in ("costs", "cost_unit", "default_price"))
        told = (self.facts.get("reader"), self.facts.get("tile_tokens"))
        return RouterFacts(ROUTER_FILE, self.scales, tuple(costs), unit, price, *told)


def read_router(
    folder: Path,
    hash_of_model: str,
    *,
    of: str = "this run",
    facts: Iterable[str] = (),
    files: Iterable[str] = (),
) -> RouterSource:
    """A router folder, checked to be whole and to be of a model.

    `of` is what the hash of the model was taken from, for people; `facts` and `files` are what is read besides that
    which the runtime needs.

    Raises `MvlmError`: no router, one of another model or feature version, one that says too little, one of whose files
    is missing or changed.
    """
    if not folder.is_dir():
        raise MvlmError(f"there is no router {folder}: fit one with `mvlm fit-router`, or export with --no-router")
    found = read_artefact(folder, "router")
    require_facts(found, dict.fromkeys([*_FACTS, *facts]), folder / "router.json")
    if found["model_sha256"] != hash_of_model:
        raise MvlmError(f"the router {folder} was fitted for another model than that of {of}: fit again on its labels")
    if found["feature_version"] != FEATURE_VERSION:
        raise MvlmError(
            f"the router {folder} reads features of version {found['feature_version']}, and this mvlm computes"
            f" version {FEATURE_VERSION}: label and fit again"
        )
    if found.get("reader") not in (None, READER_FILE):
        raise MvlmError(f"{folder} names {found['reader']!r} as its reader, and that is {READER_FILE}: fit again")
    reader = [READER_FILE] if found.get("reader") else []
    for file in (folder / name for name in (ROUTER_FILE, *reader, *files)):
        if not file.is_file() or found["files"].get(file.name) != sha256_file(file):
            raise MvlmError(f"{file} is missing or was changed since it was written: fit the router again")
    return RouterSource(folder, found)
