"""What few bits do to a real language model: random weights have no massive activations, and hide what is lost."""

from __future__ import annotations

import json
import os

import pytest
import torch

from export.bundle.embed import embed_rows
from export.bundle.source import Source, read_source
from export.bundle.verify import sample_rows, verify_bundle
from export.runtime import Runtime
from mvlm_core.data.reading import read_rows
from tests.support.real_model import real_run

pytestmark = pytest.mark.slow
minutes = pytest.mark.skipif(
    "MVLM_REAL_WEIGHTS" not in os.environ, reason="minutes of a real model's export: set MVLM_REAL_WEIGHTS"
)
BOTH = "prefill=int8,decode=int4"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder with a run and rows; skipped only where the package of the weights, or of GGUF, cannot be had."""
    folder = tmp_path_factory.mktemp("real")
    try:
        real_run(folder)
    except RuntimeError as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def source(real) -> Source:
    return read_source(real / "run", None, [4])


def test_massive_activations_are_there(source, real):
    """What all of this is for: one position of one layer is hundreds of times the others."""
    rows = embed_rows(source, read_rows(real / "rows")[:1])
    seen = {}
    hooks = [
        block.mlp.down_proj.register_forward_pre_hook(
            lambda module, args, i=i: seen.__setitem__(i, args[0][0].abs().amax(-1))
        )
        for i, block in enumerate(source.model.language_model.model.layers)
    ]
    with torch.no_grad():
        source.model.language_model(inputs_embeds=rows[0][0])
    for hook in hooks:
        hook.remove()
    assert max(float(sizes.max() / sizes.median()) for sizes in seen.values()) > 200


@minutes
def test_int8_and_int4_of_a_real_model_pass_their_own_verification(real, tmp_path, mvlm):
    out = tmp_path / "bundle"
    done = mvlm(
        "export", str(real / "run"), "--rows", str(real / "rows"), "--no-router", "--scales", "4", "--out", str(out),
        "--precision", BOTH, "--verify-rows", "2", "--max-length", "512", "--calibration-rows", "8",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads((out / "verify.json").read_text())["scales"]["4"]
    assert facts["fidelity"]["kl"]["mean"] < 0.15
    assert facts["fidelity"]["top1"]["mean"] > 0.8
    forms = json.loads((out / "bundle.json").read_text())["forms"]
    in_blocks = [layer for layer, word in forms["prefill"].items() if word != "dynamic8" and "down_proj" in layer]
    assert len(in_blocks) > 10  # found by what they lose, not by their name
    answer = Runtime.load(out).ask(real / "rows" / "0.png", "What is the capital of France?", 4, max_new_tokens=12)
    assert "Paris" in answer.text


@minutes
def test_calibration_loses_less_than_rounding_each_weight(source, real, tmp_path):
    from export.bundle.files import write_bundle
    from export.bundle.refine import calibration_rows, refine
    from export.graphs.targets import plan

    rows, asked = read_rows(real / "rows"), plan("ort-cpu", "int4", 512, source.positions)
    verified = sample_rows(rows, 4)
    refined = refine(source, asked, calibration_rows(rows, verified, 64), lambda label, length: lambda steps: None)
    found = []
    for name, made, numbers in (("plain", asked, None), ("calibrated", refined.plan, refined.numbers)):
        (tmp_path / name).mkdir()
        write_bundle(source, made, tmp_path / name, lambda steps: None, numbers)
        report = verify_bundle(source, tmp_path / name, verified, lambda steps: None, 9.0)
        found.append(report["scales"]["4"]["fidelity"]["kl"]["mean"])
    assert found[1] < 0.7 * found[0]
