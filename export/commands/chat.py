"""The verb `chat`: a running conversation with a bundle in the terminal. It knows no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from export.runtime.errors import MvlmError
from export.runtime.views.scale import Scale, is_word

from .opened import opened

_HELP = "/image PATH shows a picture with the next question, /new forgets what was said, /quit (or Ctrl-D) ends"


@click.command()
@click.argument("named", metavar="[BUNDLE]", type=click.Path(path_type=Path), required=False)
@click.option("--bundle", type=click.Path(path_type=Path), default=Path("bundle"), show_default=True)
@click.option("--provider", default="cpu", show_default=True)
@click.option("--threads", type=int, help="Left out: as many as cores.")
@click.option(
    "--scale", default="auto", show_default=True, help="auto, or how many visual tokens a picture is shown in."
)
@click.option("--system", help="What the model is told before anything else.")
@click.option("--max-new-tokens", type=int, default=256, show_default=True)
def chat(
    named: Path | None, bundle: Path, provider: str, threads: int | None, scale: str, system: str | None,
    max_new_tokens: int,
) -> None:  # fmt: skip
    """Talk with a bundle about pictures: each line is a question, and what was said before is remembered.

    \b
    Example:
      mvlm chat bundle
    """
    if named is not None:
        if click.get_current_context().get_parameter_source("bundle") is not ParameterSource.DEFAULT:
            raise MvlmError(f"two bundles are named, {named} and {bundle}: name one")
        bundle = named
    if scale != "auto" and not is_word(scale):
        raise MvlmError(
            f"--scale {scale!r} is neither auto nor a number of visual tokens, with tiles 16@4", code="bad-scale"
        )
    runtime = opened(bundle, provider, threads, routed=scale == "auto")
    _ = runtime.chats  # a bundle without a template is refused before anything is asked
    talk = _Talk(runtime, scale if scale == "auto" else Scale.parse(scale).word, system, max_new_tokens)
    click.secho(_HELP, err=True, dim=True)
    while (line := _line()) is not None and line != "/quit":
        try:
            talk.take(line)
        except MvlmError as error:  # a slip is no reason to lose the conversation
            click.secho(str(error), err=True, fg="red")


class _Talk:
    """The messages so far, and the pictures that go with the next question."""

    def __init__(self, runtime: Any, scale: Any, system: str | None, longest: int) -> None:
        self._runtime, self._scale, self._longest = runtime, scale, longest
        self._system = [{"role": "system", "content": system}] if system else []
        self._said: list[dict[str, Any]] = []
        self._shown: list[Any] = []

    def take(self, line: str) -> None:
        """A command, or a question."""
        word, _, rest = line.partition(" ")
        if word == "/image":
            self._shown.append(self._runtime.look(Path(rest.strip())))
        elif word == "/new":
            self._said, self._shown = [], []
        elif word.startswith("/"):
            raise MvlmError(f"there is no {word}: {_HELP}")
        elif line.strip():
            self._ask(line)

    def _ask(self, question: str) -> None:
        content = [*({"type": "image", "image": view} for view in self._shown), {"type": "text", "text": question}]
        said = [*self._said, {"role": "user", "content": content}]
        with self._runtime.stream_chat(
            [*self._system, *said], self._scale, truncate="oldest", max_new_tokens=self._longest
        ) as stream:
            for piece in stream:
                click.echo(piece, nl=False)
            answer = stream.answer
        click.echo()
        dropped = f"; {answer.dropped_turns} earlier messages did not fit" if answer.dropped_turns else ""
        shown = f"; pictures in {', '.join(map(str, answer.scales))} tokens" if len(answer.scales) > 1 else ""
        read = f"{answer.new_tokens} of {answer.prompt_tokens} tokens read{dropped}"
        click.secho(f"{answer.reason}{shown}; {read}", err=True, dim=True)
        self._said, self._shown = [*said, {"role": "assistant", "content": answer.text}], []


def _line() -> str | None:
    """The next line that a person types; None at the end."""
    if sys.stdin.isatty():
        click.secho("> ", nl=False, err=True)
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None
