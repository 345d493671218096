"""Each tower with each language model, from folders as the hub has them: all that a model must do, tiny and offline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.data.row import Row
from mvlm_core.modeling.model import IGNORED_LABEL, MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of, turn
from mvlm_core.train.build import build_model, build_processor, resolve_config, weights_from
from tests.support.backbones import LANGUAGES, PICTURES, TEXT, TOWERS, told, write_language_model, write_tower
from tests.support.tiny import (
    ANSWERS,
    GRID_SIDE,
    QUESTIONS,
    SIZE_PX,
    drawn_picture,
    one_question,
    tiny_model,
    tiny_processor,
)

SCALE = 9
FROM_NOTHING = {"model_type": "qwen3", **TEXT, "head_dim": 8}
RESNET = {"model_type": "resnet", **TOWERS["resnet"][1]}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for kind in TOWERS:
        write_tower(folder / kind, kind)
    for kind in LANGUAGES:
        write_language_model(folder / kind, kind)
    return folder


def parts(hub: Path, tower: str, language: str) -> dict:
    return {"vision": {"name": str(hub / tower)}, "text": {"name": str(hub / language)}, "image": {"size_px": SIZE_PX}}


def build(config, rows=()) -> tuple[MvlmForConditionalGeneration, MvlmProcessor]:
    config = resolve_config(config)
    processor = build_processor(config, rows)
    return build_model(config, processor).eval(), processor


def rows() -> list[Row]:
    return [one_question(str(i), Path("p.png"), asked, ANSWERS[0]) for i, asked in enumerate(QUESTIONS)]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("tower", TOWERS)
def test_a_pair_does_all_that_a_model_must(hub, tmp_path, tower, language):
    connector = "query" if tower in ("siglip", "resnet") else "pool"
    config = resolve_config(told(**parts(hub, tower, language), connector=connector, num_heads=2))
    assert config.model.grid_side == GRID_SIDE
    model, processor = build(config)

    learns(model, processor)
    packs(model, processor)
    generates(model, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, loading = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    if tower == "resnet":  # as it was built: the order of its channels in memory moves the last bit
        again.vision_tower.to(memory_format=torch.channels_last)
    batch = asked(AutoProcessor.from_pretrained(tmp_path), 1)
    with torch.inference_mode():
        assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)


def asked(processor, *questions: int):
    texts = [processor.ask(QUESTIONS[i]) for i in questions]
    return processor(images=[drawn_picture()] * len(texts), text=texts, num_visual_tokens=SCALE)


def learns(model, processor) -> None:
    """The loss reaches the weights of every part, the first ones too: M3's own code never trains its tower."""
    batch = asked(processor, 0)
    labels = batch["input_ids"].masked_fill(batch["input_ids"] == processor.image_token_id, IGNORED_LABEL)
    model(**batch, labels=labels).loss.backward()
    for part in (model.vision_tower, model.connector, model.language_model):
        reached = [p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters()]
        assert any(reached[:2]), type(part)
        assert sum(reached) > 0.7 * len(reached), type(part)
    model.zero_grad(set_to_none=True)


