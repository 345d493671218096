"""Answering questions about pictures that have been looked at: the scale, what is read, and the words of the answer."""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.runtime.backends.onnx import Device, run_session
from export.runtime.backends.select import open_files
from export.runtime.decode.constraint import Grammars
from export.runtime.decode.conversation import Conversation, Reader, Reads
from export.runtime.decode.multiple_choice import score_choices
from export.runtime.decode.sampling import EmbeddingTable, first_margin, log_softmax
from export.runtime.decode.steps import Piece, Step, alone
from export.runtime.decode.writing import Task, Written, write
from export.runtime.routing.costs import CostTable
from export.runtime.routing.parts import Work
from export.runtime.routing.reading import Read, read_question
from export.runtime.routing.router import Choice, Router, Terms, named_reason
from export.runtime.routing.settled import Here, here, with_cache

from .answer import Answer, Clock, Stop, Stream
from .errors import MvlmError
from .features import image_feature_names, image_features, question_feature_names, question_features
from .looked import Looked, Sight
from .manifest import Manifest
from .prompt import Prompt
from .request import Request

Array = NDArray[np.float32]
# Connectors beyond these are opened when they are first asked for: a `query` bundle may hold hundreds of scales.
_OPEN_FROM_THE_START = 8


@dataclass(frozen=True)
class Begun:
    """A question at the scale that answers it, and what was read of it: a conversation, and its first token's logits.

    Nothing, where the answer was stopped before.
    """

    num_visual_tokens: int
    choice: Choice | None  # None when the scale was named
    escalated: int | None
    read: tuple[Conversation, Array] | None

    def answer(self, written: Written, timings: dict[str, float]) -> Answer:
        choice, m = self.choice, self.num_visual_tokens
        return Answer(
            text=written.text,
            num_visual_tokens=m,
            reason=choice.reason if choice else named_reason(m),
            probability=choice.probabilities[m] if choice else None,
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


class Answerer:
    """A bundle, open and ready to answer. Safe to use from several threads."""

    def __init__(self, manifest: Manifest, device: Device, costs: CostTable | None = None) -> None:
        self.manifest = manifest
        files = self._files = open_files(manifest, device)
        self.prompt = Prompt.from_json(manifest.prompt, _read_tokenizer(manifest))
        self.table = EmbeddingTable(manifest)
        self.grammars = Grammars(manifest)
        self.vision = files.session(manifest.vision.file)
        self._connectors: dict[int, Any] = {}
        self._opening = threading.Lock()
        for m in manifest.scales[:_OPEN_FROM_THE_START]:
            self._connector(m)
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
        """A picture's values (1, P, ·) as the tokens of one scale of the bundle: (1, m, D)."""
        graph = self.manifest.connectors[num_visual_tokens]
        session = self._connector(num_visual_tokens)
        tokens = run_session(session, [graph.outputs["tokens"]], {graph.inputs["values"]: values})[0]
        wanted = (1, num_visual_tokens, self.manifest.embedding.shape[1])
        if tokens.shape != wanted:
            raise MvlmError(
                f"{graph.file} gives {tokens.shape} and not {wanted}: it is another scale's; export again",
                code="bad-bundle",
            )
        return tokens

    def _connector(self, num_visual_tokens: int) -> Any:
        """The open connector of a scale; where a bundle holds many, those that nobody asks for are never opened."""
        with self._opening:
            if num_visual_tokens not in self._connectors:
                graph = self.manifest.connectors[num_visual_tokens]
                self._connectors[num_visual_tokens] = self._files.session(graph.file, small=True)
            return self._connectors[num_visual_tokens]

    def require_answerable(self, request: Request) -> None:
        """Raise `MvlmError` for a request that this bundle cannot meet, before any work is done on it."""
        self.require_offered(request)
        self.require_writable(request)
        needed = self.positions(request)
        if needed > self.manifest.max_length:
            visual, room = self._largest(request), self.room(request)
            raise MvlmError(
                f"the question with {visual} visual tokens and an answer of {room} tokens needs {needed} positions, and"
                f" the decoder has {self.manifest.max_length}: {self.way_out(request, needed - room, visual)}",
                code="too-long",
            )

    def way_out(self, request: Request, read: int, visual: int) -> str:
        """What to shorten where `read` positions, `visual` of them pictures, leave no room for the answer."""
        left = self.manifest.max_length - read
        if left > 0:
            return "give shorter choices" if request.choices else f"allow an answer of at most {left} tokens"
        fewer = "name a coarser scale" if visual > read - visual and request.scale != min(self.manifest.scales) else ""
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

    def positions(self, request: Request) -> int:
        """How many positions a question and its answer need at most."""
        return self.reader.positions(request.question, self._largest(request), self.room(request))

    def _largest(self, request: Request) -> int:
        return max(self.manifest.scales) if request.scale == "auto" else request.scale

    def features(self, looked: Looked, request: Request) -> dict[str, float]:
        """What the router sees of a question and a picture, by name, less the question's hashed words."""
        assert looked.image_features is not None  # there is a router
        named = zip(image_feature_names(), looked.image_features.tolist(), strict=True)
        asked = zip(question_feature_names(), self._of_question(looked, request.question).tolist(), strict=True)
        return {name: value for name, value in (*named, *asked) if not name.startswith("hash")}

    def _of_question(self, looked: Looked, question: str) -> Array:
        return self._asked(looked, question)[0]

    def _asked(self, looked: Looked, question: str) -> tuple[Array, Read | None]:
        """What the router sees of a question: features (d_question,), and what a reader reads, where it is one."""
        tokens = self.table.rows(self.prompt.question_ids(question))  # (T, D)
        sight = looked.sight
        read = None if sight is None or sight.read is None else Read(sight.read, read_question(tokens))
        return question_features(question, tokens, looked.words), read

    def see(self, words: Array) -> Sight:
        """What the router sees of a picture: (P, D)."""
        assert self.router is not None  # a view asks for it only then
        return Sight(image_features(words), self.router.look(words))

    def choose(self, looked: Looked, request: Request, clock: Clock) -> Choice:
        """The router's choice for a question about a picture, or one scale where that is worth more than choosing."""
        assert self.router is not None  # `require_answerable` saw to it
        terms, now = self._terms(looked, request, clock.left_ms), self._here(looked)
        costs, overhead = (now.costs, now.overhead) if now else (None, None)
        settled = self.router.settled(terms, costs, overhead)
        if settled is not None:
            return settled
        with clock.stage("features"):
            features, read = self._asked(looked, request.question)
            image = looked.image_features
        assert image is not None
        with clock.stage("router"):
            return self.router.choose(image, features, terms, read, costs)

    def _here(self, looked: Looked) -> Here | None:
        """What each scale costs a question about this picture, where some of it was computed already. None: as usual,
        or nothing was measured here."""
        if self.costs is None or self.router is None:
            return None
        ready, costs, offered, composed = (
            looked.shelf.ready(),
            self.router.costs,
            self.router.offered,
            self.costs.composed,
        )
        if composed is None:
            nested = self.reader.nested
            return Here(with_cache(costs, offered, ready, nested=nested), self.costs.router_ms) if ready else None
        if not ready and not looked.seen_by_router:
            return None
        return here(
            costs, offered, composed.usual, composed.work.__getitem__, lambda scale: self._left(looked, scale),
            self.costs.answer_tokens, picture_seen=looked.seen_by_router,
        )  # fmt: skip

    def _left(self, looked: Looked, scale: int) -> Work:
        """What is left of a question, as long as the one that was measured, about a picture that was looked at."""
        assert self.costs is not None
        assert self.costs.composed is not None  # who asks saw to it
        whole, kept = self.costs.composed.work[scale], looked.shelf.kept(scale)
        return replace(
            whole, views=0, connected=int(kept < scale), read=whole.read - kept, behind=whole.behind + kept
        )  # fmt: skip

    def choose_each(self, looked: Looked, requests: Sequence[Request]) -> Iterator[Choice]:
        """The router's choices for requests that ask one question about a view, each as `choose` makes it."""
        assert self.router is not None  # `require_answerable` saw to it
        now, asked = self._here(looked), None
        costs, overhead = (now.costs, now.overhead) if now else (None, None)
        for request in requests:
            settled = self.router.settled(request.terms, costs, overhead)
            if settled is None:
                asked = asked or self._asked(looked, request.question)
                assert looked.image_features is not None
                settled = self.router.choose(looked.image_features, asked[0], request.terms, asked[1], costs)
            yield settled

    def _terms(self, looked: Looked, request: Request, left_ms: float) -> Terms:
        """The request's terms, with a cap where only some scales can answer in the time that is left."""
        if self.costs is None or math.isinf(left_ms):
            return request.terms
        takes = {m: self._answer_ms(looked, m) for m in self.manifest.scales}
        in_time = [m for m, ms in takes.items() if ms <= left_ms]
        if not in_time:
            raise MvlmError(
                f"{max(left_ms, 0):.0f} ms are left, and the cheapest scale takes {min(takes.values()):.0f} ms here:"
                " allow more",
                code="deadline",
            )
        # Choosing is not in these milliseconds, and one scale for all needs none.
        cap = self.costs.costs[max(in_time)] - self.costs.router_ms
        return replace(request.terms, cap=cap if request.cap is None else min(cap, request.cap))

    def _answer_ms(self, looked: Looked, scale: int) -> float:
        """A question about a picture that has been looked at, and its answer, as nine of ten take at most."""
        assert self.costs is not None  # `_terms` saw to it
        composed = self.costs.composed
        if composed is None:
            return self.costs.answer_ms(scale)
        return composed.most.ms(self._left(looked, scale), self.costs.answer_tokens)

    def escalate(self, choice: Choice, logits: Array) -> Choice | None:
        """The finer scale that is worth an escalation after the first token's logits (V,), or None."""
        if self.router is None or not self.router.looks_again:
            return None
        return self.router.escalate(choice, first_margin(logits), keeps_cache=self.reader.nested)

    @contextmanager
    def begin(self, looked: Looked, request: Request, clock: Clock, stop: Stop) -> Iterator[Begun]:
        """Read a question at the scale that answers it: a second time, if its first token is not sure enough.

        The conversation is the caller's until the context is left.
        """
        choice = self.choose(looked, request, clock) if request.scale == "auto" else None
        m = choice.scale if choice else int(request.scale)
        escalated = None
        while not stop.now:
            with looked.shelf.borrow(m) as conversation:
                logits = conversation.ask(request.question, m, self.room(request), clock)  # (V,)
                closer = self.escalate(choice, logits) if choice and escalated is None else None
                if closer is None:
                    yield Begun(m, choice, escalated, (conversation, logits))
                    return
            escalated, choice, m = m, closer, closer.scale
        yield Begun(m, choice, escalated, None)

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


def _listed(scales: tuple[int, ...]) -> str:
    return ", ".join(map(str, scales))
