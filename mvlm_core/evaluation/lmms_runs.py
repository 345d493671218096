"""An evaluation: for each scale a run of lmms-eval, as one YAML file that it takes, and what they come to.

Parts lie beside the folder that is asked for until all are there: stopped and started again, it goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import yaml

from export.runtime.artefact import describe, put_in_place, sha256_json, write_json
from export.runtime.errors import CheckFailed, MvlmError
from mvlm_core.label.resumable import parts_folder

from .benchmarks import Benchmark, Tasks
from .plugin import ENTRY_POINTS, MODEL
from .subject import Subject

RUNS, LOG = "runs.yaml", "lmms_eval.log"
_POLL_S = 0.5
_MOST_SHOWN = 300
# The last line of a traceback; the class of an error of our own says nothing to a person.
_ERROR = re.compile(r"^(?:[\w.]*(?:MvlmError|CheckFailed): )?((?<=: ).+|[\w.]*(?:Error|Exception): .+)$", re.MULTILINE)


@dataclass(frozen=True)
class Plan:
    """Which benchmarks at which scales. `limit`: samples of each task, to try it out. `generation`: --gen_kwargs."""

    subject: Subject
    scales: tuple[str, ...]
    benchmarks: tuple[Benchmark, ...]
    tasks: Tasks
    include: tuple[Path, ...] = ()
    limit: int | None = None
    generation: str | None = None

    def runs(self) -> list[dict[str, Any]]:
        """The runs as lmms-eval's `--config` takes them, with paths in the folder that it is started in."""
        names = list(dict.fromkeys(benchmark.task for benchmark in self.benchmarks))
        by_form = {False: [n for n in names if not self.tasks.likelihood(n)],
                   True: [n for n in names if self.tasks.likelihood(n)]}  # fmt: skip
        return [self._run(scale, tasks, simple) for scale in self.scales for simple, tasks in by_form.items() if tasks]

    def _run(self, scale: str, tasks: Sequence[str], simple: bool) -> dict[str, Any]:
        folder = f"scale_{scale}" + ("_likelihood" if simple else "")
        run: dict[str, Any] = {
            "model": MODEL, "model_args": self.subject.model_args(scale, f"{folder}/answers.jsonl"),
            "tasks": ",".join(tasks), "batch_size": self.subject.batch_size, "output_path": folder, "log_samples": True,
            "force_simple": simple,
        }  # fmt: skip
        told = {"include_path": [str(folder.absolute()) for folder in self.include] or None, "limit": self.limit,
                "gen_kwargs": self.generation}  # fmt: skip
        return run | {key: value for key, value in told.items() if value is not None}

    def key(self) -> dict[str, Any]:
        """What parts that are there must have been made from to be taken over."""
        return {"subject_sha256": self.subject.sha256, "runs": self.runs()}


@dataclass(frozen=True)
class Outcome:
    """What came out: task -> metric -> scale -> score as lmms-eval gives it; and the mean tokens that auto spent."""

    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    mean_tokens: Mapping[str, Mapping[str, float]]


def command(config: str) -> list[str]:
    """How lmms-eval is started; an error that it caught would be a run less, and is looked for afterwards."""
    return [sys.executable, "-m", "lmms_eval", "--config", config, "--process_docs_parallel", "1"]


def evaluate(plan: Plan, out: Path, bar: Callable[[str, int], Callable[[int], None]]) -> Outcome:
    """Run what is not there yet, and put it all in place at `out`. `bar` opens one and is told of every run done.

    Raises `CheckFailed` for a run without results, with what went wrong first; `MvlmError` without the plug-in.
    """
    _require_plugin()
    parts = parts_folder(out, plan.key())
    runs = plan.runs()
    (parts / RUNS).write_text(yaml.safe_dump(runs, sort_keys=False), encoding="utf-8")
    left = [run for run in runs if not _results(parts / run["output_path"])]
    for run in left:
        shutil.rmtree(parts / run["output_path"], ignore_errors=True)
        (parts / run["output_path"]).mkdir()
    if left:
        (parts / "left.yaml").write_text(yaml.safe_dump(left, sort_keys=False), encoding="utf-8")
        _start(parts, [parts / run["output_path"] for run in left], bar("evaluating", len(left)))
        (parts / "left.yaml").unlink()
    without = [run["output_path"] for run in runs if not _results(parts / run["output_path"])]
    if without:
        raise CheckFailed(
            f"no results for {', '.join(without)}: {_first_error(parts / LOG)} (all of it: {parts / LOG})"
        )
    outcome = read_outcome(parts, runs)
    _describe(parts, plan, outcome)
    (parts / "key.json").unlink()
    put_in_place(parts, out.absolute())
    return outcome


def _require_plugin() -> None:
    """An entry point is written when a package is installed: one from before that has none."""
    if MODEL not in entry_points(group=ENTRY_POINTS).names:
        raise MvlmError("this mvlm was installed before it had its plug-in for lmms-eval: pip install it again")


def _start(parts: Path, folders: Sequence[Path], advance: Callable[[int], None]) -> None:
    environment, done = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}, 0
    with (parts / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command("left.yaml"), cwd=parts, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None:
                time.sleep(_POLL_S)
                now = sum(_results(folder) is not None for folder in folders)
                advance(now - done)
                done = now
        finally:
            process.kill()


def _results(folder: Path) -> Path | None:
    """lmms-eval's results file of a run, written at its end."""
    return next(iter(sorted(folder.rglob("*_results.json"))), None)


def _first_error(log: Path) -> str:
    """What went wrong first: lmms-eval catches what a run raises, tells of it, and goes on with the next."""
    text = log.read_text(encoding="utf-8", errors="replace")
    found = _ERROR.search(text)
    return found[1][:_MOST_SHOWN] if found else "lmms-eval does not say why"


def read_outcome(folder: Path, runs: Sequence[Mapping[str, Any]]) -> Outcome:
    """Read the results of all runs back."""
    scores: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    spent: dict[str, dict[str, float]] = defaultdict(dict)
    for run in runs:
        place = folder / run["output_path"]
        scale = run["output_path"].split("_")[1]
        results = _results(place)
        assert results is not None
        for task, metrics in json.loads(results.read_text(encoding="utf-8"))["results"].items():
            for named, value in metrics.items():
                metric = named.split(",")[0]
                if isinstance(value, int | float) and not isinstance(value, bool) and "_stderr" not in metric:
                    scores[task].setdefault(metric, {})[scale] = float(value)
        for task, mean in _mean_tokens(place / "answers.jsonl").items():
            spent[task][scale] = mean
    return Outcome(scores, spent)


def _mean_tokens(answers: Path) -> dict[str, float]:
    shown: dict[str, list[int]] = defaultdict(list)
    for line in answers.read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        shown[told["task"]] += told["num_visual_tokens"]
    return {task: sum(tokens) / len(tokens) for task, tokens in shown.items() if tokens}


def _describe(folder: Path, plan: Plan, outcome: Outcome) -> None:
    facts = describe(
        "eval",
        subject=str(plan.subject.folder), subject_sha256=plan.subject.sha256, scales=list(plan.scales),
        benchmarks=[asdict(benchmark) for benchmark in plan.benchmarks], limit=plan.limit,
        lmms_eval=version("lmms_eval"), runs_sha256=sha256_json(plan.runs()),
        scores=outcome.scores, mean_tokens=outcome.mean_tokens,
    )  # fmt: skip
    write_json(folder / "eval.json", facts)
