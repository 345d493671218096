"""Answering questions about pictures that have been looked at: the scale, what is read, and the words of the answer."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.runtime.backends.onnx import Device
from export.runtime.backends.select import open_files
from export.runtime.decode.constraint import Grammars
from export.runtime.decode.conversation import Conversation, Reader, Reads
from export.runtime.decode.multiple_choice import score_choices
from export.runtime.decode.sampling import EmbeddingTable, log_softmax
from export.runtime.decode.steps import Piece, Step, alone
from export.runtime.decode.writing import Task, Written, write
from export.runtime.routing.costs import CostTable
from export.runtime.routing.reasons import named_reason
from export.runtime.routing.router import Choice, Router

from .answer import Answer, Clock, Stop, Stream
from .chat_text import ChatText
from .choosing import Choosing
from .clips import ClipSource
from .encoder import Encoder
from .errors import MvlmError
from .image import Order, Picture
from .looked import Looked
from .manifest import Manifest
from .pictured import Pictured
from .prompt import Prompt
from .request import AUTO, Request
from .source import Source
from .views.laid import Layout
from .views.scale import ScaleWord
from .views.seen import Seen

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Begun:
    """A question at the scale that answers it, and what was read of it: a conversation, and its first token's logits.

    Nothing, where the answer was stopped before.
    """

    picture: Pictured
    choice: Choice | None  # None when the scale was named
    escalated: ScaleWord | None
    read: tuple[Conversation, Array] | None

    def answer(self, written: Written, timings: dict[str, float]) -> Answer:
        choice, scale, laid = self.choice, self.picture.scale, self.picture.laid
        return Answer(
            text=written.text,
            num_visual_tokens=laid.num_visual_tokens,
            scale=scale,
            views=laid.views,
            separators=len(laid) - laid.num_visual_tokens,
            tiles=(laid.tiles,),
            reason=choice.reason if choice else named_reason(scale),
            probability=choice.probabilities[scale] if choice else None,
            probabilities=choice.probabilities if choice else {},
            confidence=written.confidence,
            out_of_distribution=choice.out_of_distribution if choice else False,
            escalated=self.escalated,
            finish=written.finish,
            choices=written.choices,
            token_ids=tuple(written.token_ids),
            logprobs=tuple(written.logprobs),
            timings=timings,
        )


class Answerer(Choosing):
    """A bundle, open and ready to answer. Safe to use from several threads."""

    def __init__(self, manifest: Manifest, device: Device, costs: CostTable | None = None) -> None:
        self.manifest = manifest
        files = open_files(manifest, device)
        self.prompt = Prompt.from_json(manifest.prompt, _read_tokenizer(manifest))
        self.table = EmbeddingTable(manifest)
        self.grammars = Grammars(manifest)
        self.encoder = Encoder(manifest, files)
        ids_of = ChatText(self.prompt.tokenizer).ids
        self.layout = Layout(manifest.views, ids_of, manifest.image_token_id)
        self.decoder = files.decoder()
        self.costs = costs  # None: `mvlm bench` has not run here, and the router keeps its own
        router = manifest.router
        self.router = Router(manifest.path(router.file), router, manifest.scales, files.for_small) if router else None
        if self.router and costs:
            self.router = self.router.with_costs(costs.costs, "ms", costs.router_ms)
        self.reader = Reader(self.decoder, self.table, self.prompt, nested=manifest.nested)

    def stream(self, looked: Looked, request: Request, clock: Clock) -> Stream:
        """The answer to a request that was checked."""
        return Stream(lambda stop: self.answering(looked, request, clock, stop))

    def visual_tokens(self, values: Array, num_visual_tokens: int) -> Array:
        """Values of views (n, P, ·) as so many tokens each: (n, m, D)."""
        return self.encoder.tokens(values, num_visual_tokens)

    def source(self, picture: Picture, order: Order = "rgb", most_pixels: int | None = None) -> Source:
        """A picture, opened. Raises `MvlmError` for what is none, or has more than `most_pixels`."""
        return Source(picture, order, self.manifest, most_pixels)

    def pictured(self, seen: Seen, scale: ScaleWord, clip: ClipSource | None = None) -> Pictured:
        """A picture at a scale of the bundle, or a clip."""
        laid = self.layout.at(seen.size, scale) if clip is None else self.layout.clip(clip.count, scale, clip.timing)
        return Pictured(scale, laid, seen, self.encoder, self.table.rows, nested=self.manifest.nested)

    def require_answerable(self, request: Request, looked: Looked | None = None) -> None:
        """Raise `MvlmError` for a request that this bundle cannot meet, before any work is done on it.

        How many tiles a picture has is known once there is one; without, it counts as its overview.
        """
        self.require_offered(request)
        self.require_writable(request)
        needed = self.positions(request, looked)
        if needed > self.manifest.max_length:
            visual, room = self._largest(request, looked), self.room(request)
            raise MvlmError(
                f"the question with {visual} {self._shown_as(request, looked)} and an answer of {room} tokens needs"
                f" {needed} positions, and the decoder has {self.manifest.max_length}:"
                f" {self.way_out(request, needed - room, visual)}",
                code="too-long",
            )

    def _shown_as(self, request: Request, looked: Looked | None) -> str:
        if looked is None or request.scale == AUTO or (views := looked.at(request.scale).laid.views) == 1:
            return "visual tokens"
        return f"positions of a picture in {views} views, at scale {request.scale},"

    def way_out(self, request: Request, read: int, visual: int) -> str:
        """What to shorten where `read` positions, `visual` of them pictures, leave no room for the answer."""
        left = self.manifest.max_length - read
        if left > 0:
            return "give shorter choices" if request.choices else f"allow an answer of at most {left} tokens"
        fewer = "name a coarser scale" if visual > read - visual and request.scale != self.manifest.coarsest else ""
        return fewer or "ask in fewer words"

    def require_writable(self, request: Request) -> None:
        """Raise `MvlmError` for a schema that cannot be followed, or not here."""
        if request.json_schema is not None:
            self.grammars.allowed(request.json_schema)

    def require_offered(self, request: Request) -> None:
        """Raise `MvlmError` for a scale, terms or tokens that this bundle does not have."""
        self.require_tokens(request)
        offered = self.manifest.scales
        if request.scale == "auto" and self.router is None:
            raise MvlmError(f"this bundle holds no router: name a scale, one of {_listed(offered)}", code="no-router")
        if request.scale != "auto" and request.scale not in offered:
            raise MvlmError(
                f"this bundle has no scale {request.scale}: name one of {_listed(offered)}, or auto", code="bad-scale"
            )
        if self.router and request.scale == "auto":
            self.router.require(request.terms)
            if request.deadline_ms is not None and self.costs is None:
                raise MvlmError(
                    f"a deadline needs what each scale costs here: run `mvlm bench {self.manifest.folder}`, or name a"
                    " scale",
                    code="no-costs",
                )

    def require_tokens(self, request: Request) -> None:
        """Raise `MvlmError` for a biased token that the model does not know."""
        known = self.manifest.embedding.shape[0]
        unknown = [token for token, _ in request.logit_bias if token >= known]
        if unknown:
            raise MvlmError(f"logit_bias names token {unknown[0]}, and the model has {known}", code="bad-option")

    def positions(self, request: Request, looked: Looked | None = None) -> int:
        """How many positions a question and its answer need at most; with tiles, about a picture that is not there
        yet, at least."""
        return self.reader.positions(request.question, self._largest(request, looked), self.room(request))

    def most_positions(self, request: Request) -> int:
        """How many positions a question and its answer need at most, whatever the picture."""
        return self.manifest.max_length if self.manifest.many_views else self.positions(request)

    def _largest(self, request: Request, looked: Looked | None) -> int:
        """The positions of the picture. Where it has tiles, `auto` takes no scale that leaves no room."""
        scales = self.manifest.scales if request.scale == AUTO else (request.scale,)
        if not self.manifest.many_views:
            return max(len(self.layout.at((1, 1), scale)) for scale in scales)
        if looked is None:
            return min(map(self.layout.least, scales))
        return min(len(looked.at(scale)) for scale in scales)

    @contextmanager
    def begin(self, looked: Looked, request: Request, clock: Clock, stop: Stop) -> Iterator[Begun]:
        """Read a question at the scale that answers it: a second time, if its first token is not sure enough.

        The conversation is the caller's until the context is left.
        """
        choice = self.choose(looked, request, clock) if request.scale == "auto" else None
        scale: ScaleWord = choice.scale if choice else request.scale
        escalated = None
        while not stop.now:
            with looked.shelf.borrow(scale) as conversation:
                logits = conversation.ask(request.question, scale, self.room(request), clock)  # (V,)
                closer = self.escalate(choice, logits, looked) if choice and escalated is None else None
                if closer is None or not self._fits(looked, request, closer.scale, self.room(request)):
                    yield Begun(looked.at(scale), choice, escalated, (conversation, logits))
                    return
            escalated, choice, scale = scale, closer, closer.scale
        yield Begun(looked.at(scale), choice, escalated, None)

    def answering(self, looked: Looked, request: Request, clock: Clock, stop: Stop) -> Generator[str, None, Answer]:
        """Yield the pieces of an answer's text as they come, and return the answer."""
        with self.begin(looked, request, clock, stop) as begun:
            written = Written(finish="stopped")
            if begun.read:
                written = yield from alone(self.write(*begun.read, request, clock, stop))
        return begun.answer(written, clock.since(looked.timings))

    def write(
        self, conversation: Reads, logits: Array, request: Request, clock: Clock, stop: Stop,
        said: Iterable[int] | None = None,
    ) -> Generator[Step, Any, Written]:  # fmt: skip
        """The steps of an answer behind what was read, from its first token's logits (V,), and the whole.

        `said` are the ids of the prompt; left out, those of a single question.
        """
        if request.choices:
            return (yield from self._pick(conversation, logits, request, clock))
        return (yield from write(conversation, logits, self.task(request, said), clock, stop))

    def task(self, request: Request, said: Iterable[int] | None = None) -> Task:
        """What is to be written for a request. Raises `MvlmError` for a schema that cannot be followed."""
        allowed = None if request.json_schema is None else self.grammars.allowed(request.json_schema)
        words: Iterable[int] = ()
        if request.repetition_penalty != 1:
            alone = [*self.prompt.before(request.question), *self.prompt.after(request.question)]
            words = alone if said is None else said
        return Task(request, self.prompt.text, self.manifest.stop_ids, self.prompt.spelled, allowed, tuple(words))

    def _pick(
        self, conversation: Reads, logits: Array, request: Request, clock: Clock
    ) -> Generator[Step, Any, Written]:
        """The likeliest of the given answers."""
        with clock.stage("decode"):
            ways = [self._spellings(choice) for choice in request.choices]
            scores = score_choices(conversation, logits, ways, self.manifest.stop_ids)  # (choices,)
        shares = np.exp(log_softmax(scores))
        best = int(scores.argmax())
        yield Piece(request.choices[best])
        return Written(
            text=request.choices[best],
            token_ids=list(ways[best][0]),
            confidence=float(shares[best]),
            choices={choice: float(share) for choice, share in zip(request.choices, shares, strict=True)},
        )

    def _spellings(self, choice: str) -> list[tuple[int, ...]]:
        """The ids of an answer that reads so: templates differ in whether a space stands before it."""
        return [tuple(self.prompt.text_ids(text)) for text in (f" {choice.strip()}", choice.strip())]

    def room(self, request: Request) -> int:
        """How many tokens of an answer may have to stand in the cache."""
        if request.choices:
            return max(len(ids) for choice in request.choices for ids in self._spellings(choice))
        return request.max_new_tokens


def _read_tokenizer(manifest: Manifest) -> Tokenizer:
    path = manifest.path(manifest.tokenizer)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise MvlmError(f"{path} is no tokenizer ({str(error)[:120]}): export again", code="bad-bundle") from None


def _listed(scales: Sequence[ScaleWord]) -> str:
    return ", ".join(map(str, scales))
