"""What a bundle was made from, which its verify.json says: verifying it again finds all of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.runtime.artefact import place_beside, place_said


@dataclass(frozen=True)
class MadeFrom:
    """The run, the rows to verify with, and what these are scored by. None is what a bundle of before does not say."""

    run: Path | None
    rows: Path | None
    metrics_said: tuple[str, ...] = ()

    def to_json(self, bundle: Path) -> dict[str, Any]:
        """As the verify.json of `bundle` holds it."""
        places = {"run": self.run, "rows": self.rows}
        told = {name: place_beside(place, bundle) for name, place in places.items() if place is not None}
        return {"made_from": told | {"metrics_said": list(self.metrics_said)}}

    @classmethod
    def of(cls, bundle: Path, verified: dict[str, Any]) -> MadeFrom:
        """As the verify.json of `bundle` says it."""
        said = verified.get("made_from") or {}
        run, rows = (place_said(bundle, said[name]) if name in said else None for name in ("run", "rows"))
        return cls(run, rows, tuple(said.get("metrics_said") or ()))
