"""A hook of mkdocs: plots lie with the figures that they show, outside of docs/, and the site takes them from there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).parents[1]
_RESULTS = _ROOT / "benchmarks" / "results"


def on_files(files: Files, config: Any) -> Files:
    for path in sorted([*_RESULTS.glob("*.png"), *_RESULTS.glob("*.json")]):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    return re.sub(r"\]\((?:\.\./)+benchmarks/results/", "](results/", markdown)
