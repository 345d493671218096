"""What is asked of rows to label them: questions, each about one picture, in the conversation in which they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from export.runtime.errors import MvlmError

from .row import PicturePlace, Row, Within, asked_by, questions_of


def label_questions(rows: Sequence[Row]) -> list[Row]:
    """The questions of some rows, see `labelled`. Raises `MvlmError` naming the rows that ask about no picture."""
    found, others = asked_by(rows, labelled)
    if others:
        raise MvlmError(
            f"{len(others)} rows ask nothing about a picture (id {', '.join(others)}): leave them out of the splits"
            " that are labelled"
        )
    return found


def labelled(row: Row) -> list[Row]:
    """The questions of a row, each as a row about one picture; none where nothing is asked about a picture.

    A conversation about a picture that stands before it is asked question by question (`id#0`, `id#1`), each behind the
    row's system text. In any other row each picture is asked about by the turn in which it stands (`id@0`, `id@1`, by
    the pictures' numbers), behind all that was said before; a later turn without pictures asks about those that were
    shown last (`id@0#1`, by the turn's number), as the router is asked on a device.
    """
    alone = questions_of(replace(row, system=None))
    if row.system is None:
        return alone or list(_of_each_picture(row))
    if alone:
        return [replace(one, within=Within(replace(one, system=row.system), 0)) for one in alone]
    return list(_of_each_picture(row))


def asked_once(rows: Sequence[Row]) -> list[Row]:
    """The questions of some rows, each once, whatever the number of pictures that it is about.

    Raises `MvlmError` as `label_questions`.
    """
    found: dict[tuple[str, int], Row] = {}
    for row in label_questions(rows):
        found.setdefault((row.id, 0) if row.within is None else (row.within.row.id, len(row.within.row.turns)), row)
    return list(found.values())


def _of_each_picture(row: Row) -> Iterator[Row]:
    places: list[int] = []
    for number, turn in enumerate(row.turns):
        own = [part.number for part in turn.content if isinstance(part, PicturePlace)]
        places = own or places
        words = "\n".join(part for part in turn.content if isinstance(part, str))
        if not words.strip():
            continue  # no router is asked about a picture without words
        shown = max(places, default=-1) + 1  # pictures stand in their order
        until = replace(row, pictures=row.pictures[:shown], turns=row.turns[: number + 1])
        name = "{id}@{place}" if own else "{id}@{place}#{number}"
        for place in places:
            yield replace(
                row, id=name.format(id=row.id, place=place, number=number), pictures=(row.pictures[place],),
                system=None, turns=(replace(turn, content=(PicturePlace(0), words)),), within=Within(until, place),
            )  # fmt: skip
