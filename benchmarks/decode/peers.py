"""What a peer of `decode.py` is, and the random model that each of them writes, opens and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

# Of a prompt, beside the visual ones; and the longest conversation.
TEXT_TOKENS, POSITIONS = 32, 1024


class Peer(Protocol):
    """One way to run a language model."""

    bytes_a_token: float
    about: dict[str, str]  # its version, and what else decides how fast it is

    def write(self, model: Any) -> None:
        """Make this peer's files of a model of transformers."""

    def open(self) -> None: ...

    def prefill(self, tokens: int) -> None:
        """Begin a conversation with so many positions, up to the choice of the first token."""

    def step(self) -> None:
        """One more token, up to the choice of the next."""


def random_model(folder: Path, size: Any) -> Any:
    """A Llama of a size, with random weights; saved for peers that read files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        max_position_embeddings=POSITIONS, tie_word_embeddings=size.tied,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    _tokenizer(size.vocabulary).save_pretrained(folder)
    return model


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"t{i}": i for i in range(vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="t0"))
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="t1", eos_token="t2", pad_token="t0", unk_token="t0")
