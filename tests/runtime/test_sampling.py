"""How the next token is drawn, against the slow way that sorts the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from export.runtime import MvlmError
from export.runtime.decode.sampling import Sampler
from export.runtime.request import Request, request_of

LOGITS = np.log(np.asarray([0.5, 0.3, 0.15, 0.05], np.float32))


def seen(logits=LOGITS, **options) -> set[int]:
    """The tokens that are drawn at all, each from a fresh sampler."""
    options = {"temperature": 1.0} | options
    return {Sampler(request_of("what?", 9, options | {"seed": seed})).pick(logits)[0] for seed in range(300)}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {0, 1, 2, 3}), ({"top_k": 2}, {0, 1}), ({"top_k": 1}, {0}), ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_k": 0}, {0, 1, 2, 3}), ({"top_k": -1}, {0, 1, 2, 3}), ({"min_p": 0.5}, {0, 1}), ({"min_p": 1.0}, {0}),
        ({"top_k": 2, "top_p": 0.6}, {0}), ({"top_k": 3, "min_p": 0.5}, {0, 1}), ({"temperature": 0.0}, {0}),
        ({"logit_bias": {3: 100}}, {3}), ({"logit_bias": {"3": 100}}, {3}),
        ({"logit_bias": {0: -100, 1: -100}}, {2, 3}),
        ({"temperature": 0.0, "logit_bias": {2: 5.0}}, {2}), ({"logit_bias": {99: 100}}, {0, 1, 2, 3}),
    ],
)  # fmt: skip
def test_which_tokens_are_drawn(options, wanted):
    assert seen(**options) == wanted


@pytest.mark.parametrize("options", [{"top_p": 0.5}, {"top_p": 0.9}, {"top_k": 40}, {"top_k": 700}, {"min_p": 0.2}, {}])
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_few_are_sorted_and_the_same_are_drawn(options, spread):
    """The nucleus of a thousand tokens, whether it is found among the few or only by sorting all."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        logits = (spread * generator.standard_normal(1000)).astype(np.float32)
        probability = np.exp(logits.astype(np.float64))
        probability /= probability.sum()
        order = np.argsort(-probability, kind="stable")
        head = order[: options.get("top_k", 1000)]
        if "top_p" in options:
            head = head[: 1 + int((probability[head].cumsum() < options["top_p"] * (1 - 1e-9)).sum())]
        head = head[probability[head] >= options.get("min_p", 0) * probability[order[0]]]
        drawn = seen(logits, **options)
        assert drawn <= set(head.tolist())
        if len(head) < 5:
            assert drawn == set(head.tolist()) or min(probability[head]) < 0.05


def test_penalties_count_what_stands_in_the_answer():
    sampler = Sampler(Request("what?", frequency_penalty=0.3, presence_penalty=0.2))
    wanted, counts = [], np.zeros(4)
    for _ in range(12):
        wanted.append(int((LOGITS - 0.3 * counts - 0.2 * (counts > 0)).argmax()))
        counts[wanted[-1]] += 1
    assert [sampler.pick(LOGITS)[0] for _ in range(12)] == wanted
    assert len(set(wanted)) > 1


def test_a_repetition_penalty_divides_and_below_nought_multiplies():
    logits = np.array([2.0, 1.5, -0.5, -0.4], np.float32)
    sampler = Sampler(Request("what?", repetition_penalty=2.0), said=(0, 9))  # 9 is beyond the head
    assert [sampler.pick(logits)[0] for _ in range(2)] == [1, 0]  # 2/2 < 1.5; then 1.5/2 < 2/2
    below = Sampler(Request("what?", repetition_penalty=2.0), said=(1,))
    assert below.pick(np.array([-0.5, -0.4], np.float32))[0] == 0  # -0.4 becomes -0.8


@pytest.mark.parametrize("window", [None, 0, 1, 3, 8, 99])
def test_a_repetition_penalty_looks_at_the_latest_tokens(window):
    """The slow way: the last of prompt and answer are cut out anew for each token."""
    generator, prompt, answer = np.random.default_rng(1), [4, 4, 1, 0, 2], []
    sampler = Sampler(Request("what?", repetition_penalty=3.0, repetition_window=window), said=prompt)
    for _ in range(40):
        logits = generator.standard_normal(6).astype(np.float32)
        told = [*prompt, *answer]
        last = told if window is None else told[len(told) - min(window, len(told)) :]
        slow = [x if n not in last else x / 3 if x > 0 else x * 3 for n, x in enumerate(logits)]
        answer.append(int(np.argmax(slow)))
        assert sampler.pick(logits)[0] == answer[-1]


def test_what_the_model_gives_a_token_does_not_depend_on_how_it_is_drawn():
    sampler = Sampler(request_of("what?", 9, {"logit_bias": {3: 100}}))
    assert sampler.pick(LOGITS) == (3, pytest.approx(0.05))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": 1.5}, "top_k is 1.5"), ({"top_k": -2}, "top_k is -2"), ({"top_k": True}, "top_k is True"),
        ({"min_p": 2}, "min_p is 2"), ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"repetition_window": -1}, "repetition_window is -1"),
        ({"repetition_window": 2.5}, "repetition_window is 2.5"),
        ({"min_p": "x"}, "min_p is 'x'"),
        ({"presence_penalty": 3}, "presence_penalty is 3"), ({"logit_bias": [1]}, "logit_bias is no mapping"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty is nan"),
        ({"logit_bias": {"x": 1}}, "logit_bias holds"), ({"logit_bias": {1: 101}}, "logit_bias holds"),
        ({"logit_bias": {1: "x"}}, "logit_bias holds"), ({"logit_bias": {-1: 1}}, "logit_bias holds"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "at most 1024"),
    ],
)  # fmt: skip
def test_what_makes_no_sense(options, says):
    with pytest.raises(MvlmError, match=says):
        request_of("what?", 9, options)
