"""What stands in router.onnx beside the graph, held to what a fit can say before anything is decided by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from export.runtime.errors import MvlmError
from export.runtime.views.scale import Scale, coarse_to_fine

_RULE = ("now", "finer")
_RULE_READS = 4


def fault_of(known: Mapping[str, Any]) -> str | None:
    """The first key that says what no fit does; None where all is in order."""
    for key, sound in _CHECKS.items():
        try:
            if not sound(known):
                return key
        except (MvlmError, KeyError, TypeError, ValueError, OverflowError, AttributeError, IndexError):
            return key
    return None


def _numbers(value: Any, *shape: int, low: float = -np.inf, high: float = np.inf) -> bool:
    """Whether it is a list of such a shape (-1: any length) of finite numbers from `low` to `high`, none a switch."""
    found = np.asarray(value)
    if found.dtype.kind not in "iuf" or found.ndim != len(shape):
        return False
    alike = all(wanted in (-1, length) for wanted, length in zip(shape, found.shape, strict=True))
    return alike and bool(np.isfinite(found).all() and (found >= low).all() and (found <= high).all())


def _scales(known: Mapping[str, Any]) -> bool:
    scales = known["scales"]
    if not isinstance(scales, list) or not scales or len(set(scales)) < len(scales):
        return False
    return scales == coarse_to_fine(Scale.parse(scale).word for scale in scales)


def _sizes(known: Mapping[str, Any]) -> bool:
    sizes = known.get("sizes")
    return sizes is None or (_numbers(sizes, len(known["scales"]), low=0) and min(sizes) > 0)


def _rows(known: Mapping[str, Any]) -> bool:
    return len(known["validation"]) > 0 and _numbers(known["validation"], -1, len(known["scales"]), low=0, high=1)


def _strange(known: Mapping[str, Any]) -> bool:
    at, rows = known.get("validation_strange", []), len(known["validation"])
    return isinstance(at, list) and all(type(one) is int and 0 <= one < rows for one in at)


def _priced(known: Mapping[str, Any]) -> bool:
    priced = known.get("priced")
    return not priced or (
        _numbers(priced, -1, 2, low=0) and [price for price, _ in priced] == sorted(p for p, _ in priced)
    )


def _escalation(known: Mapping[str, Any]) -> bool:
    rule = known["escalation"]
    return rule is None or all(_numbers(rule[name], _RULE_READS) for name in _RULE)


def _margins(known: Mapping[str, Any]) -> bool:
    shape = len(known["validation"]), len(known["scales"])
    return known["escalation"] is None or _numbers(known["validation_margin"], *shape)


def _bounds(known: Mapping[str, Any]) -> bool:
    return all(_numbers([one["within"], one["price"]], 2, low=0) for one in known["risk_bounds"])


def _share(known: Mapping[str, Any]) -> bool:
    return _numbers(known["least_p_value"])


def _loss(known: Mapping[str, Any]) -> bool:
    return "default_loss" not in known or _numbers(known["default_loss"], low=0)


_CHECKS = {
    "scales": _scales, "sizes": _sizes, "validation": _rows, "validation_strange": _strange, "priced": _priced,
    "escalation": _escalation, "validation_margin": _margins, "risk_bounds": _bounds, "least_p_value": _share,
    "default_loss": _loss,
}  # fmt: skip
