"""What a reader is fitted on: each row's picture as patches, and its question as words, as labels keep them.

Letters: n rows, B pictures, C cells, D width of the language model, w numbers kept of it, T tokens of the longest
question, V words that questions use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from export.runtime.artefact import sha256_file
from export.runtime.errors import MvlmError
from export.runtime.label_columns import PATCHES, PROJECTION, QUESTIONS, READING, WORDS
from export.runtime.routing.reading import MOST_TOKENS

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
NO_TOKEN = -1


@dataclass(frozen=True)
class Reading:
    """Rows that share a picture share its patches, and words of questions are rows of one table.

    Attributes:
        patches: (B, C, w) float16.
        picture: (n,) which of the pictures each row is about.
        tokens: (n, T) rows of `words`, `NO_TOKEN` behind the end of a question.
        words: (V, w) float16.
        projection: (D, w), what patches and words were projected by; its columns are orthonormal.
    """

    patches: Floats
    picture: Ints
    tokens: Ints
    words: Floats
    projection: Floats

    def __len__(self) -> int:
        return len(self.picture)

    def take(self, rows: NDArray[Any] | slice) -> Reading:
        """Some of the rows."""
        return replace(self, picture=self.picture[rows], tokens=self.tokens[rows])

    def questions(self, rows: NDArray[Any] | slice) -> NDArray[np.float32]:
        """The words of some questions, zero behind their ends: (r, T, w)."""
        tokens = self.tokens[rows]
        tokens = tokens[:, : max(1, int((tokens != NO_TOKEN).sum(axis=1).max(initial=0)))]
        return np.where((tokens == NO_TOKEN)[..., None], 0, self.words[tokens]).astype(np.float32)


def read_reading(folder: Path, facts: dict[str, Any], ids: NDArray[np.str_]) -> Reading | None:
    """The reading of the rows of labels/, in the order of `ids`; None where labels hold none.

    Raises `MvlmError` for a file that is missing, changed, or not of these rows.
    """
    if not facts.get("reading"):
        return None
    for name in READING:
        if not (folder / name).is_file() or sha256_file(folder / name) != facts["files"].get(name):
            raise MvlmError(f"{folder / name} is missing or was changed since it was written: label again")
    projection = np.load(folder / PROJECTION, allow_pickle=False).astype(np.float32)
    tables = {name: pq.read_table(folder / name) for name in (PATCHES, QUESTIONS, WORDS)}
    try:
        found = _reading(tables, projection, ids)
    except (KeyError, ValueError, IndexError) as error:
        raise MvlmError(f"{folder} holds patches that are not of its rows ({error}): label again") from None
    return found


def _reading(tables: Mapping[str, pa.Table], projection: Floats, ids: NDArray[np.str_]) -> Reading:
    questions, words = tables[QUESTIONS], tables[WORDS]
    order = pc.index_in(pa.array(ids.tolist()), value_set=questions["id"].combine_chunks())
    if order.null_count:
        raise ValueError(f"{order.null_count} rows without patches")
    asked = questions.take(order)
    picture = pc.index_in(asked["picture"], value_set=tables[PATCHES]["picture"].combine_chunks())
    lists = asked["tokens"].combine_chunks()
    known = pc.index_in(lists.flatten(), value_set=words["token"].combine_chunks())
    if picture.null_count or known.null_count:
        raise ValueError("pictures or words that are named are not there")
    lengths = lists.value_lengths().to_numpy()
    wide = np.full((len(ids), int(lengths.max())), NO_TOKEN, np.int64)
    wide[np.arange(wide.shape[1]) < lengths[:, None]] = known.to_numpy()
    width = projection.shape[1]
    patches = _halves(tables[PATCHES]["patches"]).reshape(len(tables[PATCHES]), -1, width)
    return Reading(
        patches, picture.to_numpy().astype(np.int64), wide[:, :MOST_TOKENS],
        _halves(words["word"]).reshape(-1, width), projection,
    )  # fmt: skip


def _halves(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """A column of equally many bytes a row as float16 numbers."""
    return np.concatenate([
        np.frombuffer(chunk.buffers()[1], "<f2", len(chunk) * (chunk.type.byte_width // 2),
                      chunk.offset * chunk.type.byte_width)
        for chunk in column.chunks
    ])  # fmt: skip
