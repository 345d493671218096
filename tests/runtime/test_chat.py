"""Conversations against transformers, turn by turn; what was read is not read again, and nothing depends on it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch

from export.runtime import MvlmError, Runtime
from export.runtime.backends.onnx import Device
from export.runtime.chat import Chats
from export.runtime.routing.costs import CostTable
from tests.support.tiny import QUESTIONS, SCALES

# What scales cost, as `mvlm bench` would have left it: a second for each token.
MEASURED = CostTable(
    costs={m: 10.0 + m for m in SCALES}, floor=1, answer_tokens=1, look_ms=5.0,
    first_token_ms={m: 1000.0 * m for m in SCALES}, token_ms=dict.fromkeys(SCALES, 1.0),
)  # fmt: skip
SAID = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}


def asks(*parts, role: str = "user") -> dict:
    """A message of texts (str) and pictures (anything else)."""
    return {
        "role": role,
        "content": [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ],
    }


def long_conversation(made, turns: int = 10) -> list[dict]:
    """A system text, and turns of which the first, fourth and seventh show a picture, the seventh two."""
    messages = [{"role": "system", "content": "You watch a street, and you are brief."}]
    for number in range(turns):
        shown = {0: [0], 3: [1], 6: [2, 3]}.get(number, [])
        messages += [asks(*(made.picture(i) for i in shown), f"{QUESTIONS[number % 4]} {number}"), SAID]
    return messages[:-1]


@torch.no_grad()
def torch_ids(made, messages, scale: int, longest: int, **options) -> list[int]:
    """The slow, obvious way: transformers' own generate on all of it."""
    processor, model = made.source.processor, made.source.model
    plain = [
        message if isinstance(message["content"], str) else message | {"content": [
            {"type": "image"} if part["type"] == "image" else part for part in message["content"]
        ]}
        for message in messages
    ]  # fmt: skip
    pictures = [
        part["image"] for message in messages if not isinstance(message["content"], str)
        for part in message["content"] if part["type"] == "image"
    ]  # fmt: skip
    text = processor.render(plain, add_generation_prompt=True)
    batch = processor(images=pictures or None, text=[text], num_visual_tokens=scale)
    ids = model.generate(**batch, max_new_tokens=longest, do_sample=False, **options)[
        0, batch["input_ids"].shape[1] :
    ].tolist()
    end = processor.tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids


@pytest.fixture
def fresh(runtime) -> Chats:
    """Conversations that remember nothing."""
    runtime.chats = Chats(runtime)
    return runtime.chats


@pytest.mark.parametrize("scale", [1, 9])
def test_ten_turns_with_pictures_are_those_of_transformers(made, runtime, fresh, scale):
    messages = long_conversation(made)
    for end in range(2, len(messages) + 1, 2):
        answer = runtime.chat(messages[:end], scale, max_new_tokens=5)
        assert list(answer.token_ids) == torch_ids(made, messages[:end], scale, 5)
        assert answer.scales == (scale,) * len(answer.scales)
        if end > 2:  # what is new is the answer before, and the question
            assert answer.new_tokens < 60 + 2 * scale
    assert answer.prompt_tokens > 5 * answer.new_tokens
    assert len(answer.scales) == 4


def test_a_repetition_penalty_is_that_of_transformers(made, runtime, fresh):
    messages = long_conversation(made, 4)
    answer = runtime.chat(messages, 9, max_new_tokens=12, repetition_penalty=5.0)
    assert list(answer.token_ids) == torch_ids(made, messages, 9, 12, repetition_penalty=5.0)
    alone = runtime.ask(made.picture(0), QUESTIONS[0], 9, max_new_tokens=12, repetition_penalty=5.0)
    assert list(alone.token_ids) == torch_ids(
        made, [asks(made.picture(0), QUESTIONS[0])], 9, 12, repetition_penalty=5.0
    )


def test_one_turn_about_one_picture_is_what_ask_answers(made, runtime, fresh):
    for scale in ("auto", 4):
        asked = runtime.ask(made.picture(0), QUESTIONS[0], scale, max_new_tokens=6)
        chat = runtime.chat([asks(made.picture(0), QUESTIONS[0])], scale, max_new_tokens=6)
        assert (chat.text, chat.token_ids, chat.reason) == (asked.text, asked.token_ids, asked.reason)
        assert chat.num_visual_tokens == asked.num_visual_tokens
        assert chat.probabilities == asked.probabilities


