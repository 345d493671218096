"""`mvlm bench` of a model with tiles, and what it costs then to ask about a picture: by the tiles that it has left."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from export.device.bench import open_runtime
from export.runtime import MvlmError, Runtime
from export.runtime.answer import Clock
from export.runtime.artefact import write_json
from export.runtime.backends.onnx import Device
from export.runtime.machine import device_name
from export.runtime.manifest import read_manifest
from export.runtime.routing.costs import Composed, CostTable, bench_folder
from export.runtime.routing.parts import Parts
from export.runtime.routing.router import Terms
from tests.support.families import QUESTION
from tests.support.view_bundles import PICTURES, SCALES, view_bundle

ANSWER = 3
# A millisecond a position, 100 a view; no two parts can be taken for each other.
PARTS = Parts(
    image=5.0, vision=((1, 100.0), (2, 150.0), (8, 450.0)), connector=((1, 0.25), (16, 0.5)),
    prefill=((1, 1.0), (1001, 1001.0)), token=((1, 2.0),), picture=0.5, question=0.25, router=0.125,
    image_tiles=((2, 10.0), (8, 40.0)), views_at_once=8,
)  # fmt: skip


@pytest.fixture(scope="module", params=["smolvlm", "llava_next"])
def measured(request) -> Runtime:
    """A runtime of a device where a question takes what `PARTS` say."""
    runtime = Runtime.load(view_bundle(request.param, routed=True).bundle, threads=1)
    around = runtime.reader.positions(QUESTION, 0, 0) - runtime.reader.lead.used
    usual = {scale: 500.0 + at for at, scale in enumerate(SCALES)}
    composed = Composed(PARTS, PARTS, {}, around)
    table = CostTable(usual, 1, ANSWER, 105.0, usual, usual, 0.875, composed)
    return Runtime(runtime.manifest, Device(threads=1), table)


def tiles_ms(tiles: int) -> float:
    """Eight at once, each 50 ms beside the first's 100; cut in 5 ms each, two in 10."""
    ms = max(10.0, 5.0 * tiles) if tiles else 0.0
    while tiles:
        now = min(tiles, 8)
        ms, tiles = ms + 50.0 + 50.0 * now, tiles - now
    return ms


def by_hand(runtime: Runtime, view, scale, *, encoded: bool = False, kept: int = 0) -> float:
    """What is left of a question, without the look, where its tiles are encoded or not."""
    at, around = view.at(scale), runtime.costs.composed.around
    tiles = 0 if encoded else at.laid.views - 1
    made = 0 if kept == len(at) else at.laid.views * (0.25 + 0.25 * (at.laid.shown.tokens - 1) / 15)
    return tiles_ms(tiles) + made + around + len(at) - kept + (ANSWER - 1) * 2.0


def costs_here(runtime: Runtime, view) -> dict:
    return dict(zip(SCALES, runtime._here(view).costs.tolist(), strict=True))


def test_a_picture_costs_the_tiles_that_it_shows(measured):
    wide, small = (measured.look(PICTURES[name]) for name in ("wide", "one pixel"))
    assert wide.at("4@4").laid.views > 1
    for view in (wide, small):
        found = costs_here(measured, view)
        assert found == pytest.approx({scale: 105.0 + by_hand(measured, view, scale) + 0.875 for scale in SCALES})
    assert small.at("4@4").laid.views == 1
    assert costs_here(measured, small)["4@4"] == costs_here(measured, small)[4]


def test_tiles_that_are_encoded_cost_nothing_again(measured):
    view = measured.look(PICTURES["wide"])
    view.at("4@4").encode(0, Clock())
    wanted = {scale: 105.0 + by_hand(measured, view, scale) + 0.875 for scale in SCALES}
    wanted["4@4"] = 105.0 + by_hand(measured, view, "4@4", encoded=True) + 0.875
    shared = {s for s in SCALES if set(view.at(s).laid.shown.views) == set(view.at("4@4").laid.shown.views)}
    wanted |= {s: 105.0 + by_hand(measured, view, s, encoded=True) + 0.875 for s in shared}
    found = costs_here(measured, view)
    some = {s for s in SCALES if s in shared or not set(view.at(s).laid.shown.views) & _tiles(view, "4@4")}
    assert {s: found[s] for s in some} == pytest.approx({s: wanted[s] for s in some})
    assert {1, 4, "4@4"} <= some


