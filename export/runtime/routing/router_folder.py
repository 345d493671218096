"""A router folder, as `mvlm fit-router` writes it: checked to be whole, and to belong to a model and its features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.runtime.artefact import read_artefact, sha256_file
from export.runtime.errors import MvlmError
from export.runtime.features import FEATURE_VERSION
from export.runtime.manifest import RouterFacts

ROUTER_FILE = "router.onnx"


@dataclass(frozen=True)
class RouterSource:
    """A router folder and its description."""

    folder: Path
    facts: dict[str, Any]

    @property
    def scales(self) -> tuple[int, ...]:
        return tuple(self.facts["scales"])

    @property
    def known(self) -> RouterFacts:
        """The description as the runtime takes it."""
        costs, unit, price = (self.facts[key] for key in ("costs", "cost_unit", "default_price"))
        return RouterFacts(ROUTER_FILE, self.scales, tuple(costs), unit, price)


def read_router(folder: Path, hash_of_model: str) -> RouterSource:
    """Raises `MvlmError`: no router, one of another model or feature version, one whose graph is missing or changed."""
    if not folder.is_dir():
        raise MvlmError(f"there is no router {folder}: fit one with `mvlm fit-router`, or export with --no-router")
    facts = read_artefact(folder, "router")
    if facts.get("model_sha256") != hash_of_model:
        raise MvlmError(f"the router {folder} was fitted for another model: label this run and fit again")
    if facts.get("feature_version") != FEATURE_VERSION:
        raise MvlmError(
            f"the router {folder} reads features of version {facts.get('feature_version')}, and this mvlm computes"
            f" version {FEATURE_VERSION}: label and fit again"
        )
    file = folder / ROUTER_FILE
    if not file.is_file() or facts.get("files", {}).get(ROUTER_FILE) != sha256_file(file):
        raise MvlmError(f"{file} is missing or was changed: fit the router again")
    return RouterSource(folder, facts)
