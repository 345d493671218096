"""`detail` of a picture: overview, finest scale, or what the router says; by raw HTTP and by OpenAI's client."""

from __future__ import annotations

import pytest

from export.runtime.serve.detail import scale_of_detail
from tests.serve.test_clients import shows, told
from tests.support.serving import data_url
from tests.support.tiny import QUESTIONS, SCALES

QUESTION = QUESTIONS[0]
# detail: what the picture is shown at; None is what the router chooses
SHOWN = {"low": SCALES[0], "high": SCALES[-1], "auto": None, None: None}


@pytest.mark.parametrize("detail", SHOWN, ids=str)
def test_detail_names_the_scale_where_nobody_else_does(served, runtime, picture, detail):
    answer = told(served, [shows(picture, QUESTION, **({"detail": detail} if detail else {}))], "mvlm-auto")
    wanted = SHOWN[detail] or runtime.look(picture).choose(QUESTION).scale
    assert answer["mvlm"]["scales"] == [wanted]
    assert "detail" not in answer["mvlm"]["ignored"]
    assert (answer["mvlm"]["probability"] is None) == (SHOWN[detail] is not None)
    alone = told(served, [shows(picture, QUESTION)], f"mvlm-{wanted}")
    assert answer["choices"] == alone["choices"]


def test_each_picture_has_its_own(served, made):
    pictures = [made.picture(i).read_bytes() for i in range(2)]
    parts = [
        {"type": "image_url", "image_url": {"url": data_url(picture), "detail": detail}}
        for picture, detail in zip(pictures, ("high", "low"), strict=True)
    ]
    message = {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}
    assert told(served, [message], "mvlm-auto")["mvlm"]["scales"] == [SCALES[-1], SCALES[0]]


@pytest.mark.parametrize("named", [{"model": "mvlm-9"}, {"model": "mvlm-auto", "mvlm": {"scale": 9}}])
def test_a_scale_that_was_named_counts_and_detail_is_listed(served, picture, named):
    answer = told(served, [shows(picture, QUESTION, detail="high")], **named)
    assert (answer["mvlm"]["scales"], answer["mvlm"]["ignored"]) == ([9], ["detail"])
    assert told(served, [shows(picture, QUESTION, detail="auto")], **named)["mvlm"]["ignored"] == []


def test_by_openais_client(client, picture):
    answer = client.chat.completions.create(
        model="mvlm-auto", messages=[shows(picture, QUESTION, detail="low")], max_tokens=3
    )
    assert answer.model_extra["mvlm"]["num_visual_tokens"] == SCALES[0]
    part = {"type": "input_image", "image_url": data_url(picture), "detail": "high"}
    content = [part, {"type": "input_text", "text": QUESTION}]
    answered = client.responses.create(
        model="mvlm-auto", input=[{"role": "user", "content": content}], max_output_tokens=3
    )
    assert answered.model_extra["mvlm"]["num_visual_tokens"] == SCALES[-1]


@pytest.mark.parametrize("detail", ["medium", 3, ["low"], {}])
def test_another_detail_is_refused(served, picture, detail):
    body = {"model": "mvlm-auto", "messages": [shows(picture, QUESTION, detail=detail)]}
    status, answer = served.chat(body)
    assert (status, answer["error"]["param"]) == (400, "detail")
    assert "send low, high or auto, or leave it out" in answer["error"]["message"]


def test_scales_with_tiles():
    scales = (16, 36, "16@4", "36@native")
    assert [scale_of_detail(detail, scales) for detail in ("low", "high", "auto")] == [16, "36@native", None]
