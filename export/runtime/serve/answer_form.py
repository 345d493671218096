"""What form an answer is asked for in: plain text, any JSON object, or JSON of a schema."""

from __future__ import annotations

from typing import Any

from .body import BadField, short

_ANY_OBJECT = {"type": "object"}


def read_form(value: object, name: str) -> dict[str, Any] | None:
    """A JSON schema out of `response_format` of chat completions, or `text.format` of responses; None for plain text.

    Chat completions hold the schema one level deeper. `name` is the field's. Raises `BadField`.
    """
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return _ANY_OBJECT
    if kind == "json_schema":
        assert isinstance(value, dict)
        held = value.get("json_schema")
        schema = (held if isinstance(held, dict) else value).get("schema")
        if isinstance(schema, dict):
            return schema
        raise BadField(f"{name} holds no schema: send one, or ask for a json_object", name)
    raise BadField(f"{name} is {short(value)}: its type is text, json_object or json_schema", name)


def read_ollama_form(value: object) -> dict[str, Any] | None:
    """A JSON schema out of Ollama's `format`: "json", or the schema itself. Raises `BadField`."""
    if value in (None, ""):
        return None
    if value == "json":
        return _ANY_OBJECT
    if isinstance(value, dict):
        return value
    raise BadField(f"format is {short(value)}: send json, a JSON schema, or leave it out", "format")


def read_logprobs(value: dict[str, Any]) -> int | None:
    """How many alternatives are to be named beside each token; None for no probabilities. Raises `BadField`."""
    wanted, count = value.get("logprobs"), value.get("top_logprobs")
    if wanted is not None and not isinstance(wanted, bool):
        raise BadField(f"logprobs is {short(wanted)}: send true or false", "logprobs")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool)):
        raise BadField(f"top_logprobs is {short(count)}: send a whole number", "top_logprobs")
    if count and not wanted:
        raise BadField("top_logprobs is asked for without logprobs: send logprobs true with it", "top_logprobs")
    return (count or 0) if wanted else None