def test_text_alone_asks_no_router(made, runtime, fresh, monkeypatch):
    monkeypatch.setattr(runtime.router, "choose", lambda *_: pytest.fail("the router was asked"))
    answer = runtime.chat([{"role": "user", "content": "hi"}], max_new_tokens=5)
    assert list(answer.token_ids) == torch_ids(made, [{"role": "user", "content": "hi"}], 1, 5)
    assert (answer.num_visual_tokens, answer.scales, answer.reason) == (0, (), "no picture is shown")


def test_a_picture_alone_is_shown_at_the_finest_scale(made, runtime, fresh):
    answer = runtime.chat([asks(made.picture(0))], max_new_tokens=3)
    assert answer.scales == (max(runtime.manifest.scales),)


def again(runtime, messages, scale=9, **options):
    """The same by conversations that remember nothing."""
    return Runtime.load(runtime.manifest.folder, threads=1).chat(messages, scale, **options)


@pytest.mark.parametrize("change", ["nothing", "an edited text", "another picture", "a finer scale", "a coarser scale"])
def test_nothing_depends_on_what_was_read_before(made, runtime, fresh, change):
    messages = long_conversation(made, 5)
    runtime.chat(messages, 9, max_new_tokens=4)
    scale, changed = 9, [dict(message) for message in messages]
    if change == "an edited text":
        changed[3] = asks(f"{QUESTIONS[1]} edited")
    elif change == "another picture":
        changed[1] = asks(made.picture(5), f"{QUESTIONS[0]} 0")
    elif "scale" in change:
        scale = 36 if change == "a finer scale" else 4
    told = runtime.chat(changed, scale, max_new_tokens=4)
    wanted = again(runtime, changed, scale, max_new_tokens=4)
    assert told.token_ids == wanted.token_ids
    assert wanted.new_tokens == wanted.prompt_tokens
    assert told.new_tokens == 1 if change == "nothing" else 1 < told.new_tokens < wanted.new_tokens


def test_a_finer_scale_appends_where_scales_are_nested_and_nothing_stands_behind(made, runtime, fresh):
    question = asks(made.picture(0))
    runtime.chat([question], 9, max_new_tokens=1)
    finer = runtime.chat([question], 36, max_new_tokens=1)
    lead = finer.prompt_tokens - 36
    assert finer.new_tokens <= (36 - 9 + lead if runtime.manifest.nested else 36 + lead)
    assert runtime.manifest.nested == (finer.new_tokens < 36)


def test_memory_is_bounded_and_the_latest_is_kept(made, runtime):
    chats = runtime.chats = Chats(runtime, memory_bytes=400 * Chats(runtime).memory.bytes_a_position)
    conversations = [[asks(made.picture(i), f"{QUESTIONS[i]} {'word ' * 20}")] for i in range(4)]
    for _ in range(3):
        for messages in conversations:
            runtime.chat(messages, 36, max_new_tokens=2)
            assert chats.memory.held_bytes <= 400 * chats.memory.bytes_a_position
    assert runtime.chat(conversations[-1], 36, max_new_tokens=2).new_tokens == 1
    assert runtime.chat(conversations[0], 36, max_new_tokens=2).new_tokens > 36


def test_of_those_that_hold_the_same_one_is_kept(made, runtime, fresh, monkeypatch):
    messages = [asks(made.picture(0), QUESTIONS[0])]
    runtime.chat(messages, 9, max_new_tokens=3)
    held = fresh.memory.held_bytes
    for _ in range(3):
        runtime.chat(messages, 9, max_new_tokens=3)
        assert fresh.memory.held_bytes == held
    monkeypatch.setattr("export.runtime.decode.transcript._MOST_HELD", 2)
    lengths = [runtime.chat([asks(f"{number} {text}")], max_new_tokens=1) for number, text in enumerate(QUESTIONS)]
    latest = sum(answer.prompt_tokens for answer in lengths[-2:])
    assert fresh.memory.held_bytes == latest * fresh.memory.bytes_a_position


def test_what_two_conversations_begin_with_is_read_once_and_both_go_on(made, runtime, fresh):
    system = {"role": "system", "content": "You watch a street and answer briefly. " * 4}
    first, second = ([system, asks(made.picture(i), QUESTIONS[i])] for i in (0, 1))
    runtime.chat(first, 9, max_new_tokens=3)
    assert runtime.chat(second, 9, max_new_tokens=3).new_tokens < 30
    assert runtime.chat(first, 9, max_new_tokens=3).new_tokens == 1


