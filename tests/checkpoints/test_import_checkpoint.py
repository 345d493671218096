"""Published checkpoints: the papers' own results, every layout, and every way in which one can be wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.run_folder import load_run
from mvlm_core.modeling.model import IGNORED_LABEL
from mvlm_core.modeling.vision_towers import patch_features
from tests.support.checkpoints import (
    FINEST,
    NORM,
    PEERS,
    PROJECTOR,
    ROWS,
    original_tensors,
    read,
    refused,
    spoil,
    stock_llava,
    write,
    write_original,
    write_shards,
    write_transformers,
)
from tests.support.tiny import SIZE_PX

LLAVA_PLACEHOLDER = -200
needs_peers = pytest.mark.skipif(not PEERS.is_dir(), reason=f"the papers' checkpoints are not at {PEERS}")


def load(run: Path):
    """The run through the Auto class, with nothing missing and nothing left over."""
    model, loading = AutoModelForImageTextToText.from_pretrained(run, output_loading_info=True)
    assert not any(loading.values())
    return model.eval()


def expand(ids: torch.Tensor, mark: int, scale: int, image_id: int) -> torch.Tensor:
    """Rows with one mark for a picture -> rows with `scale` placeholders."""
    rows = [[[i] if i != mark else [image_id] * scale for i in row] for row in ids.tolist()]
    return torch.tensor([[i for part in row for i in part] for row in rows])


class Peer:
    """A checkpoint of a paper, imported, and what the paper's code computed from it."""

    def __init__(self, name: str, folder: Path) -> None:
        read(PEERS / name, folder / "run")
        self.model = load(folder / "run")
        self.golden = load_file(PEERS / name / "golden.safetensors")
        self.pixels = self.golden["pixel_values"].float()

    def ids(self, scale: int, rows: int = 2) -> torch.Tensor:
        ids = self.golden["input_ids"][:rows]
        return expand(ids, LLAVA_PLACEHOLDER, scale, self.model.config.image_token_id)


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    return {name: Peer(name, tmp_path_factory.mktemp(name)) for name in ("m3", "mqt")}


GOLDEN = [("m3", m) for m in (1, 9, 36, 144, 576)] + [("mqt", m) for m in (1, 2, 7, 16, 36, 144, 255, 256)]


@needs_peers
@torch.inference_mode()
@pytest.mark.parametrize(("name", "scale"), GOLDEN)
def test_a_papers_checkpoint_gives_what_the_papers_code_gave(peers, name, scale):
    peer, golden = peers[name], peers[name].golden
    output = peer.model(input_ids=peer.ids(scale), pixel_values=peer.pixels, num_visual_tokens=scale)
    tokens = peer.model.connector.tokens(output.image_values, scale)
    kept = golden[f"visual_tokens.{scale}"].shape[1]
    torch.testing.assert_close(tokens[:, -kept:], golden[f"visual_tokens.{scale}"], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logits[:, -8:], golden[f"logits.{scale}"], atol=1e-4, rtol=0)
    written = peer.model.generate(
        input_ids=peer.ids(scale, 1), pixel_values=peer.pixels[:1], num_visual_tokens=scale, max_new_tokens=12,
        do_sample=False,
    )  # fmt: skip
    assert written[:, peer.ids(scale, 1).shape[1] :].tolist() == golden[f"greedy.{scale}"].tolist()


@needs_peers
@torch.inference_mode()
@pytest.mark.parametrize("name", ["m3", "mqt"])
def test_the_vision_tower_gives_what_the_papers_code_gave(peers, name):
    peer = peers[name]
    scales = {int(key.partition(".")[2]) for key in peer.golden if key.startswith("logits.")}
    assert scales == {scale for of, scale in GOLDEN if of == name}
    states = peer.model.vision_tower(peer.pixels, output_hidden_states=True).hidden_states
    features = patch_features(states[peer.model.config.vision_feature_layer], peer.model.config.grid_side, 1)
    torch.testing.assert_close(features[:, :8], peer.golden["vision_features"], atol=1e-5, rtol=0)


