"""Folders are whole or absent, and say what they are."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import pytest

from export.runtime import artefact, durable
from export.runtime.artefact import (
    FORMAT_VERSION,
    describe,
    output_folder,
    place_beside,
    place_said,
    read_artefact,
    refuse_if_filled,
    sha256_json,
    write_json,
)
from export.runtime.errors import CheckFailed, MvlmError


def test_a_folder_appears_when_it_is_whole(tmp_path):
    out = tmp_path / "a" / "out"
    with output_folder(out) as folder:
        (folder / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_folder_that_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with output_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("x")
            raise CheckFailed("no")

    with pytest.raises(CheckFailed):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_filled_folder_is_replaced_only_when_asked_and_only_when_the_new_is_whole(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("x")
    with pytest.raises(MvlmError, match="is not empty"), output_folder(out):
        pass
    with pytest.raises(KeyError), output_folder(out, overwrite=True):
        raise KeyError
    assert (out / "old").exists()
    with output_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("y")
    assert [path.name for path in out.iterdir()] == ["new"]
    with pytest.raises(MvlmError, match="is a file"), output_folder(out / "new"):
        pass


class Killed(BaseException):
    pass


def kill_at(monkeypatch, owner, name: str, number: int) -> None:
    """Let the process end, as by SIGKILL, at the n-th call of something."""
    real, calls = getattr(owner, name), []

    def call(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


def replace(out) -> None:
    with output_folder(out, overwrite=True) as folder:
        (folder / "new").write_text("y")


@pytest.mark.parametrize("exchanges", [True, False], ids=["names are exchanged", "names are given one by one"])
@pytest.mark.parametrize(("owner", "name", "number"), [(Path, "rename", 1), (Path, "rename", 2), (shutil, "rmtree", 1)])
def test_killed_while_it_replaces_a_folder(tmp_path, monkeypatch, exchanges, owner, name, number):
    """There is a whole folder under the name, or the next one gives the name back; and nothing stays beside it."""
    out = tmp_path / "out"
    with output_folder(out) as folder:
        (folder / "old").write_text("x")
    if exchanges and not durable.exchange(tmp_path, tmp_path):
        pytest.skip("this system cannot exchange two names")
    with monkeypatch.context() as patched:
        if not exchanges:
            patched.setattr(artefact, "exchange", lambda one, other: False)
        patched.setattr(os, "getpid", lambda: 2**22 + 1)  # of no process that runs
        kill_at(patched, owner, name, number)
        with contextlib.suppress(Killed):
            replace(out)
    if exchanges:
        assert len(list(out.iterdir())) == 1
    with pytest.raises(MvlmError, match="is not empty"), output_folder(out):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] in (["old"], ["new"])


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    beside = [tmp_path / f".out.{os.getppid()}.partial", tmp_path / ".out.x.partial", tmp_path / ".out.1.else"]
    for folder in beside:
        folder.mkdir()
    with output_folder(tmp_path / "out"):
        pass
    assert all(folder.is_dir() for folder in beside)


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(durable, "sync", lambda path: synced.append((path.name, (tmp_path / "out").exists())))
    with output_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("x")
        (folder / "deep").mkdir()
        (folder / "deep" / "other").write_text("x")
        (folder / "link").symlink_to("nowhere")
    assert {name for name, there in synced if not there} >= {"file", "deep", "other"}
    assert not any(there for _, there in synced)


def test_what_a_link_stands_for_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    for text in ("first", "second"):
        with output_folder(tmp_path / "link", overwrite=True) as folder:
            (folder / "a").write_text(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "far" / "a").read_text() == text
    assert {path.name for path in tmp_path.iterdir()} == {"far", "link"}


def test_what_is_no_folder_is_not_written_over(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MvlmError, match="is a file, and a folder is to be written there"):
        refuse_if_filled(tmp_path / "pipe", overwrite=True)


def test_an_artefact_describes_itself(tmp_path):
    write_json(tmp_path / "labels.json", describe("labels", scales=[1]))
    facts = read_artefact(tmp_path, "labels")
    assert facts["scales"] == [1]
    assert facts["versions"]["mvlm"]
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no labels.json"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "does not describe a labels folder"),
        (json.dumps({"artefact": "rows"}), "does not describe a labels folder"),
        (json.dumps({"artefact": "labels", "format_version": FORMAT_VERSION + 1}), "upgrade mvlm"),
        (json.dumps({"artefact": "labels"}), "has format None"),
    ],
)
def test_what_does_not_describe_an_artefact(tmp_path, text, message):
    if text is not None:
        (tmp_path / "labels.json").write_text(text)
    with pytest.raises(MvlmError, match=message):
        read_artefact(tmp_path, "labels")


def test_a_description_of_absurd_size(tmp_path, monkeypatch):
    write_json(tmp_path / "labels.json", describe("labels"))
    monkeypatch.setattr(artefact, "_JSON_LIMIT_BYTES", 10)
    with pytest.raises(MvlmError, match="larger than"):
        read_artefact(tmp_path, "labels")


def test_where_things_lie_is_said_beside_the_folder_and_read_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "project" / "my rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    said = place_beside(Path("my rows"), Path("labels"))
    assert said == "../my rows"
    assert place_beside(tmp_path / "far", Path("labels")) == str(tmp_path / "far")
    for here, labels in ((".", "labels"), ("..", "project/labels")):
        monkeypatch.chdir(here)
        assert place_said(Path(labels), said) == Path(labels).parent / "my rows"
    monkeypatch.chdir("project")
    assert place_said(Path("labels"), "my rows") == Path("my rows")  # as labels of before say it
    assert place_said(Path("labels"), str(tmp_path / "far")) == tmp_path / "far"
    assert place_said(Path("labels"), "../gone") == Path("gone")