def _tiles(view, scale) -> set:
    return set(view.at(scale).laid.shown.views) - set(view.at(1).laid.shown.views)


def test_what_was_read_is_not_read_again(measured):
    view = measured.look(PICTURES["wide"])
    view.ask(QUESTION, "4@4", max_new_tokens=1)
    kept = view.shelf.kept("4@4")
    assert kept == len(view.at("4@4"))
    found = costs_here(measured, view)["4@4"]
    assert found == pytest.approx(105.0 + by_hand(measured, view, "4@4", encoded=True, kept=kept) + 0.875)


def test_a_deadline_that_admits_the_overview_only(measured):
    """In time are the scales whose tiles need not be encoded: of a picture without tiles all, of a wide one few."""
    wide, small = (measured.look(PICTURES[name]) for name in ("wide", "one pixel"))
    overview = max(by_hand(measured, wide, scale) for scale in (1, 4))
    tiled = min(by_hand(measured, wide, scale) for scale in SCALES[2:])
    assert tiled > overview + 100
    for view, allowed in ((wide, {1, 4}), (small, {s for s in SCALES if by_hand(measured, small, s) < overview + 50})):
        terms, costs = measured._that_fit(view, _request(), Terms(), measured._now(view)[0], overview + 50)
        cap = np.inf if terms.cap is None else terms.cap
        assert {scale for scale, cost in zip(SCALES, costs, strict=True) if cost <= cap} == allowed
    far_off = overview + 1e6  # the clock runs while this is asked
    assert wide.choose(QUESTION, price=0, deadline_ms=far_off).terms.cap is None
    measured.costs, before = replace(measured.costs, composed=_slow_tiles(measured)), measured.costs
    try:
        assert wide.choose(QUESTION, price=0, deadline_ms=1e6).scale in (1, 4)
        assert wide.ask(QUESTION, price=0, deadline_ms=1e6, max_new_tokens=1).views == 1
        wide.at("4@4").encode(0, Clock())
        terms, costs = measured._that_fit(wide, _request(), Terms(), measured._now(wide)[0], 1e6)
        assert costs[SCALES.index("4@4")] <= terms.cap
        with pytest.raises(MvlmError, match=r"the cheapest scale takes \d+ ms here") as told:
            wide.choose(QUESTION, deadline_ms=1)
        assert told.value.code == "deadline"
    finally:
        measured.costs = before


def _request():
    from export.runtime.request import Request

    return Request(QUESTION, "auto", max_new_tokens=1)


def _slow_tiles(runtime: Runtime) -> Composed:
    slow = replace(PARTS, image_tiles=((1, 1e9), (8, 1e9)))
    return Composed(slow, slow, {}, runtime.costs.composed.around)


def test_a_cap_below_what_is_usual_is_not_made_of_what_was_read(measured):
    """Where one scale alone is in time and has been read, it is chosen, and not refused for costing so little."""
    view = measured.look(PICTURES["wide"])
    view.ask(QUESTION, 1, max_new_tokens=1)
    terms, costs = measured._that_fit(view, _request(), Terms(), measured._now(view)[0],
                                      by_hand(measured, view, 1, kept=len(view.at(1))) + 1e-3)  # fmt: skip
    assert [scale for scale, cost in zip(SCALES, costs, strict=True) if cost <= terms.cap] == [1]
    measured.router.require(terms)


@pytest.fixture
def bundle(tmp_path):
    return shutil.copytree(view_bundle("smolvlm", routed=True).bundle, tmp_path / "bundle")


