"""Sessions open where they were asked to, or not at all."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
import pytest

from export.runtime import MvlmError, Runtime
from export.runtime.backends import onnx as sessions
from export.runtime.backends.onnx import Cache, Device, open_session
from tests.export.test_decoder import DIALECTS, random_model, written
from tests.support.bundles import pool_bundle


def test_a_provider_nobody_knows():
    with pytest.raises(MvlmError, match="no provider 'tpu': name one of cpu"):
        Runtime.load(pool_bundle().bundle, provider="tpu")


def test_no_threads():
    with pytest.raises(MvlmError, match="0 threads"):
        Runtime.load(pool_bundle().bundle, threads=0)


def test_an_onnxruntime_without_the_provider_is_no_reason_to_take_another(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["OtherExecutionProvider"])
    with pytest.raises(MvlmError, match="has no CPUExecutionProvider"):
        open_session(pool_bundle().bundle / "vision.onnx", Device())


def test_onnxruntime_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MvlmError, match=r'pip install "mvlm\[cpu\]"'):
        open_session(pool_bundle().bundle / "vision.onnx", Device())


def test_threads_are_set(monkeypatch):
    assert (
        open_session(pool_bundle().bundle / "vision.onnx", Device(threads=3)).get_session_options().intra_op_num_threads
        == 3
    )


def test_threads_do_not_wait_for_long():
    options = open_session(pool_bundle().bundle / "vision.onnx", Device()).get_session_options()
    assert int(options.get_session_config_entry("session.intra_op.spin_duration_us")) < 1000


@pytest.mark.parametrize("length", [1, 4, 5, 11])
def test_a_long_prompt_is_read_in_pieces_as_it_would_be_at_once(tmp_path, monkeypatch, length):
    model = random_model("qwen3")
    decoder = written(model, tmp_path, DIALECTS["fused"])
    embeds = np.random.default_rng(0).standard_normal((length, model.config.hidden_size), np.float32)
    whole, in_pieces, read = Cache(decoder, 64), Cache(decoder, 64), []
    wanted = decoder.step(embeds, whole)
    monkeypatch.setattr(sessions, "_PIECE", 4)
    once = decoder._read
    monkeypatch.setattr(decoder, "_read", lambda piece, cache: read.append(len(piece)) or once(piece, cache))
    np.testing.assert_allclose(decoder.step(embeds, in_pieces), wanted, atol=2e-5 * np.abs(wanted).max())
    assert read == {1: [1], 4: [4], 5: [3, 2], 11: [4, 4, 3]}[length]
    assert in_pieces.used == whole.used == length
    after = embeds[:1]
    wanted = decoder.step(after, whole)
    np.testing.assert_allclose(decoder.step(after, in_pieces), wanted, atol=2e-5 * np.abs(wanted).max())


def test_a_cache_that_grows_is_read_at_once(tmp_path, monkeypatch):
    """Each piece would copy all that was read before it."""
    decoder = written(random_model("qwen3"), tmp_path, DIALECTS["standard, concat"])
    monkeypatch.setattr(sessions, "_PIECE", 4)
    assert [len(piece) for piece in decoder.pieces(np.zeros((11, 8), np.float32))] == [11]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_cache_that_is_rewound_and_one_that_is_copied_read_on_as_a_fresh_one(tmp_path, dialect):
    decoder = written(random_model("qwen3"), tmp_path, DIALECTS[dialect])
    rng = np.random.default_rng(0)
    width = random_model("qwen3").config.hidden_size
    prefix, dropped, tail = (rng.standard_normal((n, width), np.float32) for n in (9, 7, 5))
    fresh = Cache(decoder, 64)
    wanted = decoder.step(np.concatenate([prefix, tail]), fresh)

    rewound = Cache(decoder, 64)
    decoder.step(prefix, rewound)
    decoder.step(dropped, rewound)
    copied = Cache(decoder, 40)
    copied.copy(rewound, len(prefix))
    rewound.rewind(len(prefix))
    for cache in (rewound, copied):
        np.testing.assert_allclose(decoder.step(tail, cache), wanted, atol=2e-5 * np.abs(wanted).max())
        assert cache.used == len(prefix) + len(tail)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_logits_that_were_given_out_are_not_written_over(tmp_path, dialect):
    decoder = written(random_model("qwen3"), tmp_path, DIALECTS[dialect])
    embeds = np.random.default_rng(0).standard_normal((6, random_model("qwen3").config.hidden_size), np.float32)
    cache = Cache(decoder, 64)
    first = decoder.step(embeds, cache)
    kept = first.copy()
    assert not np.array_equal(decoder.step(embeds[:1], cache), kept)
    assert np.array_equal(first, kept)
