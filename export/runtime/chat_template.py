"""A chat template, rendered as transformers renders it: in jinja2's sandbox, within bounds of time and size.

A template comes with a model, so it is a program of whoever made the model. The sandbox keeps it from Python's insides;
the bounds keep it from running or growing without end.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import MvlmError

_PROBE = "what is it?"
MOST_TEMPLATE_CHARACTERS = 256_000
_MOST_CHARACTERS = 4_000_000  # of a rendered conversation
_SECONDS = 2.0
_MOST_FACTOR = 10_000


class ChatTemplate:
    """A template and the special tokens that it may name, as `bos_token`."""

    def __init__(self, text: str, special_tokens: Mapping[str, str] | None = None) -> None:
        """Raises `MvlmError` for a template that is too long or no template."""
        if len(text) > MOST_TEMPLATE_CHARACTERS:
            raise MvlmError(
                f"the chat template has {len(text)} characters: at most {MOST_TEMPLATE_CHARACTERS} are read",
                code="bad-template",
            )
        self.text, self.special_tokens = text, dict(special_tokens or {})
        try:
            self._template = _Sandbox().from_string(text)
        except (TemplateError, RecursionError) as error:
            raise MvlmError(f"the chat template is none ({_line(error)}): mend it", code="bad-template") from None

    def takes_texts(self) -> bool:
        """Whether content may be a text alone: some templates look through its parts, and would show nothing of it."""
        try:
            return _PROBE in self.render([{"role": "user", "content": _PROBE}])
        except MvlmError:
            return False

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation, ready for an answer.

        Raises `MvlmError` for a conversation that the template refuses (`bad-messages`), and for a template that takes
        too long or makes too much of it (`bad-template`).
        """
        parts, size = [], 0
        given = {**self.special_tokens, "messages": list(messages), "add_generation_prompt": add_generation_prompt}
        try:
            with _time_bounded(_SECONDS):
                for part in self._template.generate(tools=None, documents=None, **given):
                    size += len(part)
                    if size > _MOST_CHARACTERS:
                        raise _Unbounded(f"makes more than {_MOST_CHARACTERS} characters of a conversation")
                    parts.append(part)
        except _Unbounded as error:
            raise MvlmError(f"the chat template {error}: mend it", code="bad-template") from None
        except Exception as error:  # a template may fail in any way that Python can
            raise MvlmError(
                f"the chat template refuses this conversation ({_line(error)}): other roles, or another order, may do",
                code="bad-messages",
            ) from None
        return "".join(parts)


class _Unbounded(Exception):
    """Not an error of the conversation: the template does not end, or grows."""


class _Generation(Extension):
    """`{% generation %}` marks what training supervises; what is rendered is what stands inside."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way to declare it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Products and sums of texts grow only so far."""
        sizes = [len(value) if hasattr(value, "__len__") else abs(value) for value in (left, right) if _sized(value)]
        is_long = any(hasattr(value, "__len__") for value in (left, right))
        if operator == "**" and max(sizes, default=0) > _MOST_FACTOR:
            raise _Unbounded("raises to a power that is too large")
        if operator == "*" and is_long and len(sizes) == 2 and sizes[0] * sizes[1] > _MOST_CHARACTERS:
            raise _Unbounded("repeats a text too often")
        if operator == "+" and is_long and sum(sizes) > _MOST_CHARACTERS:
            raise _Unbounded("makes a text that is too long")
        return super().call_binop(context, operator, left, right)


def _sized(value: Any) -> bool:
    return hasattr(value, "__len__") or isinstance(value, int | float)


@contextmanager
def _time_bounded(seconds: float) -> Iterator[None]:
    """Raise `_Unbounded` at the first line of Python that runs after so long; a template is compiled to Python."""
    until = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if time.monotonic() > until:
            raise _Unbounded(f"takes more than {seconds:g} s for a conversation")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def _raise(message: object) -> None:
    raise TemplateError(str(message))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """As transformers': jinja2's own escapes what HTML would misread."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise SecurityError("tojson indents by at most 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _line(error: BaseException) -> str:
    return " ".join(f"{error}".split())[:160] or type(error).__name__
