"""The verb `init`: a configuration for one's own rows."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from export.runtime.errors import MvlmError
from export.runtime.families import FAMILIES
from mvlm_core.progress import quiet

from .train_label import say_next


@click.command()
@click.argument("rows", type=click.Path(path_type=Path), default="rows")
@click.option("--vision", help="A vision tower, a folder or a name on the hub; left out, a small one from nothing.")
@click.option("--text", help="A language model, a folder or a name on the hub.")
@click.option("--start", type=click.Path(path_type=Path), help="A run or an imported checkpoint to go on with.")
@click.option("--demo", is_flag=True, help="Both parts small and from nothing: to try the way, not for results.")
@click.option("--family", type=click.Choice(FAMILIES), default="pool", show_default=True, help="The connector.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="train.yaml", show_default=True, help="The file to write."
)
@click.option("--overwrite", is_flag=True, help="Replace the file.")
def init(
    rows: Path, vision: str | None, text: str | None, start: Path | None, demo: bool, family: str, out: Path,
    overwrite: bool,
) -> None:  # fmt: skip
    """Write a whole, commented train.yaml for your rows, with what suits pretrained parts.

    \b
    Example:
      mvlm init my.jsonl --vision google/siglip2-base-patch16-384 --text HuggingFaceTB/SmolLM2-135M-Instruct
    """
    if [bool(vision or text), start is not None, demo].count(True) != 1:
        raise MvlmError("say what the model begins from: --text (and --vision) by name, or --start, or --demo")
    if vision and not text:
        raise MvlmError("a pretrained tower needs a language model to speak to: name one with --text")
    if out.exists() and not overwrite:
        raise MvlmError(f"{out} is there already: move it away, or replace it with --overwrite")
    from mvlm_core.data.reading import read_rows
    from mvlm_core.data.splits import FEWEST_PICTURES, splitting

    read = read_rows(rows)
    splits = {row.split for row in read}
    with quiet():
        from mvlm_core.train.starter import Start, free_memory_gib, starter

        begin = Start(start and start.resolve(), _place(vision), _place(text), family)
        text_of_file = starter(
            begin, Path(os.path.relpath(rows, out.parent)).as_posix(), "val" in splits, free_memory_gib()
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text_of_file, encoding="utf-8")
    click.echo(f"{out}: open it, and change what does not suit you")
    if splits == {"train"}:
        pictures = len({row.group for row in read})
        click.echo(f"no row is of the splits val and test, of which a router needs {FEWEST_PICTURES} pictures each")
        if split := splitting(str(rows), pictures):
            say_next(shlex.join(split))
            return
        click.echo(f"{pictures} pictures are too few to spare them: this can be trained, and no router be fitted")
    say_next(shlex.join(["mvlm", "data", "check", *([] if out == Path("train.yaml") else ["--config", str(out)])]))


def _place(name: str | None) -> str | None:
    """A folder by its whole path, which the configuration finds from anywhere; a name on the hub as it is."""
    return str(Path(name).resolve()) if name and Path(name).exists() else name
