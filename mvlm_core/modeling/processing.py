"""Pictures and words -> model input: chat template, expansion of <image> to m placeholders, answer mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from export.runtime.errors import MvlmError
from export.runtime.image import ImageSpec, Picture, preprocess
from export.runtime.prompt import FixedIds, ImagePlace, Part, Prompt, QuestionText, reader_of_pieces

from .chat_encoding import Encoded, encode_text, spell, supervised
from .chat_templates import IMAGE_TOKEN, TEMPLATES

# Stands for the question while a template is taken apart, and questions that its parts must then encode as it does.
_ANY_QUESTION = "\ue000question\ue000"
_PROBES = ("what is it?", " it's 12:30, où  est-ce ? ", "a\nb", "形")


class MvlmImageProcessor(BaseImageProcessor):
    """`export.runtime.image` in the shape transformers expects: the device and training share one preprocessing."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own way to declare it

    def __init__(
        self, size_px: int = 336, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3,
        fit: str = "stretch", resample: str = "bicubic", **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.size_px, self.mean, self.std, self.fit, self.resample = size_px, list(mean), list(std), fit, resample

    @property
    def spec(self) -> ImageSpec:
        told = {"size_px": self.size_px, "mean": self.mean, "std": self.std, "fit": self.fit}
        return ImageSpec.from_json(told | {"resample": self.resample})

    def __call__(  # type: ignore[override]
        self, images: Picture | Sequence[Picture], return_tensors: str = "pt", **_: Any
    ) -> BatchFeature:
        """Pictures -> `pixel_values` (B, 3, size_px, size_px) float32."""
        many: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        pixels = np.stack([preprocess(image, self.spec) for image in many])  # (B, 3, size_px, size_px)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


class MvlmProcessor(ProcessorMixin):
    """Text with one `<image>` a picture, and pictures -> `input_ids` with m placeholders each, and `pixel_values`.

    Special tokens that stand in the texts of chat messages, `<image>` among them, stay text: see `encoding.spell`.
    """

    def __init__(
        self, image_processor: MvlmImageProcessor, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or TEMPLATES["mvlm"].text)
        self.image_token_id: int = tokenizer.get_vocab()[IMAGE_TOKEN]

    def __call__(
        self,
        images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None = None,
        text: str | Sequence[str] | None = None,
        num_visual_tokens: int | Sequence[int] | None = None,
        return_tensors: str = "pt",
        **_: Any,
    ) -> BatchFeature:
        """Rows, left-padded: `input_ids` and `attention_mask` (B, S), `pixel_values` (pictures, 3, H, W).

        `num_visual_tokens` is one int or one for each picture, in the order of the placeholders. Raises `MvlmError`
        when the placeholders in the text, the pictures and the scales differ in number.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures = _flat(images)
        marks = sum(row.count(IMAGE_TOKEN) for row in texts)
        scales = [num_visual_tokens] * marks if isinstance(num_visual_tokens, int) else list(num_visual_tokens or [])
        if not marks == len(pictures) == len(scales):
            raise MvlmError(
                f"the text holds {marks} {IMAGE_TOKEN}, and {len(pictures)} pictures and {len(scales)} scales were"
                " given: give one of each for every picture"
            )
        remaining = iter(scales)
        expanded = [_expand(row, remaining) for row in texts]
        ids = [encode_text(row, self.tokenizer)[0] for row in expanded]
        batch = dict(self.tokenizer.pad({"input_ids": ids}, padding=True, return_tensors=return_tensors))
        if pictures:
            batch |= dict(self.image_processor(pictures, return_tensors=return_tensors))
            batch["num_visual_tokens"] = torch.tensor(scales)  # (pictures,)
        return BatchFeature(batch)

    def ask(self, question: str) -> str:
        """The text of one question about one picture, ready for an answer."""
        return self.render(turn(question), add_generation_prompt=True)

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        return self.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, **options: Any
    ) -> Any:
        """As transformers', with the special tokens in the texts of the messages marked as text."""
        return super().apply_chat_template(spell(conversation, self.tokenizer), chat_template, **options)

    def encode(self, messages: list[dict[str, Any]]) -> Encoded:
        """Ids with one placeholder a picture, and which of them training supervises (the generation marks).

        Raises `MvlmError` when the chat template refuses the conversation.
        """
        rendered: Any
        spans: Any
        try:
            rendered, spans = render_jinja_template(  # type: ignore[str-unpack]
                [spell(messages, self.tokenizer)], chat_template=str(self.chat_template),
                return_assistant_tokens_mask=True, **self.tokenizer.special_tokens_map,
            )  # fmt: skip
        except TemplateError as error:
            raise MvlmError(f"the chat template refuses this conversation: {error}") from None
        ids, offsets = encode_text(rendered[0], self.tokenizer)
        return Encoded(ids, supervised(offsets, spans[0]))

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "num_visual_tokens"]


def turn(question: str, answer: str | None = None, *, with_picture: bool = True) -> list[dict[str, Any]]:
    """One turn as chat messages with typed content."""
    content: list[dict[str, str]] = [{"type": "image"}] if with_picture else []
    messages: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def _flat(images: Any) -> list[Picture]:
    """Pictures as one list; transformers hands over a list for each conversation."""
    if isinstance(images, list | tuple):
        return [picture for part in images for picture in _flat(part)]
    return [] if images is None else [images]


def _expand(text: str, scales: Any) -> str:
    head, *rest = text.split(IMAGE_TOKEN)
    return head + "".join(IMAGE_TOKEN * next(scales) + part for part in rest)


def prompt_of(processor: MvlmProcessor) -> Prompt:
    """The processor's chat template for one question about one picture, taken apart at its special tokens.

    Raises `MvlmError` when the parts do not encode questions as the processor does: a template that changes the
    question, or a tokenizer whose pieces depend on what stands before them.
    """
    asked = processor.ask(_ANY_QUESTION)
    if _ANY_QUESTION not in asked:
        raise MvlmError(
            "the chat template shows no question (`plain` is for a first stage, of captions): train a second stage with"
            " this run as model.start, and with another model.chat_template"
        )
    tokenizer = processor.tokenizer.backend_tokenizer
    special = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    borders = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True))
    parts: list[Part] = []
    for piece in filter(None, re.split(f"({borders})", asked)):
        if piece == IMAGE_TOKEN:
            parts.append(ImagePlace())
        elif piece in special:
            parts.append(FixedIds((special[piece],)))
        elif _ANY_QUESTION in piece:
            parts.append(QuestionText(*piece.split(_ANY_QUESTION, 1)))
        else:
            reader = reader_of_pieces(tokenizer) if parts else tokenizer
            parts.append(FixedIds(tuple(reader.encode(piece, add_special_tokens=False).ids)))
    prompt = Prompt(parts, tokenizer)
    for question in _PROBES:
        wanted = processor.tokenizer(processor.ask(question), add_special_tokens=False)["input_ids"]
        if prompt.ids(question, 1, processor.image_token_id) != wanted:
            raise MvlmError(
                f"the parts of the chat template encode {question!r} otherwise than the processor: use a template that"
                " leaves the question as it is, between special tokens"
            )
    return prompt
