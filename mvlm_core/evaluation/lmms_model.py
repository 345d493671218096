"""A run or a bundle as a model of lmms-eval: `--model mvlm --model_args run=FOLDER,scale=36`. lmms-eval imports this.

Nothing becomes an empty answer: what cannot be answered ends the evaluation in an error that names the sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from export.runtime.errors import MvlmError

from .model_args import ModelArgs, read_model_args
from .sample import Answerer, Asked, one_turn, read_messages

# Of what tasks say to `generate`, the words that change nothing about one greedy answer.
_WITHOUT_EFFECT = {"temperature", "top_p", "image_aspect_ratio"}
_ONLY = {"do_sample": False, "num_beams": 1}
_LIKELIHOOD_ARGS = ("context", "answer", "to_visual", "number", "task", "split")


class Mvlm(lmms):
    """The chat interface: samples come as messages with their pictures in place."""

    is_simple = False

    def __init__(self, **told: Any) -> None:
        """`model_args.ModelArgs` says what may be told. Raises `MvlmError` for anything else."""
        super().__init__()
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise MvlmError("one process answers here: start lmms-eval without torchrun and accelerate launch")
        self.args = read_model_args(told)
        self.answerer = open_answerer(self.args)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Greedy answers, in the order of the requests."""
        bar = tqdm(total=len(requests), desc="answering")
        answers: list[str] = []
        for told, alike in groupby(requests, key=lambda request: self._told(request)):
            most, until = _generation(told, self.args.max_new_tokens)
            for chunk in _chunks(list(alike), self.args.batch_size):
                with _naming(chunk[0]):
                    said = self.answerer.answer([self._asked(request) for request in chunk], most, until)
                self._keep(chunk, [one.num_visual_tokens for one in said])
                answers += [one.text for one in said]
                bar.update(len(chunk))
        bar.close()
        return answers

    def _told(self, request: Instance) -> dict[str, Any]:
        """What the task says to `generate`."""
        return request.args[2]

    def _asked(self, request: Instance) -> Asked:
        _, to_messages, _, number, task, split = request.args
        return read_messages(to_messages(self.task_dict[task][split][number]))

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """For each request a pair: the mean nats of its answer **at the scale**, and whether greedy decoding gives it.

        lmms-eval takes the smallest for the choice (`api/task.py`), so these are losses, as its own models give them.
        A bare pair it writes out as text before that (0.7.3, `api/instance.py`); in its own wrapper the pair stays.
        """
        if any(len(request.args) != len(_LIKELIHOOD_ARGS) for request in requests):
            raise MvlmError(
                "acc_mutual_info scores answers without their picture, which is not done here: leave it out"
            )
        bar = tqdm(total=len(requests), desc="scoring")
        scored: list[GenerationResult] = []
        for _, alike in groupby(requests, key=lambda request: (request.args[0], *request.args[3:])):
            chunk = list(alike)
            with _naming(chunk[0]):
                answers = [self._wanted(request) for request in chunk]
                found = self.answerer.likelihood(self._by_document(chunk[0]), answers)
            self._keep(chunk, [one.num_visual_tokens for one in found])
            scored += [GenerationResult((one.loss, one.greedy)) for one in found]
            bar.update(len(chunk))
        bar.close()
        return scored

    def _wanted(self, request: Instance) -> str:
        _, target, _, number, task, split = request.args
        return target if isinstance(target, str) else str(target(self.task_dict[task][split][number]))

    def _by_document(self, request: Instance) -> Asked:
        """A sample as its context and pictures: the form of likelihood tasks, and of all tasks of a simple model."""
        context, _, to_visual, number, task, split = request.args
        pictures = to_visual(self.task_dict[task][split][number]) if to_visual else None
        return one_turn(list(pictures or []), context)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise MvlmError(f"task {requests[0].args[-2]} has several rounds, which are not answered here: leave it out")

    def _keep(self, requests: Sequence[Instance], scales: Sequence[tuple[int, ...]]) -> None:
        if self.args.answers is None:
            return
        with self.args.answers.open("a", encoding="utf-8") as file:
            for request, shown in zip(requests, scales, strict=True):
                *_, number, task, _ = request.args
                file.write(json.dumps({"task": task, "sample": number, "num_visual_tokens": list(shown)}) + "\n")


class MvlmByDocument(Mvlm):
    """The simple interface, which likelihood tasks need."""

    is_simple = True

    def _told(self, request: Instance) -> dict[str, Any]:
        return request.args[1]

    def _asked(self, request: Instance) -> Asked:
        return self._by_document(request)


def open_answerer(args: ModelArgs) -> Answerer:
    """The run or the bundle that was named."""
    if args.bundle is not None:
        from .bundle_answerer import BundleAnswerer

        return BundleAnswerer.load(args.bundle, args.scale, args.provider, args.threads)
    from .run_answerer import RunAnswerer

    assert args.run is not None
    return RunAnswerer.load(args.run, args.scale, args.router, args.device, args.precision)


def _generation(told: dict[str, Any], default_tokens: int) -> tuple[int, tuple[str, ...]]:
    """The longest answer, and the texts that end one. Raises `MvlmError` for what would be another answer."""
    rest = {name: value for name, value in told.items() if name not in _WITHOUT_EFFECT}
    most, until = rest.pop("max_new_tokens", default_tokens), rest.pop("until", None) or ()
    for name, value in rest.items():
        if name not in _ONLY or value != _ONLY[name]:
            raise MvlmError(f"the task asks for {name}={value}, and answers are greedy: give --gen_kwargs without it")
    return int(most), (until,) if isinstance(until, str) else tuple(until)


def _chunks(requests: Sequence[Instance], size: int) -> Iterator[Sequence[Instance]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))


@contextmanager
def _naming(request: Instance) -> Iterator[None]:
    """An error inside names the task and the sample, the first of its batch."""
    try:
        yield
    except MvlmError as error:
        *_, number, task, _ = request.args
        raise MvlmError(f"task {task}, sample {number}: {error}", code=error.code) from None