@needs_peers
@torch.inference_mode()
def test_m3s_training_loss(peers):
    """The mean over the scales of the loss at each, as its code averages them."""
    peer, losses = peers["m3"], []
    for scale in (1, 9, 36, 144, 576):
        marked = peer.golden["train_labels"].masked_fill(
            peer.golden["input_ids"] == LLAVA_PLACEHOLDER, LLAVA_PLACEHOLDER
        )
        labels = expand(marked, LLAVA_PLACEHOLDER, scale, IGNORED_LABEL)
        output = peer.model(input_ids=peer.ids(scale), pixel_values=peer.pixels, num_visual_tokens=scale, labels=labels)
        losses.append(output.loss)
    torch.testing.assert_close(torch.stack(losses).mean(), peer.golden["train_loss"][0], atol=1e-5, rtol=0)


@needs_peers
def test_which_it_is_and_at_which_scales(tmp_path):
    m3, mqt = (read(PEERS / name, tmp_path / name) for name in ("m3", "mqt"))
    assert m3.notes[0].startswith("M3, in LLaVA's own layout: 80 tensors")
    assert m3.scales == (1, 9, 36, 144, 576)
    assert mqt.notes[0].startswith("MQT, in MQT's layout")
    assert (mqt.scales, mqt.num_queries) == (None, 256)
    assert mqt.notes[-1] == "resampler: 256 queries, and 16 heads as --num-heads says"
    assert not m3.has_tokenizer
    with pytest.raises(MvlmError, match=r"holds no tokenizer\.json, so words cannot be put to it"):
        load_run(tmp_path / "m3")


@needs_peers
def test_mqts_heads_and_queries_must_fit(tmp_path):
    with pytest.raises(MvlmError, match="width 64 cannot have 7 heads"):
        read(PEERS / "mqt", tmp_path / "out", num_heads=7)
    peer = shutil.copytree(PEERS / "mqt", tmp_path / "mqt", copy_function=shutil.copyfile)
    weights = torch.load(peer / "pytorch_model.bin", weights_only=True)
    for name in ("query", "pos_embed"):
        weights[f"model.query_abstractor.{name}"] = weights[f"model.query_abstractor.{name}"][:255].clone()
    os.remove(peer / "pytorch_model.bin")
    torch.save(weights, peer / "pytorch_model.bin")
    with pytest.raises(MvlmError, match="255 queries fill no square grid"):
        read(peer, tmp_path / "another")


@pytest.fixture(scope="module")
def stock():
    return stock_llava(ROWS)


@torch.inference_mode()
def same_as_stock(run: Path, stock) -> None:
    """Logits at the finest scale, where plain LLaVA and ours are the same function."""
    model = load(run)
    ids = torch.randint(3, ROWS - 1, (2, 12), generator=torch.Generator().manual_seed(1))
    ids[:, 4] = -1
    pixels = torch.randn(2, 3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(2))
    wanted = stock(input_ids=expand(ids, -1, FINEST, ROWS - 1), pixel_values=pixels).logits
    given = model(
        input_ids=expand(ids, -1, FINEST, model.config.image_token_id), pixel_values=pixels, num_visual_tokens=FINEST
    ).logits
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)


def as_stock_writes(folder: Path, stock) -> None:
    write_transformers(folder, stock)


def old_transformers(folder: Path, stock) -> None:
    write_transformers(folder, stock)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.replace("vision_tower.", "vision_tower.vision_model."): t for name, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors")


def new_transformers(folder: Path, stock) -> None:
    write_transformers(folder, stock)
    save_file(stock.state_dict(), folder / "model.safetensors")


def original(folder: Path, stock) -> None:
    write_original(folder, stock)


def original_sharded(folder: Path, stock) -> None:
    write_original(folder, stock)
    write_shards(folder, load_file(folder / "model.safetensors"))


