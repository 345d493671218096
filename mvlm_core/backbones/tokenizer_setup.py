"""A language model's own tokenizer, made ready for pictures: <image> among its tokens, a chat template that fits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from export.runtime.errors import MvlmError
from mvlm_core.modeling.chat_templates import GENERATION_MARK, IMAGE_TOKEN, TEMPLATES, fitting_template
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor, turn

_QUESTION, _ANSWER = "which colour?", "green"
# Known by special tokens of their own; Vicuna's are every older Llama's, so it is taken where no other template is.
_TOLD_APART = ("mvlm", "chatml", "llama3")


@dataclass(frozen=True)
class Words:
    """A processor, and what was done to its tokenizer, in words for a person."""

    processor: MvlmProcessor
    notes: list[str]


def speak(
    tokenizer: PreTrainedTokenizerFast, images: MvlmImageProcessor, *,
    name: str, stated: str | None = None, otherwise: str | None = None,
) -> Words:  # fmt: skip
    """Add <image> to the tokenizer `name`, let it pad, and find its chat template.

    `stated` is the name of a template of ours or a file; without it the tokenizer's own is taken if it shows pictures
    and marks answers, else one of ours that fits its special tokens, else `otherwise`. The token that ends an answer
    there becomes the tokenizer's `eos_token`; `plain` has none, and is for a first stage. Raises `MvlmError` when no
    template fits, saying what to give.
    """
    notes = []
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
        notes.append(f"{IMAGE_TOKEN} was added to the tokenizer as token {tokenizer.get_vocab()[IMAGE_TOKEN]}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
        notes.append(f"the tokenizer pads with {tokenizer.pad_token}, as it names no token for that")
    template, from_where = _template(tokenizer, images, name, stated, otherwise)
    processor = MvlmProcessor(images, tokenizer, chat_template=template)
    ends = TEMPLATES[stated].ends if stated in TEMPLATES else True
    if fault := template_fault(processor, ends=ends):
        raise MvlmError(f"the chat template of {stated or name} {fault}: set model.chat_template to another")
    if ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(_last_supervised(processor))
    return Words(processor, [*notes, f"the chat template is {from_where}"])


def template_fault(processor: MvlmProcessor, *, ends: bool = True) -> str | None:
    """What keeps a chat template from being trained on: tried on a question about a picture, and its answer."""
    if GENERATION_MARK not in (processor.chat_template or ""):
        return f"does not mark what training supervises, with {GENERATION_MARK} and {{% endgeneration %}}"
    try:
        encoded = processor.encode(turn(_QUESTION, _ANSWER))
        asked = processor.tokenizer(processor.ask(_QUESTION), add_special_tokens=False)["input_ids"]
    except Exception as error:  # a template can raise whatever Python can
        return f"cannot show content of parts ({' '.join(str(error).split())[:80]})"
    if encoded.ids.count(processor.image_token_id) != 1:
        return f"does not show a part of the type image as {IMAGE_TOKEN}"
    learned = processor.tokenizer.decode(
        [token for token, is_answer in zip(encoded.ids, encoded.supervised, strict=True) if is_answer],
        skip_special_tokens=True,
    )
    if learned.strip() != _ANSWER:
        return f"marks {learned.strip()!r} where the answer is {_ANSWER!r}"
    if encoded.ids[: len(asked)] != asked:
        return "asks otherwise (add_generation_prompt) than it shows what was asked"
    if ends and _last_supervised(processor) not in processor.tokenizer.added_tokens_decoder:
        return "marks no special token that ends the answer"
    return None


def _last_supervised(processor: MvlmProcessor) -> int:
    encoded = processor.encode(turn(_QUESTION, _ANSWER))
    return [token for token, is_answer in zip(encoded.ids, encoded.supervised, strict=True) if is_answer][-1]


def _template(
    tokenizer: PreTrainedTokenizerFast, images: MvlmImageProcessor, name: str, stated: str | None, otherwise: str | None
) -> tuple[str, str]:
    """A template and whose it is."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if stated and stated not in TEMPLATES:
        return _from_file(stated), f"that of {stated}"
    own = tokenizer.chat_template
    if stated is None and isinstance(own, str):
        tried = MvlmProcessor(images, tokenizer, chat_template=own)
        if template_fault(tried) is None:
            return own, f"that of {name}"
        own = None if otherwise else own
    names = (stated,) if stated else (*_TOLD_APART, *([] if own else [otherwise or "vicuna"]))
    ours = fitting_template(special, names)
    if ours is None:
        raise MvlmError(_nothing_fits(name, stated, special))
    return TEMPLATES[ours].text, f"`{ours}` of {', '.join(TEMPLATES)}"


def _from_file(file: str) -> str:
    if not Path(file).is_file():
        raise MvlmError(f"chat_template {file} is neither a file nor one of {', '.join(TEMPLATES)}")
    return Path(file).read_text(encoding="utf-8")


def _nothing_fits(name: str, stated: str | None, special: set[str]) -> str:
    if stated:
        missing = sorted(set(TEMPLATES[stated].needs) - special)
        return f"the chat template {stated} writes {', '.join(missing)}, which the tokenizer of {name} does not have"
    return (
        f"the chat template of {name} does not show pictures, or does not mark what training supervises, and none of"
        f" {', '.join(_TOLD_APART)} fits its special tokens: set model.chat_template to one of {', '.join(TEMPLATES)},"
        f" or to a file with {GENERATION_MARK} around the answers"
    )
