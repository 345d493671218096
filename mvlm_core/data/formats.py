"""One row of a data file -> `Row`, in each of the formats that docs/data.md describes. No torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from export.runtime.data_url import is_data_url, read_data_url
from export.runtime.errors import MvlmError
from mvlm_core.scoring import chosen_option, read_metric

from .clips import ClipFile, ClipFrames, HeldClip, column_with_clip
from .pictures import PictureBytes, PictureFile, PictureSource
from .row import SPLITS, PicturePlace, Row, Turn
from .values import shown, text_of

# LLaVA's own mark of a picture. It is one in LLaVA's `conversations`; in every other format it is text.
LLAVA_MARK = "<image>"
_FETCHED = ("http:", "https:", "ftp:", "s3:")


@dataclass(frozen=True)
class Shown:
    """A picture where it stands, as the file holds it: a path, a data: URL, bytes, or `bytes` and `path` together."""

    held: Any


# Who says what, in order: `user` and `system` texts with pictures in place; of `assistant`, every right answer.
Said = list[tuple[str, Sequence[str | Shown]]]


@dataclass(frozen=True)
class Origin:
    """Where a row stands.

    Attributes:
        where: in words, for faults.
        base: the folder that its paths are relative to.
        split: what the name of its file says, for rows that do not say it themselves.
        again: reads the row again, so that pictures inside it need not be kept; None keeps them.
        id: what the row is called when it does not say it itself; None makes that a fault.
    """

    where: str
    base: Path
    split: str = SPLITS[0]
    again: Callable[[], Any] | None = None
    id: str | None = None


@dataclass(frozen=True)
class PictureInRow:
    """A picture that stands inside a row of a file; `number` counts in the row."""

    key: str
    again: Callable[[], Any] = field(compare=False)
    number: int = field(compare=False)

    def read(self) -> bytes:
        """Raises `MvlmError` when the file holds another picture there by now."""
        try:
            data = _bytes(_pictures(said(self.again()))[self.number].held)
        except (MvlmError, IndexError, AttributeError):  # whatever stands there now
            data = b""
        if hashlib.sha256(data).hexdigest() != self.key:
            raise MvlmError(f"{self} is not where it was: its file was changed while it was in use, so start again")
        return data

    def __str__(self) -> str:
        return f"picture {self.key[:12]}"


def read_row(value: Any, origin: Origin) -> Row:
    """Read one row. Raises `MvlmError` that names it when it is none."""
    if not isinstance(value, dict):
        raise MvlmError(f"{origin.where}: not a JSON object")
    where, name = origin.where, value.get("id", origin.id)
    if name is None or name == "":
        raise MvlmError(f"{where}: no id")
    try:
        name = text_of(name, "the id")
        where = f"{where}, id {name if name.isprintable() else repr(name)}"
        return _row(name, value, origin)
    except MvlmError as error:
        raise MvlmError(f"{where}: {error}") from None


def _row(name: str, value: dict[str, Any], origin: Origin) -> Row:
    system, turns = _turns(told := said(value))
    turns = _marked_turns(value, turns)
    held = [picture.held for picture in _pictures(told)]
    pictures = tuple(_source(picture, number, origin) for number, picture in enumerate(held))
    split = _told(value, "split") or origin.split
    if split not in SPLITS:
        raise MvlmError(f"split {shown(split)} is none of {', '.join(SPLITS)}")
    group = _told(value, "group") or _alike(held, pictures, name)
    named = _told(value, "metric")
    metric = str(read_metric(named)) if named else None
    return Row(name, pictures, turns, _told(value, "task"), group, split, system, metric)


def _marked_turns(value: dict[str, Any], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The turns with what the row says beside them: what people voted, and the options. Votes alone are answers too."""
    votes, options = (_texts(value, key) for key in ("votes", "options"))
    if not votes and not options:
        return turns
    if len(turns) > 1:
        raise MvlmError("votes and options belong to one question, and the row has several")
    answers = turns[0].answers or tuple(vote for vote, _ in Counter(votes).most_common(1))
    marked = replace(turns[0], answers=answers, votes=votes, options=options)
    if options and answers and all(chosen_option(answer, options) is None for answer in answers):
        raise MvlmError(f"none of the options {', '.join(map(repr, options))} is the answer {answers[0]!r}")
    return (marked,)


def _texts(value: dict[str, Any], key: str) -> tuple[str, ...]:
    held = value.get(key)
    if held is None:
        return ()
    if not isinstance(held, list | tuple) or not held:
        raise MvlmError(f"{key} is no list of texts")
    texts = tuple(text_of(text, f"one of the {key}") for text in held)
    if not all(text.strip() for text in texts):
        raise MvlmError(f"one of the {key} is empty")
    return texts


def _told(value: dict[str, Any], key: str) -> str | None:
    """What a row says; a table says None where it says nothing."""
    held = value.get(key)
    return None if held is None else text_of(held, f"the {key}")


def _alike(held: Sequence[Any], pictures: Sequence[PictureSource], name: str) -> str:
    """What rows about one picture share: its path as it is written, or the hash of a picture that the row holds."""
    if held and isinstance(held[0], str) and isinstance(pictures[0], PictureFile):
        return held[0]
    return pictures[0].key if pictures else name