def test_a_later_question_may_raise_the_scale_of_an_earlier_picture(made, runtime, fresh, monkeypatch):
    from dataclasses import replace

    choose = runtime.router.choose
    wanted = {}

    def by_question(image, question, terms, *more):
        choice = choose(image, question, terms, *more)
        return replace(choice, scale=wanted[float(question[0])], reason=f"{wanted[float(question[0])]} tokens")

    monkeypatch.setattr(runtime.router, "choose", by_question)
    lengths = [float(len(runtime.prompt.question_ids(text))) for text in ("a b c d e f", "what?")]
    assert lengths[0] != lengths[1]
    messages = [asks(made.picture(0), "a b c d e f"), SAID, asks("what?")]
    for scales, shown in (((4, 36), 36), ((36, 4), 36), ((9, 9), 9)):
        runtime.chats = Chats(runtime)
        wanted.update(zip(lengths, scales, strict=True))
        answer = runtime.chat(messages, max_new_tokens=1)
        assert answer.scales == (shown,)
        alone = runtime.look(made.picture(0)).choose(
            "what?"
        )  # what the router says is of the question that is answered
        assert answer.probability == alone.probabilities[shown]
        said = f"{scales[1]} tokens"
        earlier = f"{shown} tokens, as an earlier question needed them; this one alone: {said}"
        assert answer.reason == (said if scales[1] == shown else earlier)


def test_an_unsure_first_token_is_looked_at_again_in_a_conversation_too(made, runtime, fresh, monkeypatch):
    from dataclasses import replace

    finer = max(runtime.manifest.scales)
    messages = [{"role": "system", "content": "Be brief."}, asks(made.picture(0), QUESTIONS[0])]
    first = runtime.chat(messages, max_new_tokens=3)
    monkeypatch.setattr(type(runtime.router), "looks_again", True)
    closer = lambda choice, margin, **_: replace(choice, scale=finer, reason="closer")  # noqa: E731
    monkeypatch.setattr(runtime.router, "escalate", closer)
    again = runtime.chat(messages, max_new_tokens=3)
    assert (again.scales, again.escalated, again.reason) == ((finer,), first.scales[0], "closer")
    assert again.token_ids == runtime.chat(messages, finer, max_new_tokens=3).token_ids


def test_what_does_not_fit(made, runtime, fresh):
    messages = [{"role": "system", "content": "Be brief."}]
    for number in range(40):
        messages += [{"role": "user", "content": f"{number} " + "what is it? " * 3}, SAID]
    messages[-1] = asks(made.picture(0), QUESTIONS[0])
    messages = messages[:-2] + messages[-1:]
    with pytest.raises(MvlmError, match=f"does not fit the decoder's {runtime.manifest.max_length} positions"):
        runtime.chat(messages, 9, max_new_tokens=4)
    answer = runtime.chat(messages, 9, truncate="oldest", max_new_tokens=4)
    assert answer.dropped_turns > 0
    assert answer.dropped_turns % 2 == 0
    assert answer.prompt_tokens + 4 <= runtime.manifest.max_length
    kept = [messages[0], *messages[1 + answer.dropped_turns :]]
    assert answer.token_ids == again(runtime, kept, 9, max_new_tokens=4).token_ids
    with pytest.raises(MvlmError, match="does not fit"):
        runtime.chat([asks("word " * 2000)], 9, truncate="oldest")
    with pytest.raises(MvlmError, match="truncate is 'newest'"):
        runtime.chat([asks("word")], 9, truncate="newest")


def test_options_and_scales_are_refused_before_anything_is_read(made, runtime, fresh):
    for scale, options, says in (
        (7, {}, "no scale 7"),
        (9, {"price": -1}, "the price"),
        (9, {"x": 1}, "no option 'x'"),
    ):
        with pytest.raises(MvlmError, match=says):
            runtime.chat([asks(made.picture(0), QUESTIONS[0])], scale, **options)


def test_a_choice_of_answers_in_a_conversation(made, runtime, fresh):
    messages = [{"role": "system", "content": "Be brief."}, asks(made.picture(0), QUESTIONS[0])]
    answer = runtime.chat(messages, 9, choices=["red", "blue"])
    assert answer.text in ("red", "blue")
    assert sum(answer.choices.values()) == pytest.approx(1)
    assert (
        runtime.chat(messages, 9, max_new_tokens=3).token_ids == again(runtime, messages, 9, max_new_tokens=3).token_ids
    )


