"""Every message of the project's errors, read from the sources: for docs/reference/errors.md, and for the tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("export", "mvlm_core", "router")
# The classes of errors, and the code of each where none is named.
CLASSES = {"MvlmError": "bad-input", "CheckFailed": "check-failed", "BadField": "bad-option", "Refused": "check-failed"}
# What a code says, and what one does about it; the message says it for the case at hand.
CODES = {
    "bad-body": "the body of a request is no JSON object: send one",
    "bad-bundle": "a file of a bundle is none, or does not fit the others: export again",
    "bad-engine": "an engine is not for this TensorRT and this GPU: `mvlm build`",
    "bad-features": "what came out of the model is no number: the picture or the model is broken",
    "bad-host": "a host name of another machine, and no token: ask by the address, or serve with a token",
    "bad-input": "a file, a folder, an option or a configuration that cannot be used: do what the message says",
    "bad-messages": "no conversation, or none that the chat template takes: end with a message of the user's",
    "bad-option": "an option that makes no sense: the message names those that do",
    "bad-origin": "a page of another site asks, and was not allowed to: start the server with --allow-origin",
    "bad-path": "a bundle names a file outside of it, or one without a hash: export again",
    "bad-picture": "the picture cannot be read, is too large or too narrow: save it anew",
    "bad-price": "no number from 0 up: give one",
    "bad-provider": "the provider is not installed, or does not start: the message says what to install",
    "bad-scale": "the bundle has no such scale: name one of those that it has",
    "bad-schema": "a JSON schema that no answer can be held to: the message says what of it",
    "bad-template": "a chat template that does not end, or is none: mend it",
    "bad-terms": "a budget, cap or bound that this router cannot meet: the message names those that it can",
    "busy": "too many questions, bytes or connections at once: ask again later",
    "changed-bundle": "a file of a bundle is missing or was changed: export again",
    "changed-engines": "a file of the engines is missing or was changed: `mvlm build` again",
    "check-failed": "the input was in order, and the result did not pass its check: the message says which",
    "closed": "the caller has gone; for the log alone",
    "cuda-error": "CUDA itself reports a fault: look at the driver and the free memory",
    "deadline": "no scale answers in the time that is left: allow more",
    "empty-question": "nothing is asked: ask something",
    "engine-failed": "the engine gave up: look at free memory, or build again",
    "http": "no such path or method: `Allow` names the methods that there are",
    "internal": "a fault of the server: the traceback is in its log",
    "model_not_found": "no model of that name: name one of those that are listed",
    "no-costs": "nobody has measured what scales cost on this machine: `mvlm bench`",
    "no-cuda": "there is no CUDA here: install it, or name another provider",
    "no-disk": "not enough room on the disk: make some",
    "no-engines": "no engines were built yet: `mvlm build`",
    "no-llguidance": "llguidance is not installed: install the extra that the message names",
    "no-memory": "not enough memory: stop other programs, or export with smaller weights",
    "no-onnxruntime": "onnxruntime is not installed: install the extra that the message names",
    "no-opencv": "OpenCV is not installed: install the extra that the message names",
    "no-picture": "there is no such file: check the path",
    "no-frames": "the bundle's scales show one view alone: export one with scales of several frames, as in 9@4",
    "no-router": "the bundle holds no router: name a scale",
    "no-template": "a bundle of before, without a chat template: export again, or ask one question about one picture",
    "no-tensorrt": "TensorRT is not installed: install the extra that the message names",
    "no-token": "others could ask without a token: set MVLM_TOKEN, or listen on 127.0.0.1",
    "not-ended": "a stream's answer was read before its end: read the stream first",
    "other-device": "the bundle was exported for another version of TensorRT: export for this one",
    "other-engines": "the engines are another GPU's: `mvlm build` here",
    "refused-bundle": "the bundle did not pass its verification: export again, or verify it with a loss that you allow",
    "scale-not-allowed": "the connector allows no such scale: the message names those that it does",
    "stale-bench": "the costs were measured on another bundle: `mvlm bench` again",
    "stale-engines": "the engines were built from another bundle: `mvlm build` again",
    "timeout": "no answer in time: ask again later",
    "too-large": "more bytes than are read: send less",
    "too-long": "question, pictures and answer do not fit: the message says what to shorten",
    "too-slow": "the body was not whole in time: send it faster",
    "unauthorized": "the token is missing or wrong: send `Authorization: Bearer TOKEN`",
    "unsupported": "a field of another API that cannot be had here: leave it out",
    "unsupported-media": "the body is not `application/json`: say so, and send that",
    "wrong-bundle": "the bundle is not the one whose hash was named",
    "wrong-device": "the bundle was made for another provider: name that one, or export for this one",
}  # fmt: skip


@dataclass(frozen=True)
class Message:
    """An error as the sources make it. `text` has … where a value stands; `code` is None where it is passed on."""

    file: str
    first_line: int
    last_line: int
    error: str
    code: str | None
    text: str


def messages() -> Iterator[Message]:
    """All of them, in the order of the files."""
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CLASSES:
                    yield _message(name, node, node.func.id)


def _message(file: str, call: ast.Call, error: str) -> Message:
    told = next((keyword.value for keyword in call.keywords if keyword.arg == "code"), None)
    code = CLASSES[error] if told is None else told.value if isinstance(told, ast.Constant) else None
    return Message(file, call.lineno, call.end_lineno or call.lineno, error, code, _text(call.args[0]))


def _text(node: ast.expr) -> str:
    """A text as it will read, with the names of values in it where they have one."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value)
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("shown", "short") and node.args:
        return _text(node.args[0])
    name = {ast.Name: "id", ast.Attribute: "attr"}.get(type(node))
    return f"{{{getattr(node, name).strip('_')}}}" if name else "…"


def page() -> str:
    """The page: what a code means, then every message by the room that it comes from."""
    rows = [f"| `{code}` | {meaning} |" for code, meaning in CODES.items()]
    parts = [
        "# Errors\n", "Made from the code by `docs/make_reference.py`.\n",
        "Whatever goes wrong is a `MvlmError`: one line that says what, where, and what to do. The command line prints"
        " it without a\ntraceback and ends with status 2, or with 1 where a check of a result failed (`CheckFailed`)."
        " Programs read its `code`;\nthe server's answers carry it too, each under the status that"
        " [server.md](../server.md) names.\n",
        "## Codes\n", "\n".join(["| code | means, and what to do |", "|---|---|", *rows]) + "\n",
        "## Messages\n", "In braces stands a value by its name, and … for any other.\n",
    ]  # fmt: skip
    rooms: dict[str, list[str]] = {}
    for one in messages():
        code = f"`{one.code}`" if one.code else "its own"
        text = " ".join(one.text.split()).replace("|", "\\|").replace("<", "&lt;")
        rooms.setdefault(one.file.rpartition("/")[0], []).append(f"| {text} | {code} |")
    for room, lines in rooms.items():
        parts.append("\n".join([f"### {room}\n", "| message | code |", "|---|---|", *dict.fromkeys(lines)]) + "\n")
    return "\n".join(parts)
