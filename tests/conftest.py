"""Shared fixtures: everything here is tiny, drawn and offline."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result

from export.runtime import Runtime
from mvlm_core.cli import main
from tests.support import messages, translations

if TYPE_CHECKING:
    from tests.support.bundles import Made

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The same cases in every run, so that a run fails by what was changed; HYPOTHESIS_PROFILE=other draws others.
with suppress(ImportError):  # the smoke tests run without it
    from hypothesis import settings

    settings.register_profile("same", derandomize=True)
    settings.register_profile("other", derandomize=False)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


_made: set[messages.Place] = set()  # which messages of errors the tests raise, here and in the workers of xdist
_lines = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    messages.watch(_made)
    if folder := os.environ.get("MVLM_MESSAGES"):
        config.add_cleanup(lambda: messages.keep(_made, Path(folder)))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """A worker of xdist has ended: take over what it noted."""
    noted = getattr(node, "workeroutput", {}).get("messages", [])
    _made.update((str(messages.ROOT / file), line) for file, line in noted)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run of all tests names the messages of errors that none of them raised, and with MVLM_MESSAGES_HELD=1 fails."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["messages"] = messages.plain(_made)
        return
    some = config.getoption("keyword") or config.getoption("markexpr") or config.getoption("collectonly")
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not some
    if whole and session.exitstatus == pytest.ExitCode.OK:
        config.stash[_lines] = messages.left(set(messages.plain(_made)))
        if config.stash[_lines] and os.environ.get("MVLM_MESSAGES_HELD"):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if lines := config.stash.get(_lines, []):
        terminalreporter.section("messages of errors that no test raises")
        terminalreporter.write_line("\n".join(lines))


def pytest_collection_finish() -> None:
    if "torch" in sys.modules:  # which some test files do without
        translations.read_once()


@pytest.fixture
def mvlm():
    """Run a verb as a person would, and return what it printed and its exit status."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """A small drawn benchmark with its train.yaml beside it; read only."""
    folder = tmp_path_factory.mktemp("scenes")
    result = CliRunner().invoke(
        main, ["data", "scenes", "--out", str(folder / "rows"), "--train", "30", "--val", "12", "--test", "12"]
    )
    assert result.exit_code == 0, result.output
    return folder / "rows"


@pytest.fixture(scope="module", params=["pool", "nested_pool", "query"])
def made(request) -> Made:
    """A tiny run, its rows, router and bundle, of each family."""
    from tests.support.bundles import FAMILIES  # torch, which most test files do without

    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def runtime(made) -> Runtime:
    return Runtime.load(made.bundle, threads=1)


def rewrite_rows(folder: Path, change) -> Path:
    """Write `rows.jsonl` again with `change` applied to the list of rows; returns the folder."""
    file = folder / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    return folder
