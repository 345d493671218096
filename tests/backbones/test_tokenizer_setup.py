"""Tokenizers of language models, made ready for pictures: which template, what it marks, and what is refused."""

import pytest

from export.runtime.errors import MvlmError
from mvlm_core.backbones.tokenizer_setup import Words, speak, template_fault
from mvlm_core.modeling.chat_templates import TEMPLATES
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor, prompt_of, turn
from tests.support.backbones import LANGUAGES, STRINGS_ONLY, language_tokenizer
from tests.support.tiny import SIZE_PX

IMAGES = MvlmImageProcessor(size_px=SIZE_PX)
CHAT = [*turn("which?", "red"), *turn("why?", "so", with_picture=False)]


def spoken(kind: str, own: str | None = None, **how) -> Words:
    _, special, end, template = LANGUAGES[kind]
    return speak(language_tokenizer(special, end, own or template), IMAGES, name="the model", **how)


def learned(processor: MvlmProcessor, messages=CHAT) -> str:
    encoded = processor.encode(messages)
    return processor.tokenizer.decode([i for i, s in zip(encoded.ids, encoded.supervised, strict=True) if s])


@pytest.mark.parametrize(
    ("kind", "text", "answers"),
    [
        (
            "qwen2",
            "<|im_start|>user\n<image>\nwhich?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
            "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>\n",
            "red<|im_end|>so<|im_end|>",
        ),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>\nwhich?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nred<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nwhy?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nso<|eot_id|>",
            "red<|eot_id|>so<|eot_id|>",
        ),
        (
            "vicuna",
            "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful,"
            " detailed, and polite answers to the user's questions. USER: <image>\nwhich? ASSISTANT: red</s>"
            "USER: why? ASSISTANT: so</s>",
            " red</s> so</s>",
        ),
    ],
)
def test_what_a_template_shows_and_marks(kind, text, answers):
    processor = spoken(kind).processor
    assert processor.render(CHAT) == text
    assert learned(processor) == answers
    assert text.startswith(processor.ask("which?"))
    assert processor.tokenizer.eos_token == answers[-len(processor.tokenizer.eos_token) :]


@pytest.mark.parametrize("kind", LANGUAGES)
def test_a_system_text_comes_first_and_is_not_learned(kind):
    processor = spoken(kind).processor
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    shown = processor.render([system, *CHAT])
    assert shown.count("Be brief.") == 1
    assert shown.index("Be brief.") < shown.index("<image>")
    assert "A chat between" not in shown
    assert learned(processor, [system, *CHAT]) == learned(processor)


@pytest.mark.parametrize("kind", LANGUAGES)
def test_content_may_be_a_bare_string(kind):
    processor = spoken(kind).processor
    bare = [{"role": m["role"], "content": m["content"][-1]["text"]} for m in CHAT[2:]]
    assert processor.render(bare) == processor.render(CHAT[2:])


@pytest.mark.parametrize("kind", LANGUAGES)
def test_the_device_derives_its_prompt(kind):
    processor = spoken(kind).processor
    ids = prompt_of(processor).ids("why is it <image> here?", 3, processor.image_token_id)
    assert ids.count(processor.image_token_id) == 3


def test_plain_is_a_picture_and_its_caption():
    """LLaVA's first stage: llava/train/train.py, `preprocess_plain`."""
    processor = spoken("vicuna", stated="plain").processor
    messages = turn("describe it", "a red star")
    assert processor.render(messages) == "<s><image>a red star\n"
    assert learned(processor, messages) == "a red star\n"
    with pytest.raises(MvlmError, match="shows no question"):
        prompt_of(processor)


def test_an_own_template_that_does_it_all_is_kept():
    own = TEMPLATES["chatml"].text.replace("<|im_start|>", "<|im_start|>the ")
    words = spoken("qwen2", own)
    assert words.processor.chat_template == own
    assert "the chat template is that of the model" in words.notes
    assert "the tokenizer pads with <|endoftext|>, as it names no token for that" in words.notes


def test_a_stated_template_goes_before_all(tmp_path):
    own = TEMPLATES["chatml"].text.replace("<|im_start|>", "<|im_start|>the ")
    assert spoken("qwen2", own, stated="chatml").processor.chat_template == TEMPLATES["chatml"].text
    (tmp_path / "mine.jinja").write_text(own)
    assert spoken("qwen2", stated=str(tmp_path / "mine.jinja")).processor.chat_template == own


GOOD = TEMPLATES["chatml"].text


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (STRINGS_ONLY, "does not mark what training supervises"),
        (GOOD.replace("{% set parts", "{% set t = message.content + '' %}{% set parts"), "cannot show content"),
        (GOOD.replace("<image>\n", "a picture"), "does not show a part of the type image as <image>"),
        (GOOD.replace("{% generation %}", "{% generation %}x"), "marks 'xgreen' where the answer is 'green'"),
        (GOOD.replace("assistant\n{% endif %}", "assistant: {% endif %}"), "asks otherwise"),
        (GOOD.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"), "marks no special token"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_trained_on(tmp_path, template, fault):
    processor = spoken("qwen2").processor
    assert template_fault(processor) is None
    processor.chat_template = template
    assert fault in (template_fault(processor) or "")
    (tmp_path / "mine.jinja").write_text(template)
    with pytest.raises(MvlmError, match=f"chat template of .*mine.jinja {fault[:20]}"):
        spoken("qwen2", stated=str(tmp_path / "mine.jinja"))


@pytest.mark.parametrize(
    ("kind", "how", "message"),
    [
        ("vicuna", {"own": "[INST] {{ messages }} [/INST]"}, "none of mvlm, chatml, llama3 fits its special tokens"),
        ("vicuna", {"stated": "llama3"}, r"llama3 writes <\|begin_of_text\|>, .*does not have"),
        ("vicuna", {"stated": "absent"}, "chat_template absent is neither a file nor one of mvlm"),
    ],
)
def test_words_that_do_not_fit(kind, how, message):
    with pytest.raises(MvlmError, match=message):
        spoken(kind, **how)
