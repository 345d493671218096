"""Pictures inside a text: a `data:` URL, or plain base64. Whatever decodes is taken, and nothing is fetched."""

from __future__ import annotations

import base64
import binascii
import re
from urllib.parse import unquote

from export.runtime.errors import MvlmError

# Of what kind the head says that the picture is, is not looked at: its first bytes say what it is.
_HEAD = re.compile(r"\s*data:[^,;]{0,100}(?P<more>(?:;[^,;]{0,100}){0,8}),", re.ASCII | re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\-\s]*", re.ASCII)
_LEAST = 40  # characters: shorter than any picture's, and longer than what people write by mistake
_TO_STANDARD = str.maketrans("-_", "+/", "= \t\r\n\f\v")


def is_data_url(text: str) -> bool:
    """Whether a text says that it holds data, of whatever kind."""
    return text[:40].lstrip()[:5].lower() == "data:"


def read_data_url(text: object, most_bytes: int | None = None) -> bytes:
    """The bytes of a picture out of a `data:` URL or plain base64: wrapped, unpadded and URL-safe ones too.

    Raises `MvlmError` for any other URL, which is not fetched, for more than `most_bytes`, and for no base64.
    """
    encoded = _encoded(text)
    if encoded is None:
        raise MvlmError(
            f"the picture's URL is {_short(text)}: send data:image/png;base64,… (nothing is fetched)",
            code="bad-picture",
        )
    digits = (unquote(encoded) if "%" in encoded else encoded).translate(_TO_STANDARD)
    if most_bytes is not None and len(digits) * 3 // 4 > most_bytes:
        raise MvlmError(f"the picture has more than {most_bytes} bytes: send a smaller one", code="too-large")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise MvlmError("the picture is not valid base64: encode it again", code="bad-picture") from None


def _encoded(text: object) -> str | None:
    """The base64 part of a text, or None where it is something else."""
    if not isinstance(text, str):
        return None
    found = _HEAD.match(text)
    if found:
        is_base64 = found["more"].lower().rpartition(";")[2].strip() == "base64"
        return text[found.end() :] if is_base64 else None
    return text if len(text) >= _LEAST and _BASE64.fullmatch(text[:_LEAST]) else None


def _short(value: object) -> str:
    text = value if isinstance(value, str) else type(value).__name__
    text = text[:61].encode(errors="replace").decode()
    return repr(text[:60] + ("…" if len(text) > 60 else ""))
