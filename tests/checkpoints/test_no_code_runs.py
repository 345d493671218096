"""No code of a model's folder runs, whatever file it hides in and whatever stands in the standard input."""

import builtins
import json
import shutil
import threading
from pathlib import Path

import pytest

from benchmarks.tiny_models import byte_words
from mvlm_core.modeling import template_limits
from tests.support.bundles import Made, pool_bundle
from tests.support.checkpoints import ROWS, stock_llava, write_original
from tests.support.tiny import tiny_processor

# What transformers would import by one of these names, and the name that each file of a folder takes it by.
EVIL = """
from pathlib import Path
Path(__file__).parent.joinpath("ran").touch(); Path({marker!r}).touch()
class C:
    @classmethod
    def from_pretrained(cls, *a, **k): return cls()
    register_for_auto_class = from_pretrained
    def __init__(self, *a, **k): pass
def generate(*a, **k): pass
"""
_AUTO = {
    "config.json": ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM"),
    "processor_config.json": ("AutoProcessor", "AutoImageProcessor"),
    "preprocessor_config.json": ("AutoProcessor", "AutoImageProcessor"),
    "tokenizer_config.json": ("AutoTokenizer", "AutoProcessor"),
    "generation_config.json": ("AutoConfig",),
}
# A template that would reach the system through what every object knows of its class.
_TEMPLATE = (
    "{{% for c in ''.__class__.__mro__[1].__subclasses__() %}}{{% if c.__name__ == 'Popen' %}}"
    "{{{{ c(['touch', {marker!r}]) }}}}{{% endif %}}{{% endfor %}}"
)


def plant(folder: Path, kind: str, marker: Path) -> None:
    """Hide code in one of the files of a folder, as a published model would carry it."""
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    if kind == "chat_template.jinja":
        (folder / kind).write_text(_TEMPLATE.format(marker=str(marker)))
        return
    if kind == "custom_generate":
        (folder / kind).mkdir()
        shutil.copy(folder / "evil.py", folder / kind / "generate.py")
        return
    part, _, inside = kind.partition("/")
    file = folder / part
    told = json.loads(file.read_text()) if file.is_file() else {}
    place = told.setdefault(inside, {}) if inside else told
    place["auto_map"] = dict.fromkeys(_AUTO[part], "evil.C")
    if inside or part == "config.json":
        place["model_type"] = "evil"
    if part == "tokenizer_config.json":
        place |= {"tokenizer_class": "C", "auto_map": {"AutoTokenizer": ["evil.C", "evil.C"]}}
    if part in ("processor_config.json", "preprocessor_config.json"):
        place |= {"processor_class": "C", "image_processor_type": "C"}
    file.write_text(json.dumps(told))


KINDS = ("config.json", "config.json/vision_config", "config.json/text_config", "processor_config.json",
         "preprocessor_config.json", "tokenizer_config.json", "generation_config.json", "custom_generate",
         "chat_template.jinja")  # fmt: skip


@pytest.fixture
def says_yes(monkeypatch):
    """Every question of transformers is answered with yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")


@pytest.fixture(scope="module")
def made() -> Made:
    return pool_bundle()


def verbs(made: Made, run: Path, out: Path) -> list[list]:
    return [
        ["label", run, "--rows", made.rows, "--scales", "9", "--splits", "test", "--out", out / "labels"],
        ["export", run, "--rows", made.rows, "--no-router", "--scales", "9", "--verify-rows", "1", "--out", out / "b"],
        ["export-checkpoint", run, "--scale", "144", "--out", out / "llava"],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_verbs_that_read_a_run(made, tmp_path, mvlm, says_yes, kind):
    marker, run = tmp_path / "marker", tmp_path / "run"
    shutil.copytree(made.run, run)
    plant(run, kind, marker)
    for verb in verbs(made, run, tmp_path):
        done = mvlm(*verb)
        assert done.exit_code in (0, 2), (verb[0], done.output, done.exception)
        assert "trust_remote_code" not in done.output
        assert not marker.exists(), f"{verb[0]} ran what was hidden in {kind}"
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("kind", [*KINDS, "clip/config.json", "clip/preprocessor_config.json"])
def test_import_reads_a_checkpoint_and_runs_nothing_of_it(tmp_path, mvlm, says_yes, kind):
    marker, checkpoint = tmp_path / "marker", tmp_path / "checkpoint"
    write_original(checkpoint, stock_llava(ROWS))
    byte_words().save_pretrained(checkpoint)
    inside = checkpoint / "clip" if kind.startswith("clip/") else checkpoint
    plant(inside, kind.removeprefix("clip/"), marker)
    done = mvlm("import", checkpoint, "--out", tmp_path / "run")
    assert done.exit_code in (0, 2), (done.output, done.exception)
    assert not marker.exists(), f"import ran what was hidden in {kind}"


@pytest.mark.parametrize("part", ["vision", "text"])
def test_training_from_a_folder_of_weights(tmp_path, mvlm, scenes, says_yes, part):
    marker, folder = tmp_path / "marker", tmp_path / "evil"
    folder.mkdir()
    plant(folder, "config.json", marker)
    done = mvlm("train", scenes.parent / "train.yaml", f"model.{part}={{name: {folder}}}", "--out", tmp_path / "run")
    assert done.exit_code == 2, (done.output, done.exception)
    assert not marker.exists()


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(("template", "says"), [(LOOPS, "does not end within 0.2 s"), ("{{ 1 // 0 }}", "by zero")])
def test_a_template_that_loops_or_breaks(made, tmp_path, mvlm, monkeypatch, template, says):
    monkeypatch.setattr(template_limits.template_errors.__wrapped__, "__defaults__", (0.2,))
    run = shutil.copytree(made.run, tmp_path / "run")
    (run / "chat_template.jinja").write_text(template)
    for verb in verbs(made, run, tmp_path)[:2]:
        done = mvlm(*verb)
        assert done.exit_code == 2, (done.output, done.exception)
        assert says in done.output


def test_outside_a_main_thread_a_template_is_not_timed():
    said = []
    thread = threading.Thread(target=lambda: said.append(tiny_processor().ask("what?")))
    thread.start()
    thread.join()
    assert "what?" in said[0]
