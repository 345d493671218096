"""Several answers, answers in JSON, and how likely each token was: by OpenAI's own client, and Ollama's format."""

from __future__ import annotations

import builtins
import json
import math

import openai
import pytest

from export.runtime import MvlmError
from tests.support.serving import body
from tests.support.tiny import QUESTIONS

QUESTION = QUESTIONS[0]
SCHEMA = {
    "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "seen": {"type": "boolean"}},
    "required": ["colour", "seen"], "additionalProperties": False,
}  # fmt: skip


# Several answers


def test_several_answers(client, runtime, picture):
    drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 6}
    answered = client.chat.completions.create(**body(picture, QUESTION, "mvlm-9", n=3, **drawn))
    wanted = [
        runtime.ask(picture, QUESTION, 9, temperature=1.0, seed=3 + number, max_new_tokens=6) for number in range(3)
    ]
    assert [choice.message.content for choice in answered.choices] == [answer.text for answer in wanted]
    assert [choice.index for choice in answered.choices] == [0, 1, 2]
    assert answered.usage.completion_tokens == sum(len(answer.token_ids) for answer in wanted)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**body(picture, QUESTION, "mvlm-9", n=3, stream=True, **drawn)):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [answer.text for answer in wanted]


@pytest.mark.parametrize("count", [0, 9, "2", True, 1.5])
def test_a_count_that_makes_no_sense(served, picture, count):
    status, answer = served.chat(body(picture, QUESTION, "mvlm-9", n=count))
    assert (status, answer["error"]["param"]) == (400, "n")


# Answers in JSON


@pytest.fixture
def json_library():
    return pytest.importorskip("llguidance", reason="llguidance is not installed")


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_json_of_a_schema(json_library, client, picture, temperature):
    asked = {"type": "json_schema", "json_schema": {"name": "seen", "strict": True, "schema": SCHEMA}}
    for seed in range(3):
        chat = body(picture, QUESTION, "mvlm-9", response_format=asked, temperature=temperature, seed=seed)
        choice = client.chat.completions.create(**chat).choices[0]
        said = json.loads(choice.message.content)
        assert set(said) == {"colour", "seen"}
        assert said["colour"] in ("red", "blue")
        assert choice.finish_reason == "stop"
        pieces = client.chat.completions.create(**chat, stream=True)
        whole = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert json.loads(whole) == said


def test_any_json_object(json_library, served, picture):
    status, answer = served.chat(
        body(picture, QUESTION, "mvlm-9", response_format={"type": "json_object"}, max_tokens=20)
    )
    assert status == 200
    text, finish = answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]
    assert text.startswith("{")
    assert finish == "length" or isinstance(json.loads(text), dict)


def test_ollamas_format(json_library, served):
    asks = {"model": "mvlm-9", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    said = json.loads(served.request("POST", "/api/chat", asks | {"format": SCHEMA})[2])["message"]["content"]
    assert set(json.loads(said)) == {"colour", "seen"}
    said = json.loads(served.request("POST", "/api/chat", asks | {"format": "json", "options": {"num_predict": 5}})[2])
    assert said["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"type": "xml"}, "bad-option"), ("json", "bad-option"), ({"type": "json_schema"}, "bad-option"),
        ({"type": "json_schema", "json_schema": {"schema": 3}}, "bad-option"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}, "bad-schema"),
        ({"type": "json_schema", "json_schema": {"schema": {"$ref": "http://example.org/x"}}}, "bad-schema"),
        ({"type": "json_schema", "json_schema": {"schema": {"description": "x" * 70_000}}}, "bad-option"),
    ],
)  # fmt: skip
def test_forms_that_cannot_be_had(json_library, served, picture, asked, code):
    status, answer = served.chat(body(picture, QUESTION, "mvlm-9", response_format=asked))
    assert (status, answer["error"]["code"]) == (400, code)


def test_json_in_the_runtime(json_library, runtime, picture):
    view = runtime.look(picture)
    answer = view.ask(QUESTION, 9, json_schema=SCHEMA, max_new_tokens=64)
    assert set(json.loads(answer.text)) == {"colour", "seen"}
    assert view.ask_many([QUESTION] * 2, 9, json_schema=SCHEMA, max_new_tokens=64)[1].text == answer.text
    for wrong in ("{}", [1]):
        with pytest.raises(MvlmError, match=r"json_schema is .* give a mapping"):
            view.ask(QUESTION, 9, json_schema=wrong)
    with pytest.raises(MvlmError, match="json_schema is no JSON"):
        view.ask(QUESTION, 9, json_schema={"type": object})
    with pytest.raises(MvlmError, match="leave out json_schema"):
        view.ask(QUESTION, 9, json_schema=SCHEMA, choices=["a", "b"])


