"""Everything that is wanted of a GPU, in stages: `python -m benchmarks.gpu --out FOLDER`; docs/gpu.md says how.

Each stage is a process of its own with a bound on its time. It writes `FOLDER/gpu_STAGE.json` as it goes, and one that
fails, or is ended, takes nothing from the others. `--rehearse` runs all of them at toy size, on a CPU too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from benchmarks.gpu.record import Record, Told
from export.runtime.artefact import write_json

# Each stage, and how many seconds it may take. In this order: what is wrong is wanted first.
STAGES = {"right": 150, "fast": 150, "labels": 45, "decode": 60, "real": 420}
_REHEARSED_S = 120
_PARTS_FAILED = "parts failed"
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where each stage writes its files.")
@click.option("--stage", "names", type=click.Choice(list(STAGES)), multiple=True, help="Left out, all of them.")
@click.option("--seconds", type=click.IntRange(min=5), help="What each stage may take, instead of its own bound.")
@click.option("--weights", type=_FOLDER, help="A language model, for `real` and `decode`; left out, random weights.")
@click.option("--rows", type=_FOLDER, help="What `real` learns from, as `mvlm data scenes` writes it; left out, drawn.")
@click.option("--rehearse", is_flag=True, help="At toy size: shows that everything runs, and measures nothing.")
@click.option("--here", is_flag=True, hidden=True, help="One stage, in this process.")
def main(
    out: Path, names: tuple[str, ...], seconds: int | None, weights: Path | None, rows: Path | None,
    rehearse: bool, here: bool,
) -> None:  # fmt: skip
    """Run the stages, and end with 1 if one of them failed."""
    out.mkdir(parents=True, exist_ok=True)
    if here:
        run_here(names[0], Told(out, rehearse, seconds or STAGES[names[0]], weights, rows))
        return
    ended = {}
    for name in names or STAGES:
        bound = seconds or (_REHEARSED_S if rehearse else STAGES[name])
        told = Told(out, rehearse, bound, weights, rows)
        ended[name] = run_apart(name, told, command_of(name, told))
        click.echo(f"{name}: {ended[name]}")
    if any(end != "whole" for end in ended.values()):
        sys.exit(1)


def run_here(name: str, told: Told) -> None:
    """Run one stage in this process. Every stage is a module of this package with a function `run`."""
    record = Record(record_file(told.out, name), name)
    record.add(ended="on the way", rehearsal=told.rehearse)
    importlib.import_module(f"benchmarks.gpu.{name}").run(record, told)
    failed = [part for part, found in record.figures.items() if isinstance(found, dict) and "failed" in found]
    record.add(ended=f"{_PARTS_FAILED}: {', '.join(failed)}" if failed else "whole")
    if failed:
        sys.exit(1)


def command_of(name: str, told: Told) -> list[str]:
    """The command line of one stage."""
    return [
        sys.executable, "-m", "benchmarks.gpu", "--here", "--stage", name, "--out", str(told.out),
        "--seconds", str(int(told.seconds)), *(["--rehearse"] if told.rehearse else []),
        *(["--weights", str(told.weights)] if told.weights else []),
        *(["--rows", str(told.rows)] if told.rows else []),
    ]  # fmt: skip


def run_apart(name: str, told: Told, command: list[str]) -> str:
    """Run one stage in a process of its own, and say how it ended: it is stopped when its time is over."""
    began = time.perf_counter()
    log = told.out / f"gpu_{name}.log"
    with log.open("w") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            status = process.wait(timeout=told.seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end_group(process)
    return _written_down(told.out, name, status, time.perf_counter() - began)


def record_file(out: Path, name: str) -> Path:
    return out / f"gpu_{name}.json"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """The stage, and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _written_down(out: Path, name: str, status: int | None, seconds: float) -> str:
    """How the stage ended, written into its file; what it printed stays beside that, unless all went well."""
    file, log = record_file(out, name), out / f"gpu_{name}.log"
    facts = json.loads(file.read_text()) if file.is_file() else {"measured": f"gpu_{name}"}
    if status is None:
        facts["ended"] = "out of time"
    elif status and not str(facts.get("ended")).startswith(_PARTS_FAILED):
        facts["ended"] = f"failed ({status}): {' '.join(log.read_text(errors='replace').split())[-600:]}"
    if facts["ended"] == "whole":
        log.unlink()
    write_json(file, facts | {"seconds_in_all": round(seconds, 1)})
    return facts["ended"]


if __name__ == "__main__":
    main()
