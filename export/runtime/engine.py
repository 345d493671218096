"""`Runtime`: load a bundle, look at a picture once, ask about it at any scale."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from export.runtime.backends.onnx import Device
from export.runtime.decode.batch import answer_many
from export.runtime.routing.costs import UnusedCosts, other_bench, read_costs

from .answer import Answer, Clock, Stream, pieces_in_thread, read_in_thread
from .answerer import Answerer
from .bundle_files import Verify
from .chat import Chats, Truncate
from .clips import ClipSource, Encoded, read_clip, require_frames
from .errors import MvlmError
from .frames import Frame
from .image import Order, Picture
from .machine import device_name
from .manifest import read_manifest, read_verification, require_passed, require_provider
from .messages import Turn, read_turns
from .request import Options, Request, Scale, request_of, require_several
from .turn_scales import Conversed
from .view import View, look, look_at_clip

Array = NDArray[np.float32]


Messages = Sequence[Mapping[str, Any]]
NO_WORDS = "?"  # a turn of pictures alone: no router is asked about it


class Runtime(Answerer):
    """The door: a bundle that looks at pictures, and answers."""

    @classmethod
    def load(
        cls, path: str | Path, provider: str = "cpu", threads: int | None = None, *,
        sha256: str | None = None, verify: Verify | None = None,
    ) -> Runtime:  # fmt: skip
        """Open the bundle at `path` on `provider`.

        A bundle is a program: `sha256` names the one that is meant, by the `manifest_sha256` of its bundle.json, which
        answers for every other file. `verify` says when files are hashed: "always"; "changed", which remembers what
        it has hashed of a large bundle; "never". Left out, it is "always" where `sha256` is named, else "changed".
        Warns (`UnusedCosts`) where this machine was measured with another provider or number of threads, and a router
        would weigh that. Raises `MvlmError` when the bundle is not whole, is another one, or cannot be opened.
        """
        if not isinstance(path, str | Path):
            raise MvlmError(f"{path!r} is no path of a bundle: name its folder")
        device = Device(provider, threads)
        manifest = read_manifest(Path(path), sha256=sha256, verify=verify)
        require_provider(manifest, provider)
        try:
            require_passed(manifest)
            costs = read_costs(manifest.folder, device_name(provider, threads), manifest.sha256)
            runtime = cls(manifest, device, costs)
        except MvlmError:
            raise
        except Exception as error:  # of values that a sealed manifest may hold, and that nothing can be made of
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise MvlmError(f"{path} is not in order ({reason}): export again", code="bad-bundle") from error
        if runtime.router and (unused := other_bench(manifest.folder, provider, threads)):
            warnings.warn(unused, UnusedCosts, stacklevel=2)
        return runtime

    def verified(self, scale: Scale | None) -> str:
        """In a person's words: in which precision a scale was held against torch, and what it lost."""
        report = read_verification(self.manifest)
        if report is None:
            return "not verified"
        precision = ", ".join(f"{part} {name}" for part, name in self.manifest.precision.items())
        try:
            facts = report["scales"][str(scale)]
            lost = facts["points_lost"]
            return (
                f"verified against torch ({precision}): {facts['same_answers']} of {facts['answers']} answers the same,"
                f" {lost['points']:.1f} points lost [{lost['low']:.1f}, {lost['high']:.1f}]"
            )
        except (KeyError, TypeError, ValueError):
            return "its verify.json is not in order: `mvlm verify` it again"

    def look(self, picture: Picture, order: Order = "rgb", *, most_pixels: int | None = None) -> View:
        """Encode a picture once: a path, encoded bytes, a PIL picture, or an array (H, W, 3) uint8.

        `order` is that of an array's channels; OpenCV's frames are `bgr`. Of a model with tiles the overview is
        encoded, and a tile when a scale first needs it. More than `most_pixels` are refused.
        """
        return look(self, picture, order, most_pixels)

    def look_clip(self, clip: str | Path | Sequence[Picture | Frame], times: Sequence[float] | None = None) -> View:
        """Encode the middle frame of a clip: a video's path, with `times` in seconds those frames of it, or a list of
        frames of one size. Other frames are encoded when a scale such as 9@4 needs them, and those of a camera
        (`frames.LatestClip`) once for all clips that they are in.

        Raises `MvlmError` for a clip without frames, or with frames of several sizes, a time that is not in the video,
        and a bundle whose scales show one view alone.
        """
        require_frames(self.manifest)
        found, frames = read_clip(clip, times)
        return look_at_clip(self, ClipSource(found, frames, self.manifest), self._encoded)

    @cached_property
    def _encoded(self) -> Encoded:
        return Encoded()

    def ask(self, picture: Picture, question: str, scale: Scale = "auto", **options: Unpack[Options]) -> Answer:
        """Look at a picture and ask one question about it; see `View.ask`. The deadline counts the look."""
        clock = Clock(deadline_ms=options.get("deadline_ms"))
        request = request_of(question, scale, options)
        self.require_answerable(request)
        view = self.look(picture)
        self.require_answerable(request, view)
        return self.stream(view, request, clock).read()

    def ask_many(
        self, pictures: Sequence[Picture | View], question: str, scale: Scale = "auto", **options: Unpack[Options]
    ) -> list[Answer]:
        """One question about several pictures, or views of them, in their order: as one by one.

        `decode.batch.answer_many` says when they are written at once.
        """
        require_several(pictures, "pictures")
        request = request_of(question, scale, options)
        self.require_answerable(request)
        return answer_many(self, (self._ready(picture, request) for picture in pictures), [request] * len(pictures))

    def _ready(self, picture: Picture | View, request: Request) -> View:
        """A view of a picture, for which there is room."""
        view = picture if isinstance(picture, View) else self.look(picture)
        self.require_answerable(request, view)
        return view

    # Conversations

    def chat(
        self, messages: Messages, scale: Scale = "auto", *, truncate: Truncate = None, **options: Unpack[Options]
    ) -> Answer:
        """The answer to the last of some messages: `{"role": "system" | "user" | "assistant", "content": …}`.

        Content is a text, or a list of `{"type": "text", "text": …}` and `{"type": "image", "image": …}`: pictures
        as `look` takes them, or views; such a part may name a `scale` of its own. What an earlier call has read of the
        same conversation is not read again. What does not fit is refused, or, with `truncate="oldest"`, answered
        without the oldest turns.
        """
        return self.stream_chat(messages, scale, truncate=truncate, **options).read()

    def stream_chat(
        self, messages: Messages, scale: Scale = "auto", *, truncate: Truncate = None, **options: Unpack[Options]
    ) -> Stream:
        """`chat` in pieces; what cannot be answered is refused here, before the language model reads anything."""
        clock = Clock(deadline_ms=options.get("deadline_ms"))
        turns = read_turns(messages)
        request = request_of(turns[-1].text.strip() or NO_WORDS, scale, options)
        return self.chats.prepare([self._conversed(turn) for turn in turns], request, clock, truncate).stream()

    async def achat(
        self, messages: Messages, scale: Scale = "auto", *, truncate: Truncate = None, **options: Unpack[Options]
    ) -> Answer:
        """`chat` in a thread. Cancelled, it stops within a token."""
        ready = asyncio.to_thread(self.stream_chat, messages, scale, truncate=truncate, **options)
        return await read_in_thread(await ready)

    async def astream_chat(
        self, messages: Messages, scale: Scale = "auto", *, truncate: Truncate = None, **options: Unpack[Options]
    ) -> AsyncIterator[str]:
        """`stream_chat`, its steps in a thread. Left early, it stops within a token."""
        stream = await asyncio.to_thread(self.stream_chat, messages, scale, truncate=truncate, **options)
        async for piece in pieces_in_thread(stream):
            yield piece

    @cached_property
    def chats(self) -> Chats:
        """The conversations of this bundle. Raises `MvlmError` for a bundle without a chat template."""
        return Chats(self)

    def _conversed(self, turn: Turn) -> Conversed:
        pictures = (picture if isinstance(picture, View) else self.look(picture) for picture in turn.pictures)
        return Conversed(turn, tuple(pictures), turn.scales)
