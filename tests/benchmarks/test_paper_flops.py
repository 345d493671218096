"""The paper's count of FLOPs, against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from benchmarks.paper.cells import cells_of, specialist
from benchmarks.paper.compute import family_config, step_flops
from benchmarks.paper.cost import of_their_size
from benchmarks.paper.flops import clip_flops, connector_flops, decoder_flops, prefill_flops, resnet_flops
from benchmarks.paper.train import cell_steps
from benchmarks.paper.world import (
    SCALES,
    SIZE_PX,
    Size,
)
from mvlm_core.modeling.model import build_connector
from tests.support.paper_cells import counted
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("tower", ["resnet", "clip"])
def test_a_towers_flops_are_those_that_torch_counts(tower):
    config = tiny_model(tower=tower).config.vision_config
    config._attn_implementation = "eager"
    model, side = AutoModel.from_config(config).eval(), 96
    formula = {"resnet": resnet_flops, "clip": clip_flops}[tower]
    assert formula(config, side) == counted(lambda: model(torch.zeros(1, 3, side, side)))


@pytest.mark.parametrize("language", ["qwen3", "llama"])
@pytest.mark.parametrize("positions", [1, 7, 40])
def test_a_decoders_flops_are_those_that_torch_counts(language, positions):
    config = tiny_model(language=language).config.text_config
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    embeds = torch.zeros(1, positions, config.hidden_size)
    torch_says = counted(lambda: model(inputs_embeds=embeds, logits_to_keep=1))
    # Torch counts the angles of the rotation too, as a product of positions and frequencies.
    angles = 2 * positions * config.head_dim // 2
    assert torch_says - decoder_flops(config, positions) in (0, angles)


@pytest.mark.parametrize("family", ["pool", "nested_pool", "query"])
@pytest.mark.parametrize("m", SCALES)
def test_a_connectors_flops_are_those_that_torch_counts(family, m):
    config = family_config(family)
    connector = build_connector(config)
    features = torch.zeros(1, config.grid_side**2, config.vision_config.hidden_sizes[-1])
    torch_says = counted(lambda: connector.tokens(connector.values(features), m))
    assert connector_flops(config, m) == torch_says


def test_the_benchmarks_own_model_counts_the_same_as_its_parts():
    config = family_config("pool")
    flops = prefill_flops(config, SIZE_PX, 16, 12)
    assert flops.tower == resnet_flops(config.vision_config, SIZE_PX)
    assert flops.total == flops.tower + flops.connector + flops.decoder


def test_at_llavas_size_the_count_is_m3s_own():
    told = of_their_size()
    for ours, theirs in zip(told["tflops"], told["their_tflops"], strict=True):
        assert ours == pytest.approx(theirs, abs=0.075)  # theirs are rounded to a tenth


def test_short_specialists_cost_together_what_mqts_one_model_costs():
    size = Size()
    cells = {cell.name: cell for cell in cells_of(0, size) if cell.family == "query"}
    one = step_flops("query", cells["uniform"].show, size.cell_questions)
    each = [cells[specialist(m, short=True)] for m in SCALES]
    together = sum(cell.compute * step_flops("query", cell.show, size.cell_questions) for cell in each)
    assert together == pytest.approx(one)
    assert all(0 < cell_steps(cell, size) < cell_steps(cells["uniform"], size) for cell in each)
