"""What a run and a bundle say to a benchmark: against the slow, obvious way, and against each other."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from export.runtime import Runtime
from export.runtime.errors import MvlmError
from mvlm_core.evaluation.bundle_answerer import BundleAnswerer
from mvlm_core.evaluation.run_answerer import RunAnswerer
from mvlm_core.evaluation.sample import Asked, cut, one_turn, read_messages
from tests.support.bundles import nested_pool_bundle, pool_bundle, query_bundle, torch_answer
from tests.support.tiny import QUESTIONS, drawn_picture

SCALES = (1, 9, 144)


@pytest.fixture(
    scope="module", params=[pool_bundle, query_bundle, nested_pool_bundle], ids=["pool", "query", "nested_pool"]
)
def made(request):
    return request.param()


def of_run(made, scale) -> RunAnswerer:
    return RunAnswerer.load(made.run, scale, made.router if scale == "auto" else None, "cpu", "float32")


def asked(made, number: int) -> Asked:
    return one_turn([made.picture(number)], QUESTIONS[number])


def own_loss(made, scale: int, number: int, answer: str) -> float:
    """The loss that the model itself gives when it is handed ids and labels, as in training."""
    processor, model = made.source.processor, made.source.model
    text = processor.ask(QUESTIONS[number])
    batch = processor(images=[made.picture(number)], text=[f"{text} {answer}<end>"], num_visual_tokens=scale)
    before = processor(images=[made.picture(number)], text=[text], num_visual_tokens=scale)["input_ids"].shape[1]
    labels = batch["input_ids"].clone()
    labels[:, :before] = -100
    with torch.no_grad():
        return float(model(**batch, labels=labels).loss)


@pytest.mark.parametrize("scale", SCALES)
def test_a_run_answers_as_generate_does(made, scale):
    said = of_run(made, scale).answer([asked(made, 0)], 6, [])[0]
    ids = torch_answer(made, made.picture(0), QUESTIONS[0], scale, 6)
    assert said.text == made.source.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert said.num_visual_tokens == (scale,)


def test_a_batch_is_answered_as_one_by_one(made):
    answerer, samples = of_run(made, 9), [asked(made, number) for number in range(4)]
    assert answerer.answer(samples, 6, []) == [answerer.answer([sample], 6, [])[0] for sample in samples]


@pytest.mark.parametrize("scale", SCALES)
def test_likelihoods_are_the_models_own_loss_at_the_scale(made, scale):
    for scored, answer in zip(
        of_run(made, scale).likelihood(asked(made, 1), ["red", " 47"]), ("red", "47"), strict=True
    ):
        assert scored.loss == pytest.approx(own_loss(made, scale, 1, answer), rel=1e-5)
        assert scored.num_visual_tokens == (scale,)


def test_likelihoods_differ_between_scales(made):
    coarse, fine = (of_run(made, scale).likelihood(asked(made, 1), ["red"])[0].loss for scale in (1, 144))
    assert abs(coarse - fine) > 1e-3


def test_greedy_is_said_of_what_greedy_decoding_gives(made, monkeypatch):
    answerer = of_run(made, 9)
    model, table = answerer.model, torch.zeros(len(answerer.processor.tokenizer))
    wanted = answerer.processor.encode([*one_turn([], "x").messages, _assistant("red")])
    ids = [token for token, mark in zip(wanted.ids, wanted.supervised, strict=True) if mark]

    class Output:
        logits = torch.stack([table.index_fill(0, torch.tensor([token]), 9.0) for token in ids])[None]

    monkeypatch.setattr(type(model), "forward", lambda self, **_: Output)
    assert answerer.likelihood(asked(made, 1), ["red"])[0].greedy
    Output.logits = Output.logits.flip(1)
    assert not answerer.likelihood(asked(made, 1), ["red"])[0].greedy


def _assistant(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


@pytest.mark.parametrize("scale", SCALES)
def test_a_bundle_gives_what_its_run_gives(made, scale):
    bundle, run = BundleAnswerer(Runtime.load(made.bundle), scale), of_run(made, scale)
    for number in (0, 1, 3):  # of the random query model the third answers <image>, which torch does not look up
        assert bundle.answer([asked(made, number)], 6, []) == run.answer([asked(made, number)], 6, [])
        ours = bundle.likelihood(asked(made, number), ["red", "47"])
        # A bundle does not know whether the template puts a space before an answer, and takes the likelier way.
        for scored, answer in zip(ours, ("red", "47"), strict=True):
            without = _loss_without_space(made, scale, number, answer)
            assert scored.loss == pytest.approx(min(own_loss(made, scale, number, answer), without), rel=1e-3)


def _loss_without_space(made, scale: int, number: int, answer: str) -> float:
    processor, model = made.source.processor, made.source.model
    ids = [*processor.tokenizer(answer)["input_ids"], processor.tokenizer.eos_token_id]
    batch = processor(images=[made.picture(number)], text=[processor.ask(QUESTIONS[number])], num_visual_tokens=scale)
    whole = torch.cat([batch["input_ids"], torch.tensor([ids])], dim=1)
    labels = whole.clone()
    labels[:, : -len(ids)] = -100
    with torch.no_grad():
        return float(
            model(input_ids=whole, pixel_values=batch["pixel_values"], num_visual_tokens=scale, labels=labels).loss
        )


def test_auto_chooses_as_the_device_does(made):
    bundle, run = BundleAnswerer(Runtime.load(made.bundle), "auto"), of_run(made, "auto")
    samples = [asked(made, number) for number in (0, 1, 3)]
    said = run.answer(samples, 6, [])
    assert said == bundle.answer(samples, 6, [])
    shown = [run.likelihood(sample, ["red"])[0].num_visual_tokens for sample in samples]
    assert shown == [bundle.likelihood(sample, ["red"])[0].num_visual_tokens for sample in samples]


def test_auto_looks_again_as_the_device_does(made, monkeypatch):
    answerer = of_run(made, "auto")
    first = answerer.answer([asked(made, 0), asked(made, 1)], 6, [])
    finest = answerer.router.offered[-1]

    def escalate(router, choice, margin, *, keeps_cache, **_):
        assert 0 <= margin <= 1
        assert keeps_cache == (made.source.model.config.connector != "pool")
        return dataclasses.replace(choice, scale=finest) if choice.scale == first[0].num_visual_tokens[0] else None

    monkeypatch.setattr("export.runtime.routing.router.Router.looks_again", True)
    monkeypatch.setattr("export.runtime.routing.router.Router.escalate", escalate)
    again = answerer.answer([asked(made, 0), asked(made, 1)], 6, [])
    assert again[0] == of_run(made, finest).answer([asked(made, 0)], 6, [])[0]


def test_several_pictures_each_at_its_scale(made):
    answerer = of_run(made, 9)
    sample = one_turn([made.picture(0), drawn_picture(7)], "which is brighter?")
    said = answerer.answer([sample], 6, [])[0]
    assert said.num_visual_tokens == (9, 9)
    processor, model = made.source.processor, made.source.model
    text = processor.render(list(sample.messages), add_generation_prompt=True)
    batch = processor(images=list(sample.pictures), text=[text], num_visual_tokens=[9, 9])
    ids = model.generate(**batch, max_new_tokens=6, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert said.text == processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    chosen = of_run(made, "auto").answer([sample], 6, [])[0].num_visual_tokens
    alone = [of_run(made, "auto").answer([one_turn([p], "which is brighter?")], 6, [])[0] for p in sample.pictures]
    assert chosen == tuple(one.num_visual_tokens[0] for one in alone)


def test_words_alone_are_answered_by_a_run(made):
    assert of_run(made, 9).answer([one_turn([], QUESTIONS[0])], 4, [])[0].num_visual_tokens == ()


def test_a_conversation_is_answered_by_a_bundle_as_by_its_run(made):
    told = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "image", "url": made.picture(0)}, {"type": "text", "text": "what?"}]},
        _assistant("red"),
        {"role": "user", "content": [{"type": "image", "url": made.picture(1)}, {"type": "text", "text": "which?"}]},
    ]  # fmt: skip
    bundle, run = BundleAnswerer(Runtime.load(made.bundle), 9), of_run(made, 9)
    for messages in (told, told[:2], [*told, _assistant("blue"), {"role": "user", "content": told[0]["content"]}]):
        sample = read_messages(messages)
        (said,) = bundle.answer([sample], 6, [])
        assert (said,) == tuple(run.answer([sample], 6, []))
        assert said.num_visual_tokens == (9,) * len(sample.pictures)
    auto = BundleAnswerer(Runtime.load(made.bundle), "auto").answer([read_messages(told)], 6, [])[0]
    assert set(auto.num_visual_tokens) <= set(bundle.runtime.manifest.scales)


def test_an_answer_ends_where_a_text_of_until_begins(made):
    answerer = of_run(made, 9)
    whole = answerer.answer([asked(made, 0)], 12, [])[0].text
    stop = next(letter for letter in whole[1:] if letter.isascii() and letter.isalnum())
    assert answerer.answer([asked(made, 0)], 12, [stop])[0].text == whole[: whole.index(stop)].strip()
    assert cut("a, b\n\nc", ["\n\n", ", "]) == "a"
    assert cut("a", ["b"]) == "a"


def test_what_cannot_be_answered_is_refused(made):
    with pytest.raises(MvlmError, match="cannot show a picture in 7000 tokens"):
        of_run(made, 7000)
    with pytest.raises(MvlmError, match="auto asks a router which"):
        RunAnswerer.load(made.run, "auto", None, "cpu", "float32")
    with pytest.raises(MvlmError, match="has no scale 2500"):
        BundleAnswerer(Runtime.load(made.bundle), 2500)
    bundle = BundleAnswerer(Runtime.load(made.bundle), 9)
    two = one_turn([made.picture(0), made.picture(1)], "which?")
    with pytest.raises(MvlmError, match="shows 2 pictures in 1 messages, and a bundle scores given answers"):
        bundle.likelihood(two, ["a"])
    with pytest.raises(MvlmError, match="the answer to score is empty"):
        bundle.likelihood(asked(made, 0), [" "])
    with pytest.raises(MvlmError, match="positions, and the decoder has"):
        bundle.likelihood(asked(made, 0), ["red " * 5000])
    with pytest.raises(MvlmError, match="shows video, and only pictures"):
        read_messages([{"role": "user", "content": [{"type": "video", "url": "x.mp4"}]}])


def test_a_template_without_pictures_or_answers_is_refused(made, monkeypatch):
    answerer = of_run(made, 9)
    answerer.processor.chat_template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(MvlmError, match="shows 0 of 1 pictures"):
        answerer.answer([asked(made, 0)], 4, [])
    answerer.processor.chat_template = "<user><image>{% generation %}{% endgeneration %}"
    with pytest.raises(MvlmError, match="nothing of the answer is supervised"):
        answerer.likelihood(asked(made, 0), ["red"])