@torch.inference_mode()
def packs(model, processor) -> None:
    """Two questions behind one picture, by the mask and the positions, against each on its own."""
    alone = [asked(processor, i) for i in (0, 1)]
    ids = [row["input_ids"][0].tolist() for row in alone]
    after = len(ids[0]) - ids[0][::-1].index(processor.image_token_id)  # what follows the picture differs
    packed = ids[0] + ids[1][after:]
    segment = [0] * after + [1] * (len(ids[0]) - after) + [2] * (len(ids[1]) - after)
    positions = [*range(len(ids[0])), *range(after, len(ids[1]))]
    size = len(packed)
    mask = torch.tensor([[j <= i and segment[j] in (0, segment[i]) for j in range(size)] for i in range(size)])
    logits = model(
        input_ids=torch.tensor([packed]), pixel_values=alone[0]["pixel_values"], num_visual_tokens=SCALE,
        position_ids=torch.tensor([positions]), attention_mask=mask[None, None], use_cache=False,
    ).logits[0]  # fmt: skip
    for row, place in zip(alone, (len(ids[0]) - 1, size - 1), strict=True):
        torch.testing.assert_close(logits[place], model(**row).logits[0, -1], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def generates(model, processor) -> None:
    first = {}
    for scale in (1, 144):
        batch = processor(images=drawn_picture(), text=processor.ask(QUESTIONS[0]), num_visual_tokens=scale)
        first[scale] = model(**batch).logits[0, -1]
        made = model.generate(**batch, max_new_tokens=4, do_sample=False)[0, batch["input_ids"].shape[1] :]
        assert made[0] == first[scale].argmax()
        assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert not torch.equal(first[1], first[144])


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_model_speaks_in_its_own_template(hub, language):
    processor = build_processor(resolve_config(told(**parts(hub, "clip", language))), ())
    encoded = processor.encode(turn(QUESTIONS[0], "red"))
    learned = [i for i, is_answer in zip(encoded.ids, encoded.supervised, strict=True) if is_answer]
    assert processor.tokenizer.decode(learned).strip() == f"red{processor.tokenizer.eos_token}"
    prompt = prompt_of(processor)
    for question in QUESTIONS:
        whole = processor(images=drawn_picture(), text=processor.ask(question), num_visual_tokens=4)
        assert prompt.ids(question, 4, processor.image_token_id) == whole["input_ids"][0].tolist()


def test_weights_are_those_of_the_folders(hub):
    config = told(**parts(hub, "clip", "qwen2"))
    model, _ = build(config)
    tower, text = load_file(hub / "clip" / "model.safetensors"), load_file(hub / "qwen2" / "model.safetensors")
    state = model.vision_tower.state_dict()
    assert all(torch.equal(state[name], kept(tower, name)) for name in state)
    state = model.language_model.state_dict()
    assert all(torch.equal(tensor, text[name]) for name, tensor in state.items() if name != "lm_head.weight")
    assert weights_from(config) == [
        f"vision tower: from {hub / 'clip'}", f"language model: from {hub / 'qwen2'}",
        "connector (pool): from nothing, seed 0",
    ]  # fmt: skip


def kept(tensors: dict[str, Tensor], name: str) -> Tensor:
    return next(tensor for key, tensor in tensors.items() if key in (name, f"vision_model.{name}"))


def test_what_starts_from_nothing_hangs_on_the_seed_alone(hub):
    config = told({"name": str(hub / "resnet")}, FROM_NOTHING, image={"size_px": SIZE_PX})
    one, other = build(config, rows())[0], build(config.model_copy(update={"seed": 1}), rows())[0]
    again = build(config, rows())[0]
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not torch.equal(one.embedding_table, other.embedding_table)
    assert torch.equal(next(one.vision_tower.parameters()), next(other.vision_tower.parameters()))


def test_pictures_are_the_towers_unless_stated(hub):
    def image(tower, **stated):
        told_here = told({"name": str(hub / tower)}, FROM_NOTHING, **({"image": stated} if stated else {}))
        return resolve_config(told_here).model.image

    assert image("clip").mean == tuple(PICTURES["clip"]["image_mean"])
    assert image("clip", std=(1, 1, 1)).std == (1, 1, 1)
    assert image("siglip2").resample == "bilinear"
    assert image("dinov2").size_px == SIZE_PX
    assert image("siglip").size_px == SIZE_PX  # no file beside it: what its configuration says


def test_a_tower_of_any_size_takes_its_grid_from_the_pictures(hub):
    config = resolve_config(told({"name": str(hub / "dinov2")}, FROM_NOTHING, image={"size_px": 2 * SIZE_PX}))
    assert config.model.grid_side == 2 * GRID_SIDE
    model, processor = build(config, rows())
    assert model(**asked(processor, 0)).image_values.shape[1] == (2 * GRID_SIDE) ** 2


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"grid_side": 24}, r"grid_side is 24, and the vision tower \(clip_vision_model\) leaves a grid of 12 x 12"),
        ({"image": {"size_px": 48}}, "size_px is 48, and the vision tower takes pictures of 96 pixels only"),
        ({"vision": RESNET}, "nothing says how large the pictures are"),
        ({"vision": {**RESNET}, "image": {"size_px": 80}}, "a grid of 10 x 10: .*in 9, 144 tokens"),
        ({"vision": {"model_type": "vit"}}, "vision is a vit, and the vision towers that are read are clip"),
        ({"vision": {"model_type": "siglip2_vision_model"}}, "vision is SigLIP 2 in its NaFlex form"),
        ({"vision": {"model_type": "clip_vision_model", "patch_size": 7, "image_size": 96}}, "allows 1, 169"),
        ({"vision": {"model_type": "clip_vision_model", "image_size": [96, 48]}}, "pictures or patches are not square"),
        ({"vision": {"model_type": "no_such"}}, "no_such cannot be read"),
        ({"vision": {**RESNET, "depth": [1]}, "image": {"size_px": 96}}, r"resnet has no depth \(did you mean depths"),
        ({"vision_feature_layer": -5}, "no such hidden state: it has those from -4 to 3"),
        ({"vision_feature_layer": 4}, "no such hidden state"),
        ({"vision": RESNET, "image": {"size_px": 96}, "vision_feature_layer": -2}, "of a ResNet only -1 is read"),
        ({"connector": "query", "num_heads": 5}, "16 wide, which the query connector's 5 heads cannot share"),
        ({"vision": {"name": "/nowhere/at/all"}}, "/nowhere/at/all cannot be read"),
    ],
)  # fmt: skip
def test_a_tower_and_a_grid_that_do_not_fit(hub, model, message):
    """Before any weight is read: these are only asked for their configuration."""
    base = {"vision": {"name": str(hub / "clip")}, "text": FROM_NOTHING}
    with pytest.raises(MvlmError, match=message):
        resolve_config(told(**base | model))


