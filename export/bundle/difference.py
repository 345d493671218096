"""How far one part's numbers are from torch's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float32]


@dataclass
class Difference:
    """The largest differences seen in a phase, absolute and as a share of the largest value that torch computed."""

    max_abs: float = 0.0
    max_relative: float = 0.0

    def see(self, torch_side: Tensor, file_side: Array) -> None:
        wanted = torch_side.numpy()
        if wanted.shape != file_side.shape:
            self.max_abs = self.max_relative = float("inf")
            return
        absolute = float(np.abs(wanted - file_side).max())
        relative = absolute / max(float(np.abs(wanted).max()), 1e-12)
        # np.maximum keeps NaN, which then is within no tolerance.
        self.max_abs = float(np.maximum(self.max_abs, absolute))
        self.max_relative = float(np.maximum(self.max_relative, relative))
