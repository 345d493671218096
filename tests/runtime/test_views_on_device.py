"""Models with tiles on a device: the overview first, tiles when a scale needs them, and what torch computes of them."""

from __future__ import annotations

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from export.runtime import MvlmError, Runtime
from export.runtime.answer import Clock
from export.runtime.decode.conversation import Shelf
from export.runtime.manifest import read_manifest
from export.runtime.pictured import Pictured
from export.runtime.views import OVERVIEW
from export.runtime.views.clip import Frames
from export.runtime.views.seen import Seen
from mvlm_core.modeling.processing import turn
from tests.runtime.test_manifest import edit
from tests.support.bundles import MadeBundle
from tests.support.families import QUESTION, picture
from tests.support.view_bundles import PICTURES, SCALES, inputs, torch_answer, view_bundle

KINDS = ("smolvlm", "internvl", "llava_next", "llava_onevision")
OVERVIEW_FIRST = ("llava_next", "llava_onevision")


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def made(kind) -> MadeBundle:
    return view_bundle(kind)


@pytest.fixture(scope="module")
def runtime(made) -> Runtime:
    return Runtime.load(made.bundle, threads=1)


@pytest.mark.parametrize("name", PICTURES)
def test_ids_pixels_and_greedy_answers_are_torchs(runtime, made, name):
    image, question = PICTURES[name], runtime.prompt
    view = runtime.look(image)
    for scale in SCALES:
        wanted, laid = inputs(made, image, scale), view.at(scale).laid
        ids = [*question.before(QUESTION), *laid.ids, *question.after(QUESTION)]
        assert ids == wanted["input_ids"][0].tolist()
        assert np.array_equal(runtime.source(image).pixels(laid.shown.views), wanted["pixel_values"].numpy())
        answer = view.ask(QUESTION, scale, max_new_tokens=6)
        assert list(answer.token_ids) == torch_answer(made, image, scale)
        assert (answer.scale, answer.views) == (scale, len(wanted["pixel_values"]))
        assert answer.num_visual_tokens + answer.separators == len(laid)


@torch.no_grad()
def test_embeddings_are_torchs(runtime, made):
    """Where both are read from, number for number: an answer of a few tokens would hide a wrong place."""
    for image in (PICTURES["wide"], PICTURES["tall"], picture(300, 300)):
        view = runtime.look(image)
        for scale in SCALES:
            batch = inputs(made, image, scale)
            visual = made.source.model._visual(
                made.source.model.encode_images(batch["pixel_values"]), range(len(batch["pixel_values"])),
                batch["num_visual_tokens"],
            )  # fmt: skip
            if "stitch_sources" in batch:
                visual = made.source.model.stitched(visual, batch["stitch_sources"], batch["stitch_weights"])
            at = view.at(scale)
            found = at.embeddings(0, Clock())
            np.testing.assert_allclose(found[at.laid.places], visual.numpy(), atol=2e-5)
            for since in (1, len(at) // 2, len(at)):
                np.testing.assert_allclose(at.embeddings(since, Clock()), found[since:], atol=1e-6)


def test_the_overview_first_and_each_view_once(runtime, encoded):
    view = runtime.look(PICTURES["wide"])
    assert encoded == [1]
    answer = view.ask(QUESTION, 4, max_new_tokens=1)
    assert encoded == [1]
    assert "vision_overview_ms" in answer.timings
    assert "vision_tiles_ms" not in answer.timings
    tiled = view.ask(QUESTION, "4@4", max_new_tokens=1)
    assert encoded == [1, tiled.views - 1]
    assert tiled.views > 1
    assert tiled.timings["vision_tiles_ms"] > 0
    assert tiled.timings["image_tiles_ms"] > 0
    view.ask("and now?", "4@4", max_new_tokens=1)
    of_both = set(view.at("4@4").laid.shown.views) & set(view.at("4@native").laid.shown.views)
    finest = view.ask(QUESTION, "4@native", max_new_tokens=1)
    assert sum(encoded) == tiled.views + finest.views - len(of_both)


def test_many_threads_encode_a_view_once(runtime, encoded):
    view, alone = runtime.look(PICTURES["tall"]), runtime.look(PICTURES["tall"])
    wanted = [alone.ask(QUESTION, scale, max_new_tokens=4).token_ids for scale in SCALES]
    encoded.clear()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda scale: view.ask(QUESTION, scale, max_new_tokens=4).token_ids, SCALES * 3))
    assert found == wanted * 3
    tiles = {v for scale in SCALES for v in view.at(scale).laid.shown.views} - {OVERVIEW}
    assert sum(encoded) == len(tiles)


