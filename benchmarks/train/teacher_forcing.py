"""What loss and probability of the reference answers cost a sweep: `python -m benchmarks.train.teacher_forcing`.

`mvlm label` reads each reference answer together with its question, in the pass that answers it anyway, and generates
nothing where the reference is what the model would say. Here the same pictures of a demo are answered at its scales
both ways, in turns: with the references, and without, where every answer is generated.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import click
import torch

from benchmarks.machine import keep
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.data.reading import read_rows
from mvlm_core.data.row import single_questions
from mvlm_core.label.lines import reference_ids
from mvlm_core.label.packed_generation import answer_together, stop_ids
from mvlm_core.label.shown_pictures import ShownPictures
from mvlm_core.label.sweep import new_tokens
from mvlm_core.modeling.processing import prompt_of
from mvlm_core.train.config import run_scales
from mvlm_core.train.plan import group_rows


class Pictures:
    """Pictures of the test rows with all their questions, encoded once."""

    def __init__(self, run: Path, rows: Path, pictures: int) -> None:
        self.model, processor = load_run(run)
        asked = single_questions([row for row in read_rows(rows) if row.split == "test"])
        groups = group_rows(asked)[:pictures]
        self.scales = run_scales(run)
        self.shown = ShownPictures(self.model, processor, [group.pictures[0] for group in groups], self.scales)
        prompt, image = prompt_of(processor), processor.image_token_id
        whole = [[prompt.ids(row.question, 1, image) for row in group.rows] for group in groups]
        place = whole[0][0].index(image)
        self.before = whole[0][0][:place]
        self.after = [[ids[place + 1 :] for ids in questions] for questions in whole]
        stops = stop_ids(self.model)
        self.references = [[reference_ids(processor, prompt, row, stops) for row in group.rows] for group in groups]
        self.most = new_tokens(processor, asked)
        self.rows = sum(map(len, self.after))

    @torch.inference_mode()
    def seconds(self, *, taught: bool) -> float:
        """To answer every question at every scale, the tower left out."""
        start = time.perf_counter()
        for scale in self.scales:
            for members in self.shown.alike(scale):
                after = [self.after[n] for n in members]
                references = [self.references[n] for n in members] if taught else None
                visual = self.shown.embeds(members, scale)
                answer_together(self.model, self.before, visual, after, self.most, None, references)
        return time.perf_counter() - start


@click.command()
@click.option("--demo", type=click.Path(path_type=Path, exists=True), default=Path("demo"), show_default=True)
@click.option("--pictures", default=32, show_default=True)
@click.option("--rounds", default=5, show_default=True)
def main(demo: Path, pictures: int, rounds: int) -> None:
    """Answer pictures of a finished demo both ways, in turns, and keep how they compare."""
    shown = Pictures(demo / "run", demo / "rows", pictures)
    taken: dict[bool, list[float]] = {True: [], False: []}
    for taught in taken:
        shown.seconds(taught=taught)
    for _ in range(rounds):
        for taught, times in taken.items():
            times.append(shown.seconds(taught=taught))
    with_references, without = (median(taken[taught]) for taught in (True, False))
    ratio = with_references / without
    click.echo(f"with references {with_references:.2f} s, without {without:.2f} s: {ratio:.2f} times")
    figures = {"pictures": pictures, "rows": shown.rows, "scales": list(shown.scales), "rounds": rounds,
               "seconds": {"with_references": with_references, "without": without}, "ratio": ratio}  # fmt: skip
    command = f"python -m benchmarks.train.teacher_forcing --pictures {pictures} --rounds {rounds}"
    click.echo(keep("teacher_forcing", command, **figures))


if __name__ == "__main__":
    main()