def test_in_pieces_and_in_threads(made, runtime, fresh):
    messages = [asks(made.picture(0), QUESTIONS[0])]
    whole = runtime.chat(messages, 9, max_new_tokens=8).text
    assert "".join(runtime.stream_chat(messages, 9, max_new_tokens=8)) == whole

    async def in_threads() -> tuple[str, str]:
        answer = await runtime.achat(messages, 9, max_new_tokens=8)
        return answer.text, "".join([piece async for piece in runtime.astream_chat(messages, 9, max_new_tokens=8)])

    assert asyncio.run(in_threads()) == (whole, whole)


def test_a_stopped_conversation_leaves_nothing_half_read(made, runtime, fresh):
    messages = [asks(made.picture(0), QUESTIONS[0])]
    stream = runtime.stream_chat(messages, 9, max_new_tokens=8)
    stream.stop()
    assert stream.read().finish == "stopped"
    with runtime.stream_chat(messages, 9, max_new_tokens=50) as stream:
        next(stream)
    assert runtime.chat(messages, 9, max_new_tokens=8).token_ids == again(runtime, messages, max_new_tokens=8).token_ids


def test_a_bundle_of_before_has_no_template(made, runtime, monkeypatch):
    runtime.__dict__.pop("chats", None)
    monkeypatch.setattr(runtime, "manifest", replace(runtime.manifest, chat=None))
    with pytest.raises(MvlmError, match="no chat template: export again"):
        runtime.chat([{"role": "user", "content": "hi"}])


def test_budget_and_cap_are_of_the_turn(made, runtime, fresh):
    """Its pictures share them alike: each is chosen for as with its share alone, and all together stay within."""
    pictures, cheapest = [made.picture(number) for number in range(3)], float(runtime.router.costs.min())
    for terms in ({"cap": 12.0, "price": 0.0}, {"cap": 120.0, "price": 0.0}, {"budget": 30.0}):
        name = next(iter(terms))
        share = terms | {name: terms[name] / 3}
        alone = [runtime.look(picture).choose("which?", **share) for picture in pictures]
        answer = runtime.chat([asks(*pictures, "which?")], max_new_tokens=1, **terms)
        assert answer.scales == tuple(choice.scale for choice in alone)
        if name == "cap":
            assert sum(choice.cost for choice in alone) <= terms["cap"]
    later = [asks(*pictures, "which?"), SAID, asks("and which is red?")]
    assert sum(runtime.chat(later, max_new_tokens=1, cap=12.0, price=0.0).scales) <= 12
    for name in ("budget", "cap"):
        with pytest.raises(MvlmError, match=rf"a {name} of .* is too little for 3 pictures, which cost {cheapest:g}"):
            runtime.chat([asks(*pictures, "which?")], max_new_tokens=1, **{name: 2.5 * cheapest})


def test_the_time_that_is_left_is_of_the_turn(made, monkeypatch):
    """Each picture is chosen for as alone with its share of the deadline, and all together are read in time."""
    loaded = Runtime.load(made.bundle, threads=1)
    runtime = Runtime(loaded.manifest, Device(threads=1), MEASURED)
    chosen, choose = [], runtime.choose
    monkeypatch.setattr(
        runtime, "choose", lambda looked, asked, clock: chosen.append(choose(looked, asked, clock)) or chosen[-1]
    )
    for count, deadline_ms in ((1, 40_500.0), (3, 40_500.0), (3, 30_000.0), (3, 4_500.0)):
        pictures, chosen[:] = [made.picture(number) for number in range(count)], []
        answer = runtime.chat([asks(*pictures, "which?")], max_new_tokens=1, price=0.0, deadline_ms=deadline_ms)
        finest = max(m for m in SCALES if MEASURED.answer_ms(m) <= deadline_ms / count - 300 / count)
        assert [choice.terms.cap for choice in chosen] == [MEASURED.costs[finest]] * count
        assert sum(map(MEASURED.answer_ms, answer.scales)) <= deadline_ms
    with pytest.raises(
        MvlmError,
        match=r"each of 3 pictures has its share of the time: \d+ ms are left, and the cheapest scale takes 1000 ms"
        r" here: allow more, or show fewer",
    ) as told:
        runtime.chat([asks(*(made.picture(number) for number in range(3)), "which?")], deadline_ms=2_900)
    assert told.value.code == "deadline"