def test_bench_of_a_bundle_with_tiles(bundle, mvlm, tmp_path):
    PICTURES["wide"].save(tmp_path / "wide.png")
    done = mvlm("bench", str(bundle), "--threads", "1", "--rounds", "3", "--warmup", "1", "--picture",
                str(tmp_path / "wide.png"), "--question", QUESTION, "--answer-tokens", "3")  # fmt: skip
    assert done.exit_code == 0, done.output
    file = bench_folder(bundle, device_name("cpu", 1)) / "bench.json"
    facts = json.loads(file.read_text())
    assert list(facts["costs"]) == list(facts["scales"]) == [str(scale) for scale in SCALES]
    runtime = Runtime.load(bundle, threads=1)
    view = runtime.look(tmp_path / "wide.png")
    shown = {scale: view.at(scale).laid for scale in SCALES}
    for scale, laid in shown.items():
        work, at = facts["work"][str(scale)], facts["scales"][str(scale)]
        assert (work["connected"], work["tiles"], work["read"] - facts["around"]) == (
            laid.views, laid.views - 1, len(laid)
        )  # fmt: skip
        assert (at["vision_tiles"]["best"] > 0) == (at["image_tiles"]["best"] > 0) == (laid.views > 1)
        assert at["vision_overview"]["best"] > 0
        assert at["first_token"]["p50"] > at["prefill"]["best"]
    counts = {laid.views - 1 for laid in shown.values()} - {0}
    assert set(map(int, facts["parts"]["vision"])) == {1, *counts}
    assert set(map(int, facts["parts"]["image_tiles"])) == counts
    assert set(map(int, facts["parts"]["connector"])) == {1, 4, 16}
    assert {facts["around"] + len(laid) for laid in shown.values()} <= set(map(int, facts["parts"]["prefill"]))
    assert [check["scale"] for check in facts["composed"]][:6] == [str(scale) for scale in SCALES]
    assert "vision_tiles" in done.output
    assert (file.parent / "bench.png").read_bytes().startswith(b"\x89PNG")
    # The router weighs that, and what is left of a new picture is what was measured
    assert runtime.costs.costs == {scale: facts["costs"][str(scale)] for scale in SCALES}
    assert runtime.router.facts.cost_unit == "ms"
    composed = runtime.costs.composed
    for scale in SCALES:
        assert runtime._left(view, scale) == replace(composed.work[scale], views=0)
    assert view.choose(QUESTION).cost > 0
    write_json(file, facts | {"floor": "none"})
    with pytest.raises(MvlmError, match="'none' is not a scale"):
        Runtime.load(bundle, threads=1)
    write_json(file, facts | {"parts": facts["parts"] | {"views_at_once": 0}})
    with pytest.raises(MvlmError, match="a tower that takes 0 views"):
        Runtime.load(bundle, threads=1)


def test_a_picture_without_tiles_is_measured_too(bundle, mvlm, tmp_path):
    PICTURES["one pixel"].resize((32, 32)).save(tmp_path / "small.png")
    done = mvlm("bench", str(bundle), "--threads", "1", "--rounds", "1", "--warmup", "0", "--picture",
                str(tmp_path / "small.png"), "--answer-tokens", "2")  # fmt: skip
    assert done.exit_code == 0, done.output
    wide = Runtime.load(bundle, threads=1).look(PICTURES["wide"])
    assert wide.runtime._left(wide, "4@4").tiles == wide.at("4@4").laid.views - 1
    costs = dict(zip(SCALES, wide.runtime._here(wide).costs.tolist(), strict=True))
    assert costs["4@4"] > costs[4]


def test_clips_alone_are_not_measured_yet():
    manifest = replace(read_manifest(view_bundle("smolvlm").bundle), scales=(1, "1@4"), views=None)
    with pytest.raises(MvlmError, match=r"shows several frames of clips \(1@4\), and bench measures pictures so far"):
        open_runtime(manifest, Device(threads=1))
