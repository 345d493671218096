"""Bundles for TensorRT targets, made once for a session and read only; copy what a test changes."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import onnx

from export.bundle.files import reseal
from export.graphs.decoder import write_decoder
from export.graphs.dialects import StandardDialect
from export.graphs.targets import target
from export.graphs.weights import WeightFile
from tests.support import bundles
from tests.support.tiny import SCALES

POSITIONS = 512


def bundle_for(name: str, precision: str, family: str = "query") -> Path:
    """A bundle of a target whose decoder has this precision; the other parts have the target's own."""
    made = bundles.query_bundle() if family == "query" else bundles.pool_bundle()
    return bundles.bundle_for(made, name, precision, SCALES).bundle


@functools.cache
def standard_concat() -> Path:
    """Opset 24 with a cache that grows, which no target has, and any might."""
    to = Path(tempfile.mkdtemp()) / "bundle"
    atexit.register(shutil.rmtree, to.parent, ignore_errors=True)
    shutil.copytree(bundle_for("rtx", "float16"), to)
    (to / "decoder.onnx").unlink()
    rtx, model = target("rtx"), bundles.query_bundle().source.model.language_model
    with WeightFile(to / "decoder.bin") as weights:
        graph, facts = write_decoder(
            model, weights.tensor, StandardDialect("concat", POSITIONS), "decoder.onnx",
            product=rtx.product("float16"), floats=rtx.floats_of("float16"), positions=POSITIONS,
        )  # fmt: skip
    onnx.save(graph, to / "decoder.onnx")
    value = json.loads((to / "bundle.json").read_text())
    value["graphs"]["decoder"] = asdict(facts)
    (to / "bundle.json").write_text(json.dumps(value))
    reseal(to)
    return to
