"""docs/training.md and the launcher's files: what they show is what is read."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from mvlm_core.train.stages import StageConfig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()


@pytest.mark.parametrize("shown", re.findall(r"`(show: .*)`", PAGE))
def test_every_policy_of_the_page_is_one(shown):
    assert StageConfig(name="a", steps=1, **yaml.safe_load(shown)).show


@pytest.mark.parametrize("setting", re.findall(r"`(lora: .*?)`", PAGE))
def test_the_adapters_of_the_page(setting):
    assert StageConfig(name="a", steps=1, **yaml.safe_load(setting)).lora


def test_the_page_names_keys_that_there_are():
    keys = set(StageConfig.model_fields)
    assert {
        "show",
        "activation_checkpointing",
        "accumulate",
        "save_every",
        "evaluate_every",
        "pictures",
        "lora",
    } <= keys
    assert len(re.findall(r"`(show: .*)`", PAGE)) >= 6


@pytest.mark.parametrize("name", ["accelerate_fsdp.yaml", "accelerate_deepspeed.yaml"])
def test_accelerate_reads_its_files(name):
    told = load_config_from_file(str(ROOT / "examples" / "configs" / name))
    assert told.num_processes > 1
    assert told.fsdp_config or told.deepspeed_config
