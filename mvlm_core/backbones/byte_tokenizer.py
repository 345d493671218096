"""A small byte-level tokenizer, trained on the words of a data set: for models that start from nothing."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mvlm_core.modeling.processing import IMAGE_TOKEN

PAD, END, USER, ASSISTANT = "<pad>", "<end>", "<user>", "<assistant>"
_LARGEST_VOCABULARY = 4096


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding over bytes, so that any text can be written; digits stand alone, as they are read.

    The texts' own words become single tokens, which lets a patch be compared with a word.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_LARGEST_VOCABULARY,
        special_tokens=[PAD, IMAGE_TOKEN, END, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # As in the chat template, every text follows a space.
    tokenizer.train_from_iterator((f" {text}" for text in sorted(set(texts))), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left",
        additional_special_tokens=[IMAGE_TOKEN, USER, ASSISTANT],
    )  # fmt: skip
