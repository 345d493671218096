"""Which code a figure measures, as a hash: of its module and of all modules of this project that those import.

Comments, docstrings and layout do not count. What is imported inside functions counts, and what is named as
`package.module:command` too: the verbs are found so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from export.runtime.artefact import sha256_json

ROOT = Path(__file__).parents[1]
_OURS = ("benchmarks", "export", "mvlm_core", "router")
_NAMED = re.compile(rf"({'|'.join(_OURS)})(\.\w+)+(:\w+)?")
_MODULE = re.compile(r"-m (benchmarks[\w.]*)(?: --stage (\w+))?")


def module_of(command: str) -> str | None:
    """The module that a command runs, as in `python -m benchmarks.decode --size tiny`; of a stage, the stage's."""
    found = _MODULE.search(command)
    return ".".join(filter(None, found.groups())) if found else None


@cache
def code_sha256(module: str, root: Path = ROOT) -> str:
    """The hash of a module, and of what it imports of this project."""
    seen: dict[str, str] = {}
    waiting = [module, f"{module}.__main__"]
    while waiting:
        name = waiting.pop()
        file = _file_of(name, root)
        if file is None or name in seen:
            continue
        seen[name], imported = _read(file, name)
        waiting += imported
        parents = name.split(".")[:-1]
        waiting += [".".join(parents[: n + 1]) for n in range(len(parents))]
    folders = {file.parent for name in seen if (file := _file_of(name, root))}
    told = {path.relative_to(root).as_posix(): path.read_text() for at in folders for path in sorted(at.glob("*.yaml"))}
    return sha256_json(dict(sorted((seen | told).items())))


def is_stale(figures: Mapping[str, Any]) -> bool:
    """Whether another code was measured than stands here; of a file that does not say which, nobody knows: stale."""
    module = module_of(figures["command"])
    return module is None or figures.get("code") != code_sha256(module)


def _file_of(name: str, root: Path) -> Path | None:
    place = root.joinpath(*name.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _read(file: Path, name: str) -> tuple[str, list[str]]:
    """The code of a file without what is said about it, and the names of this project that it imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            imported += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAMED.fullmatch(node.value):
            imported.append(node.value.partition(":")[0])
        _without_docstring(node)
    return ast.dump(tree), [name for name in imported if name.split(".")[0] in _OURS]


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _without_docstring(node: ast.AST) -> None:
    body = getattr(node, "body", None)
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and body and isinstance(body[0], ast.Expr):
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            body[0].value = ast.Constant("")
