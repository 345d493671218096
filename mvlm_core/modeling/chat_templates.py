"""Chat templates as data: each shows typed content with pictures, and marks what training supervises.

What stands between the generation marks is the answer and the token that ends it, which is where generation stops.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

IMAGE_TOKEN = "<image>"
GENERATION_MARK = "{% generation %}"


@dataclass(frozen=True)
class Template:
    """`needs`: the special tokens that it writes out. `ends`: whether an answer ends in one, where generation stops."""

    text: str
    needs: tuple[str, ...]
    ends: bool = True


# Content is a list of typed parts, or a bare string.
_MESSAGES = (
    "{% for message in messages %}"
    "{% set parts = [{'type': 'text', 'text': message.content}] if message.content is string else message.content %}"
)
_SHOWN = "{% for part in parts %}{% if part.type == 'image' %}<image>\n{% else %}{{ part.text }}{% endif %}{% endfor %}"
_ANSWER = "{% for part in parts %}{{ part.text }}{% endfor %}"

# One turn is `<user>`, the picture, the question, `<assistant>`, the answer, `<end>`: for the tokenizers made here.
_OWN = (
    _MESSAGES + "{% if message.role == 'assistant' %}"
    "<assistant>{% generation %}{% for part in parts %} {{ part.text }}{% endfor %}<end>{% endgeneration %}"
    "{% elif message.role == 'system' %}"
    "{% for part in parts %} {{ part.text }}{% endfor %}"
    "{% else %}"
    "<user>{% for part in parts %}{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Qwen and SmolLM, without the system line that some of them put first when none is given.
_CHATML = (
    _MESSAGES + "<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}"
    "{% generation %}" + _ANSWER + "<|im_end|>{% endgeneration %}"
    "{% else %}" + _SHOWN + "<|im_end|>{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA_3 = (
    "<|begin_of_text|>" + _MESSAGES + "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{% if message.role == 'assistant' %}"
    "{% generation %}" + _ANSWER + "<|eot_id|>{% endgeneration %}"
    "{% else %}" + _SHOWN + "<|eot_id|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# LLaVA-1.5's conversation `v1` (Vicuna's): llava/conversation.py, separator style TWO.
_VICUNA = (
    "<s>{% if messages[0].role != 'system' %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{% endif %}" + _MESSAGES + "{% if message.role == 'assistant' %}"
    "ASSISTANT:{% generation %} " + _ANSWER + "</s>{% endgeneration %}"
    "{% elif message.role == 'system' %}" + _ANSWER + " "
    "{% else %}USER: " + _SHOWN + " {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
# LLaVA's `plain`, for its first stage: pictures and captions, whatever was asked (llava/train/train.py).
_PLAIN = (
    "{{ bos_token or '' }}" + _MESSAGES + "{% if message.role == 'assistant' %}"
    "{% generation %}" + _ANSWER + "{{ '\n' }}{% endgeneration %}"
    "{% else %}"
    "{% for part in parts %}{% if part.type == 'image' %}<image>{% endif %}{% endfor %}"
    "{% endif %}"
    "{% endfor %}"
)

TEMPLATES = {
    "mvlm": Template(_OWN, ("<user>", "<assistant>", "<end>")),
    "chatml": Template(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": Template(_LLAMA_3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "vicuna": Template(_VICUNA, ("<s>", "</s>")),
    "plain": Template(_PLAIN, (), ends=False),
}


def fitting_template(special_tokens: Collection[str], names: Sequence[str]) -> str | None:
    """The first of the templates named whose special tokens a tokenizer has."""
    return next((name for name in names if set(TEMPLATES[name].needs) <= set(special_tokens)), None)
