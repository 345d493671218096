"""Which messages of errors the tests raise: noted while they run, and held against all that the sources make.

A run of all tests names the messages that none of them raised and unreached.json gives no reason for, and fails with
MVLM_MESSAGES_HELD=1 (see conftest.py). Of runs of some tests, `MVLM_MESSAGES=FOLDER` keeps what each noted, and
`python -m tests.support.messages FOLDER` says what is left.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from export.runtime.errors import MvlmError

ROOT = Path(__file__).parents[2]
SOURCES = runpy.run_path(str(ROOT / "docs" / "error_messages.py"))
UNREACHED = Path(__file__).with_name("unreached.json")
Place = tuple[str, int]


def watch(made: set[Place]) -> None:
    """From now on, note in `made` the file and line of each error that the sources make."""
    init = MvlmError.__init__

    def noting(self: MvlmError, *arguments: Any, **options: Any) -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_name == "__init__" and isinstance(frame.f_locals.get("self"), MvlmError) and frame.f_back:
            frame = frame.f_back  # the constructors of kinds of it
        made.add((frame.f_code.co_filename, frame.f_lineno))
        init(self, *arguments, **options)

    MvlmError.__init__ = noting  # type: ignore[method-assign]


def plain(made: Iterable[Place]) -> list[Place]:
    """The places in the project, by their files' names under it."""
    return sorted((Path(file).relative_to(ROOT).as_posix(), line) for file, line in made if file.startswith(f"{ROOT}/"))


def keep(made: Iterable[Place], folder: Path) -> None:
    """Leave what a process noted, beside what others did."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{os.getpid()}.json").write_text(json.dumps(plain(made)))


def unreached(made: set[Place]) -> Iterator[Any]:
    """The messages that were never made."""
    for message in SOURCES["messages"]():
        if not any((message.file, line) in made for line in range(message.first_line, message.last_line + 1)):
            yield message


def left(made: set[Place]) -> list[str]:
    """A line for each message that was not made, and that unreached.json gives no reason for."""
    reasons: dict[str, dict[str, str]] = json.loads(UNREACHED.read_text())
    return [
        f"{message.file}:{message.first_line}: no test raises {message.text!r}"
        for message in unreached(made)
        if message.text not in reasons.get(message.file, {})
    ]


def main(folder: Path) -> int:
    made = {(file, line) for kept in folder.glob("*.json") for file, line in json.loads(kept.read_text())}
    lines = left(made)
    print(*lines, f"{len(list(SOURCES['messages']()))} messages, {len(lines)} that no test raises", sep="\n")
    return 1 if lines or not made else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
