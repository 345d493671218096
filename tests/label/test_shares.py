"""A sweep shared out among processes: whoever does what part, and whoever dies, the labels are those of one process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from export.runtime.artefact import read_artefact
from export.runtime.errors import MvlmError
from mvlm_core.label import resumable
from mvlm_core.label import sweep as sweeping
from mvlm_core.label.resumable import finished, parts_folder
from mvlm_core.label.shares import Share, own_device, own_share
from mvlm_core.label.sweep import Sweep, label

FILES = ("labels.parquet", "features.parquet", "patches.parquet", "questions.parquet", "words.parquet",
         "projection.npy", "ood_probes.parquet", "asked.parquet")  # fmt: skip


def sweep(run: Path, rows: Path) -> Sweep:
    return Sweep(run, rows, (1, 9), ("val", "test"), pictures_per_part=5)


def done(run: Path, rows: Path, out: Path, share: Share) -> dict:
    return label(sweep(run, rows), out, overwrite=False, progress=lambda done, whole: None, share=share)


@pytest.fixture(scope="module")
def alone(run, scenes, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "labels"
    done(run, scenes, out, Share())
    return out


def same(one: Path, other: Path) -> None:
    for name in FILES:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture
def parts_done(monkeypatch) -> list[str]:
    """The first picture of each part that is computed."""
    told: list[str] = []
    compute = sweeping.sweep_pictures

    def counting(model, processor, pictures, *rest):
        told.append(pictures[0].rows[0].id)
        return compute(model, processor, pictures, *rest)

    monkeypatch.setattr(sweeping, "sweep_pictures", counting)
    return told


def test_every_part_has_one_process_and_the_first_comes_to_all():
    starts = range(0, 50, 5)
    of = [list(Share(rank, 3).parts(starts)) for rank in range(3)]
    assert of[0][:4] == [0, 15, 30, 45]
    assert sorted(of[0]) == list(starts)
    assert of[0][4] == 40
    assert sorted(of[0][:4] + of[1] + of[2]) == list(starts)


def test_two_processes_make_what_one_makes(run, scenes, alone, tmp_path, parts_done):
    """The second one first: it settles by itself what the first part decides."""
    out = tmp_path / "labels"
    parts_folder(out, key_of(run, scenes))
    assert done(run, scenes, out, Share(1, 2)) == {}
    assert not out.exists()
    of_second = list(parts_done)
    facts = done(run, scenes, out, Share(0, 2))
    assert facts["counts"]["groups"] == 24
    assert len(parts_done) == len(set(parts_done)) == 5
    assert len(of_second) == 2
    same(alone, out)
    assert done(run, scenes, out, Share(1, 2)) == {}  # too late to do anything


def key_of(run: Path, rows: Path) -> dict:
    from dataclasses import replace

    from mvlm_core.checkpoints.run_folder import load_run
    from mvlm_core.data.pictures import pictures_sha256
    from mvlm_core.data.reading import read_rows
    from mvlm_core.data.row import single_questions

    asked = single_questions([row for row in read_rows(rows) if row.split in ("val", "test")])
    held = pictures_sha256(picture for row in asked for picture in row.pictures)
    most = sweeping.new_tokens(load_run(run)[1], asked)
    return replace(sweep(run, rows), max_new_tokens=most, pictures_sha256=held).key()


def test_the_first_does_what_others_died_over(run, scenes, alone, tmp_path):
    done(run, scenes, tmp_path / "labels", Share(0, 3))
    same(alone, tmp_path / "labels")


def test_a_process_whose_last_part_was_done_by_the_first(run, scenes, alone, tmp_path, monkeypatch):
    """All is put together, and its folder gone, before it can write."""
    out = tmp_path / "labels"
    folder = parts_folder(out, key_of(run, scenes))
    compute = sweeping.sweep_pictures

    def meanwhile(*given):
        found = compute(*given)
        shutil.copytree(alone, out)
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(sweeping, "sweep_pictures", meanwhile)
    assert done(run, scenes, out, Share(1, 2)) == {}

    def lost(*given):
        found = compute(*given)
        shutil.rmtree(folder)
        return found

    shutil.rmtree(out)
    parts_folder(out, key_of(run, scenes))
    monkeypatch.setattr(sweeping, "sweep_pictures", lost)
    with pytest.raises(FileNotFoundError):
        done(run, scenes, out, Share(1, 2))


def test_nobody_waits_for_a_first_process_that_does_not_come(run, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "_PATIENCE_S", 0.0)
    with pytest.raises(
        MvlmError, match=r"the first process has made no .* start all processes of a sweep with the same"
    ):
        done(run, scenes, tmp_path / "labels", Share(1, 2))
    assert not finished(tmp_path / "labels", {})


def test_what_torchrun_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert own_share() == Share(0, 1)
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(MvlmError, match="RANK is 3 and WORLD_SIZE 1: start processes with torchrun"):
        own_share()
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(MvlmError, match="WORLD_SIZE many"):
        own_share()
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_share() == Share(3, 8)
    assert [own_device(name) for name in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]


@pytest.mark.slow
def test_by_torchrun(run, scenes, tmp_path):
    def labelled(name: str, *launcher: str) -> Path:
        words = [sys.executable, *launcher, "-m", "mvlm_core.cli", "label", run, "--rows", scenes, "--scales", "1,9"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        told = subprocess.run(
            [*map(str, words), "--out", str(tmp_path / name)], capture_output=True, text=True, timeout=300, check=False,
            env=environment,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        assert told.stdout.count("next: mvlm fit-router") == 1
        return tmp_path / name

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    together = labelled("together", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port))
    same(labelled("alone"), together)
    assert read_artefact(together, "labels")["max_rows"] is None
