"""A bundle whose router reads pictures: made, opened, asked; held against the estimator that it was written from."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from export.bundle.files import write_bundle
from export.bundle.source import read_source
from export.graphs.targets import plan
from export.runtime import MvlmError, Runtime
from export.runtime.artefact import sha256_file
from export.runtime.backends.onnx import Device
from export.runtime.routing.reading import read_patches, read_question
from export.runtime.routing.router import Router
from export.runtime.routing.router_folder import READER_FILE
from router.estimators.base import PlattScaling
from router.estimators.novelty import Familiarity
from router.estimators.reader import Reader
from router.estimators.reader_shape import Inputs
from router.graph.decision import router_graph
from router.graph.reader import picture_graph
from router.reading import NO_TOKEN, Reading
from tests.support.bundles import pool_bundle, write_router
from tests.support.tiny import QUESTIONS, SCALES, drawn_picture

LEAST_P_VALUE = 0.03  # just above what so few rows can say


def read_rows(runtime: Runtime, pictures: int) -> Inputs:
    """What a reader sees of every question about some pictures, from the runtime's own numbers."""
    views = [runtime.look(drawn_picture(i)) for i in range(pictures)]
    asked = [runtime.prompt.question_ids(question) for question in QUESTIONS]
    used = sorted({token for ids in asked for token in ids})
    tokens = np.full((len(QUESTIONS), max(map(len, asked))), NO_TOKEN)
    for row, ids in enumerate(asked):
        tokens[row, : len(ids)] = [used.index(token) for token in ids]
    patches = np.stack([read_patches(view.words) for view in views])
    features = [np.append(v.image_features, runtime._of_question(v, q)) for v in views for q in QUESTIONS]
    width = patches.shape[-1]
    reading = Reading(
        patches, np.repeat(np.arange(pictures), len(QUESTIONS)), np.tile(tokens, (pictures, 1)),
        runtime.table.rows(used), np.eye(width, dtype=np.float32),
    )  # fmt: skip
    return Inputs(np.float32(features), reading)


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """(bundle, what its router sees of rows, P(right) of the estimator there)."""
    folder, made = tmp_path_factory.mktemp("reading"), pool_bundle()
    x = read_rows(Runtime.load(made.bundle, threads=1), 12)
    random = np.random.default_rng(0)
    estimator, calibration = Reader(SCALES, epochs=2), PlattScaling()
    estimator.fit(x, np.sort(random.random((len(x), len(SCALES))), axis=1).astype(np.float32))
    calibration.slope_, calibration.intercept_ = 4.0, 0.0
    probability = calibration.probability(estimator.margins(x))
    novelty = Familiarity(11).fit(x.features, x.reading.picture.astype(str))
    known = {
        "scales": list(SCALES), "least_p_value": LEAST_P_VALUE, "validation": probability.tolist(),
        "risk_bounds": [], "validation_margin": probability.tolist(), "default_loss": 0.01,
        "escalation": {"now": [0.0, 0.0, 1.0, 0.0], "finer": [2.0, 0.0, 0.0, 1.0]},
    }  # fmt: skip
    write_router(folder / "router", made.run, reader=READER_FILE)
    widths = {"d_image": 11, "d_question": x.features.shape[1] - 11}
    onnx.save(router_graph(estimator, calibration, novelty, known, **widths), folder / "router" / "router.onnx")
    onnx.save(picture_graph(estimator), folder / "router" / READER_FILE)
    facts = json.loads((folder / "router" / "router.json").read_text())
    facts["files"] = {name: sha256_file(folder / "router" / name) for name in ("router.onnx", READER_FILE)}
    (folder / "router" / "router.json").write_text(json.dumps(facts))
    source = read_source(made.run, folder / "router", None)
    (folder / "bundle").mkdir()
    write_bundle(source, plan("ort-cpu", None, None, source.positions), folder / "bundle", lambda steps: None)
    return folder / "bundle", x, probability


@pytest.fixture(scope="module")
def runtime(reading):
    return Runtime.load(reading[0], threads=1)


def test_the_device_says_what_the_estimator_says(runtime, reading):
    _, x, probability = reading
    for picture in (0, 5, 11):
        view = runtime.look(drawn_picture(picture))
        for n, question in enumerate(QUESTIONS):
            choice = view.choose(question)
            row = picture * len(QUESTIONS) + n
            np.testing.assert_allclose(list(choice.probabilities.values()), probability[row], atol=2e-4)
    assert x.reading.patches.shape[1] == len(view.words)


def test_everything_that_a_router_does_works(runtime, reading):
    view = runtime.look(drawn_picture(1))
    question = QUESTIONS[0]
    answer = view.ask(question, max_new_tokens=2)
    assert answer.probabilities[answer.num_visual_tokens] == answer.probability
    assert view.choose(question, cap=9.0).scale <= 9
    budgets = [np.mean([view.choose(q, budget=budget).cost for q in QUESTIONS]) for budget in (2.0, 100.0)]
    assert budgets[0] < budgets[1]
    assert [choice.price for choice in view.choose_at(question, [0.0, 0.5])] == [0.0, 0.5]
    assert asyncio.run(view.aask(question, max_new_tokens=2)).text == answer.text
    together = runtime.ask_many([drawn_picture(1), view], question, max_new_tokens=2)
    assert [one.text for one in together] == [answer.text] * 2
    sight = replace(view.sight, features=view.image_features + 1e4)
    strange = replace(view, see=lambda words: sight).choose(question, price=5.0)
    assert strange.out_of_distribution
    assert strange.scale == SCALES[-1]
    sure, unsure = (runtime.router.escalate(view.choose(question, price=0.01, cap=145.0), m) for m in (1.0, 0.0))
    assert unsure == sure or unsure is None or unsure.scale > view.choose(question, price=0.01).scale


def test_numpy_reads_as_the_engine_does(runtime, reading):
    facts = runtime.manifest.router
    assert facts.reader == READER_FILE
    walked = Router(runtime.manifest.path(facts.file), facts, SCALES, None)
    view = runtime.look(drawn_picture(2))
    np.testing.assert_allclose(walked.look(view.words), view.sight.read, atol=1e-5)
    _, read = runtime._asked(view, QUESTIONS[1])
    np.testing.assert_array_equal(read.question, read_question(runtime.table.rows(
        runtime.prompt.question_ids(QUESTIONS[1]))))  # fmt: skip
    features = runtime._of_question(view, QUESTIONS[1])
    ours, theirs = (router.probabilities(view.image_features, features, read) for router in (walked, runtime.router))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_bundle_answers_for_the_reader_too(reading, tmp_path):
    bundle = shutil.copytree(reading[0], tmp_path / "bundle")
    data = bytearray((bundle / READER_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / READER_FILE).write_bytes(data)
    with pytest.raises(MvlmError, match=READER_FILE):
        Runtime.load(bundle)
    (bundle / READER_FILE).unlink()
    with pytest.raises(MvlmError, match=READER_FILE):
        Runtime.load(bundle)


def test_a_reader_with_an_operator_that_no_router_needs(reading, tmp_path):
    folder = shutil.copytree(reading[0], tmp_path / "bundle")
    graph = onnx.load(folder / READER_FILE)
    graph.graph.node.append(onnx.helper.make_node("Erf", ["picture"], ["more"]))
    onnx.save(graph, folder / READER_FILE)
    facts = replace(Runtime.load(reading[0]).manifest.router)
    with pytest.raises(MvlmError, match=r"operators that no router needs .Erf"):
        Router(folder / "router.onnx", facts, SCALES, Device())
