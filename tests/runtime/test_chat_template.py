"""The device renders chats as the processor does, token for token; a template cannot run, or grow, without end."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import AddedToken

from export.runtime import MvlmError
from export.runtime.chat_template import MOST_TEMPLATE_CHARACTERS, ChatTemplate
from export.runtime.chat_text import ChatText, cut_at, spell
from export.runtime.messages import read_turns
from mvlm_core.modeling.chat_encoding import encode_text
from mvlm_core.modeling.chat_templates import TEMPLATES
from tests.support.tiny import tiny_processor

PICTURE = {"type": "image", "image": "p.png"}


def says(text: str) -> dict:
    return {"type": "text", "text": text}


SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "system", "content": [says("Be <end> brief.")]}]
USERS = [
    [PICTURE, says("what colour is it?")], [says("look:"), PICTURE, says("and"), PICTURE, says("which is red?")],
    "only words", [says("a <image> that is none, <|im_end|> <user>")], [PICTURE], " two  spaces\n",
]  # fmt: skip
ASSISTANT = ["red", [says("blue <end> 形 🙂")], ""]
# As published models have them: whole, with loops, namespaces, filters and tools that are not there.
PUBLISHED = {
    "qwen2-vl": (
        "{% set image_count = namespace(value=0) %}{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
        "{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content %}"
        "{% set image_count.value = image_count.value + 1 %}<image>"
        "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "smolvlm": (
        "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
        "{% if message['content'] is string %}: {{ message['content'] }}"
        "{% else %}{% if message['content'] and message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}"
        "{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "llama-3": (
        "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}\n"
        "{%- if not tools is defined %}\n    {%- set tools = none %}\n{%- endif %}\n"
        "{{- bos_token }}{%- for message in messages %}\n"
        "    {%- if message.role == 'tool' or 'tool_calls' in message %}\n        {%- continue %}\n    {%- endif %}\n"
        "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
        "    {%- if message['content'] is string %}\n        {{- message['content'] | trim }}\n    {%- else %}\n"
        "        {%- for content in message['content'] %}\n            {%- if content['type'] == 'image' %}\n"
        "                {{- '<image>' }}\n            {%- elif content['type'] == 'text' %}\n"
        "                {{- content['text'] | trim }}\n            {%- endif %}\n        {%- endfor %}\n"
        "    {%- endif %}\n    {{- '<|eot_id|>' }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
        "{%- endif %}\n"
    ),
}
ALL = {name: template.text for name, template in TEMPLATES.items()} | PUBLISHED


def conversations():
    """Every shape: a system text or none, one turn or two, each kind of content in each place."""
    for system, first, answer, last in itertools.product(
        [None, *SYSTEM], USERS, [None, *ASSISTANT], [USERS[0], "and now?"]
    ):
        messages = [] if system is None else [system]
        if answer is not None:
            messages += [{"role": "user", "content": first}, {"role": "assistant", "content": answer}]
            yield [*messages, {"role": "user", "content": last}]
        else:
            yield [*messages, {"role": "user", "content": first}]


def processor_with(template: str):
    processor = tiny_processor()
    tokens = {token for known in TEMPLATES.values() for token in known.needs}
    missing = sorted(tokens - set(processor.tokenizer.get_vocab()))
    processor.tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    processor.tokenizer.bos_token = "<|begin_of_text|>"
    processor.chat_template = template
    return processor


@pytest.mark.parametrize("name", ALL)
def test_ids_are_those_of_the_processor_over_every_shape_of_conversation(name):
    processor = processor_with(ALL[name])
    tokens = {key: token for key, token in processor.tokenizer.special_tokens_map.items() if isinstance(token, str)}
    template, text = ChatTemplate(ALL[name], tokens), ChatText(processor.tokenizer.backend_tokenizer)
    shapes = 0
    for messages in conversations():
        turns = read_turns(messages)
        mine = template.render([spell(turn.to_template(), text.special) for turn in turns])
        rendered = processor.render([turn.to_template() for turn in turns], add_generation_prompt=True)
        assert mine == rendered
        ids = text.ids(mine)
        assert ids == encode_text(rendered, processor.tokenizer)[0]
        if name != "plain" or turns[-1].pictures:
            shown = len(cut_at(ids, processor.image_token_id)) - 1
            assert shown == sum(len(turn.pictures) for turn in turns)
        shapes += 1
    assert shapes > 100


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than"),
        ("{% for i in range(99999) %}{{ messages[0].content * 9999 }}{% endfor %}", "makes more than"),
        ("{{ 'x' * 99999999999 }}", "repeats a text too often"),
        ("{% set s = namespace(t='xx') %}{% for i in range(99) %}{% set s.t = s.t + s.t %}{% endfor %}", "too long"),
        ("{{ 9 ** 99999999 }}", "power that is too large"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "refuses this conversation"),
        ("{{ raise_exception('only one turn') }}", r"refuses this conversation \(only one turn\)"),
        ("{{ ''.__class__.__mro__ }}", "refuses this conversation"),
        ("{{ messages.append(1) }}", "refuses this conversation"),
        ("{{ messages | tojson(indent=99) }}", "refuses this conversation"),
        ("{{ undefined.field }}", "refuses this conversation"),
        ("{% include 'x' %}", "refuses this conversation"),
    ],
)
def test_a_template_that_does_not_end_or_grows_or_reaches_out(template, says):
    with pytest.raises(MvlmError, match=says) as caught:
        ChatTemplate(template).render([{"role": "user", "content": "hello"}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", ["{% for %}", "{{ ", "{% generation %}", "x" * (MOST_TEMPLATE_CHARACTERS + 1)])
def test_what_is_no_template(template):
    with pytest.raises(MvlmError, match="the chat template") as caught:
        ChatTemplate(template)
    assert caught.value.code == "bad-template"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "no messages"), ("why?", "no messages"), ({"role": "user"}, "no messages"), (None, "no messages"),
        ([{"role": "user", "content": "x"}] * 1001, "at most 1000"),
        (["x"], "message 1 has the role 'None'"), ([{"role": "tool", "content": "x"}], "message 1 has the role 'tool'"),
        ([{"role": "user"}], "message 1 has no content"), ([{"role": "user", "content": b"x"}], "has no content"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "a part of type 'audio'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of type 'image'"),
        ([{"role": "system", "content": [PICTURE]}], "message 1 holds a part of type 'image'"),
        ([{"role": "user", "content": "\ud800"}], "half a character"),
        ([{"role": "assistant", "content": "x"}], "the last message is the assistant's"),
        ([{"role": "user", "content": " "}], "is empty"), ([{"role": "user", "content": []}], "is empty"),
    ],
)  # fmt: skip
def test_messages_that_are_none(messages, says):
    with pytest.raises(MvlmError, match=says):
        read_turns(messages)
