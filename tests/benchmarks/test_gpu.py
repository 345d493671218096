"""What is prepared for a GPU: every stage runs at toy size, one that fails or hangs takes nothing from the others."""

import json
import sys
import tarfile
import time

import pytest
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import fast, labels, run
from benchmarks.gpu.flops import needed_flops, seen_pairs
from benchmarks.gpu.real import Clock, steps_for
from benchmarks.gpu.record import Record, Told
from benchmarks.train.step import Step
from mvlm_core.train.packing import PADDING, block_mask


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(run.STAGES))
def test_every_stage_runs_at_toy_size(stage, tmp_path):
    done = CliRunner().invoke(run.main, ["--out", str(tmp_path), "--stage", stage, "--rehearse", "--seconds", "900"])
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / f"gpu_{stage}.json").read_text())
    assert facts["ended"] == "whole"
    assert facts["measured"] == f"gpu_{stage}"
    assert facts["rehearsal"] is True
    assert facts["machine"]["processor"]
    assert not (tmp_path / f"gpu_{stage}.log").exists()
    if stage == "real":
        with tarfile.open(tmp_path / "real_labels.tar") as tar:
            tar.extractall(tmp_path / "labels", filter="data")
        assert (tmp_path / "labels" / "metrics.jsonl").is_file()
        files = json.loads((tmp_path / "labels" / "labels.json").read_text())["files"]
        assert all((tmp_path / "labels" / name).is_file() for name in files)  # a whole labels folder: it can be fitted
        assert set(facts["ladder"]) == {"1", "4", "9", "36", "144"}
    if stage == "right":
        assert facts["counts"]["passed"] > 5
        assert "failed" not in facts["counts"]


@pytest.mark.parametrize(
    ("program", "seconds", "end"),
    [
        ("", 20, "whole"),
        ("raise SystemExit('no card')", 20, "failed (1): no card"),
        ("import subprocess, time; subprocess.Popen(['sleep', '600']); time.sleep(600)", 3, "out of time"),
    ],
    ids=["whole", "failed", "hangs"],
)
def test_a_stage_that_ends_badly_leaves_what_it_had(program, seconds, end, tmp_path):
    write = f"""open({str(tmp_path / "gpu_labels.json")!r}, "w").write('{{"figure": 1, "ended": "whole"}}')"""
    said = run.run_apart("labels", Told(tmp_path, True, seconds), [sys.executable, "-c", f"{write}; {program}"])
    facts = json.loads((tmp_path / "gpu_labels.json").read_text())
    assert said == facts["ended"] == end
    assert facts["figure"] == 1
    assert (tmp_path / "gpu_labels.log").exists() == (end != "whole")


def test_a_stage_is_told_what_its_command_line_says(tmp_path, monkeypatch):
    (tmp_path / "w").mkdir()
    seen: list[Told] = []
    monkeypatch.setattr(labels, "run", lambda record, told: seen.append(told))
    told = Told(tmp_path, True, 9, tmp_path / "w", tmp_path)
    done = CliRunner().invoke(run.main, run.command_of("labels", told)[3:])
    assert done.exit_code == 0, done.output
    assert seen == [told]


def test_the_others_run_when_one_stage_fails(tmp_path, monkeypatch):
    ends = {"right": "failed (1): why", "fast": "whole"}
    monkeypatch.setattr(run, "run_apart", lambda name, told, command: ends.pop(name))
    done = CliRunner().invoke(run.main, ["--out", str(tmp_path), "--stage", "right", "--stage", "fast"])
    assert done.exit_code == 1
    assert done.output.splitlines() == ["right: failed (1): why", "fast: whole"]


def test_a_part_that_fails_is_written_down_and_the_next_one_runs(tmp_path, monkeypatch):
    def parts(record: Record, told: Told) -> None:
        record.attempt("first", lambda: {"figure": told.seconds})
        record.attempt("second", lambda: 1 / 0)
        record.attempt("third", lambda: {"figure": 3})

    monkeypatch.setattr(labels, "run", parts)
    with pytest.raises(SystemExit):
        run.run_here("labels", Told(tmp_path, True, 7))
    facts = json.loads((tmp_path / "gpu_labels.json").read_text())
    assert (facts["first"], facts["third"]) == ({"figure": 7}, {"figure": 3})
    assert facts["second"] == {"failed": "ZeroDivisionError: division by zero"}
    assert facts["ended"] == "parts failed: second"


@pytest.fixture(scope="module")
def step() -> Step:
    return Step("tiny", pictures=2, turns=2, device="cpu")


def test_seen_pairs_are_those_of_the_mask(step):
    segments, blocks = step.batch["segments"], step.batch["blocks"]
    seen = block_mask(segments, blocks)[:, 0] & (segments != PADDING)[:, :, None]
    assert seen_pairs(step) == int(seen.sum())
    assert 0 < seen_pairs(step) < segments.numel() * segments.shape[1]


def test_needed_arithmetic_is_what_torch_counts_less_what_a_dense_mask_hides(step):
    """Torch counts hidden pairs and padding too. On a CPU it counts attention only where that is plain products."""
    for part in (step.model.vision_tower, step.model.language_model):
        part.set_attn_implementation("eager")
    step.attention = {"packed": "eager"}
    with FlopCounterMode(display=False) as counter:
        step.packed().backward()
    text = step.model.config.text_config
    segments = step.batch["segments"]
    hidden_pairs = segments.numel() * segments.shape[1] - seen_pairs(step)
    weights = sum(p.numel() for p in step.model.language_model.base_model.layers.parameters())
    hidden = 12 * hidden_pairs * text.hidden_size * text.num_hidden_layers
    padding = 6 * int((segments == PADDING).sum()) * weights
    assert needed_flops(step) == pytest.approx(counter.get_total_flops() - hidden - padding, rel=0.02)


def test_kernels_are_told_apart_by_name():
    names = {
        "flash_fwd_kernel": "attention", "triton_tem_fused_0": "attention", "nvjet_tst_128x256": "products",
        "cutlass_80_gemm": "products", "fmha_cutlassF_bf16": "attention", "Memcpy DtoD": "copies",
        "vectorized_elementwise_kernel": "elementwise", "reduce_kernel": "sums", "something_else": "the rest",
    }  # fmt: skip
    assert {name: fast.kind_of(name) for name in names} == names


def test_steps_fill_the_time_that_is_left():
    patches, answers = steps_for(100, {"patches": 0.1, "answers": 0.5}, least=3)
    assert patches * 0.1 + answers * 0.5 == pytest.approx(100, rel=0.01)
    assert steps_for(-5, {"patches": 0.1, "answers": 0.5}, least=3) == [3, 3]


def test_the_clock_leaves_the_first_steps_out(monkeypatch):
    times = iter([0.0, 10.0, 11.0, 12.0, 13.0, 14.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    clock = Clock()
    advance = clock("answers", 5)
    for _ in range(5):
        advance("loss 1.000")
    assert clock.seconds() == {"answers": 1.0}
