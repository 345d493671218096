"""`mvlm bench`: what is measured, the floor, the costs that the router then weighs, and power where a board tells."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from export.device.bench import Plan, costs_of, floor_index, measure, open_runtime, percentiles
from export.device.bench_report import conclude, sentence
from export.device.power import PowerMeter
from export.runtime import MvlmError, Runtime
from export.runtime.artefact import write_json
from export.runtime.backends.onnx import Device
from export.runtime.machine import device_name, machine
from export.runtime.manifest import read_manifest
from export.runtime.routing.costs import UnusedCosts, bench_folder, other_bench
from tests.support.bundles import pool_bundle
from tests.support.tiny import QUESTIONS

THREADS = 1
NAME = device_name("cpu", THREADS)


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(pool_bundle().bundle, tmp_path / "bundle")


def arguments(bundle, *more: str) -> list[str]:
    return ["bench", str(bundle), "--threads", str(THREADS), "--rounds", "3", "--warmup", "1", *more]


def test_bench_then_the_command_that_it_names(bundle, mvlm, monkeypatch):
    picture = pool_bundle().picture(0)
    done = mvlm(*arguments(bundle, "--picture", str(picture), "--question", QUESTIONS[0], "--answer-tokens", "5"))
    assert done.exit_code == 0, done.output
    folder = bench_folder(bundle, NAME)
    facts = json.loads((folder / "bench.json").read_text())
    assert facts["machine"]["processor"]
    assert list(facts["costs"]) == list(facts["scales"]) == ["1", "4", "9", "36", "144"]
    for at in facts["scales"].values():
        for stage in ("image", "vision", "connector", "prefill", "token", "first_token"):
            assert 0 < at[stage]["best"] <= at[stage]["p50"] <= at[stage]["p90"] <= at[stage]["p99"]
        assert at["peak_memory_mib"] > 10
    parts = facts["parts"]
    assert parts["router"]["p50"] > 0
    assert parts["features"]["picture"]["p50"] > 0
    assert parts["features"]["question"]["p50"] > 0
    assert (list(parts["vision"]), sorted(parts["connector"], key=int)) == (["1"], ["1", "4", "9", "36", "144"])
    around = facts["work"]["36"]["read"] - 36  # what stands around a picture, and is read again for each question
    assert sorted(map(int, parts["prefill"])) == [around, *(around + m for m in (1, 4, 9, 36, 144))]
    checks = {check["scale"]: check for check in facts["composed"]}
    assert list(checks)[:5] == list(facts["costs"])
    for check in checks.values():
        assert check["error"] == pytest.approx(check["composed"] / check["whole"] - 1, abs=1e-3)
    assert "costs composed of their parts miss whole questions by" in done.output
    assert facts["memory_mib"]["loaded"] > 10
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert facts["sentence"] in done.output
    assert "power: not measured" in done.output or facts["power"]["source"]
    following = shlex.split(done.output.splitlines()[-1].removeprefix("next: mvlm "))
    assert mvlm(*following, "--scale", "1").exit_code == 0

    again = mvlm(*arguments(bundle))  # measured again, and put in the old one's place
    assert again.exit_code == 0, again.output
    assert json.loads((folder / "bench.json").read_text())["answer_tokens"] == 8
    assert [path.name for path in folder.parent.iterdir()] == [NAME]


def test_the_router_weighs_what_was_measured(bundle, mvlm):
    assert Runtime.load(bundle, threads=THREADS).costs is None
    assert mvlm(*arguments(bundle)).exit_code == 0
    facts = json.loads((bench_folder(bundle, NAME) / "bench.json").read_text())
    runtime = Runtime.load(bundle, threads=THREADS)
    assert runtime.costs.costs == {int(m): cost for m, cost in facts["costs"].items()}
    assert runtime.router.facts.cost_unit == "ms"
    assert runtime.router.facts.costs == tuple(facts["costs"].values())
    with pytest.warns(UnusedCosts, match="costs measured with --provider cpu --threads 1 are not used"):
        assert Runtime.load(bundle, threads=2).costs is None  # another number of threads is another device


def test_what_was_measured_with_other_threads_is_not_dropped_in_silence(bundle, mvlm):
    write_bench(bundle, read_manifest(bundle).sha256, costs=dict.fromkeys(("1", "4", "9", "36", "144"), 5.0),
                provider="cpu", threads=THREADS, machine=machine())  # fmt: skip
    asked = ("run", pool_bundle().picture(0), QUESTIONS[0], "--bundle", bundle, "--max-new-tokens", "1")
    says = "costs measured with --provider cpu --threads 1 are not used with --provider cpu"
    assert f"{says} --threads 2: ask as it was measured, or run `mvlm bench" in mvlm(*asked, "--threads", "2").stderr
    assert f"{says}: ask as it was measured" in mvlm(*asked).stderr
    assert "are not used" not in mvlm(*asked, "--threads", "1").stderr
    assert "are not used" not in mvlm(*asked, "--threads", "2", "--scale", "9").stderr  # nothing is weighed
    typed = ("chat", "--bundle", bundle, "--threads", "2", "--scale")
    assert (says in mvlm(*typed, "auto").stderr, says in mvlm(*typed, "9").stderr) == (True, False)
    elsewhere = bench_folder(bundle, NAME) / "bench.json"
    write_json(elsewhere, json.loads(elsewhere.read_text()) | {"machine": {"processor": "another"}})
    assert other_bench(bundle, "cpu", 2) is None
    elsewhere.write_text("{")
    assert other_bench(bundle, "cpu", 2) is None


def test_scales_below_the_floor_are_never_taken_for_their_price(bundle):
    manifest = read_manifest(bundle)
    write_bench(bundle, manifest.sha256, costs={"1": 5.0, "4": 5.0, "9": 5.0, "36": 5.0, "144": 5.0}, floor=144)
    runtime = Runtime.load(bundle, threads=THREADS)
    view = runtime.look(pool_bundle().picture(0))
    for price in (0.0, 0.5, 100.0):
        answer = view.ask(QUESTIONS[0], price=price, max_new_tokens=1)
        assert answer.probability == max(answer.probabilities.values())


def test_a_scale_that_was_not_measured(bundle):
    write_bench(bundle, read_manifest(bundle).sha256, costs={"1": 5.0, "9": 7.0})
    with pytest.raises(MvlmError, match="no cost is given for 4, 36, 144 tokens"):
        Runtime.load(bundle, threads=THREADS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"bundle_sha256": "another"}, "was measured on another bundle: run `mvlm bench"),
        ({"costs": {"1": 5.0, "4": 4.0}}, "costs must not fall"),
        ({"costs": {"1": float("1e999")}}, "inf milliseconds"),
        ({"costs": {"1": 0}}, "0.0 milliseconds"),
        ({"floor": 36}, "the floor is one of the scales"),
        ({"look_ms": {}}, "KeyError: 'p90'"),
    ],
)
def test_a_measurement_that_cannot_be_used(bundle, change, says):
    write_bench(bundle, read_manifest(bundle).sha256, **change)
    with pytest.raises(MvlmError, match=says):
        Runtime.load(bundle, threads=THREADS)


def write_bench(bundle, sha256: str, **change) -> None:
    at = {"first_token": {"p90": 1.0}, "token": {"p90": 0.1}}
    facts = {
        "artefact": "bench", "format_version": 1, "bundle_sha256": sha256, "costs": {"1": 5.0, "4": 5.0}, "floor": 4,
        "answer_tokens": 8, "look_ms": {"p90": 3.0}, "scales": {"1": at, "4": at},
    }  # fmt: skip
    folder = bench_folder(bundle, NAME)
    folder.mkdir(parents=True)
    if "inf" in str(change):
        (folder / "bench.json").write_text(json.dumps(facts | change))
        return
    facts |= {"floor": max(map(int, change["costs"]))} if "costs" in change and "floor" not in change else {}
    write_json(folder / "bench.json", facts | change)


def test_a_measurement_of_before_is_read(bundle):
    """Of format 1: costs that were measured whole, and what the router took in two stages."""
    by_scale = dict.fromkeys(("1", "4", "9", "36", "144"), 5.0)
    stages = {"features": {"p50": 0.5}, "router": {"p50": 0.25}}
    write_bench(bundle, read_manifest(bundle).sha256, costs=by_scale, router_ms=stages)
    costs = Runtime.load(bundle, threads=THREADS).costs
    assert (costs.router_ms, costs.composed) == (0.75, None)


def test_parts_that_are_not_in_order(bundle):
    points = {"1": {"p50": 1.0, "p90": 2.0}}
    parts = dict.fromkeys(("vision", "connector", "prefill", "token"), points)
    parts |= {"image": points["1"], "features": {}}
    scales = {m: {"first_token": {"p90": 1.0}, "token": {"p90": 0.1}} for m in ("1", "4", "9", "36", "144")}
    work = {m: {"views": 1, "connected": 1, "tokens": int(m), "read": 9, "behind": 1} for m in scales}
    told = {"format_version": 2, "costs": dict.fromkeys(scales, 5.0), "scales": scales, "parts": parts, "work": work}
    sha256 = read_manifest(bundle).sha256
    for change, says in (
        ({}, None),
        ({"work": {}}, "what is to be done is not said of every scale"),
        ({"parts": parts | {"vision": {"4": points["1"]}}}, "nobody measured the encoding of one view"),
        ({"parts": parts | {"token": {}}}, "a part that nobody measured"),
        ({"format_version": 3}, "KeyError: 'around'"),
        ({"format_version": 4}, "has format 4, and this mvlm reads up to 3"),
    ):
        shutil.rmtree(bundle / "bench", ignore_errors=True)
        write_bench(bundle, sha256, **(told | change))
        if says is None:
            composed = Runtime.load(bundle, threads=THREADS).costs.composed
            assert (composed.most.image, composed.around, composed.work[9].tiles) == (2.0, 8, 0)
        else:
            with pytest.raises(MvlmError, match=says):
                Runtime.load(bundle, threads=THREADS)


def test_a_scale_that_takes_longer_is_seen_and_charged(bundle, monkeypatch):
    """The slow way to be sure: a connector that sleeps."""
    runtime = open_runtime(read_manifest(bundle), Device(threads=THREADS))
    tokens = runtime.encoder.tokens

    def slow(values, m):
        # Beside what every scale takes, 1, 4 and 9 tokens differ by less than what a saving must be to be one.
        time.sleep({36: 0.06, 144: 0.08}.get(m, 0.04))
        return tokens(values, m)

    monkeypatch.setattr(runtime.encoder, "tokens", slow)
    plan = Plan(pool_bundle().picture(0), QUESTIONS[0], 2, 8, 1)
    steps: list[int] = []
    with PowerMeter() as power:
        measured = conclude(plan, measure(runtime, plan, power, steps.append))
    assert measured.floor == 9
    assert measured.costs[1] == measured.costs[9] < measured.costs[36] - 15 < measured.costs[144] - 30
    assert len(steps) == 9 * 7
    said = sentence(measured)
    assert "1 and 4 save nothing against 9" in said
    assert "% less" in said


def test_the_floor():
    steady = np.ones((20, 3)) * [10, 10.1, 20]
    assert floor_index(steady) == 1  # a hundredth is nothing
    assert floor_index(steady[:, :2]) == 1
    noisy = steady.copy()
    noisy[::2, 2] = 9  # dearer in every second round only: not to be told apart
    assert floor_index(noisy) == 2
    assert floor_index(np.ones((20, 3)) * [10, 20, 10]) == 0  # nothing is below what was dearer once
    assert floor_index(np.ones((4, 2)) * [10, 20]) == 1  # four rounds can prove nothing


def test_costs_never_fall_and_are_one_below_the_floor():
    composed = np.array([10.2, 10, 20, 19, 30])
    assert costs_of(composed, 1, 0.5).round(6).tolist() == [10.6, 10.6, 20.5, 20.5, 30.5]


def test_percentiles():
    assert percentiles(np.arange(101.0)) == {"best": 0, "p50": 50, "p90": 90, "p99": 99}


def test_every_scale_the_same():
    manifest = read_manifest(pool_bundle().bundle)
    runtime = open_runtime(replace(manifest, router=None), Device(threads=THREADS))
    plan = Plan(pool_bundle().picture(0), QUESTIONS[0], 2, 1, 0)  # one round proves nothing
    with PowerMeter() as power:
        measured = conclude(plan, measure(runtime, plan, power, lambda steps: None))
    assert measured.router_ms == 0
    assert sentence(measured).endswith("ask at 144, fewer tokens save nothing.")


def test_without_matplotlib_the_rest_is_written(bundle, mvlm, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = mvlm(*arguments(bundle))
    assert done.exit_code == 0, done.output
    assert "matplotlib is not installed" in done.output
    assert [path.name for path in bench_folder(bundle, NAME).iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--question", "what " * 600], "the decoder has 512"),
        (["--question", ""], "the question is empty"),
        (["--picture", "absent.png"], "absent.png"),
        (["--provider", "tpu"], "no provider 'tpu'"),
        (["--answer-tokens", "1"], "1 is not in the range x>=2"),
    ],
)
def test_what_cannot_be_measured(bundle, mvlm, more, says):
    failed = mvlm(*arguments(bundle), *more)
    assert failed.exit_code == 2
    assert says in failed.output
    assert not (bundle / "bench" / NAME).exists()


def test_power_of_a_jetson(tmp_path):
    sensor = tmp_path / "hwmon" / "hwmon3"
    sensor.mkdir(parents=True)
    (sensor / "name").write_text("ina3221\n")
    for i, (rail, volts, amperes) in enumerate([("VDD_IN", 5000, 2000), ("VDD_CPU", 5000, 400)], 1):
        (sensor / f"in{i}_label").write_text(f"{rail}\n")
        (sensor / f"in{i}_input").write_text(f"{volts}\n")
        (sensor / f"curr{i}_input").write_text(f"{amperes}\n")
    assert watts_of(tmp_path) == ("INA3221, VDD_IN", pytest.approx(10))
    (sensor / "in1_label").write_text("VDD_GPU\n")
    assert watts_of(tmp_path) == ("INA3221, VDD_CPU + VDD_GPU", pytest.approx(12))


def test_power_of_a_pc(tmp_path, monkeypatch):
    package = tmp_path / "powercap" / "intel-rapl:0"
    package.mkdir(parents=True)
    (package / "max_energy_range_uj").write_text("1000000\n")
    (package / "energy_uj").write_text("999999\n")
    meter = PowerMeter(tmp_path / "hwmon", tmp_path / "powercap")
    before = meter._read.__self__._last[0]
    (package / "energy_uj").write_text("499999\n")  # wrapped around
    monkeypatch.setattr("export.device.power.time.perf_counter", lambda: before + 2)
    assert meter.source == "RAPL, packages"
    assert meter._read() == pytest.approx(0.25)


def test_no_power(tmp_path):
    with PowerMeter(tmp_path, tmp_path) as meter:
        assert meter.absent == "this machine has neither INA3221 sensors nor RAPL counters"
    assert meter.watts(0, time.perf_counter()) is None
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # cannot be read as a file
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text("1")
    assert "may only be read by root" in PowerMeter(tmp_path / "absent", tmp_path).absent


def watts_of(folder) -> tuple[str, float | None]:
    with PowerMeter(folder / "hwmon", folder / "powercap") as meter:
        started = time.perf_counter()
        while not meter._samples:
            time.sleep(0.01)
    return meter.source, meter.watts(started, time.perf_counter())
