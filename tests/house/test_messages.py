"""The page of errors is whole, and the note of which messages the tests raise is a true one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from export.bundle.refused import Refused
from export.runtime.errors import CheckFailed, MvlmError
from export.runtime.request import request_of
from export.runtime.serve.body import BadField
from export.runtime.serve.fields import longest_of
from tests.support import messages

MESSAGES = list(messages.SOURCES["messages"]())


def test_every_code_has_a_meaning_and_every_meaning_a_code():
    assert {one.code for one in MESSAGES if one.code} == set(messages.SOURCES["CODES"])


def test_every_kind_of_error_is_on_the_page():
    kinds, waiting = set(), [MvlmError]
    while waiting:
        kind = waiting.pop()
        kinds.add(kind.__name__)
        waiting += [sub for sub in kind.__subclasses__() if not sub.__module__.startswith("tests")]
    assert kinds == set(messages.SOURCES["CLASSES"])
    for kind, code in (
        (MvlmError("a"), "bad-input"),
        (CheckFailed("a"), "check-failed"),
        (BadField("a", "b"), "bad-option"),
        (Refused("a", {}), "check-failed"),
    ):
        assert messages.SOURCES["CLASSES"][type(kind).__name__] == kind.code == code


def test_what_is_raised_is_noted_and_what_is_not_is_named(tmp_path, monkeypatch, capsys):
    made: set = set()
    monkeypatch.setattr(MvlmError, "__init__", MvlmError.__init__)  # put back when the test ends
    messages.watch(made)
    for wrong in (lambda: request_of("", 9, {}), lambda: longest_of(0, "max_tokens")):
        with pytest.raises(MvlmError):
            wrong()
    messages.keep(made, tmp_path / "noted")
    assert messages.main(tmp_path / "noted") == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("export/runtime/")]
    assert not [line for line in said if "fields.py" in line and "give a whole number from 1 up" in line]
    assert not [line for line in said if "request.py" in line and "the question is empty" in line]
    assert [line for line in said if "request.py" in line and "the seed is" in line]


@pytest.mark.parametrize(("held", "status"), [("", 0), ("1", 1)])
def test_a_run_of_all_tests_names_what_none_raises(tmp_path, held, status):
    """With the workers of xdist, and where it is to be held it fails; a run of some tests says nothing."""
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "conftest.py").write_text("from tests.conftest import *\n")
    (tmp_path / "suite" / "test_one.py").write_text("def test_one(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntestpaths = suite\n")
    for more, said, ends in ((("-n", "1"), True, status), (("-k", "one"), False, 0)):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *more],
            cwd=tmp_path, env=os.environ | {"MVLM_MESSAGES_HELD": held, "PYTHONPATH": str(messages.ROOT)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == ends, done.stdout + done.stderr
        assert ("no test raises 'the question is empty: ask something'" in done.stdout) == said


def test_reasons_are_of_messages_that_there_are():
    there = {(one.file, one.text) for one in MESSAGES}
    reasons = json.loads(messages.UNREACHED.read_text())
    assert {(file, text) for file, held in reasons.items() for text in held} <= there
