"""What clients of such a server expect: each row of the table is a test. Their own requests: test_four_clients.py."""

from __future__ import annotations

import base64
import json

import openai
import pytest

from tests.support.serving import data_url, serving
from tests.support.tiny import QUESTIONS

QUESTION = QUESTIONS[0]
USED = ("top_k", "min_p", "repetition_penalty", "tool_choice")


def words(text: str, role: str = "user") -> dict:
    return {"role": role, "content": text}


def shows(*parts: str | bytes, **of_picture) -> dict:
    """A user's message of texts and pictures."""
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": part} if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": data_url(part)} | of_picture}
            for part in parts
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def pictures(made) -> list[bytes]:
    return [made.picture(i).read_bytes() for i in range(4)]


def asked(*parts: str | bytes) -> dict:
    """The same message as the runtime takes it."""
    return {
        "role": "user",
        "content": [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ],
    }


def told(served, messages, model="mvlm-9", **fields) -> dict:
    status, answer = served.chat({"model": model, "messages": messages, "max_tokens": 6} | fields)
    assert status == 200, answer
    return answer


def text_of(answer: dict) -> str:
    return answer["choices"][0]["message"]["content"]


# The rows of the table


def test_text_and_picture_in_either_order(served, runtime, pictures):
    one, other = (told(served, [shows(*parts)]) for parts in ((QUESTION, pictures[0]), (pictures[0], QUESTION)))
    assert text_of(one) == text_of(other) == runtime.ask(pictures[0], QUESTION, 9, max_new_tokens=6).text
    with_detail = shows(pictures[0], QUESTION, detail="high") | {"name": "camera"}
    assert text_of(told(served, [with_detail])) == text_of(one)


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_or_developer_message_first(served, runtime, pictures, role):
    answer = told(served, [words("Be brief.", role), shows(pictures[0], QUESTION)])
    wanted = runtime.chat([words("Be brief.", "system"), asked(pictures[0], QUESTION)], 9, max_new_tokens=6)
    assert text_of(answer) == wanted.text
    assert text_of(answer) != text_of(told(served, [shows(pictures[0], QUESTION)]))


def test_history(served, runtime, pictures):
    messages = [shows(pictures[0], QUESTION), words("red", "assistant"), words("are you sure?")]
    wanted = runtime.chat(
        [asked(pictures[0], QUESTION), words("red", "assistant"), words("are you sure?")], 9, max_new_tokens=6
    )
    assert text_of(told(served, messages)) == wanted.text


def test_several_pictures_in_one_message_and_over_the_turns(served, runtime, pictures):
    first, second = shows(*pictures[:3], "what happened?"), shows(pictures[3], "and then?")
    answer = told(served, [first])
    assert answer["mvlm"]["scales"] == [9, 9, 9]
    assert text_of(answer) == runtime.chat([asked(*pictures[:3], "what happened?")], 9, max_new_tokens=6).text
    answer = told(served, [first, words("a red star", "assistant"), second])
    assert answer["mvlm"]["scales"] == [9] * 4
    between = shows("before:", pictures[0], "after:", pictures[1])  # the order says which is which, and is kept
    wanted = runtime.chat([asked("before:", pictures[0], "after:", pictures[1])], 9, max_new_tokens=6)
    assert text_of(told(served, [between])) == wanted.text


