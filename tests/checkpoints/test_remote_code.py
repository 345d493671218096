"""A run by itself: transformers loads it where this package is not installed, and not by its own code where it is."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from export.runtime.families import FAMILIES
from mvlm_core.checkpoints.remote_code import carry_code, code_files
from mvlm_core.checkpoints.run_folder import load_run
from tests.support.checkpoints import ROWS, read, stock_llava, write_original
from tests.support.tiny import QUESTIONS, drawn_picture, tiny_model, tiny_processor

ROOT = Path(__file__).parents[2]
SCALE = 9
LOAD = f"""
import sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
run, picture, logits = sys.argv[1:]
model, loading = AutoModelForImageTextToText.from_pretrained(run, trust_remote_code=True, output_loading_info=True)
assert not any(loading.values()), loading
processor = AutoProcessor.from_pretrained(run, trust_remote_code=True)
text = processor.ask({QUESTIONS[0]!r})
batch = processor(images=Image.open(picture), text=text, num_visual_tokens={SCALE})
assert torch.equal(processor(images=Image.open(picture), text=text)["input_ids"], batch["input_ids"])
assert torch.equal(model.eval()(**batch).logits, torch.load(logits))
ids = [model.generate(**batch, max_new_tokens=4, do_sample=False, use_cache=cached) for cached in (True, False)]
assert torch.equal(*ids)
print(*(type(part).__module__ for part in (model, processor, processor.image_processor)))
"""
WITHOUT_US = "import sys\nsys.modules |= dict.fromkeys(['mvlm_core', 'export', 'router'])\n"


@pytest.fixture(params=FAMILIES)
def run(request, tmp_path) -> Path:
    """A run with a picture and its logits beside it."""
    processor = tiny_processor()
    model = tiny_model(request.param, tower="clip", processor=processor)
    drawn_picture().save(tmp_path / "picture.png")
    batch = processor(images=drawn_picture(), text=processor.ask(QUESTIONS[0]), num_visual_tokens=SCALE)
    torch.save(model(**batch).logits.detach(), tmp_path / "logits.pt")
    model.save_pretrained(tmp_path / "run")
    processor.default_scale = SCALE
    processor.save_pretrained(tmp_path / "run")
    carry_code(tmp_path / "run")
    return tmp_path / "run"


def loaded(run: Path, code: str, *path: Path) -> list[str]:
    """Where the classes come from that a fresh interpreter takes."""
    beside = run.parent
    environment = os.environ | {"HF_MODULES_CACHE": str(beside / "modules"), "PYTHONPATH": ":".join(map(str, path))}
    command = [sys.executable, "-c", code, str(run), str(beside / "picture.png"), str(beside / "logits.pt")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=beside, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_a_run_is_loaded_without_this_package(run):
    modules = loaded(run, WITHOUT_US + LOAD)
    assert [name.rsplit(".", 1)[1] for name in modules] == ["mvlm_model", "mvlm_processing", "mvlm_processing"]
    assert all(name.startswith("transformers_modules.") for name in modules)


def test_the_installed_package_goes_first(run):
    assert loaded(run, LOAD, ROOT) == [
        "mvlm_core.modeling.model",
        "mvlm_core.modeling.processing",
        "mvlm_core.modeling.processing",
    ]


def test_our_own_loading_runs_no_code_of_a_run(run):
    for file in run.glob("*.py"):
        file.write_text("raise RuntimeError('this was run')")
    model, processor = load_run(run)
    assert (type(model).__module__, type(processor).__module__) == (
        "mvlm_core.modeling.model",
        "mvlm_core.modeling.processing",
    )


def test_what_is_carried_are_the_sources():
    """Line for line, but for the imports of each other; and all of these are carried."""
    files = code_files()
    for name, text in files.items():
        relative = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom) and node.level]
        assert all(f"{node.module}.py" in files for node in relative), name
        assert "export.runtime" not in "".join(line for line in text.splitlines() if line.startswith("from "))
        if name == "modeling_mvlm.py":
            continue
        module = name.removeprefix("mvlm_")
        rooms = (ROOT / "mvlm_core" / "modeling", ROOT / "export" / "runtime", ROOT / "mvlm_core")
        source = next(found for folder in rooms for found in sorted(folder.rglob(module)))
        changed = [(a, b) for a, b in zip(source.read_text().splitlines(), text.splitlines(), strict=True) if a != b]
        assert all(a.startswith("from ") and b.startswith("from .mvlm_") for a, b in changed), name


def test_an_imported_checkpoint_carries_it_too(tmp_path):
    read(write_original(tmp_path / "checkpoint", stock_llava(ROWS)), tmp_path / "run")
    assert (tmp_path / "run" / "modeling_mvlm.py").is_file()
    for name in ("config.json", "preprocessor_config.json"):
        assert all(
            ours.startswith("modeling_mvlm.")
            for ours in json.loads((tmp_path / "run" / name).read_text())["auto_map"].values()
        )
