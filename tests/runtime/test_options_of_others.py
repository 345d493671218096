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
