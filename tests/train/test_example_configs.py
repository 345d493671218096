"""The configurations of examples/configs: each parses, and its model, built tiny, shows a picture at its scales."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mvlm_core.checkpoints.import_checkpoint import import_checkpoint
from mvlm_core.modeling.processing import turn
from mvlm_core.modeling.scales import pool_scales, require_scales
from mvlm_core.train.build import build_model, build_processor, resolve_config
from mvlm_core.train.config import TrainConfig, read_config, scenes_config
from mvlm_core.train.model_config import ModelConfig
from mvlm_core.train.scale_sampling import possible_scales
from tests.support import backbones
from tests.support.backbones import write_language_model, write_tower
from tests.support.families import make, picture
from tests.support.tiny import ANSWERS, QUESTIONS, drawn_picture, one_question

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
# The grids of the real towers at a quarter of the pixels, and the heads of MQT's connector.
SMALL = {"hidden_size": 32, "image_size": 96, "patch_size": 4, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """Tiny parts in the place of the ones that the files name."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        for kind in ("clip", "siglip2"):
            build, told = backbones.TOWERS[kind]
            told = {**told, "vision_config": told["vision_config"] | SMALL}
            patch.setitem(backbones.TOWERS, kind, (build, told))
            write_tower(folder / kind, kind)
    for kind in ("vicuna", "qwen2"):
        write_language_model(folder / kind, kind)
    return folder


def built(config: TrainConfig):
    rows = [one_question(str(i), Path("p.png"), asked, ANSWERS[0]) for i, asked in enumerate(QUESTIONS)]
    config = resolve_config(config)
    processor = build_processor(config, rows)
    return config, build_model(config, processor).eval(), processor


@torch.inference_mode()
def assert_shows(config, model, processor, question: str = QUESTIONS[0]) -> None:
    for scale in config.scales:
        batch = processor(images=drawn_picture(), text=processor.ask(question), num_visual_tokens=scale)
        assert model(**batch).logits.isfinite().all()


def test_all_are_tested():
    """Those of accelerate's launcher are read in test_training_page."""
    assert {file.name for file in CONFIGS.iterdir() if not file.name.startswith("accelerate_")} == {
        "demo.yaml", "m3.yaml", "mqt_stage1.yaml", "mqt_stage2.yaml", "small_model.yaml", "smolvlm2.yaml",
        "internvl3_5.yaml",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "grid_side"), [("smolvlm2.yaml", "smolvlm", 8), ("internvl3_5.yaml", "internvl", 16)]
)
def test_a_family_becomes_a_nested_model(name, kind, grid_side, tmp_path):
    """The recipe's scales are those of the real grid; on a tiny checkpoint of the family, of those that it has."""
    config = read_config(CONFIGS / name)
    shown = {*config.scales, *possible_scales(config.stages[0].show)}
    require_scales(sorted(shown, key=str), pool_scales(grid_side))
    (tmp_path / "run").mkdir()
    checkpoint = make(kind, tmp_path / "checkpoint")
    import_checkpoint(checkpoint, tmp_path / "run", vision_tower=None, num_heads=16, bar=lambda *_: lambda _: None)
    small = {"scales": (4, "4@4", "native"), "model": ModelConfig(start=tmp_path / "run")}
    stage = config.stages[0].model_copy(update={"show": (4, "native")})
    config, model, processor = built(config.model_copy(update=small | {"stages": (stage,)}))
    for scale in config.scales:
        batch = processor(images=[picture(200, 90)], text=processor.ask(QUESTIONS[0]), scale=scale)
        assert model(**batch).logits.isfinite().all()


def test_the_demos_is_the_recipe_itself():
    config = read_config(CONFIGS / "demo.yaml")
    assert config.model_copy(update={"rows": Path("rows").absolute()}) == scenes_config(
        "pool", rows=Path("rows"), seed=0
    )


def test_mqts_two_stages(hub, tmp_path):
    places = (f"model.vision.name={hub / 'clip'}", f"model.text.name={hub / 'vicuna'}")
    config, model, processor = built(read_config(CONFIGS / "mqt_stage1.yaml", places))
    assert (config.model.connector, config.model.grid_side) == ("query", 24)
    assert processor.render(turn("describe it", "a star")) == "<s><image>a star\n"
    assert_shows(config, model, processor)
    model.save_pretrained(tmp_path / "mqt-stage1")
    processor.save_pretrained(tmp_path / "mqt-stage1")

    config, again, processor = built(read_config(CONFIGS / "mqt_stage2.yaml", (f"model.start={tmp_path}/mqt-stage1",)))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert processor.ask("why?").endswith("USER: <image>\nwhy? ASSISTANT:")
    assert processor.image_processor.fit == "pad"
    assert_shows(config, again, processor)


def test_m3_starts_from_a_plain_llava(hub, tmp_path):
    parts = {"vision": {"name": str(hub / "clip")}, "text": {"name": str(hub / "vicuna")}, "vision_feature_layer": -2}
    _, plain, processor = built(backbones.told(**parts))
    plain.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    config, model, processor = built(read_config(CONFIGS / "m3.yaml", (f"model.start={tmp_path}/llava",)))
    assert config.model.vision_feature_layer == -2
    assert "vision_tower" not in config.stages[0].frozen
    assert_shows(config, model, processor)


def test_the_small_model(hub):
    places = (f"model.vision.name={hub / 'siglip2'}", f"model.text.name={hub / 'qwen2'}")
    config, model, processor = built(read_config(CONFIGS / "small_model.yaml", places))
    assert (config.model.grid_side, config.model.image.resample) == (24, "bilinear")
    assert_shows(config, model, processor)
