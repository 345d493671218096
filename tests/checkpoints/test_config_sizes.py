"""Absurd sizes in a config.json: one line, before anything is built by them."""

from __future__ import annotations

import json
import shutil

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.config_sizes import require_sizes
from mvlm_core.checkpoints.run_folder import load_run
from tests.support.bundles import pool_bundle
from tests.support.checkpoints import ROWS, change, refused, stock_llava, write_original, write_transformers
from tests.support.families import make


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"vocab_size": 2**60}, f"vocab_size is {2**60}, and 1 to 4194304 are read"),
        ({"vocab_size": 10**1000}, "vocab_size is a number of more than 30 digits, and"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and 1 to 1024"),
        ({"hidden_size": -4, "num_attention_heads": 0}, "hidden_size is -4, .*; num_attention_heads is 0, and"),
        ({"vocab_size": 2**22, "hidden_size": 2**16}, "vocab_size 4194304 by hidden_size 65536 is more than the"),
    ],
)
def test_a_language_model_that_cannot_be(tmp_path, keys, says):
    folder = write_original(tmp_path / "checkpoint", stock_llava(ROWS))
    change(folder / "config.json", **keys)
    refused(folder, tmp_path / "run", says)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"patch_size": 0}, "patch_size is 0, and 1 to 1024 are read"),
        ({"image_size": 10**9}, "image_size is 1000000000, and"),
        ({"image_size": [9, 2**40]}, f"image_size is {2**40}, and"),
        ({"image_size": 2**14, "patch_size": 1}, "image_size 16384 by patch_size 1 is more than 512 patches a side"),
    ],
)
def test_a_vision_tower_that_cannot_be(tmp_path, keys, says):
    folder = write_original(tmp_path / "checkpoint", stock_llava(ROWS))
    change(folder / "clip" / "config.json", **keys)
    refused(folder, tmp_path / "run", rf"clip/config\.json says sizes that its model cannot have: .*{says}")


@pytest.mark.parametrize("write", [lambda folder: write_transformers(folder, stock_llava(ROWS)),
                                   lambda folder: make("smolvlm", folder)])  # fmt: skip
def test_sizes_of_a_part(tmp_path, write):
    write(tmp_path / "checkpoint")
    file = tmp_path / "checkpoint" / "config.json"
    told = json.loads(file.read_text())
    change(file, vision_config=told["vision_config"] | {"patch_size": 0})
    refused(tmp_path / "checkpoint", tmp_path / "run", "patch_size is 0")


@pytest.mark.parametrize(
    ("part", "keys", "says"),
    [
        ("text_config", {"vocab_size": 2**60}, "vocab_size is"),
        ("text_config", {"num_hidden_layers": 10**9}, "num_hidden_layers is"),
        ("text_config", {"intermediate_size": 2**18, "hidden_size": 2**16}, "than the .* bytes of its folder"),
        ("vision_config", {"depths": [1, 10**9]}, "depths is"),
        ("vision_config", {"patch_size": 0}, "patch_size is 0"),
    ],
)
def test_a_run_that_cannot_be(tmp_path, part, keys, says):
    run = shutil.copytree(pool_bundle().run, tmp_path / "run")
    told = json.loads((run / "config.json").read_text())
    change(run / "config.json", **{part: told[part] | keys})
    with pytest.raises(MvlmError, match=rf"config\.json says sizes that its model cannot have: .*{says}"):
        load_run(run)


def test_sizes_that_are_no_numbers_are_left_to_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": "many", "patch_size": null, "image_size": true}')
    require_sizes(tmp_path / "config.json")
