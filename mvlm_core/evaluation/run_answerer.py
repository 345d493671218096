"""A run in torch answers what a benchmark asks.

Letters: B samples, S positions, P patches, m visual tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteria

from export.runtime.backends.onnx import Device
from export.runtime.decode.sampling import first_margin
from export.runtime.errors import MvlmError
from export.runtime.families import PREFIX_NESTED
from export.runtime.features import image_features, question_features
from export.runtime.routing.router import Choice, Router
from export.runtime.routing.router_folder import ROUTER_FILE, read_router
from mvlm_core.checkpoints.run_folder import Precision, load_run, model_sha256
from mvlm_core.modeling.chat_encoding import encode_text
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of, require_one_view
from mvlm_core.modeling.scales import require_scales

from .sample import Asked, Likelihood, Said, Scale, cut


@dataclass(frozen=True)
class Shown:
    """A sample's pictures, encoded once (pictures, P, ·), and the scale of each; `choices` where a router chose."""

    asked: Asked
    values: Tensor | None
    scales: tuple[int, ...]
    choices: tuple[Choice, ...] = ()


class RunAnswerer:
    """A run at one scale, or at the scale that its router chooses for each picture and question."""

    def __init__(
        self, model: MvlmForConditionalGeneration, processor: MvlmProcessor, scale: Scale, router: Router | None = None
    ) -> None:
        """Raises `MvlmError` for a scale that the connector does not allow, and for a model with tiles or marks."""
        require_one_view(processor, "mvlm benchmark")
        if scale != "auto":
            require_scales([scale], model.connector.scales)
        self.model, self.processor, self.scale, self.router = model, processor, scale, router
        self._prompt = prompt_of(processor) if router else None

    @classmethod
    def load(cls, run: Path, scale: Scale, router: Path | None, device: str, precision: Precision) -> RunAnswerer:
        """Raises `MvlmError` for a run or a router that is not in order, and for auto without a router."""
        if scale == "auto" and router is None:
            raise MvlmError("scale=auto asks a router which: name its folder, or a scale by its number")
        known = read_router(router, model_sha256(run)) if scale == "auto" and router else None
        model, processor = load_run(run, device=device, dtype=precision)
        chooser = Router(known.folder / ROUTER_FILE, known.known, known.scales, Device("cpu", 1)) if known else None
        return cls(model, processor, scale, chooser)

    @torch.inference_mode()
    def answer(self, asked: Sequence[Asked], max_new_tokens: int, until: Sequence[str]) -> list[Said]:
        shown = [self._show(sample) for sample in asked]
        said, first = self._generate(shown, max_new_tokens, until)
        closer = [self._escalate(sample, logits) for sample, logits in zip(shown, first, strict=True)]
        again = [sample for sample in closer if sample]
        second = iter(self._generate(again, max_new_tokens, until)[0] if again else [])
        return [next(second) if sample else answer for sample, answer in zip(closer, said, strict=True)]

    @torch.inference_mode()
    def likelihood(self, asked: Asked, answers: Sequence[str]) -> list[Likelihood]:
        shown = self._show(asked)
        return [self._likelihood(shown, answer) for answer in answers]

    def _show(self, asked: Asked) -> Shown:
        if not asked.pictures:
            return Shown(asked, None, ())
        pixels = self.processor.image_processor(list(asked.pictures))["pixel_values"]
        values = self.model.encode_images(pixels.to(self.model.device, self.model.dtype))  # (pictures, P, ·)
        if self.router is None:
            return Shown(asked, values, (int(self.scale),) * len(asked.pictures))
        words = self.model.connector.words(values).float().cpu().numpy()  # (pictures, P, D)
        choices = tuple(self._choose(of_picture, asked.question) for of_picture in words)
        return Shown(asked, values, tuple(choice.scale for choice in choices), choices)

    def _choose(self, words: Any, question: str) -> Choice:
        assert self.router is not None
        assert self._prompt is not None
        ids = torch.tensor(self._prompt.question_ids(question), device=self.model.device)
        token_rows = self.model.embedding_table[ids].float().cpu().numpy()  # (T, D)
        return self.router.choose(image_features(words), question_features(question, token_rows, words))

    def _escalate(self, shown: Shown, logits: Tensor) -> Shown | None:
        """The sample at a finer scale where the first token's logits (V,) call for it, as on the device."""
        if self.router is None or not self.router.looks_again or len(shown.choices) != 1:
            return None
        margin = first_margin(logits.float().cpu().numpy())
        keeps_cache = self.model.config.connector in PREFIX_NESTED
        closer = self.router.escalate(shown.choices[0], margin, keeps_cache=keeps_cache)
        return replace(shown, scales=(closer.scale,), choices=(closer,)) if closer else None

    def _generate(
        self, shown: Sequence[Shown], max_new_tokens: int, until: Sequence[str]
    ) -> tuple[list[Said], list[Tensor]]:
        """Answers, and the logits (V,) of the first token of each."""
        texts = [self.processor.render(list(sample.asked.messages), add_generation_prompt=True) for sample in shown]
        ids = [encode_text(text, self.processor.tokenizer)[0] for text in texts]
        rows = [self._embed(ids_, sample) for ids_, sample in zip(ids, shown, strict=True)]  # B of (S, D)
        whole = pad_sequence(rows, batch_first=True, padding_side="left")  # (B, S, D)
        masks = [torch.ones(len(row), dtype=torch.long, device=row.device) for row in rows]
        model: Any = self.model
        output = model.generate(
            inputs_embeds=whole, attention_mask=pad_sequence(masks, batch_first=True, padding_side="left"),
            max_new_tokens=max_new_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True,
            stopping_criteria=[_Until(self.processor, until)] if until else None,
        )  # fmt: skip
        answers = self.processor.tokenizer.batch_decode(output.sequences, skip_special_tokens=True)
        said = [Said(cut(text, until).strip(), sample.scales) for text, sample in zip(answers, shown, strict=True)]
        return said, list(output.logits[0])

    def _likelihood(self, shown: Shown, answer: str) -> Likelihood:
        said = {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]}
        encoded = self.processor.encode([*shown.asked.messages, said])
        ids, supervised = self._spread(encoded.ids, encoded.supervised, shown.scales)
        places = torch.tensor(supervised).nonzero()[:, 0].to(self.model.device)
        if not len(places):
            raise MvlmError("nothing of the answer is supervised: train a second stage, with a chat template")
        rows = self._embed(encoded.ids, shown)[None]  # (1, S, D)
        logits = self.model(inputs_embeds=rows, logits_to_keep=places - 1).logits[0].float()  # (answer, V)
        wanted = torch.tensor(ids, device=self.model.device)[places]
        greedy = bool((logits.argmax(dim=-1) == wanted).all())
        return Likelihood(float(F.cross_entropy(logits, wanted)), greedy, shown.scales)

    def _embed(self, ids: Sequence[int], shown: Shown) -> Tensor:
        """Ids with one placeholder a picture -> (S, D), each picture in as many tokens as its scale says."""
        spread = torch.tensor(self._spread(ids, [False] * len(ids), shown.scales)[0], device=self.model.device)
        places = spread == self.model.config.image_token_id  # (S,)
        embeds = self.model.get_input_embeddings()(spread.masked_fill(places, 0))  # (S, D)
        if shown.values is None:
            return embeds
        visual = self.model.visual_tokens(shown.values, range(len(shown.values)), shown.scales)  # (sum of m, D)
        return embeds.masked_scatter(places[:, None], visual.to(embeds.dtype))

    def _spread(self, ids: Sequence[int], marks: Sequence[bool], scales: Sequence[int]) -> tuple[list[int], list[bool]]:
        """Ids, and a mark for each, with as many placeholders for each picture as its scale says."""
        place, rest = self.model.config.image_token_id, iter(scales)
        found = list(ids).count(place)
        if found != len(scales):
            raise MvlmError(f"the chat template shows {found} of {len(scales)} pictures: use another one")
        counts = [next(rest) if token == place else 1 for token in ids]
        spread = ([pair] * count for pair, count in zip(zip(ids, marks, strict=True), counts, strict=True))
        pairs = list(chain.from_iterable(spread))
        return [token for token, _ in pairs], [mark for _, mark in pairs]


class _Until(StoppingCriteria):
    """Stops an answer once a text of `until` stands in it."""

    def __init__(self, processor: MvlmProcessor, until: Sequence[str]) -> None:
        self.processor, self.until = processor, until

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        texts = self.processor.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        ended = [any(stop in text for stop in self.until) for text in texts]
        return torch.tensor(ended, device=input_ids.device)
