"""Sessions open where they were asked to, or not at all."""

from __future__ import annotations

import sys

import onnxruntime
import pytest
from bundles import pool_bundle

from export.runtime import MvlmError, Runtime
from export.runtime.sessions import Device, open_session


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
