"""Pictures and words -> model input: chat template, a picture's place -> its placeholders, answer mask."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils.chat_template_utils import render_jinja_template

from export.runtime.errors import MvlmError
from export.runtime.image import ImageSpec, Picture, open_picture, preprocess
from export.runtime.prompt import FixedIds, ImagePlace, Part, Prompt, QuestionText, reader_of_pieces
from export.runtime.views.clip import Clip, Frames, Video, number_of
from export.runtime.views.clip_words import Timing, ids_of_shown
from export.runtime.views.cutting import OVERVIEW, Size, View
from export.runtime.views.pixels import view_pixels
from export.runtime.views.scale import Scale
from export.runtime.views.shown import Shown, joined, of_clip
from export.runtime.views.spec import ViewSpec, tokens_of_view

from .chat_encoding import Encoded, answer_spans, encode_text, spell, supervised
from .chat_templates import IMAGE_TOKEN, TEMPLATES
from .template_limits import template_errors

_MARKS_ANSWERS = re.compile(r"{%-?\s*generation\b")
# Stands for the question while a template is taken apart, and questions that its parts must then encode as it does.
_ANY_QUESTION = "\ue000question\ue000"
_NO_TIMES = Timing()
_PROBES = ("what is it?", " it's 12:30, où  est-ce ? ", "a\nb", "形")


class MvlmImageProcessor(BaseImageProcessor):
    """`export.runtime` in the shape transformers expects: the device and training share one preprocessing.

    `views` describes overview and tiles (`export.runtime.views.ViewSpec`), and then says all; without it a picture is
    one view, which the other arguments describe.
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own way to declare it

    def __init__(
        self, size_px: int = 336, mean: Sequence[float] = (0.5,) * 3, std: Sequence[float] = (0.5,) * 3,
        fit: str = "stretch", resample: str = "bicubic", views: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.size_px, self.mean, self.std, self.fit, self.resample = size_px, list(mean), list(std), fit, resample
        self.views = views

    @property
    def spec(self) -> ImageSpec:
        told = {"size_px": self.size_px, "mean": self.mean, "std": self.std, "fit": self.fit}
        return ImageSpec.from_json(told | {"resample": self.resample})

    @property
    def view_spec(self) -> ViewSpec | None:
        return None if self.views is None else ViewSpec.from_json(self.views)

    def shown(self, size: Size, scale: Scale) -> Shown:
        """A picture of (height, width) at a scale. Raises `MvlmError` for a scale that it cannot be shown at."""
        if spec := self.view_spec:
            return Shown.of(size, scale, spec)
        if scale.tokens is None or scale.tiles != 0:
            raise MvlmError(
                f"this model sees a picture as a whole, and {scale} asks for tiles: name the tokens alone, as in 9",
                code="scale-not-allowed",
            )
        return Shown([OVERVIEW], scale.tokens, IMAGE_TOKEN * scale.tokens, None, scale.tokens)

    def shown_of(self, opened: Image.Image | Clip, scale: Scale) -> Shown:
        """An opened picture or clip at a scale."""
        if isinstance(opened, Image.Image):
            return self.shown((opened.height, opened.width), scale)
        return self.shown_clip(opened.count, scale, opened.timing)

    def shown_clip(self, count: int, scale: Scale, timing: Timing = _NO_TIMES) -> Shown:
        """A clip of so many frames at a scale, each frame as a picture's overview, between the family's words."""
        spec = self.view_spec
        tokens = tokens_of_view(scale, spec)
        one = self.shown((self.size_px, self.size_px), Scale(tokens))
        return of_clip(count, scale, one, spec.clip_words if spec else "none", timing)

    def open(self, picture: Picture | Clip) -> Image.Image | Clip:
        """A picture upright and in RGB, of whose size `shown` wants to know; a clip stays as it is."""
        if isinstance(picture, Frames | Video):
            return picture
        return open_picture(cast(Picture, picture), on_white=self.views is not None)

    def pixels(self, picture: Image.Image | Clip, views: Sequence[View]) -> NDArray[np.float32]:
        """Views of an opened picture or clip: (len(views), 3, size_px, size_px) float32."""
        if not isinstance(picture, Image.Image):
            frames = picture.at([number_of(view, picture.count) for view in views])
            return np.concatenate([self.pixels(frame, [OVERVIEW]) for frame in frames])
        if spec := self.view_spec:
            return view_pixels(picture, views, spec)
        return np.stack([preprocess(picture, self.spec) for _ in views])

    def __call__(  # type: ignore[override]
        self, images: Picture | Sequence[Picture], return_tensors: str = "pt", **_: Any
    ) -> BatchFeature:
        """Pictures -> the `pixel_values` (B, 3, size_px, size_px) float32 of their overviews."""
        many: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
        pixels = np.concatenate([self.pixels(self.open(image), [OVERVIEW]) for image in many])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


class MvlmProcessor(ProcessorMixin):
    """Text with one placeholder a picture, and pictures -> `input_ids` with as many as it is shown in, `pixel_values`.

    Special tokens that stand in the texts of chat messages, `<image>` among them, stay text: see `encoding.spell`.
    `default_scale` is what a caller gets who names no scale, as transformers' pipelines do not.
    """

    def __init__(
        self, image_processor: MvlmImageProcessor, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None,
        default_scale: int | str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(image_processor, tokenizer, chat_template=chat_template or TEMPLATES["mvlm"].text)
        self.default_scale = default_scale
        spec = image_processor.view_spec
        self.image_token = spec.image_token if spec else IMAGE_TOKEN
        self.image_token_id: int = tokenizer.get_vocab()[self.image_token]

    def __call__(
        self,
        images: Picture | Sequence[Picture] | Sequence[Sequence[Picture]] | None = None,
        text: str | Sequence[str] | None = None,
        num_visual_tokens: int | Sequence[int] | None = None,
        scale: int | str | Scale | Sequence[int | str | Scale] | None = None,
        return_tensors: str = "pt",
        **_: Any,
    ) -> BatchFeature:
        """Rows, left-padded: `input_ids` and `attention_mask` (B, S), `pixel_values` (views, 3, H, W).

        `scale` (`36`, `16@4`, `native`: `export.runtime.views.Scale`) is one or one for each picture, in the order of
        the placeholders; `num_visual_tokens` is its older name. What comes back under that name is the tokens of each
        view. Left out, it is `default_scale`. Raises `MvlmError` when the placeholders in the text, the pictures and
        the scales differ in number, or no scale is said.
        """
        if scale is not None and num_visual_tokens is not None:
            raise MvlmError("scale and num_visual_tokens say the same: give one of the two")
        texts = [text] if isinstance(text, str) else list(text or [])
        pictures = _flat(images)
        marks = sum(row.count(self.image_token) for row in texts)
        scales = _scales(self._asked(scale, num_visual_tokens, marks), marks)
        if not marks == len(pictures) == len(scales):
            raise MvlmError(
                f"the text holds {marks} {self.image_token}, and {len(pictures)} pictures and {len(scales)} scales were"
                " given: give one of each for every picture"
            )
        opened = [self.image_processor.open(picture) for picture in pictures]
        shown = [self.image_processor.shown_of(picture, scale) for picture, scale in zip(opened, scales, strict=True)]
        remaining = iter(shown)
        expanded = [_expand(row, self.image_token, remaining) for row in texts]
        ids = [encode_text(row, self.tokenizer)[0] for row in expanded]
        batch = dict(self.tokenizer.pad({"input_ids": ids}, padding=True, return_tensors=return_tensors))
        if pictures:
            pixels = [self.image_processor.pixels(p, s.views) for p, s in zip(opened, shown, strict=True)]
            batch["pixel_values"] = torch.from_numpy(np.concatenate(pixels))  # (views, 3, H, W)
            batch["num_visual_tokens"] = torch.tensor([s.tokens for s in shown for _ in s.views])  # (views,)
            batch |= stitch_tensors(shown)
        return BatchFeature(batch)

    def _asked(self, scale: Any, num_visual_tokens: Any, marks: int) -> Any:
        """What is asked for, or the default. Raises `MvlmError` for pictures that nothing says how to show."""
        asked = num_visual_tokens if scale is None else scale
        asked = self.default_scale if asked is None else asked
        if asked is None and marks:
            raise MvlmError("no scale was named, and this run has no default: give scale=, or set default_scale")
        return asked

    def ask(self, question: str) -> str:
        """The text of one question about one picture, ready for an answer."""
        return self.render(turn(question), add_generation_prompt=True)

    def render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool = False) -> str:
        """The chat template's text. Raises `MvlmError` when it refuses the conversation, or does not end."""
        with template_errors():
            return self.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, **options: Any
    ) -> Any:
        """As transformers', with the special tokens in the texts of the messages marked as text."""
        return super().apply_chat_template(spell(conversation, self.tokenizer), chat_template, **options)

    def encode(self, messages: list[dict[str, Any]]) -> Encoded:
        """Ids with one placeholder a picture, and which of them training supervises.

        That is what the generation marks of the chat template say, and where an imported family has none, what an
        answer adds to the conversation. Raises `MvlmError` when the chat template refuses the conversation, or
        does not end.
        """
        if self.image_processor.views and not _MARKS_ANSWERS.search(str(self.chat_template)):
            return self._encode_unmarked(messages)
        rendered: Any
        spans: Any
        with template_errors():
            rendered, spans = render_jinja_template(  # type: ignore[str-unpack]
                [spell(messages, self.tokenizer)], chat_template=str(self.chat_template),
                return_assistant_tokens_mask=True, **self.tokenizer.special_tokens_map,
            )  # fmt: skip
        ids, offsets = encode_text(rendered[0], self.tokenizer)
        return Encoded(ids, supervised(offsets, spans[0]))

    def _encode_unmarked(self, messages: list[dict[str, Any]]) -> Encoded:
        with template_errors():
            whole = self.render(messages)
            shown = [
                (self.render(messages[:n], add_generation_prompt=True), self.render(messages[: n + 1]))
                for n, message in enumerate(messages)
                if message["role"] == "assistant"
            ]
        ids, offsets = encode_text(whole, self.tokenizer)
        return Encoded(ids, supervised(offsets, answer_spans(whole, shown, self.tokenizer)))

    def picture_ids(self, shown: Shown) -> list[int]:
        """The ids that stand for a picture in a row: its placeholders and the marks around them."""
        if shown.text == self.image_token * shown.num_placeholders:
            return [self.image_token_id] * shown.num_placeholders
        return ids_of_shown(shown.text, lambda text: encode_text(text, self.tokenizer)[0])

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids", "attention_mask", "pixel_values", "num_visual_tokens", "stitch_sources", "stitch_weights",
        ]  # fmt: skip


