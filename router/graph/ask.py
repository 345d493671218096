"""A router's own files asked about the rows of a table, as the parity of a fit and the report need it.

Letters: n rows, B pictures, P patches, D width of the language model, K scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.runtime.errors import MvlmError
from export.runtime.routing.router_folder import READER_FILE
from router.policy import Costs, costs_of
from router.reading import Reading
from router.table import Table

from .reader import PICTURE, QUESTION

Floats = NDArray[np.floating]
_ROWS_AT_ONCE, _READ_AT_ONCE = 1000, 128


def ask_graph(file: Path, table: Table, price: float) -> tuple[Floats, NDArray[np.int64], Floats]:
    """router.onnx itself on every row: probabilities (n, K), choices (n,) and p-value (n,).

    Raises `MvlmError` for a router that reads pictures where the labels hold none.
    """
    session = _session(file)
    costs = table.costs
    reads = _reads(session)
    if reads and table.reading is None:
        raise MvlmError(f"{file} reads pictures, and the labels hold no patches: label again, without --no-patches")
    pictures = _Pictures(file.with_name(READER_FILE), table.reading) if reads and table.reading else None
    at_once = _READ_AT_ONCE if pictures else _ROWS_AT_ONCE
    order = np.argsort(table.reading.picture, kind="stable") if pictures and table.reading else np.arange(len(table))
    parts = []
    for start in range(0, len(table), at_once):
        some = order[start : start + at_once]
        feeds = {
            "image": table.image[some],
            "question": table.question[some],
            **_priced(session, costs.take(some), price),
        }
        parts.append(session.run(["probability", "choice", "p_value"], feeds | (pictures.of(some) if pictures else {})))
    back = np.argsort(order)
    probability, choice, p_value = (np.concatenate(column)[back] for column in zip(*parts, strict=True))
    return probability.astype(np.float64), choice, p_value


def _priced(session: Any, costs: Costs, price: float) -> dict[str, NDArray[np.float32]]:
    """Price and costs as a router takes them; one of before takes costs that are the same for all rows."""
    shapes = {one.name: one.shape for one in session.get_inputs()}
    priced = {"price": np.asarray(price, np.float32)}
    if len(shapes["cost"]) == 1:
        return priced | {"cost": np.asarray(costs.usual, np.float32)}
    return priced | {"cost": costs.matrix.astype(np.float32), "unit_cost": np.asarray(costs.unit, np.float32)}


def p_values(file: Path, image: Floats, question: Floats, cost: Floats) -> Floats:
    """How ordinary rows are by their features (n, d) alone, which is all that a p-value depends on: (n,)."""
    session = _session(file)
    feeds: dict[str, Any] = {"image": image, "question": question, **_priced(session, costs_of(cost), 0.0)}
    for name, shape in _reads(session).items():
        feeds[name] = np.zeros([len(image), *(side if isinstance(side, int) else 1 for side in shape[1:])], np.float32)
    found: Floats = session.run(["p_value"], feeds)[0]
    return found


class _Pictures:
    """What a reader's two graphs take of the rows of a table."""

    def __init__(self, file: Path, reading: Reading) -> None:
        self._graph, self._reading = _session(file), reading

    def of(self, rows: NDArray[np.integer]) -> dict[str, NDArray[np.float32]]:
        """`picture` (n, C, 2h) and `words` (n, T, D). What was projected away is taken as nothing."""
        back = self._reading.projection.T
        numbers, place = np.unique(self._reading.picture[rows], return_inverse=True)
        patches = np.asarray(self._reading.patches[numbers], np.float32) @ back  # (B, P, D)
        seen = self._graph.run([PICTURE], {"patches": patches})[0]
        return {PICTURE: seen[place], QUESTION: self._reading.questions(rows) @ back}


def _reads(session: Any) -> dict[str, list[Any]]:
    """The inputs of a router that reads pictures, with their shapes."""
    return {one.name: one.shape for one in session.get_inputs() if one.name in (PICTURE, QUESTION)}


def _session(file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # inputs with a default are meant
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
