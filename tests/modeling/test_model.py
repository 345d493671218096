"""The transformers classes: one forward, any scale, one row or many."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from export.runtime.errors import MvlmError
from export.runtime.families import FAMILIES
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of, turn
from mvlm_core.modeling.vision_towers import patch_features
from tests.support.tiny import QUESTIONS, SCALES, drawn_picture, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def processor() -> MvlmProcessor:
    return tiny_processor()


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, processor) -> MvlmForConditionalGeneration:
    return tiny_model(request.param, processor=processor)


def asked(processor, *scales: int):
    pictures = [drawn_picture(i) for i in range(len(scales))]
    texts = [processor.ask(QUESTIONS[i % len(QUESTIONS)]) for i in range(len(scales))]
    return processor(images=pictures, text=texts, num_visual_tokens=list(scales))


@torch.inference_mode()
def test_mixed_scales_in_one_batch_equal_one_at_a_time(model, processor):
    batch = asked(processor, *SCALES)
    together = model(**batch).logits[:, -1]
    for i, scale in enumerate(SCALES):
        alone = processor(
            images=drawn_picture(i), text=processor.ask(QUESTIONS[i % len(QUESTIONS)]), num_visual_tokens=scale
        )
        torch.testing.assert_close(model(**alone).logits[0, -1], together[i], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_generate_takes_one_scale_for_each_row(model, processor):
    batch = asked(processor, 36, 1, 144)
    together = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for i, scale in enumerate((36, 1, 144)):
        alone = processor(images=drawn_picture(i), text=processor.ask(QUESTIONS[i]), num_visual_tokens=scale)
        ids = model.generate(**alone, max_new_tokens=6, do_sample=False)[0, alone["input_ids"].shape[1] :]
        assert together[i, : len(ids)].tolist() == ids.tolist()


@torch.inference_mode()
def test_cached_generation_equals_uncached(model, processor):
    batch = asked(processor, 9)
    cached = model.generate(**batch, max_new_tokens=6, do_sample=False)
    uncached = model.generate(**batch, max_new_tokens=6, do_sample=False, use_cache=False)
    assert cached.tolist() == uncached.tolist()


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tower", ["resnet", "clip"])
@pytest.mark.parametrize("language", ["qwen3", "llama"])
def test_saved_and_loaded_through_the_auto_classes(tmp_path, processor, family, tower, language):
    model = tiny_model(family, tower=tower, language=language, processor=processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, loading = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    batch = asked(AutoProcessor.from_pretrained(tmp_path), 9)
    assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)


def test_a_loss_comes_with_labels(model, processor):
    batch = asked(processor, 9)
    assert model(**batch).loss is None
    assert model(**batch, labels=batch["input_ids"]).loss > 0


def test_wrong_calls_are_named(model, processor):
    batch = dict(asked(processor, 9))
    with pytest.raises(MvlmError, match="it allows"):
        model(**batch | {"num_visual_tokens": 9999})
    with pytest.raises(MvlmError, match=r"9 image placeholders.* make 36 visual tokens"):
        model(**batch | {"num_visual_tokens": 36})
    with pytest.raises(MvlmError, match="2 scales were given for 1 pictures"):
        model(**batch | {"num_visual_tokens": [9, 9]})
    with pytest.raises(MvlmError, match="no scale was named"):
        model(**batch | {"num_visual_tokens": None})
    with pytest.raises(MvlmError, match="pixel_values need input_ids"):
        model(inputs_embeds=torch.zeros(1, 3, 32), pixel_values=batch["pixel_values"], num_visual_tokens=9)


def test_the_configurations_own_scale(processor):
    model = tiny_model(processor=processor)
    batch = dict(asked(processor, 9))
    named = model(**batch).logits
    model.config.num_visual_tokens = 9
    assert torch.equal(model(**batch | {"num_visual_tokens": None}).logits, named)


def test_a_tower_of_another_grid_is_refused():
    with pytest.raises(MvlmError, match="leaves 49 patches"):
        patch_features(torch.zeros(1, 49, 8), 12, 0)


def test_processor_wants_as_many_pictures_and_scales_as_placeholders(processor):
    with pytest.raises(MvlmError, match="holds 1 <image>, and 2 pictures and 1 scales"):
        processor(images=[drawn_picture(0)] * 2, text=processor.ask("?"), num_visual_tokens=9)


def test_answers_are_supervised_and_nothing_else(processor):
    encoded = processor.encode(turn("what colour is the star?", "red"))
    supervised = [i for i, is_answer in zip(encoded.ids, encoded.supervised, strict=True) if is_answer]
    assert processor.tokenizer.decode(supervised) == " red<end>"


def test_prompt_parts_encode_as_the_processor_does(processor):
    prompt = prompt_of(processor)
    for question in QUESTIONS:
        whole = processor(images=drawn_picture(0), text=processor.ask(question), num_visual_tokens=4)
        assert prompt.ids(question, 4, processor.image_token_id) == whole["input_ids"][0].tolist()