def require_one_view(processor: MvlmProcessor, who: str) -> None:
    """Raise `MvlmError` for a model with tiles, or with marks around its pictures, where `who` shows whole pictures."""
    if processor.image_processor.views is not None:
        raise MvlmError(
            f"{who} shows whole pictures without marks around them, and this model has views of its own (tiles, marks,"
            " newlines): ask it in torch, by load_run and processor(..., scale=)"
        )


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


def _scales(asked: Any, pictures: int) -> list[Scale]:
    """One scale for each picture, where one for all or one for each was asked."""
    if isinstance(asked, torch.Tensor):
        asked = asked.tolist()
    if isinstance(asked, int | str | Scale):
        return [Scale.parse(asked)] * pictures
    return [Scale.parse(scale) for scale in asked or []]


def _expand(text: str, image_token: str, shown: Iterator[Shown]) -> str:
    head, *rest = text.split(image_token)
    return head + "".join(next(shown).text + part for part in rest)


def stitch_tensors(shown: Sequence[Shown]) -> dict[str, torch.Tensor]:
    """What `forward` takes where pictures are stitched, and nothing where they are not."""
    stitch = joined(shown)
    if stitch is None:
        return {}
    return {"stitch_sources": torch.from_numpy(stitch.sources), "stitch_weights": torch.from_numpy(stitch.weights)}


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
        if piece == processor.image_token:
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
