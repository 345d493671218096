"""Folders of adapters, and of a projector alone: refused with the way out, instead of reading the base in silence."""

import pytest

from tests.support.checkpoints import ROWS, stock_llava, write_original


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin"])
def test_adapters_beside_the_base(tmp_path, mvlm, name):
    write_original(tmp_path / "checkpoint", stock_llava(ROWS))
    (tmp_path / "checkpoint" / name).write_bytes(b"{}")
    done = mvlm("import", tmp_path / "checkpoint", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert f"holds adapters ({name}), which are not read: merge them into their base first" in done.output
    assert not (tmp_path / "run").exists()


def test_a_projector_alone(tmp_path, mvlm):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "mm_projector.bin").write_bytes(b"")
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    done = mvlm("import", tmp_path / "checkpoint", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "holds a projector (mm_projector.bin) without its language model" in done.output
