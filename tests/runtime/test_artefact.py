"""Folders are whole or absent, and say what they are."""

import json

import pytest

from export.runtime import artefact
from export.runtime.artefact import FORMAT_VERSION, describe, output_folder, read_artefact, sha256_json, write_json
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