def test_a_grammar_that_runs_into_a_limit_while_it_is_followed(json_library, runtime, picture, monkeypatch):
    from export.runtime.decode.constraint import Grammars

    compiled = Grammars(runtime.manifest)
    allowed = compiled.allowed(json.dumps(SCHEMA))
    with pytest.raises(MvlmError, match="cannot be followed"):
        allowed.take(next(iter(runtime.manifest.stop_ids)))  # a token that may not stand there


def test_a_tokenizer_that_the_library_cannot_read(json_library, runtime, monkeypatch):
    from export.runtime.decode.constraint import Grammars

    def fails(*_, **__):
        raise ValueError("unknown kind")

    monkeypatch.setattr(json_library, "LLTokenizer", fails)
    with pytest.raises(MvlmError, match=r"cannot read this bundle's tokenizer \(unknown kind\)"):
        Grammars(runtime.manifest).allowed("{}")


def test_without_the_library_json_is_refused_by_name(served, picture, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name == "llguidance":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    served.runtime.grammars.__dict__.pop("_library", None)
    served.runtime.grammars._known.clear()
    monkeypatch.setattr(builtins, "__import__", without)
    status, answer = served.chat(body(picture, QUESTION, "mvlm-9", response_format={"type": "json_object"}))
    assert (status, answer["error"]["code"]) == (400, "no-llguidance")
    assert 'pip install "mvlm[json]"' in answer["error"]["message"]


# How likely each token was


def test_logprobs(client, runtime, picture):
    chat = body(picture, QUESTION, "mvlm-9", max_tokens=8, logprobs=True, top_logprobs=3)
    choice = client.chat.completions.create(**chat).choices[0]
    tokens = choice.logprobs.content
    answer = runtime.ask(picture, QUESTION, 9, max_new_tokens=8)
    assert len(tokens) == len(answer.token_ids) == 8
    assert math.exp(sum(token.logprob for token in tokens)) == pytest.approx(answer.confidence, rel=1e-3)
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob == pytest.approx(token.logprob)  # greedy: itself is the likeliest
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    streamed = [
        token
        for chunk in client.chat.completions.create(**chat, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    plain = client.chat.completions.create(**body(picture, QUESTION, "mvlm-9", max_tokens=2))
    assert plain.choices[0].logprobs is None
    alone = client.chat.completions.create(**body(picture, QUESTION, "mvlm-9", max_tokens=2, logprobs=True))
    assert alone.choices[0].logprobs.content[0].top_logprobs == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"logprobs": 3}, "logprobs"), ({"top_logprobs": 2}, "top_logprobs"),
     ({"logprobs": True, "top_logprobs": "2"}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, None)],
)  # fmt: skip
def test_logprobs_that_make_no_sense(served, picture, fields, param):
    status, answer = served.chat(body(picture, QUESTION, "mvlm-9", **fields))
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "bad-option", param)


def test_the_space_before_a_word_belongs_to_its_token():
    from tokenizers import Tokenizer, decoders, models

    from export.runtime.prompt import FixedIds, ImagePlace, Prompt, QuestionText

    tokenizer = Tokenizer(models.WordLevel({"\u2581red": 0, "x": 1}, unk_token="x"))
    tokenizer.decoder = decoders.Metaspace()
    prompt = Prompt([FixedIds((1,)), ImagePlace(), QuestionText("", "")], tokenizer)
    assert (prompt.spelled(0), prompt.spelled(1)) == (" red", "x")


# How quickly tokens come


def test_percentiles_of_the_first_and_the_next_token(served, picture):
    served.chat(body(picture, QUESTION, "mvlm-9", max_tokens=5))
    told = served.runtime_metrics().decode()
    for name in ("first", "next"):
        assert f'mvlm_{name}_token_latest_seconds{{quantile="0.95"}}' in told
        assert f"mvlm_{name}_token_seconds_bucket" in told


def test_an_error_of_openais_client_says_what_is_wrong(client, picture):
    with pytest.raises(openai.BadRequestError, match="ask for 1 to 8 answers"):
        client.chat.completions.create(**body(picture, QUESTION, "mvlm-9", n=100))
