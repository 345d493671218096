"""Which messages of errors the tests raise: noted while they run, and held against all that the sources make.

`python -m tests.support.messages FOLDER` reads what runs of the tests left in a folder (`MVLM_MESSAGES=FOLDER`) and
ends with status 1 where a message was raised by none of them that unreached.json gives no reason for.
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


def keep(made: Iterable[Place], folder: Path) -> None:
    """Leave what a process noted, beside what others did."""
    folder.mkdir(parents=True, exist_ok=True)
    held = sorted((Path(file).relative_to(ROOT).as_posix(), line) for file, line in made if file.startswith(f"{ROOT}/"))
    (folder / f"{os.getpid()}.json").write_text(json.dumps(held))


def unreached(made: set[Place]) -> Iterator[Any]:
    """The messages that were never made."""
    for message in SOURCES["messages"]():
        if not any((message.file, line) in made for line in range(message.first_line, message.last_line + 1)):
            yield message


def main(folder: Path) -> int:
    made = {(file, line) for kept in folder.glob("*.json") for file, line in json.loads(kept.read_text())}
    reasons: dict[str, dict[str, str]] = json.loads(UNREACHED.read_text())
    left = [m for m in unreached(made) if m.text not in reasons.get(m.file, {})]
    for message in left:
        print(f"{message.file}:{message.first_line}: no test raises {message.text!r}")
    print(f"{len(list(SOURCES['messages']()))} messages, {len(left)} that no test raises")
    return 1 if left or not made else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
