"""`Runtime`: load a bundle, look at a picture once, ask about it at any scale."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .costs import CostTable, read_costs
from .errors import MvlmError
from .features import image_features, question_features
from .generate import EmbeddingTable, greedy
from .image import Picture, preprocess
from .machine import device_name
from .manifest import Manifest, read_manifest
from .prompt import Prompt
from .router import Choice, Router, Terms, named_reason, require_price
from .sessions import Decoder, Device, open_session

Array = NDArray[np.float32]
Scale = int | Literal["auto"]


@dataclass(frozen=True)
class Answer:
    """What was answered, and why in so many tokens.

    Attributes:
        probability: that this answer is right, as the router saw it; None when the scale was named.
        probabilities: the same at each scale of the bundle; empty when the scale was named.
        token_ids: the answer's ids, without the stop id.
        timings: milliseconds of each stage; those of looking at the picture are the same in every answer about it.
    """

    text: str
    num_visual_tokens: int
    reason: str
    probability: float | None
    probabilities: dict[int, float]
    token_ids: tuple[int, ...]
    timings: dict[str, float]


class Runtime:
    """A bundle, open and ready. Safe to use from several threads."""

    def __init__(self, manifest: Manifest, device: Device, costs: CostTable | None = None) -> None:
        self.manifest = manifest
        # The small graphs gain nothing from more threads, and idle ones would only get in the way.
        small = Device(device.provider, threads=1)
        self._prompt = Prompt.from_json(manifest.prompt, _read_tokenizer(manifest))
        self._table = EmbeddingTable(manifest)
        self._vision = open_session(manifest.path(manifest.vision.file), device)
        self._connectors = {m: open_session(manifest.path(g.file), small) for m, g in manifest.connectors.items()}
        self.decoder = Decoder(manifest.path(manifest.decoder.graph.file), manifest.decoder, device)
        self.costs = costs  # None: `mvlm bench` has not run here, and the router keeps its own
        router = costs.priced(manifest.router) if costs and manifest.router else manifest.router
        self._router = Router(manifest.path(router.file), router, manifest.scales, small) if router else None

    @classmethod
    def load(cls, path: str | Path, provider: str = "cpu", threads: int | None = None) -> Runtime:
        """Open the bundle at `path` on `provider`. Raises `MvlmError` when it is not whole or cannot be opened."""
        device = Device(provider, threads)
        manifest = read_manifest(Path(path))
        measured = read_costs(manifest.folder, device_name(provider, threads), manifest.sha256)
        return cls(manifest, device, measured)

    def look(self, picture: Picture) -> View:
        """Encode a picture once: a path, encoded bytes, a PIL picture, or an RGB array (H, W, 3) uint8."""
        clock = _Clock()
        graph = self.manifest.vision
        with clock.stage("image"):
            pixels = preprocess(picture, self.manifest.image)[None]  # (1, 3, size_px, size_px)
        with clock.stage("vision"):
            values, words = self._vision.run(
                [graph.outputs["values"], graph.outputs["words"]], {graph.inputs["pixel_values"]: pixels}
            )  # (1, P, ·), (1, P, D)
        with clock.stage("features"):
            features = image_features(words[0]) if self._router else None  # (d_image,)
        return View(self, values, words[0], features, clock.timings)

    def ask(
        self,
        picture: Picture,
        question: str,
        scale: Scale = "auto",
        price: float | None = None,
        max_new_tokens: int = 32,
    ) -> Answer:
        """Look at a picture and ask one question about it; see `View.ask`."""
        self.require_answerable(question, scale, price, max_new_tokens)
        return self.look(picture).ask(question, scale, price, max_new_tokens)

    def visual_tokens(self, values: Array, num_visual_tokens: int) -> Array:
        """A picture's values (1, P, ·) as the tokens of one scale of the bundle: (1, m, D)."""
        graph = self.manifest.connectors[num_visual_tokens]
        session = self._connectors[num_visual_tokens]
        return session.run([graph.outputs["tokens"]], {graph.inputs["values"]: values})[0]

    def require_answerable(self, question: str, scale: Scale, price: float | None, max_new_tokens: int) -> None:
        """Raise `MvlmError` for a request that cannot be met, before any work is done on it."""
        if not isinstance(question, str) or not question.strip():
            raise MvlmError("the question is empty: ask something", code="empty-question")
        if price is not None:
            require_price(price)
        if max_new_tokens < 1:
            raise MvlmError(f"an answer of at most {max_new_tokens} tokens is none: allow at least 1")
        offered = self.manifest.scales
        if scale == "auto":
            if self._router is None:
                raise MvlmError(f"this bundle holds no router: name a scale, one of {_listed(offered)}")
            largest = max(offered)
        elif scale in offered and not isinstance(scale, bool):
            largest = scale
        else:
            raise MvlmError(f"this bundle has no scale {scale!r}: name one of {_listed(offered)}, or auto")
        needed = len(self._prompt.ids(question, largest, self.manifest.image_token_id)) + max_new_tokens
        if needed > self.manifest.max_length:
            raise MvlmError(
                f"the question with {largest} visual tokens and an answer of {max_new_tokens} tokens needs {needed}"
                f" positions, and the decoder has {self.manifest.max_length}: ask in fewer words",
                code="too-long",
            )

    def _answer(self, view: View, question: str, scale: Scale, price: float | None, max_new_tokens: int) -> Answer:
        self.require_answerable(question, scale, price, max_new_tokens)
        clock = _Clock(view.timings)
        choice = self._choose(view, question, price, clock) if scale == "auto" else None
        m = choice.scale if choice else int(scale)
        with clock.stage("connector"):
            visual = self.visual_tokens(view.values, m)  # (1, m, D)
        ids = self._prompt.ids(question, m, self.manifest.image_token_id)
        prompt = self._table.prompt(ids, visual[0])  # (S, D)
        generated = greedy(
            self.decoder, self._table, prompt, stop_ids=self.manifest.stop_ids, max_new_tokens=max_new_tokens
        )
        return Answer(
            text=self._prompt.answer(generated.token_ids),
            num_visual_tokens=m,
            reason=choice.reason if choice else named_reason(m),
            probability=choice.probabilities[m] if choice else None,
            probabilities=choice.probabilities if choice else {},
            token_ids=generated.token_ids,
            timings={**clock.timings, "prefill_ms": generated.prefill_ms, "decode_ms": generated.decode_ms},
        )

    def _choose(self, view: View, question: str, price: float | None, clock: _Clock) -> Choice:
        assert self._router is not None  # `require_answerable` saw to it
        assert view.image_features is not None
        with clock.stage("features"):
            tokens = self._table.rows(self._prompt.question_ids(question))  # (T, D)
            features = question_features(question, tokens, view.words)  # (d_question,)
        with clock.stage("router"):
            return self._router.choose(view.image_features, features, Terms(price=price))


