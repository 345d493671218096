"""The runtime against transformers' own generate, and what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from export.runtime import MvlmError, Runtime, encoder
from export.runtime.features import image_features, question_features
from tests.support.bundles import PRICE, torch_answer
from tests.support.tiny import QUESTIONS, SCALES


@pytest.mark.parametrize("scale", SCALES)
def test_greedy_answers_are_those_of_generate(made, runtime, scale):
    for number, question in enumerate(QUESTIONS[:2]):
        picture = made.picture(number)
        answer = runtime.ask(picture, question, scale, max_new_tokens=8)
        assert list(answer.token_ids) == torch_answer(made, picture, question, scale, 8)
        assert answer.num_visual_tokens == scale
        assert answer.text == made.source.processor.tokenizer.decode(answer.token_ids, skip_special_tokens=True).strip()


def test_long_prompts_and_long_answers(made, runtime):
    question = " ".join(QUESTIONS * 3)
    answer = runtime.ask(made.picture(0), question, 144, max_new_tokens=60)
    assert list(answer.token_ids) == torch_answer(made, made.picture(0), question, 144, 60)


def test_an_answer_that_stops_leaves_the_stop_id_out(made, runtime, monkeypatch):
    whole = runtime.ask(made.picture(0), QUESTIONS[0], 9, max_new_tokens=8).token_ids
    monkeypatch.setattr(runtime, "manifest", replace(runtime.manifest, stop_ids=frozenset([whole[3]])))
    cut = runtime.ask(made.picture(0), QUESTIONS[0], 9, max_new_tokens=8).token_ids
    assert cut == whole[: whole.index(whole[3])]


def test_one_view_answers_as_separate_looks_do(made, runtime):
    view = runtime.look(made.picture(1))
    for question in QUESTIONS:
        alone = runtime.ask(made.picture(1), question, "auto", max_new_tokens=4)
        again = view.ask(question, max_new_tokens=4)
        assert (again.text, again.num_visual_tokens, again.reason) == (
            alone.text,
            alone.num_visual_tokens,
            alone.reason,
        )


def test_every_kind_of_picture_gives_the_same_answer(made, runtime):
    path = made.picture(0)
    with Image.open(path) as opened:
        pictures = [path, str(path), path.read_bytes(), opened.copy(), np.asarray(opened.convert("RGB"))]
    answers = [runtime.ask(picture, QUESTIONS[0], 36, max_new_tokens=6).token_ids for picture in pictures]
    assert len(set(answers)) == 1


def test_auto_asks_the_router(made, runtime):
    view = runtime.look(made.picture(2))
    free, usual, dear = (view.ask(QUESTIONS[1], price=price, max_new_tokens=1) for price in (0, None, 1000))
    assert free.num_visual_tokens == max(free.probabilities, key=free.probabilities.get)
    assert dear.num_visual_tokens == 1
    assert usual.num_visual_tokens == view.ask(QUESTIONS[1], price=PRICE, max_new_tokens=1).num_visual_tokens
    assert set(usual.probabilities) == set(SCALES)
    assert usual.probability == usual.probabilities[usual.num_visual_tokens]
    assert usual.reason.startswith(f"{usual.num_visual_tokens} token")
    stages = ["image", "vision", "features", "router", "connector", "prefill", "decode"]
    assert list(usual.timings) == [f"{stage}_ms" for stage in stages]
    assert all(ms >= 0 for ms in usual.timings.values())


def test_the_router_sees_the_features_of_the_labels(made, runtime, monkeypatch):
    """The device's features are those that the torch side computes from the same model."""
    model, processor = made.source.model, made.source.processor
    view = runtime.look(made.picture(3))
    values = model.encode_images(processor.image_processor([made.picture(3)])["pixel_values"])
    words = model.connector.words(values)[0].detach().numpy()
    ids = processor.tokenizer(" " + QUESTIONS[2], add_special_tokens=False)["input_ids"]
    rows = model.get_input_embeddings().weight[ids].detach().numpy()
    seen = []
    choose = runtime.router.choose
    monkeypatch.setattr(runtime.router, "choose", lambda *features: seen.extend(features) or choose(*features))
    view.ask(QUESTIONS[2], max_new_tokens=1)
    np.testing.assert_allclose(seen[0], image_features(words), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(seen[1], question_features(QUESTIONS[2], rows, words), rtol=1e-4, atol=1e-4)


def test_a_named_scale_needs_no_router(runtime, made):
    answer = runtime.ask(made.picture(0), QUESTIONS[0], 9, max_new_tokens=1)
    assert answer.probability is None
    assert answer.probabilities == {}
    assert "router_ms" not in answer.timings
    assert answer.reason == "9 tokens: the scale that was named"


def test_threads_get_their_own_answers(made, runtime):
    asked = [(made.picture(i % 4), QUESTIONS[i % 3], SCALES[i % 5]) for i in range(12)]
    serial = [runtime.ask(*request, max_new_tokens=6).token_ids for request in asked]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda request: runtime.ask(*request, max_new_tokens=6).token_ids, asked)) == serial


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"question": ""}, "the question is empty"),
        ({"question": " \n"}, "the question is empty"),
        ({"question": None}, "the question is empty"),
        ({"question": "what " * 600}, "needs .* positions, and the decoder has 512"),
        ({"max_new_tokens": 512}, "needs .* positions, and the decoder has 512"),
        ({"max_new_tokens": 0}, "allow at least 1"),
        ({"scale": 16}, "no scale 16: name one of 1, 4, 9, 36, 144, or auto"),
        ({"scale": "a36"}, "no scale 'a36'"),
        ({"scale": True}, "no scale True"),
        ({"price": -0.1}, "the price is -0.1"),
        ({"price": float("nan")}, "the price is nan"),
        ({"price": float("inf"), "scale": 9}, "the price is inf"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_the_picture_is_opened(runtime, change, says):
    with pytest.raises(MvlmError, match=says):
        runtime.ask(**({"picture": "absent.png", "question": "what?", "scale": "auto"} | change))


def test_an_absent_picture(runtime):
    with pytest.raises(MvlmError, match=r"there is no picture absent\.png"):
        runtime.ask("absent.png", "what?")


def test_connectors_beyond_the_first_are_opened_when_they_are_asked_for(made, monkeypatch):
    monkeypatch.setattr(encoder, "_OPEN_FROM_THE_START", 1)
    runtime, opened = Runtime.load(made.bundle, threads=1), []
    session = runtime.encoder._files.session
    monkeypatch.setattr(
        runtime.encoder._files, "session", lambda file, **how: opened.append(file) or session(file, **how)
    )
    view = runtime.look(made.picture(0))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda m: view.ask(QUESTIONS[0], m, max_new_tokens=4), [SCALES[0], 9, 9, 9]))
    assert opened == ["connector_9.onnx"]
    assert [answer.num_visual_tokens for answer in answers] == [SCALES[0], 9, 9, 9]