def test_from_the_overview_to_tiles(runtime, kind, steps):
    """Where the overview stands first it is kept; where it stands last it is read anew. The answers are the same."""
    view, tail = runtime.look(PICTURES["wide"]), len(runtime.prompt.after(QUESTION))
    view.ask(QUESTION, 4, max_new_tokens=1)
    tiled = view.ask(QUESTION, "4@4", max_new_tokens=1)
    whole = len(view.at("4@4"))
    common = 4 if kind in OVERVIEW_FIRST else 1  # of the last ones the mark before all
    assert steps == [len(view.at(4)) + tail, whole + tail]  # so few are read again as quickly as they are copied
    steps.clear()
    fresh = runtime.look(PICTURES["wide"])
    with fresh.shelf.borrow(4) as talk:
        talk.ask(QUESTION, 4, 1, Clock())
        talk.ask(QUESTION, "4@4", 1, Clock())
        assert steps[1] == whole + tail - common
    assert (
        fresh.ask(QUESTION, "4@4", max_new_tokens=5).token_ids == view.ask(QUESTION, "4@4", max_new_tokens=5).token_ids
    )
    assert tiled.token_ids == fresh.ask(QUESTION, "4@4", max_new_tokens=1).token_ids


def test_what_two_scales_begin_alike_is_read_once(steps):
    """The overview of a picture at 36 tokens, and then tiles behind it: both stay, and neither is read again."""
    runtime = Runtime.load(view_bundle("llava_next").bundle, threads=1)
    view, tail = runtime.look(PICTURES["wide"]), len(runtime.prompt.after(QUESTION))
    whole = len(view.at("native"))
    finest = view.ask(QUESTION, "native", max_new_tokens=1)
    with view.shelf.borrow(4) as talk:  # of another scale nothing is the same
        assert talk.used == 0
    fresh = runtime.look(PICTURES["wide"])
    first = Pictured(
        "36", runtime.layout.at(view.size, 36), fresh.seen, runtime.encoder, runtime.table.rows, nested=False
    )
    shelf = Shelf(runtime.reader, lambda scale: first if scale == 36 else fresh.at(scale))
    steps.clear()
    for scale in (36, "native", 36, "native"):
        with shelf.borrow(scale) as talk:
            logits = talk.ask(QUESTION, scale, 1, Clock())
    assert steps == [len(first) + tail, whole - 36 + tail, tail, tail]
    assert shelf.ready() == (36, "native")
    assert finest.token_ids in ((int(logits.argmax()),), ())


def test_what_is_kept_of_a_picture_is_bounded(runtime, made):
    view = runtime.look(PICTURES["tall"])
    one = view.seen.overview.nbytes
    seen = Seen(view.seen.overview, view.size, view.seen._encode, view.seen._name, most_bytes=2 * one)
    tiles = [v for v in view.at("4@native").laid.shown.views if v != OVERVIEW]
    whole = seen.values(tiles, Clock())
    assert len(whole) == len(tiles)
    assert seen.held_bytes <= (len(tiles) + 1) * one
    again = seen.values([OVERVIEW], Clock())
    assert seen.held_bytes <= 2 * one
    np.testing.assert_array_equal(again, view.seen.overview)
    np.testing.assert_allclose(seen.values(tiles, Clock()), whole, atol=1e-6)


