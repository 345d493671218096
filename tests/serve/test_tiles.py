"""A bundle whose scales are words: by every API over HTTP, what is asked, what is answered, and what is counted."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from export.runtime import Runtime
from tests.serve.test_clients import shows, text_of, told
from tests.support.families import QUESTION
from tests.support.serving import data_url, serving
from tests.support.view_bundles import PICTURES, SCALES, view_bundle

OF_TILES = ("image_tiles_ms", "vision_tiles_ms")


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime.load(view_bundle("internvl", routed=True).bundle, threads=1)


@pytest.fixture(scope="module")
def served(runtime):
    with serving(runtime) as server:
        yield server


@pytest.fixture
def fresh():
    """A server that has looked at nothing and read nothing yet."""
    with serving(Runtime.load(view_bundle("internvl", routed=True).bundle, threads=1)) as server:
        yield server


@pytest.fixture(scope="module")
def picture() -> bytes:
    return png("wide")


def png(name: str) -> bytes:
    written = io.BytesIO()
    PICTURES[name].save(written, "PNG")
    return written.getvalue()


def test_every_scale_is_a_model(served, runtime, picture):
    names = [one["id"] for one in json.loads(served.request("GET", "/v1/models")[2])["data"]]
    assert names == ["mvlm-auto", *(f"mvlm-{scale}" for scale in SCALES)]
    assert served.request("GET", "/v1/models/mvlm-4@4")[0] == 200
    for scale in SCALES:
        answer = told(served, [shows(picture, QUESTION)], f"mvlm-{scale}")
        alone, laid = runtime.look(picture).ask(QUESTION, scale, max_new_tokens=6), runtime.look(picture).at(scale).laid
        assert text_of(answer) == alone.text
        facts = answer["mvlm"]
        assert (facts["scale"], facts["scales"]) == (scale, [scale])
        for name in ("num_visual_tokens", "views", "separators"):
            assert facts[name] == getattr(alone, name)
        ((rows, cols),) = facts["tiles"]
        assert rows * cols + 1 == facts["views"]
        assert [(view.row, view.col) for view in laid.shown.views if view.canvas] == [
            (row, col) for row in range(rows) for col in range(cols)
        ]
        assert answer["usage"]["prompt_tokens"] == runtime.reader.positions(QUESTION, len(laid), 0)


@pytest.mark.parametrize("scale", ["4@4", " 4@4 ", 4, "4", "native"])
def test_a_scale_in_a_body_is_a_word_or_a_number(served, picture, scale):
    wanted = 4 if scale == "4" else scale.strip() if isinstance(scale, str) else scale
    for model in ("mvlm-auto", f"mvlm-{wanted}"):
        assert told(served, [shows(picture, QUESTION)], model, mvlm={"scale": scale})["mvlm"]["scale"] == wanted


@pytest.mark.parametrize(
    ("model", "scale", "message"),
    [
        ("mvlm-auto", "16@4", "this bundle has no scale 16@4: name one of 1, 4, 1@2, 4@4, 4@native, native, or auto"),
        ("mvlm-auto", 5, "this bundle has no scale 5: name one of 1, 4, 1@2, 4@4, 4@native, native, or auto"),
        ("mvlm-4", "4@4", "the model is mvlm-4, and mvlm.scale is '4@4': name one scale"),
        ("mvlm-auto", "fine", "the model is mvlm-auto, and mvlm.scale is 'fine': name one scale"),
        ("mvlm-auto", True, "the model is mvlm-auto, and mvlm.scale is 'true': name one scale"),
        ("mvlm-auto", ["4@4"], "the model is mvlm-auto, and mvlm.scale is '[\"4@4\"]': name one scale"),
        ("mvlm-auto", 4.0, "the model is mvlm-auto, and mvlm.scale is '4.0': name one scale"),
    ],
)
def test_a_scale_that_is_none_here_is_refused(served, picture, model, scale, message):
    body = {"model": model, "messages": [shows(picture, QUESTION)], "mvlm": {"scale": scale}}
    status, answer = served.chat(body)
    assert (status, answer["error"]["message"], answer["error"]["code"]) == (400, message, "bad-scale")


def test_a_model_that_is_none_here(served, picture):
    status, answer = served.chat({"model": "mvlm-16@4", "messages": [shows(picture, QUESTION)]})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert "name one of mvlm-auto, mvlm-1, mvlm-4, mvlm-1@2" in answer["error"]["message"]


@pytest.mark.parametrize("detail", ["low", "high", "auto", None])
def test_detail(served, runtime, picture, detail):
    answer = told(served, [shows(picture, QUESTION, **({"detail": detail} if detail else {}))], "mvlm-auto")
    wanted = {"low": SCALES[0], "high": SCALES[-1]}.get(detail) or runtime.look(picture).choose(QUESTION).scale
    assert answer["mvlm"]["scale"] == wanted
    assert (answer["mvlm"]["probability"] is None) == (detail in ("low", "high"))


def test_each_picture_with_its_tiles(served, runtime):
    pictures = [png("wide"), png("tall"), png("small")]
    facts = told(served, [shows(*pictures, QUESTION)], "mvlm-4@4")["mvlm"]
    laid = [runtime.look(picture).at("4@4").laid for picture in pictures]
    assert facts["tiles"] == [list(one.tiles) for one in laid]
    assert facts["tiles"][2] == [0, 0]  # it has no tiles that are not enlarged
    assert (facts["views"], facts["num_visual_tokens"]) == (
        sum(one.views for one in laid), sum(one.num_visual_tokens for one in laid),
    )  # fmt: skip


def test_a_stream(fresh, runtime, picture):
    body = {"model": "mvlm-4@4", "messages": [shows(picture, QUESTION)], "max_tokens": 6, "stream": True}
    status, _, data = fresh.request("POST", "/v1/chat/completions", body)
    events = [json.loads(line[6:]) for line in data.decode().split("\n\n") if line.startswith("data: {")]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert (status, text) == (200, runtime.look(picture).ask(QUESTION, "4@4", max_new_tokens=6).text)
    facts = events[-1]["mvlm"]
    assert (facts["scale"], facts["tiles"]) == ("4@4", [list(runtime.look(picture).at("4@4").laid.tiles)])
    assert "vision_tiles_ms" in facts["timings"]


def test_responses(served, runtime, picture):
    part = {"type": "input_image", "image_url": data_url(picture), "detail": "high"}
    asked = [{"role": "user", "content": [part, {"type": "input_text", "text": QUESTION}]}]
    for more, scale in (({"model": "mvlm-auto"}, "native"), ({"model": "mvlm-4@4"}, "4@4"),
                        ({"model": "mvlm-auto", "mvlm": {"scale": "1@2"}}, "1@2")):  # fmt: skip
        status, _, data = served.request("POST", "/v1/responses", {"input": asked, "max_output_tokens": 6} | more)
        answer = json.loads(data)
        assert (status, answer["mvlm"]["scale"]) == (200, scale)
        said = runtime.look(picture).ask(QUESTION, scale, max_new_tokens=6).text
        assert answer["output"][0]["content"][0]["text"] == said
    body = {"model": "mvlm-auto", "input": asked, "mvlm": {"scale": "9@9"}}
    status, _, data = served.request("POST", "/v1/responses", body)
    assert (status, json.loads(data)["error"]["code"]) == (400, "bad-scale")


@pytest.mark.parametrize("latest", ["", ":latest"])
@pytest.mark.parametrize("stream", [False, True])
def test_ollama_counts_what_came_before_the_first_token(fresh, runtime, picture, stream, latest):
    message = {"role": "user", "content": QUESTION, "images": [base64.b64encode(picture).decode()]}
    body = {"model": f"mvlm-4@4{latest}", "messages": [message], "stream": stream, "options": {"num_predict": 6}}
    status, _, data = fresh.request("POST", "/api/chat", body)
    lines = [json.loads(line) for line in data.decode().splitlines()]
    said = "".join(line["message"]["content"] for line in lines)
    assert (status, said) == (200, runtime.look(picture).ask(QUESTION, "4@4", max_new_tokens=6).text)
    facts, timings = lines[-1]["mvlm"], lines[-1]["mvlm"]["timings"]
    assert (facts["scale"], facts["views"]) == ("4@4", runtime.look(picture).at("4@4").laid.views)
    assert {"image_ms", "vision_overview_ms", *OF_TILES, "connector_ms", "prefill_ms"} <= set(timings)
    before = sum(ms for stage, ms in timings.items() if stage != "decode_ms")
    assert lines[-1]["prompt_eval_duration"] == pytest.approx(1e6 * before, abs=2)
    assert lines[-1]["eval_duration"] == pytest.approx(1e6 * timings["decode_ms"], abs=2)


def test_tiles_are_encoded_once_and_counted_once(fresh, picture):
    first, again = (told(fresh, [shows(picture, QUESTION)], "mvlm-4@4")["mvlm"]["timings"] for _ in range(2))
    assert all(first[stage] > 0 for stage in ("vision_overview_ms", *OF_TILES))
    assert not any(again.get(stage) for stage in ("vision_overview_ms", *OF_TILES))
    text = fresh.runtime_metrics().decode()
    for stage in ("vision_overview", "image_tiles", "vision_tiles"):
        (total,) = re.findall(rf'mvlm_stage_seconds_sum\{{stage="{stage}"\}} (\S+)', text)
        assert float(total) == pytest.approx(first[f"{stage}_ms"] / 1000)
    assert 'mvlm_answers_total{chosen="named",scale="4@4"} 2.0' in text


@pytest.mark.parametrize(("kind", "fit"), [("internvl", "stretch"), ("smolvlm", "stretch"), ("llava_next", "pad")])
def test_the_bundle_says_how_pictures_fill_their_tiles(kind, fit):
    runtime = Runtime.load(view_bundle(kind, routed=kind == "internvl").bundle, threads=1)
    with serving(runtime) as server:
        facts = json.loads(server.request("GET", "/v1/mvlm/bundle")[2])
    assert (facts["scales"], facts["tiles_fit"]) == (list(SCALES), fit)
    for scale, tokens in zip(SCALES, facts["view_tokens"], strict=True):
        assert tokens == runtime.look(PICTURES["tall"]).at(scale).laid.shown.tokens
    # A wide picture that is white all over: where it keeps its shape, black stands in its tiles too.
    white = Image.new("RGB", (640, 90), "white")
    source, at = runtime.source(white), runtime.look(white).at("4@native").laid.shown
    tiles = source.pixels([view for view in at.views if view.canvas])
    assert bool((np.ptp(tiles, axis=(0, 2, 3)) > 1e-6).any()) == (fit == "pad")


def test_choosing_gives_words_tokens_and_tiles_of_this_picture(served, runtime):
    for name in ("wide", "small"):
        body = {"picture": data_url(png(name)), "question": QUESTION, "prices": [0, 0.1, 10]}
        status, _, data = served.request("POST", "/v1/mvlm/choose", body)
        value, view = json.loads(data), runtime.look(png(name))
        assert (status, value["scales"]) == (200, list(SCALES))
        assert value["choices"] == [view.choose(QUESTION, price=price).scale for price in (0, 0.1, 10)]
        laid = [view.at(scale).laid for scale in SCALES]
        assert value["tiles"] == [list(one.tiles) for one in laid]
        assert value["tokens"] == [one.num_visual_tokens for one in laid]
        assert value["costs"] == [len(one) + 10.0 * (one.views - 1) for one in laid]
    assert value["tiles"][3] == [0, 0]  # the small one
