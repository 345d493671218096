"""The fields and options that Ollama's clients send, and llama.cpp's: each is done, refused by name, or listed."""

from __future__ import annotations

import base64
import json

import pytest

from tests.serve.test_clients import asked, shows, text_of, told, words
from tests.support.tiny import QUESTIONS

QUESTION = QUESTIONS[0]


@pytest.fixture(scope="module")
def image(picture) -> str:
    return base64.b64encode(picture).decode()


def answered(served, image, options=None, **fields) -> dict:
    """What /api/chat says to a question about the picture, in one piece."""
    message = {"role": "user", "content": QUESTION, "images": [image]}
    body = {"model": "mvlm-9", "messages": [message], "stream": False, "options": {"num_predict": 12} | (options or {})}
    status, _, data = served.request("POST", "/api/chat", body | fields)
    assert status == 200, data
    return json.loads(data)


def refused(served, path: str, body: dict) -> str:
    status, _, data = served.request("POST", path, {"model": "mvlm-9"} | body)
    assert status == 400, data
    error = json.loads(data)["error"]
    return error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"repeat_penalty": 5.0}, {"repetition_penalty": 5.0, "repetition_window": 64}),
        ({"repeat_penalty": 5.0, "repeat_last_n": 2}, {"repetition_penalty": 5.0, "repetition_window": 2}),
        ({"repeat_penalty": 5.0, "repeat_last_n": -1}, {"repetition_penalty": 5.0}),
        ({"repeat_penalty": 5.0, "repeat_last_n": 0}, {}),
        ({"temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "seed": 7},
         {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "seed": 7}),
        ({"presence_penalty": 1.5, "frequency_penalty": 1.0}, {"presence_penalty": 1.5, "frequency_penalty": 1.0}),
        ({"seed": -1, "num_predict": 12}, {}),
    ],
)  # fmt: skip
def test_options_do_what_they_say(served, runtime, picture, image, options, wanted):
    answer = answered(served, image, options)
    assert answer["mvlm"]["ignored"] == []
    assert answer["message"]["content"] == runtime.ask(picture, QUESTION, 9, max_new_tokens=12, **wanted).text


def test_penalties_change_the_answer(runtime, picture):
    """So that the test above tells one that is used from one that is left out."""

    def text(**options) -> str:
        return runtime.ask(picture, QUESTION, 9, max_new_tokens=12, **options).text

    assert len({text(), text(repetition_penalty=5.0), text(repetition_penalty=5.0, repetition_window=2)}) == 3
    assert text(presence_penalty=1.5, frequency_penalty=1.0) != text()


def test_what_changes_nothing_is_listed(served, image):
    plain = answered(served, image)
    options = {
        "num_ctx": 8192, "num_batch": 512, "num_gpu": 1, "main_gpu": 0, "num_thread": 4, "use_mmap": True,
        "num_keep": 4, "mirostat_tau": 5.0, "penalize_newline": True, "repeat_last_n": 64,
    }  # fmt: skip
    fields = {"keep_alive": "5m", "tools": [{"type": "function"}], "shift": True}
    answer = answered(served, image, options, **fields)
    assert answer["message"] == plain["message"]
    assert answer["mvlm"]["ignored"] == sorted([*options, *fields])
    as_it_is = {"typical_p": 1.0, "tfs_z": 1, "mirostat": 0}
    assert answered(served, image, as_it_is, think=False, truncate=False, format="")["mvlm"]["ignored"] == []


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"think": True}, "think 'true' is not offered here (no model here thinks"),
        ({"think": "high"}, "think 'high' is not offered"),
        ({"raw": True}, "raw 'true' is not offered here (every prompt goes through"),
        ({"template": "{{ .Prompt }}"}, "template '{{ .Prompt }}' is not offered"),
        ({"suffix": "x"}, "suffix 'x' is not offered"), ({"context": [1, 2]}, "context '[1, 2]' is not offered"),
        ({"truncate": "yes"}, "truncate is 'yes': send true or false"),
        ({"options": {"mirostat": 2}}, "mirostat '2' is not offered here (tokens are drawn by"),
        ({"options": {"typical_p": 0.5}}, "typical_p '0.5' is not offered"),
        ({"options": {"repeat_penalty": 0}}, "repetition_penalty is 0"),
        ({"options": {"repeat_penalty": 1.1, "repeat_last_n": -2}}, "repeat_last_n is '-2'"),
        ({"options": {"repeat_penalty": 1.1, "repeat_last_n": True}}, "repeat_last_n is 'true'"),
        ({"options": {"seed": -2}}, "the seed is -2"),
    ],
)  # fmt: skip
def test_what_would_change_the_meaning_is_refused(served, fields, says):
    assert says in refused(served, "/api/generate", {"prompt": "hi"} | fields)
    assert says in refused(served, "/api/chat", {"messages": [words("hi")]} | fields)


def test_the_oldest_turns_go_where_truncate_says_so(served, image):
    history = [words("Be brief.", "system")]
    for number in range(60):
        history += [words(f"{number} what is it, and where?"), words("a star", "assistant")]
    messages = [*history, {"role": "user", "content": QUESTION, "images": [image]}]
    assert "does not fit" in refused(served, "/api/chat", {"messages": messages})
    assert answered(served, image, messages=messages, truncate=True)["mvlm"]["dropped_turns"] > 0