def test_what_a_caller_changes_later_is_not_looked_at(runtime):
    image = picture(200, 140)
    array = np.asarray(image).copy()
    wanted = runtime.look(image).ask(QUESTION, "4@4", max_new_tokens=6).token_ids
    views = [runtime.look(array), runtime.look(image)]
    array[:] = 0
    image.paste(0, (0, 0, 200, 140))
    assert [view.ask(QUESTION, "4@4", max_new_tokens=6).token_ids for view in views] == [wanted] * 2


def test_every_kind_of_picture_is_the_same_one(runtime, tmp_path):
    image = picture(150, 220)
    image.save(tmp_path / "a.png")
    data = io.BytesIO()
    image.save(data, "PNG")
    given = (image, np.asarray(image), data.getvalue(), tmp_path / "a.png", str(tmp_path / "a.png"))
    found = {runtime.look(one).ask(QUESTION, "4@native", max_new_tokens=6).token_ids for one in given}
    assert len(found) == 1
    bgr = runtime.look(np.asarray(image)[:, :, ::-1], "bgr")
    assert {bgr.ask(QUESTION, "4@native", max_new_tokens=6).token_ids} == found


def test_many_at_once_as_one_by_one(runtime):
    images, questions = [PICTURES[name] for name in ("wide", "small", "tall")], [QUESTION, "how many?", "why?"]
    wanted = [runtime.look(image).ask(QUESTION, "4@4", max_new_tokens=6).token_ids for image in images]
    assert [a.token_ids for a in runtime.ask_many(images, QUESTION, "4@4", max_new_tokens=6)] == wanted
    view = runtime.look(PICTURES["wide"])
    alone = [runtime.look(PICTURES["wide"]).ask(q, "4@native", max_new_tokens=6).token_ids for q in questions]
    assert [a.token_ids for a in view.ask_many(questions, "4@native", max_new_tokens=6)] == alone


