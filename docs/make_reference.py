"""Write docs/reference from the code: `python docs/make_reference.py`. A test holds the pages to what this writes."""

from __future__ import annotations

import importlib
import inspect
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

FOLDER = Path(__file__).parent / "reference"
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
MADE = "Made from the code by `docs/make_reference.py`.\n"


def verbs() -> str:
    """Every verb with its help, as the terminal shows it."""
    from mvlm_core.cli import VERBS, main

    parts = ["# Verbs\n", MADE]
    context = click.Context(main, info_name="mvlm")
    for name in VERBS:
        command = main.get_command(context, name)
        assert command is not None
        for words, one in _with_commands(name, command):
            told = one.get_help(click.Context(one, info_name=words, parent=context, terminal_width=110)).rstrip()
            parts.append(f"## {words}\n\n```text\n{told}\n```\n")
    return "\n".join(parts)


def _with_commands(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for sub in command.list_commands(click.Context(command)):
            one = command.get_command(click.Context(command), sub)
            assert one is not None
            yield f"{name} {sub}", one
    else:
        yield name, command


def configuration() -> str:
    """Every key of train.yaml: its type, its default, and what its class says of it."""
    from mvlm_core.train.config import TrainConfig

    said = "`train.yaml` of `mvlm train`; a key may be set on the command line too, as `stages.0.steps=100`.\n"
    parts = ["# Configuration\n", MADE, said]
    seen: set[type[BaseModel]] = set()
    waiting: list[tuple[str, type[BaseModel]]] = [("train.yaml", TrainConfig)]
    while waiting:
        where, model = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        parts.append(f"## {where}\n\n```text\n{inspect.cleandoc(model.__doc__ or '')}\n```\n")
        rows = ["| key | type | default |", "|---|---|---|"]
        for key, field in model.model_fields.items():
            rows.append(f"| `{key}` | `{_type(field.annotation)}` | {_default(field)} |".replace("\n", " "))
            waiting += [(f"{key} of {where}", inner) for inner in _models(field.annotation)]
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _type(annotation: Any) -> str:
    """A type as a reader of YAML thinks of it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_type, inner)))
    if origin in (tuple, list):
        kinds = dict.fromkeys(_type(one) for one in inner if one is not Ellipsis)
        return "list of " + " or ".join(kinds)
    if origin is dict:
        return f"mapping of {_type(inner[0])} to {_type(inner[1])}"
    return (
        "nothing" if annotation is type(None) else _PLAIN.get(annotation, getattr(annotation, "__name__", "anything"))
    )


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required" if field.default_factory is None else "empty"
    told = str(field.default) if isinstance(field.default, Path) else repr(field.default)
    return "its own" if isinstance(field.default, BaseModel) else f"`{told}`"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def runtime() -> str:
    """What `export.runtime` offers an app, from its docstrings."""
    package = importlib.import_module("export.runtime")
    parts = ["# Runtime API\n", MADE, "How to use it: [the runtime](../runtime.md).\n"]
    for name in package.__all__:
        offered = getattr(package, name)
        parts.append(f"## {name}\n\n```text\n{inspect.getdoc(offered) or ''}\n```\n")
        for method, value in sorted(vars(offered).items()):
            function = getattr(value, "__func__", value)
            if method.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
                continue
            signature = str(inspect.signature(function)).replace("'", "")
            parts.append(f"### {name}.{method}\n\n```text\n{method}{signature}\n\n{inspect.getdoc(function)}\n```\n")
    return "\n".join(parts)


def errors() -> str:
    """Every code and every message of an error, from the sources."""
    page: str = runpy.run_path(str(Path(__file__).with_name("error_messages.py")))["page"]()
    return page


PAGES = {"verbs.md": verbs, "configuration.md": configuration, "runtime.md": runtime, "errors.md": errors}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
