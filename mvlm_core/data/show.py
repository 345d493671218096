"""A data set on the terminal: how many, how long, and a few rows with what training supervises in colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import click

from mvlm_core.modeling.chat_encoding import Encoded
from mvlm_core.modeling.processing import MvlmProcessor

from .check import TokenReport, repeated_ids
from .row import SPLITS, Row

_OPEN, _CLOSE = "\u2039", "\u203a"  # stand around what is supervised, where there is no colour
_LONGEST_SHOWN, _END_SHOWN = 360, 120


def counts(rows: Sequence[Row]) -> list[str]:
    """How many rows, pictures and turns there are, and in which splits."""
    splits = Counter(row.split for row in rows)
    shown = Counter(min(len(row.pictures), 2) for row in rows)
    pictures = len({picture for row in rows for picture in row.pictures})
    told = [
        f"{len(rows):,} rows about {pictures:,} pictures: "
        + ", ".join(f"{splits[s]:,} {s}" for s in SPLITS if splits[s])
    ]
    kinds = {0: "about no picture", 1: "about one", 2: "about several"}
    turns = sum(len(row.turns) for row in rows)
    told.append(
        "  " + ", ".join(f"{shown[n]:,} {kinds[n]}" for n in kinds if shown[n]) + f"; {turns:,} questions in all"
    )
    repeated = repeated_ids(rows)
    if repeated:
        told.append(
            f"  {repeated:,} rows have the id of a row before them, as LLaVA's do, and got ~2, ~3, ... behind it"
        )
    return told


def lengths(report: TokenReport, max_tokens: int | None) -> list[str]:
    """A table of tokens per row at each scale."""
    told = [click.style(f"  {'tokens of a row':<17}{'median':>9}{'95 %':>9}{'longest':>9}", bold=True)]
    for scale, found in report.lengths.items():
        told.append(
            f"  at scale {scale:<8}{found.median:>9,}{found.most_rows:>9,}{found.longest:>9,}  (id {found.longest_id})"
        )
    if max_tokens is not None:
        told.append(
            f"  {report.shortened:,} rows are longer than max_tokens, {max_tokens:,}, and lose text at their end"
        )
    return told


def coloured(row: Row, encoded: Encoded, processor: MvlmProcessor) -> str:
    """A row as the model reads it: what is supervised in green and between marks, pictures by their names.

    Special tokens are dim, so that one which a person spelled out in a text can be told from them.
    """
    names = iter(row.pictures)
    told = []
    special = set(processor.tokenizer.all_special_ids)
    keys = [
        (is_answer, id == processor.image_token_id, id in special and not is_answer)
        for id, is_answer in zip(encoded.ids, encoded.supervised, strict=True)
    ]
    place = 0
    for (is_answer, is_picture, is_special), group in groupby(keys):
        count = len(list(group))
        ids, place = encoded.ids[place : place + count], place + count
        if is_picture:
            told += [click.style(f"[{_plain(str(next(names)))}]", fg="cyan") for _ in ids]
            continue
        text = _plain(_middle_left_out(processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)))
        if is_answer:
            text = click.style(f"{_OPEN}{text}{_CLOSE}", fg="green", bold=True)
        told.append(click.style(text, dim=True) if is_special else text)
    return f"{click.style(f'id {row.id}', dim=True)}\n  {''.join(told)}"


def _middle_left_out(text: str) -> str:
    if len(text) <= _LONGEST_SHOWN:
        return text
    return f"{text[: _LONGEST_SHOWN - _END_SHOWN]} ... {text[-_END_SHOWN:]}"


def _plain(text: str) -> str:
    """Without characters that would move the cursor or change the colour."""
    return "".join(c if c.isprintable() else "\u23ce" if c == "\n" else "\ufffd" for c in text)
