"""The KV cache under both of transformers' names for it."""

import warnings

import pytest
import torch

from export.runtime.errors import MvlmError
from mvlm_core.modeling.kv_cache import cache_argument, cache_of
from tests.support.tiny import QUESTIONS, drawn_picture, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model():
    return tiny_model("pool", processor=tiny_processor())


@pytest.fixture(scope="module")
def batch():
    processor = tiny_processor()
    return processor(images=drawn_picture(), text=processor.ask(QUESTIONS[0]), num_visual_tokens=9)


@torch.inference_mode()
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_step_behind_a_cache_is_the_whole_row(model, batch, name):
    token = torch.tensor([[5]])
    whole = model(**batch | {"input_ids": torch.cat([batch["input_ids"], token], dim=1), "attention_mask": None})
    first = model(**batch, use_cache=True)
    step = model(input_ids=token, use_cache=True, **{name: cache_of(first)})
    torch.testing.assert_close(step.logits[0, -1], whole.logits[0, -1], atol=1e-5, rtol=1e-4)
    assert cache_of(step).get_seq_length() == whole.logits.shape[1]


@torch.inference_mode()
def test_two_caches_are_one_too_many(model, batch):
    cache = cache_of(model(**batch, use_cache=True))
    with pytest.raises(MvlmError, match="two names of one thing: give one"):
        model(input_ids=torch.tensor([[5]]), cache=cache, past_key_values=cache)


@torch.inference_mode()
def test_the_name_is_the_one_that_transformers_does_not_warn_of(model, batch):
    """And the other way round: the old name is warned of, where there is a new one, so this can fail."""
    cache, decoder = cache_of(model(**batch, use_cache=True)), model.language_model
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoder(torch.tensor([[5]]), use_cache=True, **cache_argument(cache))
    if "cache" in cache_argument(cache):
        with pytest.warns(FutureWarning, match="past_key_values"):
            decoder(torch.tensor([[5]]), use_cache=True, past_key_values=cache)