def said(value: dict[str, Any]) -> Said:
    """Who says what in a row of any format. Raises `MvlmError` when it is of none, or of two."""
    found = [key for key in _FORMATS if value.get(key) is not None]
    if len(found) != 1:
        raise MvlmError(f"it holds {' and '.join(found) or 'none'} of {', '.join(_FORMATS)}: a row has one of them")
    return _FORMATS[found[0]](value)


def _of_question(value: dict[str, Any]) -> Said:
    if not {"image", "images", "video"} & value.keys():
        raise MvlmError('no image: a row about none says "image": null')
    question, answers = text_of(value["question"], "the question"), value.get("answers")
    if not question.strip():
        raise MvlmError("the question is empty")
    if answers is None and value.get("answer") is not None:
        raise MvlmError('no answers: "answer" is not read, give what is right as "answers"')
    asked: Said = [("user", [*map(Shown, _column(value)), question])]
    if answers is None:
        return asked
    found = answers if isinstance(answers, list | tuple) else [answers]
    return [*asked, ("assistant", [text_of(answer, "an answer") for answer in found])]


def _of_conversations(value: dict[str, Any]) -> Said:
    """LLaVA's. As in its code, one picture stands in front of its question, wherever it was marked."""
    roles = {"system": "system", "human": "user", "gpt": "assistant"}
    told = [(_role(turn, "from", roles), _text(turn, "value")) for turn in _entries(value["conversations"])]
    pictures = _column(value)
    marks = sum(text.count(LLAVA_MARK) for _, text in told)
    if marks != len(pictures):
        raise MvlmError(f"{marks} {LLAVA_MARK} in the text and {len(pictures)} pictures: give one for each")
    if any(LLAVA_MARK in text for role, text in told if role != "user"):
        raise MvlmError(f"{LLAVA_MARK} stands in what human does not say: a picture stands in a question")
    rest = iter(pictures)
    marked: Said = [(role, list(_marked(text, rest)) if role == "user" else [text]) for role, text in told]
    if len(pictures) == 1:
        marked = [(role, sorted(content, key=lambda part: isinstance(part, str))) for role, content in marked]
    return marked


def _marked(text: str, pictures: Iterator[Any]) -> Iterator[str | Shown]:
    head, *rest = text.split(LLAVA_MARK)
    yield head.strip() if rest else head
    for words in rest:
        yield Shown(next(pictures))
        yield words.strip()


def _of_messages(value: dict[str, Any]) -> Said:
    """Chat messages with typed content, as transformers, TRL and OpenAI have them."""
    roles = {role: role for role in ("system", "user", "assistant")}
    column = _column(value)
    rest = iter(column)
    told: Said = []
    for message in _entries(value["messages"]):
        role, content = _role(message, "role", roles), message.get("content")
        parts: list[str | Shown]
        parts = (
            [_part(part, rest) for part in _entries(content)]
            if isinstance(content, list | tuple)
            else [text_of(content, f"the content of {role}")]
        )
        if role == "assistant" and all(isinstance(part, str) for part in parts):
            parts = ["".join(map(str, parts))]
        told.append((role, parts))
    unplaced = len(list(rest))
    if unplaced:
        raise MvlmError(
            f'{len(column)} pictures and {len(column) - unplaced} places for them: put {{"type": "image"}} into the'
            " content where each stands"
        )
    return told


def _part(part: dict[str, Any], column: Iterator[Any]) -> str | Shown:
    kind = part.get("type")
    if kind == "text":
        return _text(part, "text")
    if kind == "image_url":
        held = part.get("image_url")
        return Shown(held.get("url") if isinstance(held, dict) else held)
    if kind == "video":
        own = next((part[key] for key in ("video", "path", "url") if part.get(key) is not None), None)
        own = next(column, None) if own is None else HeldClip(own)
        if own is None:
            raise MvlmError("more places for clips in the content than clips: give one for each")
        return Shown(own)
    if kind == "image":
        own = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
        own = next(column, None) if own is None else own
        if own is None:
            raise MvlmError("more places for pictures in the content than pictures: give one for each")
        return Shown(own)
    raise MvlmError(f"content of the type {shown(kind)} is none of text, image, image_url, video")


def _of_texts(value: dict[str, Any]) -> Said:
    """`texts` of user and assistant beside `images`, as The Cauldron and FineVision have them: pictures come first."""
    pictures, told = list(map(Shown, _column(value))), Said()
    for turn in _entries(value["texts"]):
        first = [] if told else pictures
        told += [("user", [*first, _text(turn, "user")]), ("assistant", [_text(turn, "assistant")])]
    return told


_FORMATS: dict[str, Callable[[dict[str, Any]], Said]] = {
    "question": _of_question, "conversations": _of_conversations, "messages": _of_messages, "texts": _of_texts,
}  # fmt: skip


# What is read of a row in every format.
_EVERYWHERE = ("id", "image", "images", "video", "group", "split", "task", "metric", "votes", "options")


