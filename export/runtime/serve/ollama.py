"""Ollama's API as a second face of the same service: /api/chat, /api/generate, and what clients ask before them.

Lines of JSON instead of server-sent events, pictures as plain base64, options by Ollama's names. What the body asks for
and cannot be had is refused by name, as with OpenAI's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.responses import JSONResponse, Response

from export.runtime.answer import Answer
from export.runtime.data_url import read_data_url
from export.runtime.errors import MvlmError
from export.runtime.manifest import Manifest
from export.runtime.request import Scale

from .answer_form import read_ollama_form
from .body import BadField, read_json, require_text, short, switch
from .chat import Chat, Message, read_messages
from .faces import Usage, facts_of, finish_reason
from .fields import LONGEST, longest_of, scale_of
from .limits import Limits
from .replies import status_of
from .worker import Part

LATEST = ":latest"
_READ = ("model", "messages", "prompt", "system", "images", "stream", "options", "format")
_OPTIONS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "seed", "stop",
)  # fmt: skip
_ROLES = ("system", "user", "assistant")


def read_ollama(body: bytes | bytearray, limits: Limits, models: Mapping[str, Scale]) -> Chat:
    """A chat from a body of /api/chat. Raises `MvlmError` naming what is wrong or cannot be had."""
    value = read_json(body)
    return _chat(value, read_messages(value.get("messages"), limits, _message), models)


def read_prompt(body: bytes | bytearray, limits: Limits, models: Mapping[str, Scale]) -> Chat:
    """A chat from a body of /api/generate: a prompt with pictures, and a system text. Raises `MvlmError`."""
    value = read_json(body)
    user = {"role": "user", "content": value.get("prompt"), "images": value.get("images")}
    system = [{"role": "system", "content": value["system"]}] if value.get("system") else []
    return _chat(value, read_messages([*system, user], limits, _message), models)


def _chat(value: dict[str, Any], messages: tuple[Message, ...], models: Mapping[str, Scale]) -> Chat:
    named = value.get("model")
    model = named.removesuffix(LATEST) if isinstance(named, str) else named
    scale = scale_of(models, model, None)
    options, ignored = _options(value.get("options"))
    if (schema := read_ollama_form(value.get("format"))) is not None:
        options["json_schema"] = schema
    ignored += [short(name).strip("'") for name, part in value.items() if name not in _READ and part is not None]
    stream = True if value.get("stream") is None else switch(value, "stream")
    return Chat(str(named), messages, scale, options, stream, False, tuple(sorted(ignored)))


def _options(value: object) -> tuple[dict[str, Any], list[str]]:
    """The runtime's options, and the names of those that were left out."""
    if value is not None and not isinstance(value, dict):
        raise BadField(f"options is {short(value)}: send an object, or leave it out", "options")
    given = {name: part for name, part in (value or {}).items() if part is not None}
    options = {name: given.pop(name) for name in _OPTIONS if name in given}
    longest = given.pop("num_predict", -1)
    longest = longest_of(-1 if longest == -2 else longest, "num_predict")  # -2: as much as the context holds
    ignored = [short(name).strip("'") for name in given]
    return options | ({} if longest is None else {LONGEST: longest}), ignored


def _message(value: object, limits: Limits) -> Message:
    role = value.get("role") if isinstance(value, dict) else None
    if not isinstance(value, dict) or role not in _ROLES:
        raise MvlmError(f"the role of a message is {short(role)}: name one of {', '.join(_ROLES)}", code="bad-messages")
    content, images = value.get("content") or "", value.get("images") or []
    if not isinstance(content, str) or not isinstance(images, list) or (images and role != "user"):
        raise MvlmError(
            "a message holds a text as content, and those of the user a list of pictures as images", code="bad-messages"
        )
    pictures = [read_data_url(image, limits.picture_bytes) for image in images]
    texts = [require_text(content, "a message")] if content or not pictures else []
    return Message(str(role), (*pictures, *texts))


@dataclass
class OllamaAnswer:
    """An answer of /api/chat, or with `prompted` of /api/generate: a line of JSON a piece, and one at the end."""

    chat: Chat
    prompted: bool = False
    started: float = field(default_factory=time.perf_counter)
    media_type = "application/x-ndjson"

    def whole(self, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        return self._part(answers[0].text) | self._end(answers[0], usage)

    def opening(self) -> Iterator[bytes]:
        return iter(())

    def piece(self, part: Part) -> Iterator[bytes]:
        yield _line(self._part(part.piece.text) | {"done": False})

    def closing(self, answers: Sequence[Answer], usage: Usage) -> Iterator[bytes]:
        yield _line(self._part("") | self._end(answers[0], usage))

    def failed(self, error: MvlmError) -> Iterator[bytes]:
        yield _line({"error": str(error)})

    def _part(self, text: str) -> dict[str, Any]:
        said = {"response": text} if self.prompted else {"message": {"role": "assistant", "content": text}}
        return {"model": self.chat.model, "created_at": datetime.now(UTC).isoformat(), **said}

    def _end(self, answer: Answer, usage: Usage) -> dict[str, Any]:
        def ns(*stages: str) -> int:
            return int(1e6 * sum(answer.timings.get(f"{stage}_ms", 0.0) for stage in stages))

        return {
            "done": True, "done_reason": finish_reason(answer),
            "total_duration": int(1e9 * (time.perf_counter() - self.started)), "load_duration": 0,
            "prompt_eval_count": usage.prompt, "prompt_eval_duration": ns("image", "vision", "connector", "prefill"),
            "eval_count": usage.completion, "eval_duration": ns("decode"), "mvlm": facts_of(answer, self.chat),
        }  # fmt: skip


def tags(models: Mapping[str, Scale], manifest: Manifest) -> dict[str, Any]:
    """What /api/tags lists: the same model under each of its names."""
    size = sum(path.stat().st_size for path in manifest.folder.iterdir() if path.is_file())
    modified = datetime.fromtimestamp(manifest.path("bundle.json").stat().st_mtime, UTC).isoformat()
    facts = {"modified_at": modified, "size": size, "digest": manifest.sha256, "details": details(manifest)}
    return {"models": [{"name": f"{name}{LATEST}", "model": f"{name}{LATEST}", **facts} for name in models]}


def shown(manifest: Manifest) -> dict[str, Any]:
    """What /api/show says of a model."""
    context = {"general.architecture": "mvlm", "mvlm.context_length": manifest.max_length}
    return {"details": details(manifest), "model_info": context, "capabilities": ["completion", "vision"]}


def details(manifest: Manifest) -> dict[str, Any]:
    """The part of a model's description that Ollama's clients look at."""
    precision = manifest.precision.get("decode", "")
    return {
        "parent_model": "", "format": "onnx", "family": "mvlm", "families": ["mvlm"], "parameter_size": "",
        "quantization_level": precision,
    }  # fmt: skip


def ollama_error(error: MvlmError) -> Response:
    """An error as Ollama's clients read it."""
    return JSONResponse({"error": str(error)}, status_of(error))


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode(errors="replace")