def test_a_language_model_of_another_kind(hub):
    config = told({"name": str(hub / "clip")}, {"model_type": "gpt2"})
    with pytest.raises(MvlmError, match="text is a gpt2, and the language models that are trained here are llama"):
        resolve_config(config)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda t: t.update({"more.weight": t.pop(first(t))}), r"2\n  .* is missing\n  more.weight is left over"),
        (lambda t: t.pop(first(t)), r"not in order: 1\n  .* is missing"),
        (lambda t: t.update({first(t): torch.zeros(3, 3)}), r"has shape \(3, 3\) instead of"),
        (lambda t: t[first(t)].view(-1)[:1].fill_(float("nan")), r"not in order: 1\n  .* holds NaN or infinite values"),
    ],
)
@pytest.mark.parametrize("part", ["siglip", "qwen3"])
def test_every_tensor_of_a_part_that_is_wrong_is_named(hub, tmp_path, part, harm, message):
    folder = shutil.copytree(hub / part, tmp_path / part)
    tensors = load_file(folder / "model.safetensors")
    harm(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MvlmError, match=message):
        build(told(**parts(hub, "siglip", "qwen3") | {"vision" if part == "siglip" else "text": {"name": str(folder)}}))


def first(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if "layers.0" in name and "weight" in name)


def test_a_model_starts_from_a_run(tmp_path):
    run = saved(tmp_path / "run", "pool")
    config = resolve_config(told(start=str(run)))
    assert (config.model.connector, config.model.grid_side) == ("pool", GRID_SIDE)
    model, processor = build(config)
    assert not list(set(load_file(run / "model.safetensors")) - set(model.state_dict()))
    kept_there = load_file(run / "model.safetensors")
    assert all(torch.equal(t, kept_there[n]) for n, t in model.state_dict().items() if n in kept_there)
    assert processor.ask("?") == AutoProcessor.from_pretrained(run).ask("?")
    assert weights_from(config)[1] == f"connector (pool): from {run}"


