"""What a file of `torch.save` says of itself, before anything is unpickled: how many names, and how long a pickle.

It is a zip: `data.pkl` names the tensors, and each lies in a member of its own, uncompressed. The end of the file says
how long the list of members is (PKWARE's APPNOTE, 4.3.14 and 4.3.16). A file of before PyTorch 1.6 begins with five
pickles instead: what it is, its version, the machine's facts, the names, and which tensors follow.
"""

from __future__ import annotations

import collections
import contextlib
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from export.runtime.errors import MvlmError

_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"
_MOST_END_BYTES = 22 + 65535 + 20 + 56  # with a comment, and both records of a zip64 before it
_PICKLE, _PICKLES = "data.pkl", 5


def require_small_pickle(file: Path, *, most_bytes: int) -> None:
    """Raise `MvlmError` for more names of tensors than a model has, and for what would grow as it is read."""
    of_zip = zipfile.is_zipfile(file)
    length = _list_bytes(file) if of_zip else _pickles_bytes(file, most_bytes)
    if of_zip and length <= most_bytes:
        try:
            with zipfile.ZipFile(file) as held:
                members = held.infolist()
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise MvlmError(f"{file} cannot be read ({str(error)[:80]}): get it again") from None
        length = max((one.file_size for one in members if one.filename.rpartition("/")[2] == _PICKLE), default=0)
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise MvlmError(f"{file} is compressed, which torch.save does not do: get it again")
    if length > most_bytes:
        raise MvlmError(f"{file} names tensors in {length} bytes or more, and no model's weights do: get it again")


def _pickles_bytes(file: Path, most_bytes: int) -> int:
    """How long the pickles are that a file begins with, told by their opcodes; one more than `most_bytes` at most.

    Nothing is built of them. What is no pickle counts to where that shows: who unpickles it comes no further.
    """
    with file.open("rb") as opened:
        begins = _Beginning(opened, most_bytes)
        with contextlib.suppress(ValueError, IndexError, EOFError):
            for _ in range(_PICKLES):
                collections.deque(pickletools.genops(begins), maxlen=0)  # type: ignore[arg-type]
        return begins.taken


class _Beginning:
    """The first bytes of a file: behind them it ends."""

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        self._file, self._most, self.taken = file, most_bytes, 0

    def read(self, count: int = -1) -> bytes:
        return self._take(self._file.read(min(count, self._most + 1) if count >= 0 else self._most + 1))

    def readline(self) -> bytes:
        return self._take(self._file.readline(self._most + 1))

    def _take(self, data: bytes) -> bytes:
        self.taken += len(data)
        if self.taken > self._most:
            self.taken = self._most + 1
            raise EOFError
        return data


def _list_bytes(file: Path) -> int:
    """How long the list of a zip's members is, as its end says."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - _MOST_END_BYTES))
        end = opened.read()
    (length,) = struct.unpack_from("<L", end, end.rfind(_END) + 12)
    at = end.rfind(_END_64)
    longer = struct.unpack_from("<Q", end, at + 40)[0] if 0 <= at <= len(end) - 48 else 0
    return max(longer, length if length < 2**32 - 1 else 0)
