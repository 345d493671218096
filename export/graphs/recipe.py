"""Which form each linear layer of a language model is written in, and the numbers of those that were calibrated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .grids import Numbers
from .quantize import form
from .writer import Form, Writer

# Stands for every layer that is not named.
OTHERS = "*"
HEAD = "lm_head"


@dataclass(frozen=True)
class Recipe:
    """Forms by layer, as words (`quantize.form`); layers are named as the writer names them, without `.weight`:
    `layers.3.mlp.down_proj`, `layers.3.self_attn.qkv_proj`, `lm_head`. A `Product` for a whole language model.

    Attributes:
        words: layer, or the last part of its name (`down_proj`: of every block), -> form; `*` stands for all others.
        numbers: what calibration made of the weights of some layers; others are rounded to the nearest.
    """

    words: Mapping[str, str]
    numbers: Mapping[str, Numbers] = field(default_factory=dict)

    def word(self, layer: str) -> str:
        """The form of a layer, as a word."""
        kind = layer.rpartition(".")[2]
        return self.words.get(layer) or self.words.get(kind) or self.words[OTHERS]

    def of(self, layer: str) -> Form:
        """The form of a layer."""
        return form(self.word(layer))

    @property
    def by_row(self) -> bool:
        return all(form(word).by_row for word in set(self.words.values()))

    def __call__(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        layer = name.removesuffix(".weight")
        return self.of(layer)(writer, x, weight, name, self.numbers.get(layer))

    def head(self, writer: Writer, x: str, weight: Tensor, name: str, numbers: Numbers | None = None) -> str:
        layer = name.removesuffix(".weight")
        return self.of(layer).head(writer, x, weight, name, self.numbers.get(layer))
