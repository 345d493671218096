"""References read behind shared pictures: as one at a time, and as no reason to answer otherwise."""

import math

import pytest
import torch

from export.runtime.families import FAMILIES
from mvlm_core.label import packed_generation
from mvlm_core.label.packed_generation import answer_together
from tests.support.tiny import QUESTIONS, SCALES, drawn_picture, tiny_model, tiny_processor

ASKED = [[QUESTIONS[0], QUESTIONS[3], QUESTIONS[1]], [QUESTIONS[2]]]


@pytest.fixture(params=FAMILIES)
def tiny(request):
    processor = tiny_processor()
    model = tiny_model(request.param, processor=processor)
    ids = [[processor.tokenizer(processor.ask(q), add_special_tokens=False)["input_ids"] for q in qs] for qs in ASKED]
    place = ids[0][0].index(processor.image_token_id)
    with torch.inference_mode():
        values = model.encode_images(processor.image_processor([drawn_picture(i) for i in range(2)])["pixel_values"])
    before, after = ids[0][0][:place], [[i[place + 1 :] for i in qs] for qs in ids]

    def answer(scale: int, references=None, most: int = 8):
        return answer_together(model, before, model.connector.tokens(values, scale), after, most, references=references)

    return model, processor, answer


def told(answers):
    return [
        [(a.token_ids, round(a.nats, 3), round(a.margin, 4), a.ended) for a in of_picture] for of_picture in answers
    ]


def test_references_are_read_as_one_at_a_time(tiny):
    model, processor, answer = tiny
    stop = model.generation_config.eos_token_id
    references = [[[5, 6, stop], [7, stop], []], [[8, 9, 10, 11, stop]]]
    for scale in SCALES:
        for n, of_picture in enumerate(answer(scale, references)):
            for question, reference, found in zip(ASKED[n], references[n], of_picture, strict=True):
                if not reference:
                    assert found.reference is None
                    continue
                batch = processor(images=drawn_picture(n), text=processor.ask(question), num_visual_tokens=scale)
                length = batch["input_ids"].shape[1]
                batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([reference])], dim=1)
                batch["attention_mask"] = torch.ones_like(batch["input_ids"])
                with torch.inference_mode():
                    likely = model(**batch).logits[0, length - 1 : -1].log_softmax(-1)  # (tokens, V)
                nats = -likely.gather(1, torch.tensor(reference)[:, None]).sum().item()
                assert found.reference.nats == pytest.approx(nats, rel=1e-4)
                assert found.reference.tokens == len(reference)
                assert found.reference.mean_nats == pytest.approx(nats / len(reference), rel=1e-4)
                assert found.reference.probability == pytest.approx(math.exp(-nats), rel=1e-3)
                assert found.reference.greedy == (likely.argmax(-1).tolist() == reference)


def test_answers_are_the_same_whatever_is_read_with_them(tiny):
    """References that are the greedy answers, others, and none: what is written is the same."""
    model, _, answer = tiny
    stop = model.generation_config.eos_token_id
    for scale in SCALES:
        alone = answer(scale)
        own = [[[*a.token_ids, stop] if a.ended else [] for a in of_picture] for of_picture in alone]
        other = [[[5, stop] for _ in of_picture] for of_picture in alone]
        mixed = [[ref if n % 2 else [6, 7, stop] for n, ref in enumerate(of_picture)] for of_picture in own]
        for references in (own, other, mixed):
            assert told(answer(scale, references)) == told(alone)


def test_what_is_known_is_not_asked_again(tiny, monkeypatch):
    """A model that answers all questions as its references say reads once; of pictures, only the others go on."""
    model, _, answer = tiny
    stop = model.generation_config.eos_token_id
    model.get_output_embeddings().weight.data.zero_()  # every token is as likely: the first one, and never the end
    first = [[[0, 0, stop]] * len(of_picture) for of_picture in ASKED]
    model.generation_config.eos_token_id = 0
    ends = [[[0]] * len(of_picture) for of_picture in ASKED]
    sizes = []
    slow = packed_generation.read
    monkeypatch.setattr(packed_generation, "read", lambda *a: (sizes.append(len(a[1])), slow(*a))[1])
    found = answer(SCALES[0], ends)
    assert sizes == [2]
    assert all(a.token_ids == [] and a.ended and a.reference.greedy for of_picture in found for a in of_picture)
    model.generation_config.eos_token_id = stop
    sizes.clear()
    found = answer(SCALES[0], [first[0], [[0, 0]]], most=2)
    assert sizes == [2, 1]  # the second picture's reference is what two tokens of greedy decoding are
    assert [(a.token_ids, a.ended) for a in found[1]] == [([0, 0], False)]


def test_a_reference_longer_than_an_answer_may_be_is_not_taken_for_one(tiny):
    model, _, answer = tiny
    long = answer(SCALES[-1], most=8)
    stop = model.generation_config.eos_token_id
    references = [[[*a.token_ids, stop] for a in of_picture] for of_picture in long]
    assert told(answer(SCALES[-1], references, most=2)) == told(answer(SCALES[-1], most=2))
