"""How much a demo draws and learns."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mvlm_core.scenes.large import LARGE
from mvlm_core.scenes.rows_folder import SceneCounts


@dataclass(frozen=True)
class Size:
    """How many pictures are drawn, and how many steps the model learns in each of its two stages."""

    pictures: SceneCounts
    steps: tuple[int, int]

    def drawing(self) -> list[str]:
        """The words of `mvlm data scenes`."""
        return [word for split, count in asdict(self.pictures).items() for word in (f"--{split}", str(count))]

    def training(self) -> list[str]:
        """The words of `mvlm train`."""
        return [f"stages.{stage}.steps={steps}" for stage, steps in enumerate(self.steps)]


REHEARSAL = Size(SceneCounts(60, 30, 30), (6, 6))  # runs every verb and learns nothing
SHORT = Size(SceneCounts(14400, 900, 900), (600, 900))
SHEETS = Size(SceneCounts(*LARGE.pictures), (350, 450))  # of `--size large`
LONG = Size(SceneCounts(16000, 4200, 900), (700, 1000))  # as many labels as a router that reads pictures wants
