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

from export.runtime.answer import Answer, Likely
from export.runtime.data_url import read_data_url
from export.runtime.errors import MvlmError
from export.runtime.manifest import Manifest
from export.runtime.request import Scale

from .body import require_text, short, switch
from .chat import Chat, Message, read_messages
from .faces import Usage, facts_of, finish_reason, likely_token
from .fields import scale_of
from .limits import Limits
from .ollama_options import read_ollama_options
from .replies import status_of
from .worker import Part

LATEST = ":latest"
_ROLES = ("system", "user", "assistant")
# The stages of an answer until the prompt is read, with tiles those of their own.
_BEFORE_WRITING = (
    "image", "vision", "vision_overview", "image_tiles", "vision_tiles", "connector", "prefill",
)  # fmt: skip


def read_ollama(value: dict[str, Any], limits: Limits, models: Mapping[str, Scale]) -> Chat:
    """A chat from a body of /api/chat. Raises `MvlmError` naming what is wrong or cannot be had."""
    return _chat(value, read_messages(value.get("messages"), limits, _message), models)


def read_prompt(value: dict[str, Any], limits: Limits, models: Mapping[str, Scale]) -> Chat:
    """A chat from a body of /api/generate: a prompt with pictures, and a system text. Raises `MvlmError`."""
    user = {"role": "user", "content": value.get("prompt"), "images": value.get("images")}
    system = [{"role": "system", "content": value["system"]}] if value.get("system") else []
    return _chat(value, read_messages([*system, user], limits, _message), models)


def loaded(value: dict[str, Any], models: Mapping[str, Scale], *, prompted: bool) -> dict[str, Any] | None:
    """The answer to a body that asks nothing, by which Ollama's clients load a model, or let go of one.

    None for a body that asks something; `prompted` says of which path it is. Raises `MvlmError` for a model that is not
    there.
    """
    nothing = value.get("prompt") in (None, "") and not value.get("images") if prompted else value.get("messages") == []
    if not nothing:
        return None
    _scale(value, models)
    said: dict[str, Any] = {"response": ""} if prompted else {"message": {"role": "assistant", "content": ""}}
    reason = "unload" if value.get("keep_alive") == 0 else "load"
    return {"model": value["model"], "created_at": _now(), **said, "done": True, "done_reason": reason}


def _scale(value: dict[str, Any], models: Mapping[str, Scale]) -> Scale:
    named = value.get("model")
    scale: Scale = scale_of(models, named.removesuffix(LATEST) if isinstance(named, str) else named, None)
    return scale


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _chat(value: dict[str, Any], messages: tuple[Message, ...], models: Mapping[str, Scale]) -> Chat:
    scale = _scale(value, models)
    options, ignored = read_ollama_options(value)
    stream = True if value.get("stream") is None else switch(value, "stream")
    return Chat(str(value["model"]), messages, scale, options, stream, False, tuple(sorted(ignored)))


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
        return self._part(answers[0].text, answers[0].logprobs) | self._end(answers[0], usage)

    def opening(self) -> Iterator[bytes]:
        return iter(())

    def piece(self, part: Part) -> Iterator[bytes]:
        yield _line(self._part(part.piece.text, part.piece.logprobs) | {"done": False})

    def closing(self, answers: Sequence[Answer], usage: Usage) -> Iterator[bytes]:
        yield _line(self._part("") | self._end(answers[0], usage))

    def failed(self, error: MvlmError) -> Iterator[bytes]:
        yield _line({"error": str(error)})

    def _part(self, text: str, tokens: Sequence[Likely] = ()) -> dict[str, Any]:
        said: dict[str, Any] = {"response": text}
        if not self.prompted:
            said = {"message": {"role": "assistant", "content": text}}
        if tokens:
            said["logprobs"] = [likely_token(token) for token in tokens]
        return {"model": self.chat.model, "created_at": _now(), **said}

    def _end(self, answer: Answer, usage: Usage) -> dict[str, Any]:
        def ns(*stages: str) -> int:
            return int(1e6 * sum(answer.timings.get(f"{stage}_ms", 0.0) for stage in stages))

        return {
            "done": True, "done_reason": finish_reason(answer),
            "total_duration": int(1e9 * (time.perf_counter() - self.started)), "load_duration": 0,
            "prompt_eval_count": usage.prompt, "prompt_eval_duration": ns(*_BEFORE_WRITING),
            "eval_count": usage.completion, "eval_duration": ns("decode"), "mvlm": facts_of(answer, self.chat),
        }  # fmt: skip


def tags(models: Mapping[str, Scale], manifest: Manifest) -> dict[str, Any]:
    """What /api/tags lists: the same model under each of its names."""
    size = sum(path.stat().st_size for path in manifest.folder.iterdir() if path.is_file())
    modified = datetime.fromtimestamp(manifest.path("bundle.json").stat().st_mtime, UTC).isoformat()
    facts = {"modified_at": modified, "size": size, "digest": manifest.sha256, "details": details(manifest)}
    return {"models": [{"name": f"{name}{LATEST}", "model": f"{name}{LATEST}", **facts} for name in models]}


def running(models: Mapping[str, Scale], manifest: Manifest) -> dict[str, Any]:
    """What /api/ps lists: the model is loaded under all of its names, for as long as the server runs."""
    listed = tags(models, manifest)["models"]
    more = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": manifest.max_length}
    return {"models": [{name: fact for name, fact in one.items() if name != "modified_at"} | more for one in listed]}


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
