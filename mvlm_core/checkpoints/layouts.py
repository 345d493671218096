"""How published checkpoints name their tensors, and how one tells from the names which it is."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from export.runtime.errors import MvlmError

TOWER = "vision_tower."
CONNECTOR = "connector."
WORD_TABLE = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
# What a folder of the whole of CLIP holds besides its vision tower.
CLIP_TEXT_HALF = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")


@dataclass(frozen=True)
class Layout:
    """The beginnings of our names, and what stands in their place in a checkpoint's."""

    kind: Literal["llava", "transformers", "mqt"]
    words: str
    prefixes: dict[str, str]

    def name_of(self, ours: str) -> str:
        """The checkpoint's name of one of our tensors."""
        begin = next(prefix for prefix in self.prefixes if ours.startswith(prefix))
        return self.prefixes[begin] + ours.removeprefix(begin)


_LLAVA = {
    TOWER: "model.vision_tower.vision_tower.", "language_model.lm_head.": "lm_head.", "language_model.model.": "model.",
}  # fmt: skip
# By the beginning that gives each away. An older tower's names have one step more, see `tower_prefix`.
_LAYOUTS = {
    "model.query_abstractor.": Layout("mqt", "MQT's layout", {CONNECTOR: "model.query_abstractor.", **_LLAVA}),
    "model.mm_projector.": Layout(
        "llava", "LLaVA's own layout", {f"{CONNECTOR}mlp.": "model.mm_projector.", **_LLAVA}
    ),
    "model.multi_modal_projector.": Layout(
        "transformers", "transformers' layout",
        {
            TOWER: "model.vision_tower.",
            f"{CONNECTOR}mlp.0.": "model.multi_modal_projector.linear_1.",
            f"{CONNECTOR}mlp.2.": "model.multi_modal_projector.linear_2.",
            "language_model.lm_head.": "lm_head.",
            "language_model.model.": "model.language_model.",
        },
    ),
    "multi_modal_projector.": Layout(
        "transformers", "transformers' layout on disk",
        {
            TOWER: "vision_tower.",
            f"{CONNECTOR}mlp.0.": "multi_modal_projector.linear_1.",
            f"{CONNECTOR}mlp.2.": "multi_modal_projector.linear_2.",
            "language_model.": "language_model.",
        },
    ),
}  # fmt: skip
ON_DISK = replace(_LAYOUTS["multi_modal_projector."], words="stock transformers")


def recognise(names: Collection[str]) -> Layout:
    """The layout of a checkpoint, from the names of its tensors. Raises `MvlmError` when it is none that is read."""
    found = [begin for begin in _LAYOUTS if any(name.startswith(begin) for name in names)]
    if len(found) != 1:
        raise MvlmError(
            f"the tensors are of {'several layouts' if found else 'no layout'} that is read here (LLaVA-1.5, M3, MQT):"
            f" exactly one of {', '.join(_LAYOUTS)} must begin the names of some"
        )
    layout = _LAYOUTS[found[0]]
    return replace(layout, prefixes=layout.prefixes | {TOWER: tower_prefix(names, layout.prefixes[TOWER])})


def tower_prefix(names: Iterable[str], prefix: str) -> str:
    """What begins the names of a vision tower: `prefix`, and before transformers 5 one step more."""
    older = f"{prefix}vision_model."
    return older if any(name.startswith(older) for name in names) else prefix
