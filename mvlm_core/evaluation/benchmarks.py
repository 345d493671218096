"""The papers' benchmarks (benchmarks.yaml), and every other task of lmms-eval, which is not imported for that."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from export.runtime.errors import MvlmError

LIKELIHOOD = ("loglikelihood", "multiple_choice")
_NAME = re.compile(r"""^(task|group|tag):\s*["']?([\w.-]+)["']?\s*(?:#.*)?$""", re.MULTILINE)
_KIND = re.compile(r"^output_type:\s*[\"']?(\w+)", re.MULTILINE)
_INCLUDE = re.compile(r"^include:\s*[\"']?([\w./-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    Attributes:
        name: as `--tasks` takes it.
        task: as lmms-eval calls it; None stands for "all its metrics", where a task is not of the papers.
        times: what lmms-eval's metric is multiplied by to be in the papers' unit.
        needs: `nothing`, or `a judge`.
        revision: of the data; None where nothing pins one.
    """

    name: str
    title: str
    task: str
    metric: str | None = None
    times: float = 1.0
    needs: str = "nothing"
    split: str = ""
    dataset: str = ""
    revision: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Reported:
    """What a paper reports: benchmark -> visual tokens -> score."""

    title: str
    source: str
    scores: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Known:
    """What benchmarks.yaml says."""

    lmms_eval: str
    benchmarks: Mapping[str, Benchmark]
    groups: Mapping[str, Sequence[str]]
    papers: Sequence[Reported]


@cache
def known() -> Known:
    tree = yaml.safe_load((Path(__file__).parent / "benchmarks.yaml").read_text(encoding="utf-8"))
    benchmarks = {name: Benchmark(name, **facts) for name, facts in tree["benchmarks"].items()}
    papers = [_reported(tree["papers"][name], dict(columns)) for name, columns in tree["reported"].items()]
    return Known(tree["lmms_eval"], benchmarks, tree["groups"], papers)


def _reported(paper: Mapping[str, str], columns: dict[str, list[Any]]) -> Reported:
    tokens = columns.pop("tokens")
    scores = {name: dict(zip(tokens, found, strict=True)) for name, found in columns.items()}
    return Reported(paper["title"], paper["source"], scores)


@dataclass(frozen=True)
class Tasks:
    """The tasks that lmms-eval finds in some folders: name -> what it asks of a model, by `output_type`."""

    kinds: Mapping[str, str]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Tasks:
        """Raises `MvlmError` when lmms-eval is not installed, or a folder is not there."""
        missing = [folder for folder in folders if not folder.is_dir()]
        if missing:
            raise MvlmError(f"there is no folder of tasks {missing[0]}: name one with --include-path")
        own = Path(lmms_eval_folder()) / "tasks"
        return cls({name: kind for folder in (own, *folders) for name, kind in _tasks_in(folder)})

    def choose(self, text: str) -> list[Benchmark]:
        """The benchmarks that `--tasks` names: groups and benchmarks of the papers, and tasks of lmms-eval.

        Raises `MvlmError` naming what is unknown, with the nearest name.
        """
        names = [name for part in text.split(",") for name in known().groups.get(part.strip(), [part.strip()])]
        unknown = [name for name in names if name not in known().benchmarks and name not in self.kinds]
        if unknown:
            there = [*known().groups, *known().benchmarks, *self.kinds]
            near = difflib.get_close_matches(unknown[0], there, 1)
            hint = (
                f"did you mean {near[0]}?" if near else f"there are {', '.join(known().groups)} and lmms-eval's tasks"
            )
            raise MvlmError(f"there is no task {', '.join(map(repr, unknown))}: {hint}")
        return [known().benchmarks.get(name) or Benchmark(name, name, name) for name in dict.fromkeys(names)]

    def likelihood(self, task: str) -> bool:
        """Whether a task scores given answers; lmms-eval's chat form knows no such tasks."""
        return self.kinds.get(task, "") in LIKELIHOOD


def lmms_eval_folder() -> str:
    """Where lmms-eval is installed. Raises `MvlmError` that says how to install it, or what keeps it from starting."""
    found = importlib.util.find_spec("lmms_eval")
    if found is None or not found.submodule_search_locations:
        raise MvlmError(
            f'lmms-eval is not installed: pip install "mvlm[benchmark]" && pip install --no-deps'
            f" lmms-eval=={known().lmms_eval} (with all that it names, it would bring hundreds of packages)"
        )
    if importlib.util.find_spec("filelock._api") is None:  # lmms-eval imports it when it starts, models loaded and all
        raise MvlmError(
            f"lmms-eval {known().lmms_eval} does not start with filelock {version('filelock')}:"
            ' pip install "filelock>=3.16,<4"'
        )
    return str(found.submodule_search_locations[0])


def _tasks_in(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        for _, name in _NAME.findall(text):
            yield name, _kind(file, text)


def _kind(file: Path, text: str) -> str:
    """The `output_type` of a task, which may stand in a file that it includes."""
    if found := _KIND.search(text):
        return found[1]
    included = _INCLUDE.search(text)
    beside = file.parent / included[1] if included else None
    if beside is None or not beside.is_file() or beside == file:
        return "generate_until"
    return _kind(beside, beside.read_text(encoding="utf-8", errors="replace"))
