"""The verb `benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from export.runtime.artefact import refuse_if_filled
from mvlm_core.progress import Bars

from .train_label import OVERWRITE, out_option, say_next

if TYPE_CHECKING:
    from mvlm_core.evaluation.lmms_runs import Plan

_FOLDER = click.Path(path_type=Path)
INCLUDE = click.option("--include-path", "include", type=_FOLDER, multiple=True, help="A folder of further tasks.")


@click.command("benchmark")
@click.argument("model", type=_FOLDER, default="run", metavar="[RUN|BUNDLE]")
@click.option("--scales", required=True, help="As in 9,36,144 or 36,auto: auto asks the router.")
@click.option("--tasks", "names", required=True, help="paper11 (MQT's), m3, benchmarks of them, tasks of lmms-eval.")
@click.option("--router", type=_FOLDER, help="For a run at auto; a bundle holds its own.")
@INCLUDE
@click.option("--limit", type=click.IntRange(min=1), help="Samples of each task, to try it out.")
@click.option("--gen-kwargs", "generation", help="As lmms-eval takes it: max_new_tokens=64.")
@click.option("--model-args", "further", default="", help="For the model: batch_size=8,device=cuda,precision=bfloat16.")
@click.option("--print", "dry", is_flag=True, help="Show the runs and what they need, and run nothing.")
@out_option("benchmark")
@OVERWRITE
def benchmark(
    model: Path, scales: str, names: str, router: Path | None, include: tuple[Path, ...], limit: int | None,
    generation: str | None, further: str, dry: bool, out: Path, overwrite: bool,
) -> None:  # fmt: skip
    """Evaluate a run or a bundle on benchmarks by lmms-eval, at each scale, beside the papers' numbers.

    \b
    Example:
      mvlm benchmark run --scales 9,36,144 --tasks paper11 --print
    """
    from mvlm_core.evaluation.benchmarks import Tasks
    from mvlm_core.evaluation.lmms_runs import Plan, evaluate
    from mvlm_core.evaluation.subject import read_subject
    from mvlm_core.evaluation.table import table

    refuse_if_filled(out, overwrite=overwrite)
    tasks = Tasks.of(include)
    asked = tuple(dict.fromkeys(scale.strip() for scale in scales.split(",")))
    benchmarks, subject = tasks.choose(names), read_subject(model, asked, router, further)
    plan = Plan(subject, asked, tuple(benchmarks), tasks, include, limit, generation)
    if dry:
        _show(plan)
        return
    with Bars() as bars:
        outcome = evaluate(plan, out, bars.start)
    told = table(outcome, plan.benchmarks, plan.scales)
    (out / "table.md").write_text(told, encoding="utf-8")
    click.echo(told)
    if limit:
        click.echo(f"ONLY {limit} SAMPLES of each task: these are no benchmark results")
    say_next(f"less {out / 'table.md'}   # answers of each sample: {out}/scale_*/*_samples_*.jsonl")


def _show(plan: Plan) -> None:
    """The runs as lmms-eval takes them, and what each benchmark needs."""
    import yaml

    from mvlm_core.evaluation.lmms_runs import RUNS, command

    click.echo(yaml.safe_dump(plan.runs(), sort_keys=False))
    for benchmark in plan.benchmarks:
        facts = [f"{benchmark.title}: {benchmark.task}", benchmark.split, benchmark.metric or "its own metrics"]
        data = f"{benchmark.dataset}, revision {benchmark.revision or 'not pinned'}" if benchmark.dataset else ""
        click.echo("# " + "; ".join(filter(None, [*facts, data, f"needs {benchmark.needs}", benchmark.note])))
    say_next(f"the same without --print, or with the list above in {RUNS}: {' '.join(command(RUNS))}")
