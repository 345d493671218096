"""What was asked for is what is built, or an error that says everything that cannot be had."""

from __future__ import annotations

import re

import pytest

from export.graphs.dialects import FusedDialect, PrimitiveDialect, StandardDialect
from export.graphs.targets import PARTS, TARGETS, parse_precision, plan, target
from export.runtime import MvlmError
from export.runtime.backends.onnx import Device


def test_every_target_is_whole():
    for name, facts in TARGETS.items():
        assert facts.name == name
        assert tuple(facts.precisions) == PARTS
        assert not set(facts.precisions["decode"]) & set(facts.forbids)
        for precision in facts.precisions["decode"]:
            facts.product(precision)
            facts.floats_of(precision)
        assert facts.precisions["prefill"] == facts.precisions["decode"]


def test_targets_of_onnxruntime_name_its_providers():
    for facts in TARGETS.values():
        if facts.dialect == "fused":
            Device(facts.provider)


@pytest.mark.parametrize(
    ("name", "kind", "opset", "cache"),
    [
        ("ort-cpu", FusedDialect, 21, "in place"),
        ("jetpack-6.2", PrimitiveDialect, 20, "concat"),
        ("jetpack-7.2", StandardDialect, 24, "scatter"),
        ("rtx", StandardDialect, 24, "scatter"),
        ("onnx", PrimitiveDialect, 20, "concat"),
    ],
)
def test_dialects(name, kind, opset, cache):
    dialect = target(name).writer_dialect(64)
    assert type(dialect) is kind
    assert dict(dialect.opsets)[""] == opset
    assert dialect.cache == cache


def test_a_target_nobody_knows():
    with pytest.raises(MvlmError, match=r"no target 'tpu': name one of ort-cpu, ort-cuda, jetpack-6\.2, jetpack-7\.2"):
        target("tpu")


@pytest.mark.parametrize(
    ("name", "text", "chosen"),
    [
        ("ort-cpu", None, "float32 float32 float32 float32"),
        ("ort-cpu", "int4", "float32 float32 int4 int4"),
        ("ort-cpu", "prefill=int8, decode=int4", "float32 float32 int8 int4"),
        ("ort-cpu", "prefill=int8,decode=int4-fast", "float32 float32 int8 int4-fast"),
        ("ort-cpu", "tower=int8", "int8 float32 float32 float32"),
        ("rtx", None, "float16 float16 float16 float16"),
        ("rtx", "int4,tower=float32", "float32 float16 int4 int4"),
    ],
)
def test_precisions(name, text, chosen):
    assert parse_precision(text, target(name)) == dict(zip(PARTS, chosen.split(), strict=True))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("ort-cpu", "float16", "prefill=float16 (it takes float32, int8, int4, int4-fast); decode=float16"),
        ("ort-cpu", "towr=int8", "there is no part 'towr': tower, connector, prefill, decode"),
        ("ort-cpu", "connector=int8", "connector=int8 (it takes float32)"),
        ("ort-cpu", "int4-128", "prefill=int4-128 (it is called int4-fast now)"),
        ("jetpack-6.2", "int4", "four-bit weights need opset 21, and TensorRT 10.3 reads opsets up to 20"),
        ("rtx", "float32", "TensorRT has no fused attention in single precision"),
        ("ort-cuda", "int8", "no fast 8-bit product for CUDA"),
        ("rtx", "prefill=int8,decode=int4", "prefill and decode are one graph"),
        ("ort-cuda", "prefill=float32,decode=int4", "would keep their cache in different types"),
    ],
)
def test_what_a_target_does_not_take(name, text, says):
    with pytest.raises(MvlmError, match=re.escape(says)):
        parse_precision(text, target(name))


def test_positions():
    assert plan("ort-cpu", None, None, 4096).positions == 4096
    assert plan("rtx", None, None, 4096).positions == 2048
    assert plan("rtx", None, None, 512).positions == 512
    assert plan("rtx", None, 4096, 4096).positions == 4096
    with pytest.raises(MvlmError, match="--max-length 513: the model was made for 512"):
        plan("rtx", None, 513, 512)


def test_phases_of_few_bits_share_one_head():
    """It multiplies one position in either, and is as large as many layers."""
    for decode in ("int4", "int4-fast"):
        words = plan("ort-cpu", f"prefill=int8,decode={decode}", None, 64).words
        assert words["prefill"]["lm_head"] == words["decode"]["lm_head"]
        assert words["prefill"]["*"] != words["decode"]["*"]
    assert plan("ort-cpu", "prefill=float32,decode=int4", None, 64).words["prefill"] == {"*": "float"}