@pytest.mark.parametrize("content", ["Hi", [{"type": "text", "text": "Hi"}]])
def test_text_alone(served, runtime, content):
    answer = told(served, [{"role": "user", "content": content}], "mvlm-auto")
    assert text_of(answer) == runtime.chat([words("Hi")], max_new_tokens=6).text
    assert answer["mvlm"]["num_visual_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] < 12


def test_a_picture_alone(served, runtime, pictures):
    assert text_of(told(served, [shows(pictures[0])])) == runtime.chat([asked(pictures[0])], 9, max_new_tokens=6).text


@pytest.mark.parametrize(
    "extra",
    [{"top_k": 40}, {"min_p": 0.05}, {"repetition_penalty": 1}, {"reasoning_effort": "low"}, {"cache_prompt": True},
     {"keep_alive": "5m"}, {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"}],
)  # fmt: skip
def test_extras(served, pictures, extra):
    """They are used, or left out and listed; none is an error, and none of them changes a greedy answer."""
    answer = told(served, [shows(pictures[0], QUESTION)], **extra)
    assert text_of(answer) == text_of(told(served, [shows(pictures[0], QUESTION)]))
    assert answer["mvlm"]["ignored"] == [name for name in extra if name not in USED]


def test_penalties_and_biases(served, pictures):
    plain = told(served, [shows(pictures[0], QUESTION)], max_tokens=12)
    for fields in ({"frequency_penalty": 0.1}, {"presence_penalty": 0}):
        assert told(served, [shows(pictures[0], QUESTION)], **fields)["mvlm"]["ignored"] == []
    strong = told(served, [shows(pictures[0], QUESTION)], max_tokens=12, frequency_penalty=2, presence_penalty=2)
    assert text_of(strong) != text_of(plain)
    strong = told(served, [shows(pictures[0], QUESTION)], max_tokens=12, repetition_penalty=1e6)
    assert text_of(strong) != text_of(plain)
    assert strong["mvlm"]["ignored"] == []
    biased = told(served, [shows(pictures[0], QUESTION)], logit_bias={"5": 100})
    assert biased["usage"]["completion_tokens"] == 6
    for wrong in (
        {"logit_bias": {"5": 101}},
        {"logit_bias": [5]},
        {"frequency_penalty": 3},
        {"top_k": 1.5},
        {"repetition_penalty": 0},
    ):
        status, answer = served.chat({"model": "mvlm-1", "messages": [words("hi")]} | wrong)
        assert (status, answer["error"]["code"]) == (400, "bad-option")


@pytest.mark.parametrize("longest", [512, 4096, -1])
def test_long_answers_are_clamped(served, pictures, longest):
    answer = told(served, [shows(pictures[0], QUESTION)], max_tokens=longest)
    assert answer["usage"]["total_tokens"] <= served.runtime.manifest.max_length


@pytest.mark.parametrize("kind", ["image/jpg", "image/png;charset=utf-8", "application/octet-stream", "image/webp"])
def test_types_of_pictures_other_than_their_bytes(served, pictures, kind):
    url = f"data:{kind};base64,{base64.b64encode(pictures[0]).decode()}"
    message = shows(pictures[0], QUESTION)
    message["content"][0]["image_url"]["url"] = url
    assert text_of(told(served, [message])) == text_of(told(served, [shows(pictures[0], QUESTION)]))


def test_an_http_picture_is_not_fetched(served):
    message = shows(b"", QUESTION)
    message["content"][0]["image_url"]["url"] = "http://example.org/a.png"
    status, answer = served.chat({"model": "mvlm-9", "messages": [message]})
    assert status == 400
    assert "nothing is fetched" in answer["error"]["message"]


def test_a_name_of_ones_own(runtime, pictures):
    with serving(runtime, model_name="gpt-4o") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()][:2] == ["gpt-4o", "mvlm-auto"]
        assert client.models.retrieve("gpt-4o").id == "gpt-4o"
        answer = told(server, [shows(pictures[0], QUESTION)], "gpt-4o")
        assert answer["model"] == "gpt-4o"
        assert answer["mvlm"]["num_visual_tokens"] == runtime.ask(pictures[0], QUESTION).num_visual_tokens
        with pytest.raises(openai.NotFoundError, match="no model 'gpt-5'"):
            client.models.retrieve("gpt-5")
        client.close()


def test_what_was_read_is_not_read_again(served, pictures):
    messages = [words("You watch a street, and you are brief.", "system"), shows(pictures[2], QUESTION)]
    told(served, messages)
    again = told(served, [*messages, words("red", "assistant"), words("why?")])["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] > again["prompt_tokens"] / 2


def test_the_oldest_turns_go_where_that_is_asked_for(served, pictures):
    messages = [words("Be brief.", "system")]
    for number in range(60):
        messages += [words(f"{number} what is it, and where?"), words("a star", "assistant")]
    messages.append(shows(pictures[0], QUESTION))
    status, answer = served.chat({"model": "mvlm-9", "messages": messages})
    assert (status, answer["error"]["code"]) == (400, "too-long")
    assert told(served, messages, mvlm={"truncate": "oldest"})["mvlm"]["dropped_turns"] > 0


# Ollama


def test_ollamas_chat(served, runtime, pictures):
    picture = base64.b64encode(pictures[0]).decode()
    message = {"role": "user", "content": QUESTION, "images": [picture]}
    asks = {"model": "mvlm-9:latest", "messages": [message], "options": {"num_predict": 6, "num_ctx": 4096}}
    status, headers, data = served.request("POST", "/api/chat", asks)
    lines = [json.loads(line) for line in data.splitlines()]
    wanted = runtime.ask(pictures[0], QUESTION, 9, max_new_tokens=6)
    assert (status, headers["content-type"]) == (200, "application/x-ndjson")
    assert "".join(line["message"]["content"] for line in lines) == wanted.text
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert (lines[-1]["done_reason"], lines[-1]["eval_count"]) == ("length", 6)
    assert lines[-1]["mvlm"]["ignored"] == ["num_ctx"]
    whole = json.loads(served.request("POST", "/api/chat", asks | {"stream": False, "keep_alive": 300})[2])
    assert whole["message"] == {"role": "assistant", "content": wanted.text}
    assert whole["mvlm"]["ignored"] == ["keep_alive", "num_ctx"]


def test_ollamas_generate(served, runtime, pictures):
    asks = {"model": "mvlm-9", "prompt": QUESTION, "images": [base64.b64encode(pictures[0]).decode()], "stream": False,
            "system": "Be brief.", "options": {"num_predict": 6}}  # fmt: skip
    wanted = runtime.chat([words("Be brief.", "system"), asked(pictures[0], QUESTION)], 9, max_new_tokens=6)
    assert json.loads(served.request("POST", "/api/generate", asks)[2])["response"] == wanted.text
    lines = served.request("POST", "/api/generate", asks | {"stream": True})[2].splitlines()
    assert "".join(json.loads(line)["response"] for line in lines) == wanted.text


def test_what_ollamas_clients_ask_first(served):
    models = json.loads(served.request("GET", "/api/tags")[2])["models"]
    assert models[0]["name"] == "mvlm-auto:latest"
    assert models[0]["size"] > 1000
    shown = json.loads(served.request("POST", "/api/show", {"model": "mvlm-auto:latest"})[2])
    assert "vision" in shown["capabilities"]
    assert json.loads(served.request("GET", "/api/version")[2])["version"]
    assert served.request("POST", "/api/show", {"model": "other"})[0] == 404


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"model": "other"}, 404, "no model 'other'"), ({"format": "yaml"}, 400, "format is 'yaml'"),
        ({"messages": "x"}, 400, "no message"), ({"stream": "no"}, 400, "stream is 'no'"),
        ({"options": "x"}, 400, "options is 'x'"),
        ({"options": {"num_predict": 0}}, 400, "num_predict is '0'"),
        ({"options": {"temperature": -1}}, 400, "temperature is -1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "role of a message is 'tool'"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "a text as content"),
        ({"messages": [{"role": "system", "content": "x", "images": ["x"]}]}, 400, "a list of pictures as images"),
        ({"messages": [{"role": "user", "content": "x", "images": ["../x.png"]}]}, 400, "nothing is fetched"),
    ],
)  # fmt: skip
def test_ollamas_errors_are_lines(served, change, status, says):
    asks = {"model": "mvlm-1", "messages": [words("hi")], "options": {"num_predict": 1}} | change
    got, _, data = served.request("POST", "/api/chat", asks)
    assert got == status
    assert says in json.loads(data)["error"]


def test_ollamas_own_client(served, runtime, pictures):
    ollama = pytest.importorskip("ollama", reason="the client of Ollama is not installed")
    client = ollama.Client(host=served.url)
    assert client.list().models[0].model == "mvlm-auto:latest"
    message = {"role": "user", "content": QUESTION, "images": [pictures[0]]}
    wanted = runtime.ask(pictures[0], QUESTION, 9, max_new_tokens=6).text
    answer = client.chat(model="mvlm-9", messages=[message], options={"num_predict": 6})
    assert answer.message.content == wanted
    pieces = client.chat(model="mvlm-9", messages=[message], options={"num_predict": 6}, stream=True)
    assert "".join(piece.message.content for piece in pieces) == wanted
    assert client.generate(model="mvlm-9", prompt=QUESTION, images=[pictures[0]], options={"num_predict": 6}).response
    with pytest.raises(ollama.ResponseError, match="no model 'other'"):
        client.chat(model="other", messages=[message])
