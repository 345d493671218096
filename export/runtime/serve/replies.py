"""Errors as OpenAI's clients read them, and what they mean in HTTP."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from export.runtime.errors import MvlmError

_STATUS = {
    "bad-origin": 403, "busy": 429, "model_not_found": 404, "too-large": 413, "unauthorized": 401,
    "unsupported-media": 415, "too-slow": 408, "engine-failed": 500, "internal": 500, "timeout": 503, "closed": 499,
}  # fmt: skip
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def status_of(error: MvlmError) -> int:
    return _STATUS.get(error.code, 400)


def error_body(error: MvlmError, status: int | None = None) -> dict[str, Any]:
    """OpenAI's shape: a fault of the server is a `server_error`, and what a client can mend is not."""
    status = status or status_of(error)
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": str(error), "type": kind, "code": error.code, "param": getattr(error, "param", None)}}


def error_response(error: MvlmError) -> Response:
    status = status_of(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else {}
    headers |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    headers |= {"Connection": "close"} if status == 408 else {}  # the rest of the body is not waited for
    return JSONResponse(error_body(error), status, headers)
