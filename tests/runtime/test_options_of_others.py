"""Options as other code hands them over: numpy's numbers, one text for several, half characters."""

import numpy as np
import pytest

from export.runtime import MvlmError, Runtime
from export.runtime.request import request_of
from tests.support.bundles import pool_bundle


def test_numbers_of_numpy():
    told = {
        "max_new_tokens": np.int64(4),
        "temperature": np.float32(0.5),
        "seed": np.uint8(3),
        "top_p": np.float64(0.9),
    }
    request = request_of("what?", np.int32(9), told)
    assert (request.scale, request.max_new_tokens, request.seed, request.temperature) == (9, 4, 3, 0.5)
    for bad in (4.5, np.float64(4.5), True, np.bool_(True)):
        with pytest.raises(MvlmError, match="of at most"):
            request_of("what?", 9, {"max_new_tokens": bad})


@pytest.mark.parametrize("change", [{"question": "\ud83d"}, {"stop": ["\ud83d"]}, {"choices": ["a", "\ud83d"]}])
def test_half_a_character(change):
    question = change.pop("question", "what?")
    with pytest.raises(MvlmError, match="holds half a character") as error:
        request_of(question, 9, change)
    str(error.value).encode()


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k", "min_p", "seed", "price", "presence_penalty",
                                  "max_new_tokens", "deadline_ms"])  # fmt: skip
@pytest.mark.parametrize(
    "value", [["x"] * 10_000, "x" * 10_000, {"x": "y" * 10_000}, -(10**5000), object()], ids=list("abcde")
)
def test_messages_are_short_whatever_was_sent(name, value):
    with pytest.raises(MvlmError) as error:
        request_of("what?", 9, {name: value})
    assert len(str(error.value)) < 200
    assert "\n" not in str(error.value)


def test_biases_of_tokens():
    assert request_of("what?", 9, {"logit_bias": {"7": 1, 8: -1}}).logit_bias == ((7, 1), (8, -1))
    for bad in ([], "x", {"a": 1}, {"01": 1}, {"٣": 1}, {"-1": 1}, {"1": 101}, {"1": None}, {"1": 1, 1: 2}):
        with pytest.raises(MvlmError, match="logit_bias"):
            request_of("what?", 9, {"logit_bias": bad})
    runtime = Runtime.load(pool_bundle().bundle, threads=1)
    known = runtime.manifest.embedding.shape[0]
    view = runtime.look(pool_bundle().picture(0))
    view.ask("what?", 9, logit_bias={known - 1: 1}, max_new_tokens=1)
    with pytest.raises(MvlmError, match=f"names token {known}, and the model has {known}"):
        view.ask("what?", 9, logit_bias={known: 1})
    with pytest.raises(MvlmError, match=f"names token {known}"):
        runtime.chat([{"role": "user", "content": "what?"}], logit_bias={known: 1})


@pytest.mark.filterwarnings("error")
def test_the_hottest_temperature_draws_any_token():
    runtime = Runtime.load(pool_bundle().bundle, threads=1)
    view = runtime.look(pool_bundle().picture(0))
    drawn = {view.ask("what?", 9, temperature=1e308, seed=seed, max_new_tokens=1).token_ids for seed in range(6)}
    assert len(drawn) > 1


def test_what_does_not_fit_is_told_what_to_shorten():
    runtime = Runtime.load(pool_bundle().bundle, threads=1)
    view = runtime.look(pool_bundle().picture(0))
    most = runtime.manifest.max_length
    with pytest.raises(MvlmError, match="allow an answer of at most") as error:
        view.ask("what?", 9, max_new_tokens=most)
    fits = int(str(error.value).rsplit(" ", 2)[1])
    assert view.runtime.positions(request_of("what?", 9, {"max_new_tokens": fits})) == most
    with pytest.raises(MvlmError, match="give shorter choices"):
        view.ask("what?", 9, choices=["a" * most, "b"])
    with pytest.raises(MvlmError, match="ask in fewer words"):
        view.ask("w" * most, 9)
    with pytest.raises(MvlmError, match="allow an answer of at most"):
        runtime.chat([{"role": "user", "content": "what?"}], max_new_tokens=most)
    with pytest.raises(MvlmError, match="leave out earlier turns"):
        runtime.chat([{"role": role, "content": "w" * most} for role in ("user", "assistant", "user")])


def test_one_text_is_not_several():
    made = pool_bundle()
    runtime = Runtime.load(made.bundle, threads=1)
    with pytest.raises(MvlmError, match="a list of questions"):
        runtime.look(made.picture(0)).ask_many("why?")
    for one in (str(made.picture(0)), made.picture(0), b"picture"):
        with pytest.raises(MvlmError, match="a list of pictures"):
            runtime.ask_many(one, "why?")
    with pytest.raises(MvlmError, match="there is no picture"):
        runtime.look("n" * 5000)
