"""The page to try a server on: one document, joined from its parts once."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@cache
def page() -> str:
    """HTML that asks for nothing else."""
    html = (_FOLDER / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{ (\S+) \}\}", lambda part: (_FOLDER / part[1]).read_text(encoding="utf-8"), html)
