"""What a router is fitted on and judged by: rows with their scores, features and costs.

Letters: n rows, R samples of an answer, K scales.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.runtime.views.scale import ScaleWord

from .measures import measured, scored_by
from .policy import Costs
from .reading import Reading

TEST = "test"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Table:
    """Rows with the scores of each run (n, R, K), features (n, d_image) and (n, d_question), and where they come from.

    `margins` (n, K) is by how much the first token of each answer led, NaN where that was not kept. `ood_probes`
    are features of pictures of other kinds, noise say, by kind. `target` is what a
    score of 1 means: `score`, that the answer was right; `agreement`, that it was that of the finest scale;
    `likelihood`, that the model was sure of each token of the reference answer.
    `probability` (n, K) is P(right), the model's own of the reference answer; None where labels hold none of some row.
    `reading` is the pictures and questions themselves, where labels hold them. Scales ascend by their mean `cost` (K,);
    `row_cost` (n, K) is what each row pays, where pictures have tiles: tokens, and the encoding of each tile.
    """

    ids: NDArray[np.str_]
    groups: NDArray[np.str_]
    tasks: NDArray[np.str_]
    splits: NDArray[np.str_]
    samples: Floats
    image: Floats
    question: Floats
    margins: Floats
    predictions: NDArray[np.object_]
    answers: NDArray[np.object_]
    scales: tuple[ScaleWord, ...]
    cost: NDArray[np.float64]
    facts: dict[str, Any]
    target: str = "score"
    ood_probes: dict[str, tuple[Floats, Floats]] = field(default_factory=dict)
    probability: Floats | None = None
    reading: Reading | None = None
    row_cost: NDArray[np.float64] | None = None

    @property
    def costs(self) -> Costs:
        """What the scales cost, in the mean of all labelled rows and each row."""
        return Costs(self.cost, self.row_cost)

    @property
    def sizes(self) -> tuple[float, ...]:
        """A number for each scale, ascending: its tokens, or where some scales have tiles, its mean cost."""
        whole = [scale for scale in self.scales if isinstance(scale, int)]
        return tuple(whole) if len(whole) == len(self.scales) else tuple(self.cost.tolist())

    @property
    def targets(self) -> Floats:
        """What estimators are fitted on, (n, K): P(right), which tells more than one answer, or else the scores."""
        return self.scores if self.probability is None else self.probability

    @cached_property
    def scores(self) -> Floats:
        """The mean over samples, (n, K)."""
        return self.samples.mean(axis=1)

    @property
    def measures(self) -> str:
        """What the scores measure, for people."""
        return measured(self.facts, self.target)

    @property
    def scored_by(self) -> str:
        """Which metrics made the scores, for people; empty where labels of an earlier version do not say it."""
        return scored_by(self.facts, self.target)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[Any]) -> Table:
        """Some of the rows: a mask or indices over n."""
        names = (
            "ids", "groups", "tasks", "splits", "samples", "image", "question", "margins", "predictions", "answers",
        )  # fmt: skip
        return Table(
            **{name: getattr(self, name)[rows] for name in names},
            scales=self.scales, cost=self.cost, facts=self.facts, target=self.target, ood_probes=self.ood_probes,
            probability=None if self.probability is None else self.probability[rows],
            reading=None if self.reading is None else self.reading.take(rows),
            row_cost=None if self.row_cost is None else self.row_cost[rows],
        )  # fmt: skip

    @property
    def fit_rows(self) -> Table:
        """What a router is fitted on: every labelled row outside the test split."""
        return self.take(self.splits != TEST)

    @property
    def test_rows(self) -> Table:
        """What is touched once, by the report."""
        return self.take(self.splits == TEST)
