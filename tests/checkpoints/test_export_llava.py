"""A run written as a plain LLaVA: the same logits from stock transformers, and refusals that say what is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from export.runtime.errors import MvlmError
from mvlm_core.checkpoints.export_llava import export_llava
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmImageProcessor, MvlmProcessor
from tests.support.checkpoints import FINEST, PEERS, read, stock_llava, write_original
from tests.support.tiny import QUESTIONS, drawn_picture, tiny_model, tiny_processor

ANOTHER_PROCESS = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, picture, question = sys.argv[1:]
model, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
assert not any(loading.values()), loading
processor = AutoProcessor.from_pretrained(folder)
content = [{"type": "image"}, {"type": "text", "text": question}]
text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
batch = processor(images=Image.open(picture), text=text, return_tensors="pt", add_special_tokens=False)
with torch.inference_mode():
    torch.save({**batch, "logits": model.eval()(**batch).logits}, folder + "/said.pt")
assert not {name for name in sys.modules if name.split(".")[0] in ("mvlm_core", "export", "router")}
"""


def written(folder: Path, model: MvlmForConditionalGeneration, processor: MvlmProcessor | None) -> Path:
    model.save_pretrained(folder)
    if processor:
        processor.save_pretrained(folder)
    else:
        MvlmImageProcessor(size_px=96).save_pretrained(folder)
    return folder


def exported(run: Path, out: Path, scale: int = FINEST) -> list[str]:
    out.mkdir()
    return export_llava(run, out, scale)


def tiny_llava(language: str = "llama", layer: int = -2):
    processor = tiny_processor()
    model = tiny_model("pool", tower="clip", language=language, processor=processor)
    model.config.vision_feature_layer = layer
    return model, processor


@torch.inference_mode()
@pytest.mark.parametrize("language", ["llama", "qwen3"])
@pytest.mark.parametrize("layer", [-2, -1])
def test_stock_transformers_gives_the_same_logits(tmp_path, language, layer):
    model, processor = tiny_llava(language, layer)
    assert exported(written(tmp_path / "run", model, processor), tmp_path / "llava") == []
    stock, loading = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava", output_loading_info=True)
    assert not any(loading.values())
    batch = dict(processor(images=drawn_picture(), text=processor.ask(QUESTIONS[0]), num_visual_tokens=FINEST))
    wanted = model(**batch).logits
    batch.pop("num_visual_tokens")
    torch.testing.assert_close(stock.eval()(**batch).logits, wanted, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_without_this_package_even_from_picture_and_question(tmp_path):
    model, processor = tiny_llava()
    exported(written(tmp_path / "run", model, processor), tmp_path / "llava")
    picture = drawn_picture(1)
    picture.save(tmp_path / "picture.png")
    arguments = [str(tmp_path / "llava"), str(tmp_path / "picture.png"), QUESTIONS[1]]
    result = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS, *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    said = torch.load(tmp_path / "llava" / "said.pt")
    batch = processor(images=picture, text=processor.ask(QUESTIONS[1]), num_visual_tokens=FINEST)
    assert torch.equal(said["input_ids"], batch["input_ids"])
    torch.testing.assert_close(said["pixel_values"], batch["pixel_values"], atol=1e-5, rtol=0)
    torch.testing.assert_close(said["logits"], model(**batch).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_pictures_come_out_as_ours(tmp_path, fit):
    """Beside a picture padded in the mean colour, transformers takes the colour rounded down."""
    from transformers import AutoImageProcessor

    model, processor = tiny_llava()
    processor.image_processor.fit = fit
    exported(written(tmp_path / "run", model, processor), tmp_path / "llava")
    stock = AutoImageProcessor.from_pretrained(tmp_path / "llava")
    picture = drawn_picture(2, size_px=96)
    for given in (picture, picture.crop((0, 0, 96, 64))):
        ours = processor.image_processor(given)["pixel_values"]
        theirs = stock(given, return_tensors="pt")["pixel_values"]
        difference = (ours - theirs).abs()
        if given is picture:
            assert difference.max() < 1e-5
        else:
            assert difference.mean() < 0.02


def test_there_and_back(tmp_path):
    model, processor = tiny_llava()
    run = written(tmp_path / "run", model, processor)
    exported(run, tmp_path / "llava")
    imported = read(tmp_path / "llava", tmp_path / "again")
    assert any(note.startswith(f"the chat template is that of {tmp_path}") for note in imported.notes)
    before, after = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    kept = ("grid_side", "image_token_id", "vision_feature_layer", "connector")
    first, again = (json.loads((folder / "config.json").read_text()) for folder in (run, tmp_path / "again"))
    assert [first[key] for key in kept if key in first] == [again[key] for key in kept if key in first]


@pytest.mark.skipif(not PEERS.is_dir(), reason=f"the papers' checkpoints are not at {PEERS}")
@torch.inference_mode()
def test_m3_at_all_patches(tmp_path):
    """What the paper's code computed comes out of a stock LLaVA; its word table has one row more, never chosen."""
    read(PEERS / "m3", tmp_path / "run")
    notes = exported(tmp_path / "run", tmp_path / "llava", scale=576)
    assert len(notes) == 2
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava").eval()
    golden = load_file(PEERS / "m3" / "golden.safetensors")
    rows = [[i for i in row for i in ([i] if i >= 0 else [320] * 576)] for row in golden["input_ids"].tolist()]
    logits = stock(input_ids=torch.tensor(rows), pixel_values=golden["pixel_values"].float()).logits[:, -8:]
    torch.testing.assert_close(logits[..., :320], golden["logits.576"], atol=1e-4, rtol=0)
    assert logits.argmax(-1).max() < 320


@pytest.mark.parametrize(
    ("options", "scale", "message"),
    [
        ({"connector": "query", "tower": "clip"}, FINEST, "cannot hold a query connector"),
        (
            {"connector": "nested_pool", "tower": "clip"},
            FINEST,
            "a nested_pool connector, .* model.start .* connector: pool",
        ),
        (
            {"connector": "pool", "tower": "clip"},
            36,
            "write --scale 144, .* over the 12 x 12 grid with kernel .* 2, wh",
        ),
        ({"connector": "pool", "tower": "clip"}, 35, "this connector cannot show a picture in 35 tokens"),
        ({"connector": "pool", "tower": "resnet"}, FINEST, "this run's is one with learned positions"),
    ],
)
def test_what_a_plain_llava_cannot_hold(tmp_path, options, scale, message):
    run = written(tmp_path / "run", tiny_model(**options), tiny_processor())
    with pytest.raises(MvlmError, match=message):
        exported(run, tmp_path / "llava", scale)


def test_a_tower_of_another_kind(tmp_path):
    model = tiny_model("pool", tower="resnet")
    model.config.connector_positions = False
    with pytest.raises(MvlmError, match="this run's is resnet"):
        exported(written(tmp_path / "run", model, None), tmp_path / "llava")


def test_a_run_without_words(tmp_path):
    write_original(tmp_path / "checkpoint", stock_llava(260))
    read(tmp_path / "checkpoint", tmp_path / "run")
    grown, wordless = exported(tmp_path / "run", tmp_path / "llava")
    assert "grew from 260 to 261 rows" in grown
    assert "holds no tokenizer" in wordless