def test_a_body_that_asks_nothing_loads_the_model(served):
    asked = {"model": "mvlm-9:latest", "keep_alive": "5m"}
    for path, more, part in (
        ("/api/generate", {}, {"response": ""}), ("/api/generate", {"prompt": ""}, {"response": ""}),
        ("/api/chat", {"messages": []}, {"message": {"role": "assistant", "content": ""}}),
    ):  # fmt: skip
        for keep, reason in ((300, "load"), (0, "unload")):
            status, _, data = served.request("POST", path, asked | more | {"keep_alive": keep})
            told = json.loads(data)
            assert (status, told["done"], told["done_reason"]) == (200, True, reason)
            assert part.items() <= told.items()
        assert served.request("POST", path, asked | more | {"model": "other"})[0] == 404
    assert "ask something" in refused(served, "/api/chat", {"messages": [words(" ")]})


def test_what_is_loaded_and_what_is_not_there(served):
    loaded = json.loads(served.request("GET", "/api/ps")[2])["models"]
    assert [one["name"] for one in loaded[:2]] == ["mvlm-auto:latest", "mvlm-1:latest"]
    assert loaded[0]["context_length"] == served.runtime.manifest.max_length
    for method, path, wanted in (("POST", "/api/embed", 404), ("POST", "/api/pull", 404), ("GET", "/api/chat", 405)):
        status, _, data = served.request(method, path, {} if method == "POST" else None)
        assert status == wanted
        assert isinstance(json.loads(data)["error"], str)


def test_logprobs_of_ollama(served, runtime, picture, image):
    wanted = runtime.ask(picture, QUESTION, 9, max_new_tokens=12, logprobs=2).logprobs
    whole = answered(served, image, logprobs=True, top_logprobs=2)["logprobs"]
    assert [token["token"] for token in whole] == [token.text for token in wanted]
    assert [token["logprob"] for token in whole] == pytest.approx([token.logprob for token in wanted])
    assert [len(token["top_logprobs"]) for token in whole] == [2] * len(wanted)
    body = {"model": "mvlm-9", "messages": [{"role": "user", "content": QUESTION, "images": [image]}],
            "options": {"num_predict": 12}, "logprobs": True, "top_logprobs": 2}  # fmt: skip
    lines = [json.loads(line) for line in served.request("POST", "/api/chat", body)[2].splitlines()]
    streamed = [token for line in lines for token in line.get("logprobs", [])]
    assert [token["token"] for token in streamed] == [token["token"] for token in whole]
    # What was read together the first time is read by itself the second, and rounds otherwise.
    assert [token["logprob"] for token in streamed] == pytest.approx([t["logprob"] for t in whole], abs=1e-5)
    assert "logprobs" not in answered(served, image)


def test_llama_cpps_names(served, runtime, picture):
    wanted = runtime.ask(picture, QUESTION, 9, max_new_tokens=12, repetition_penalty=5.0, repetition_window=2).text
    message, penalty = shows(picture, QUESTION), {"repeat_penalty": 5.0, "repeat_last_n": 2}
    answer = told(served, [message], max_tokens=12, **penalty)
    assert (text_of(answer), answer["mvlm"]["ignored"]) == (wanted, [])
    off = {"typical_p": 1, "mirostat": 0, "dry_multiplier": 0.0, "xtc_probability": 0, "grammar": "", "min_tokens": 0,
           "ignore_eos": False, "add_generation_prompt": True}  # fmt: skip
    answer = told(served, [message], max_tokens=12, repeat_last_n=9, chat_template_kwargs={"x": 1}, **off)
    assert text_of(answer) == runtime.chat([asked(picture, QUESTION)], 9, max_new_tokens=12).text
    assert answer["mvlm"]["ignored"] == ["chat_template_kwargs", "repeat_last_n"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"guided_json": {}}, "guided_json '{}' is not offered here (an answer is held to a form by response_format)"),
        ({"guided_choice": ["a"]}, "or to choices by mvlm.choices"), ({"guided_regex": "a"}, "response_format"),
        ({"guided_grammar": "a"}, "response_format"), ({"structured_outputs": {}}, "response_format"),
        ({"grammar": "root ::= a"}, "response_format"), ({"json_schema": {}}, "response_format"),
        ({"chat_template": "x"}, "the model's own template"), ({"echo": True}, "the model's own template"),
        ({"continue_final_message": True}, "the model's own template"), ({"ignore_eos": True}, "where the model ends"),
        ({"min_tokens": 4}, "where the model ends"), ({"stop_token_ids": [1]}, "or by stop"),
        ({"use_beam_search": True}, "one by one"), ({"length_penalty": 2}, "drawn by top_p"),
        ({"web_search_options": {}}, "nothing is looked up"), ({"prompt": {"id": "x"}}, "no prompt is kept"),
        ({"repeat_penalty": 2, "repetition_penalty": 2}, "name one of them"),
    ],
)  # fmt: skip
def test_what_other_servers_take_is_refused_by_name(served, fields, says):
    assert says in refused(served, "/v1/chat/completions", {"messages": [words("hi")]} | fields)
