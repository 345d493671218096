"""Memory of training steps as a table of the page of figures."""

from __future__ import annotations

from typing import Any


def views_memory(found: dict[str, Any]) -> str:
    """A column for each scale."""
    scales = found["scales"]
    return "\n".join([
        f"**Memory of a training step by views**, {found['pictures']} sheets of sixteen tiles a step.\n",
        "| scale | " + " | ".join(one["scale"] for one in scales) + " |",
        "|---" * (len(scales) + 1) + "|",
        "| views of a picture | " + " | ".join(str(one["views"]) for one in scales) + " |",
        "| MiB | " + " | ".join(str(one["memory_mib"]) for one in scales) + " |",
    ])  # fmt: skip