@dataclass(frozen=True)
class View:
    """A picture that has been looked at: every scale, and any number of questions, follow from this.

    Attributes:
        values: (1, P, ·), what the connectors read.
        words: (P, D), each patch as the language model would read it.
        image_features: (d_image,), what the router sees of the picture; None when the bundle holds no router.
    """

    runtime: Runtime
    values: Array = field(repr=False)
    words: Array = field(repr=False)
    image_features: Array | None = field(repr=False)
    timings: dict[str, float]

    def ask(self, question: str, scale: Scale = "auto", price: float | None = None, max_new_tokens: int = 32) -> Answer:
        """Answer greedily, at the scale that the router chooses or at the one that is named.

        `price` is what one unit of normalised cost is worth in probability of a right answer; None takes the
        router's own. Raises `MvlmError`: an empty question, one that does not fit the decoder, a scale that the
        bundle has not, a price that is none.
        """
        return self.runtime._answer(self, question, scale, price, max_new_tokens)


class _Clock:
    """Adds up milliseconds by stage."""

    def __init__(self, timings: dict[str, float] | None = None) -> None:
        self.timings = dict(timings or {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        key = f"{name}_ms"
        self.timings[key] = self.timings.get(key, 0.0) + 1000 * (time.perf_counter() - started)


def _read_tokenizer(manifest: Manifest) -> Tokenizer:
    path = manifest.path(manifest.tokenizer)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise MvlmError(f"{path} is no tokenizer ({str(error)[:120]}): export again") from None


def _listed(scales: tuple[int, ...]) -> str:
    return ", ".join(map(str, scales))
