"""docs/from-m3-to-a-robot.md: every command of the page, as it stands there, on a small checkpoint in M3's layout."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tiny_models import byte_words
from tests.support import checkpoints
from tests.support.checkpoints import change, stock_llava, write_original

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from-m3-to-a-robot.md").read_text()
SIZE_PX, SIDE = 336, 24
M3_SCALES = [1, 9, 36, 144, 576]
# The page's benchmark needs its data: a task made from drawn pictures stands in for it.
STANDS_IN = {"pope": ["rows", "--include-path", "tasks"]}


def commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.+?)```", PAGE, re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def workplace(tmp_path, monkeypatch, mvlm) -> Path:
    """A folder with the checkpoint, its tower beside it, a task, and a picture."""
    monkeypatch.chdir(tmp_path)
    tower = {"image_size": SIZE_PX, "patch_size": SIZE_PX // SIDE}
    monkeypatch.setattr(checkpoints, "_TOWER", checkpoints._TOWER | tower)
    monkeypatch.setattr(checkpoints, "_TEXT", checkpoints._TEXT | {"max_position_embeddings": 2048})
    sides = {"crop_size": {"height": SIZE_PX, "width": SIZE_PX}, "size": {"shortest_edge": SIZE_PX}}
    monkeypatch.setattr(checkpoints, "PICTURES", checkpoints.PICTURES | sides)
    words = byte_words()
    checkpoint = write_original(tmp_path / "llava-v1.5-7b-m3", stock_llava(len(words)))
    change(checkpoint / "config.json", matryoshka_vis_token_scale=M3_SCALES)
    words.save_pretrained(checkpoint)
    (checkpoint / "clip").rename(tmp_path / "clip-vit-large-patch14-336")
    drawn = mvlm("data", "scenes", "--out", "drawn/rows", "--train", 1, "--val", 1, "--test", 33)
    assert drawn.exit_code == 0, drawn.output
    made = mvlm("data", "to-lmms-eval", "--rows", "drawn/rows", "--out", "tasks")
    assert made.exit_code == 0, made.output
    (tmp_path / "picture.png").symlink_to(next(Path("drawn").rglob("test-*.png")).absolute())
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_page_runs(workplace, mvlm):
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install --no-deps lmms-eval==0.7.3")
    ran = []
    for words in commands():
        if words[0] == "pip":
            continue
        told = [part for word in words[1:] for part in STANDS_IN.get(word, [word])]
        if told[0] == "serve":
            _serves(told)
        else:
            done = mvlm(*told)
            assert done.exit_code == 0, f"{told}: {done.output}"
        ran.append(told[0])
    assert set(ran) == {
        "import",
        "benchmark",
        "data",
        "label",
        "fit-router",
        "report",
        "export",
        "bench",
        "run",
        "serve",
    }
    assert "auto |" in (workplace / "eval_auto" / "table.md").read_text()
    assert (workplace / "report" / "index.html").is_file()


def _serves(told: list[str]) -> None:
    """It says where it listens, and goes on until it is told to stop."""
    words = [sys.executable, "-m", "mvlm_core.cli", *("0" if word == "8080" else word for word in told)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("open http://127.0.0.1:")
        assert process.poll() is None
        process.terminate()  # an interrupt that comes early is lost where whoever started the tests ignores it
        process.wait(60)


def test_the_page_installs_what_was_tried():
    """The extra and the version are those of pyproject.toml, the lock and the manifest of benchmarks."""
    from mvlm_core.evaluation.benchmarks import known

    named = f"pip install --no-deps lmms-eval=={known().lmms_eval}"
    for text in (PAGE, (ROOT / "pyproject.toml").read_text()):
        assert named in text
    assert f"\nlmms-eval=={known().lmms_eval} \\\n" in (ROOT / "requirements" / "lock.txt").read_text()


def test_the_page_shows_files_that_are_there():
    for path in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / path).exists(), path