def original_pickle_with_its_tower_and_buffers(folder: Path, stock) -> None:
    write_original(folder, stock)
    model, tower = original_tensors(stock)
    model |= {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in tower.items()}
    rotary = stock.model.language_model.rotary_emb.inv_freq
    model |= {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": rotary.half() for layer in range(2)}
    positions = torch.arange(FINEST + 1)[None]
    model["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = positions
    (folder / "model.safetensors").unlink()
    (folder / "clip" / "model.safetensors").unlink()
    torch.save(model, folder / "pytorch_model.bin")


def original_pickle_of_an_old_torch(folder: Path, stock) -> None:
    write_original(folder, stock)
    (folder / "model.safetensors").unlink()
    torch.save(original_tensors(stock)[0], folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def original_with_the_whole_of_clip(folder: Path, stock) -> None:
    write_original(folder, stock)
    tower = load_file(folder / "clip" / "model.safetensors")
    tower |= {"logit_scale": torch.ones(()), "text_model.final_layer_norm.weight": torch.ones(3)}
    save_file(tower, folder / "clip" / "model.safetensors")
    vision = json.loads((folder / "clip" / "config.json").read_text())
    write(folder / "clip" / "config.json", {"model_type": "clip", "vision_config": vision, "text_config": {}})


LAYOUTS = [
    as_stock_writes, old_transformers, new_transformers, original, original_sharded,
    original_pickle_with_its_tower_and_buffers, original_pickle_of_an_old_torch, original_with_the_whole_of_clip,
]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_model(tmp_path, stock, layout):
    layout(tmp_path / "checkpoint", stock)
    imported = read(tmp_path / "checkpoint", tmp_path / "run")
    assert imported.notes[0].startswith("LLaVA-1.5, in ")
    assert imported.scales == (FINEST,)
    assert load(tmp_path / "run").config.num_visual_tokens == FINEST
    same_as_stock(tmp_path / "run", stock)


def test_what_was_read_is_written_down(tmp_path, stock):
    original_with_the_whole_of_clip(tmp_path / "checkpoint", stock)
    imported = read(tmp_path / "checkpoint", tmp_path / "run")
    told = json.loads((tmp_path / "run" / "import.json").read_text())
    assert set(told["files"]) == {"checkpoint/model.safetensors", "clip/model.safetensors"}
    assert told["unused"] == ["logit_scale", "text_model.final_layer_norm.weight"]
    assert told["notes"] == imported.notes
    assert "2 tensors of CLIP's text half are not used" in imported.notes


def test_half_precision_stays_half(tmp_path, stock):
    write_original(tmp_path / "checkpoint", stock)
    for file in (tmp_path / "checkpoint" / "model.safetensors", tmp_path / "checkpoint" / "clip" / "model.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    read(tmp_path / "checkpoint", tmp_path / "run")
    assert {tensor.dtype for tensor in load_file(tmp_path / "run" / "model.safetensors").values()} == {torch.float16}
    assert load(tmp_path / "run").dtype == torch.float16


INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.mark.parametrize(
    ("wrong", "messages"),
    [
        (
            lambda t: t.update({NORM + "s": t.pop(NORM)}),
            [f"{NORM} is missing", f"{NORM}s is left over", "tensors not in order: 2;"],
        ),
        (lambda t: t.pop(PROJECTOR), [f"{PROJECTOR} is missing", "in order: 1;"]),
        (lambda t: t.update({PROJECTOR: t[PROJECTOR].T.contiguous()}), [r"shape \(16, 32\) instead of \(32, 16\)"]),
        (lambda t: t[PROJECTOR].view(-1)[5].fill_(float("nan")), [f"{PROJECTOR} holds NaN"]),
        (lambda t: t.update({NORM: t[NORM].int()}), [f"{NORM} holds int32"]),
        (lambda t: t.update({INV_FREQ: torch.ones(4)}), [f"{INV_FREQ} is not what the configuration computes"]),
        (lambda t: t.update({INV_FREQ: torch.ones(3)}), [f"{INV_FREQ} is not what the configuration computes"]),
        (
            lambda t: (t.pop(NORM), t.update(spare=torch.ones(1)), t[PROJECTOR].fill_(float("inf"))),
            [f"{NORM} is missing", "spare is left over", f"{PROJECTOR} holds NaN or infinite", "in order: 3;"],
        ),
    ],
)
def test_every_tensor_that_is_wrong_is_named(tmp_path, stock, wrong, messages):
    folder = write_original(tmp_path / "checkpoint", stock)
    spoil(wrong)(folder)
    for number, message in enumerate(messages):
        refused(folder, tmp_path / str(number), message)


def test_a_wrong_tensor_of_the_tower_is_named_with_its_folder(tmp_path, stock):
    folder = write_original(tmp_path / "checkpoint", stock)
    spoil(lambda t: t.pop("vision_model.pre_layrnorm.bias"))(folder / "clip")
    refused(folder, tmp_path / "run", r"clip: vision_model\.pre_layrnorm\.bias is missing")


def test_nothing_to_read(stock, tmp_path):
    write_original(tmp_path / "checkpoint", stock)
    read(tmp_path / "checkpoint", tmp_path / "run")
    with pytest.raises(MvlmError, match="there is nothing to read"):
        load(tmp_path / "run")()