def keys_read(value: dict[str, Any]) -> tuple[str, ...]:
    """The keys of a row that are read, by its format."""
    kind = next(key for key in _FORMATS if value.get(key) is not None)
    return (*_EVERYWHERE, kind, *(("answers",) if kind == "question" else ()))


def _column(value: dict[str, Any]) -> list[Any]:
    """The pictures beside the text of a row."""
    one, many = value.get("image"), value.get("images")
    if one is not None and many is not None:
        raise MvlmError("it holds image and images: a row has one of them")
    held = many if one is None else one
    pictures = [] if held is None else list(held) if isinstance(held, list | tuple) else [held]
    if any(picture is None or picture == "" for picture in pictures):
        raise MvlmError("no image where one is named")
    return pictures if value.get("video") is None else column_with_clip(value["video"], pictures)


def _entries(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple) or not all(isinstance(entry, dict) for entry in value):
        raise MvlmError("its turns must be a list of JSON objects")
    return list(value)


def _role(entry: dict[str, Any], key: str, roles: dict[str, str]) -> str:
    role = entry.get(key)
    if not isinstance(role, str) or role not in roles:
        raise MvlmError(f"the role {shown(role)} is none of {', '.join(roles)}")
    return roles[role]


def _text(entry: dict[str, Any], key: str) -> str:
    if entry.get(key) is None:
        raise MvlmError(f"a turn has no text at {key!r}")
    return text_of(entry[key], f"a turn's {key!r}")


def _pictures(told: Said) -> list[Shown]:
    return [part for _, content in told for part in content if isinstance(part, Shown)]


def _turns(told: Said) -> tuple[str | None, tuple[Turn, ...]]:
    """The system text, and the turns with their pictures numbered."""
    system = None
    if told and told[0][0] == "system":
        system = "".join(part for part in told[0][1] if isinstance(part, str))
        if len(system) == 0 or any(isinstance(part, Shown) for part in told[0][1]):
            raise MvlmError("the system text is empty, or holds a picture")
        told = told[1:]
    if [role for role, _ in told] == ["user"]:  # a question that is only asked
        told = [*told, ("assistant", [])]
    elif told and not all(content for role, content in told if role == "assistant"):
        raise MvlmError("no answers")
    if not told or [role for role, _ in told] != ["user", "assistant"] * (len(told) // 2):
        raise MvlmError("its turns must be questions and answers, one after the other, after at most one system text")
    turns, count = [], 0
    for (_, asked), (_, answers) in zip(told[::2], told[1::2], strict=True):
        content: list[str | PicturePlace] = []
        for part in asked:
            if isinstance(part, Shown):
                content.append(PicturePlace(count))
                count += 1
            elif part.strip():
                content.append(part)
        if not content:
            raise MvlmError("the question is empty")
        turns.append(Turn(tuple(content), _answers(answers)))
    return system, tuple(turns)


def _answers(answers: Sequence[Any]) -> tuple[str, ...]:
    if any(isinstance(answer, Shown) for answer in answers):
        raise MvlmError("a picture stands in an answer: a picture stands in a question")
    if not all(answer.strip() for answer in answers):
        raise MvlmError("no answers: one of them is empty")
    return tuple(answers)


def _source(held: Any, number: int, origin: Origin) -> PictureSource:
    if not isinstance(held, HeldClip):
        return _picture(held, number, origin)
    parts, times = held.parts()
    if held.listed:
        # Frames are kept where they are no files: a stream is not read again for one.
        return ClipFrames(tuple(_picture(part, 0, replace(origin, again=None)) for part in parts))
    return ClipFile(origin.base / parts[0], times)


def _picture(held: Any, number: int, origin: Origin) -> PictureFile | PictureBytes | PictureInRow:
    held = _without_struct(held)
    if isinstance(held, str) and held[:6].lower().startswith(_FETCHED):
        raise MvlmError(f"nothing is fetched, and {held[:80]} is not here: put the file beside the data and name it")
    if isinstance(held, str) and not is_data_url(held):
        return PictureFile(origin.base / text_of(held, "the name of a picture"))
    data = _bytes(held)
    key = hashlib.sha256(data).hexdigest()
    return PictureBytes(key, data) if origin.again is None else PictureInRow(key, origin.again, number)


def _without_struct(held: Any) -> Any:
    """What an Image of `datasets` holds: its bytes, or failing them its path."""
    if not isinstance(held, dict):
        return held
    return held["bytes"] if held.get("bytes") is not None else held.get("path")


def _bytes(held: Any) -> bytes:
    held = _without_struct(held)
    if isinstance(held, bytes):
        return held
    if not isinstance(held, str):
        raise MvlmError(f"a picture is given as {type(held).__name__}: give a path, a data: URL or bytes")
    try:
        return read_data_url(held)
    except MvlmError:
        head = held.partition(",")[0][:60]
        if "base64" not in head.lower():
            raise MvlmError(f"the picture {held[:40]} is not data:...;base64,...") from None
        raise MvlmError(f"the base64 of the picture {head} is broken: encode it again") from None