@torch.no_grad()
def test_a_conversation_of_pictures_each_at_a_scale(runtime, made, encoded):
    first, second = PICTURES["wide"], PICTURES["tall"]
    shown = {"type": "image", "image": first, "scale": "4@4"}
    messages = [
        {"role": "user", "content": [shown, {"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": "green"},
        {"role": "user", "content": [{"type": "image", "image": second}, {"type": "text", "text": "and here?"}]},
    ]  # fmt: skip
    prepared = runtime.stream_chat(messages, 1, max_new_tokens=6)
    before = sum(encoded)
    assert before > 2  # the tiles that are to be read are encoded before the language model reads anything
    answer = prepared.read()
    assert sum(encoded) == before
    processor, model = made.source.processor, made.source.model
    text = processor.render([*turn(QUESTION, "green"), *turn("and here?")], add_generation_prompt=True)
    batch = processor(text=text, images=[first, second], scale=["4@4", 1])
    ids = model.generate(**batch, do_sample=False, max_new_tokens=6)[0, batch["input_ids"].shape[1] :].tolist()
    end = processor.tokenizer.eos_token_id
    assert list(answer.token_ids) == (ids[: ids.index(end)] if end in ids else ids)
    assert (answer.scales, answer.scale, answer.views) == (("4@4", 1), 1, len(batch["pixel_values"]))
    assert answer.prompt_tokens == batch["input_ids"].shape[1]
    again = runtime.chat(messages, 1, max_new_tokens=6)
    assert again.token_ids == answer.token_ids
    assert again.new_tokens == 1


@torch.no_grad()
def test_clips_stand_between_the_words_of_the_family(runtime, made):
    clip = Frames(tuple(picture(90, 60, seed=n) for n in range(5)))
    view = runtime.look_clip(list(clip.pictures))
    for scale in ("4@4", "4@native", 4):
        wanted = inputs(made, clip, scale)
        ids = [*runtime.prompt.before(QUESTION), *view.at(scale).laid.ids, *runtime.prompt.after(QUESTION)]
        assert ids == wanted["input_ids"][0].tolist()
        answer = view.ask(QUESTION, scale, max_new_tokens=6)
        assert list(answer.token_ids) == torch_answer(made, clip, scale)
        assert answer.views == len(wanted["pixel_values"])


def test_another_picture_of_the_same_overview_is_another(runtime):
    """Blank pictures of several sizes have one overview, and other tiles."""
    from PIL import Image

    wide, tall = (runtime.look(Image.new("RGB", size)) for size in ((200, 90), (90, 200)))
    assert np.array_equal(wide.values, tall.values)
    assert wide.key != tall.key
    of_wide, of_tall = (
        {name for name in view.at("4@native").identities() if isinstance(name, tuple)} for view in (wide, tall)
    )
    assert of_wide
    assert not of_wide & of_tall  # marks apart, nothing of the one is taken for the other's


def test_scales_are_words(runtime):
    view = runtime.look(PICTURES["small"])
    assert runtime.manifest.scales == SCALES
    assert view.ask(QUESTION, "4", max_new_tokens=1).scale == 4
    for scale, message in (
        ("16@4", "this bundle has no scale 16@4: name one of 1, 4, 1@2, 4@4, 4@native, native"),
        ("big", "there is no scale 'big': name a number of visual tokens, with tiles a word such as 16@4, or auto"),
        ("auto", "this bundle holds no router"),
    ):
        with pytest.raises(MvlmError, match=message):
            view.ask(QUESTION, scale)


def test_more_tiles_than_there_is_room_for(made):
    runtime = Runtime.load(made.bundle, threads=1)
    fits = runtime.reader.positions(QUESTION, runtime.layout.least("native"), 4)
    runtime.manifest = replace(runtime.manifest, max_length=fits)
    view = runtime.look(PICTURES["tall"])
    assert view.ask(QUESTION, 1, max_new_tokens=1).views == 1
    for ask in (view.ask, lambda *a, **k: runtime.ask(PICTURES["tall"], *a, **k)):
        with pytest.raises(
            MvlmError, match=r"positions of a picture in \d+ views, at scale native, and an answer of"
        ) as told:
            ask(QUESTION, "native", max_new_tokens=4)
        assert told.value.code == "too-long"
        assert "name a coarser scale" in str(told.value)


def test_a_bundle_says_its_views(made, kind):
    manifest = read_manifest(made.bundle)
    assert manifest.views == made.source.processor.image_processor.view_spec
    assert (manifest.newline is not None) == (kind in OVERVIEW_FIRST)
    assert sorted(manifest.connectors) == sorted({1, 4, manifest.views.grid_side**2})
    assert [path.name for path in sorted(made.bundle.glob("connector_*"))] == sorted(
        f"connector_{m}.onnx" for m in manifest.connectors
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(views=None), "is not in order"),
        (lambda value: value["views"].pop("rule"), "the description of the model's views is not in order"),
        (lambda value: value.update(scales=[4, 4]), "is not in order"),
        (lambda value: value.update(newline=None), "the newline vector of .* is not where its views want it"),
        (lambda value: value["newline"].update(offset=2**40), "the newline vector of"),
        (lambda value: value["newline"].update(file="other.bin"), "the newline vector of"),
        (lambda value: value.update(format_version=3), "has format 3, and this mvlm reads up to 2: upgrade mvlm"),
    ],
)
def test_a_description_that_makes_no_sense(change, message, tmp_path):
    bundle: Path = shutil.copytree(view_bundle("llava_next").bundle, tmp_path / "bundle")
    edit(bundle, change)
    with pytest.raises(MvlmError, match=message):
        read_manifest(bundle)
