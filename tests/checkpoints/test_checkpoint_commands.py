"""The verbs `import` and `export-checkpoint`: what they print, and that nothing half written stays."""

import shutil

import pytest

from benchmarks.tiny_models import byte_words
from mvlm_core.checkpoints.run_folder import load_run
from tests.house.test_imports import HEAVY, loaded_by
from tests.support.checkpoints import FINEST, PEERS, ROWS, refused, spoil, stock_llava, write_original


@pytest.fixture
def checkpoint(tmp_path):
    return write_original(tmp_path / "checkpoint", stock_llava(ROWS))


def test_without_a_tokenizer_it_says_what_is_missing(mvlm, checkpoint, tmp_path):
    tower = (checkpoint / "clip").rename(tmp_path / "clip")
    result = mvlm("import", checkpoint, "--vision-tower", tower, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "LLaVA-1.5, in LLaVA's own layout" in result.output
    assert "never saw them" in result.output
    assert "NO TOKENIZER" in result.output
    assert "holds no tokenizer.json and no tokenizer.model" in result.output
    assert (
        f"next: mvlm import {checkpoint} --vision-tower {tower} --out {tmp_path / 'run'} --overwrite" in result.output
    )


def test_with_a_tokenizer_the_run_is_ready_and_goes_out_again(mvlm, tmp_path):
    words = byte_words()
    checkpoint = write_original(tmp_path / "checkpoint", stock_llava(len(words)))
    words.save_pretrained(checkpoint)
    result = mvlm("import", checkpoint, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert f"<image> was added to the tokenizer as token {len(words)}" in result.output
    assert f"next: mvlm label {tmp_path / 'run'} --scales {FINEST}" in result.output
    load_run(tmp_path / "run")
    result = mvlm("export-checkpoint", tmp_path / "run", "--scale", FINEST, "--out", tmp_path / "llava")
    assert result.exit_code == 0, result.output
    assert f"a plain LLaVA in {tmp_path / 'llava'}" in result.output
    result = mvlm("export-checkpoint", tmp_path / "run", "--scale", 1, "--out", tmp_path / "coarse")
    assert result.exit_code == 2
    assert "kernel and stride 12" in result.output
    assert result.output.count("\n") == 1
    assert not (tmp_path / "coarse").exists()


@pytest.mark.skipif(not PEERS.is_dir(), reason=f"the papers' checkpoints are not at {PEERS}")
def test_a_ladder_for_mqt(mvlm, tmp_path):
    peer = shutil.copytree(PEERS / "mqt", tmp_path / "mqt", copy_function=shutil.copyfile)
    words = byte_words()
    words.save_pretrained(peer)
    result = mvlm("import", peer, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "--scales 1,4,16,64,256" in result.output.splitlines()[-1]


def test_a_wrong_checkpoint_leaves_nothing_behind(mvlm, checkpoint, tmp_path):
    spoil(lambda t: (t.pop("lm_head.weight"), t.pop("model.norm.weight")))(checkpoint)
    result = mvlm("import", checkpoint, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "error: tensors not in order: 2;" in result.output
    assert "  checkpoint: model.norm.weight is missing\n  checkpoint: lm_head.weight is missing\n" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    refused(checkpoint, tmp_path / "out", "not in order: 2;")


def test_the_verbs_load_nothing_heavy():
    assert not loaded_by("import mvlm_core.commands.checkpoints") & HEAVY


def test_mistakes(mvlm, checkpoint, tmp_path):
    result = mvlm("import", tmp_path / "absent")
    assert result.exit_code == 2
    assert "there is no folder" in result.output
    assert "is not empty" in mvlm("import", checkpoint, "--out", checkpoint).output
    assert (
        "is not a run" in mvlm("export-checkpoint", tmp_path / "absent", "--scale", 1, "--out", tmp_path / "l").output
    )