def test_a_new_connector_is_put_on_a_run(tmp_path):
    run = saved(tmp_path / "run", "pool")
    config = resolve_config(told(start=str(run), connector="query", num_queries=169, num_heads=2))
    assert config == resolve_config(config)
    model, processor = build(config)
    assert model.connector.num_queries == 169
    kept_there = load_file(run / "model.safetensors")
    state = model.state_dict()
    begun = [name for name in state if name in kept_there and not name.startswith("connector.")]
    assert len(begun) > 10
    assert all(torch.equal(state[name], kept_there[name]) for name in begun)
    assert weights_from(config)[1] == "connector (query): from nothing, seed 0"
    with torch.inference_mode():
        batch = processor(images=drawn_picture(), text=processor.ask("?"), num_visual_tokens=77)
        assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize(("begun", "asked"), [("pool", "nested_pool"), ("nested_pool", "pool")])
def test_pooled_connectors_take_over_each_others_values(tmp_path, begun, asked):
    run = saved(tmp_path / "run", begun)
    config = resolve_config(told(start=str(run), connector=asked))
    assert config == resolve_config(config)
    model, processor = build(config)
    assert model.config.connector == asked
    there, pixels = load_run(run)[0], processor.image_processor([drawn_picture()])["pixel_values"]
    with torch.inference_mode():
        values = model.encode_images(pixels)
        assert torch.equal(values, there.encode_images(pixels))
        torch.testing.assert_close(model.connector.tokens(values, 1), there.connector.tokens(values, 1))
    assert weights_from(config)[1] == f"connector ({asked}): from {run}, where it is {begun}"


def test_other_positions_make_a_pooled_connector_new(tmp_path):
    run = saved(tmp_path / "run", "pool")
    config = resolve_config(told(start=str(run), connector="nested_pool", connector_positions=True))
    assert weights_from(config)[1] == "connector (nested_pool): from nothing, seed 0"
    model, _ = build(config)
    assert not torch.equal(model.connector.mlp[0].weight, load_run(run)[0].connector.mlp[0].weight)


def test_pictures_and_words_of_a_run_but_for_what_is_stated(tmp_path):
    run = saved(tmp_path / "run", "pool")
    config = resolve_config(told(start=str(run), image={"fit": "pad"}, chat_template="plain"))
    assert config == resolve_config(config)
    assert (config.model.image.fit, config.model.image.size_px) == ("pad", SIZE_PX)
    processor = build_processor(config, ())
    assert processor.image_processor.fit == "pad"
    assert processor.render(turn("which?", "red")) == "<image>red\n"
    again = resolve_config(told(start=str(run)))
    assert again.model.image.fit == "stretch"
    assert build_processor(again, ()).chat_template == tiny_processor().chat_template


def test_a_template_that_the_rows_tokenizer_cannot_write(hub):
    config = resolve_config(told({"name": str(hub / "clip")}, FROM_NOTHING, chat_template="chatml"))
    with pytest.raises(MvlmError, match=r"chatml writes <\|im_end\|>, <\|im_start\|>, which the tokenizer of the rows"):
        build_processor(config, rows())


def saved(folder: Path, family) -> Path:
    processor = tiny_processor()
    tiny_model(family, tower="clip", processor=processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"start": "run", "text": FROM_NOTHING}, "text comes with start"),
        ({"vision": {"name": "x"}}, "text needs either a name"),
        ({"vision": {"name": "x", "model_type": "y"}, "text": FROM_NOTHING}, "vision needs either a name"),
        ({"vision": {"name": "x", "depth": 3}, "text": FROM_NOTHING}, "takes no depth besides"),
    ],
)
def test_parts_that_are_told_twice_or_not_at_all(model, message):
    with pytest.raises(ValueError, match=message):
        told(**model)


def test_a_start_that_is_no_run(tmp_path):
    with pytest.raises(MvlmError, match="is not a run"):
        resolve_config(told(start=str(tmp_path)))
