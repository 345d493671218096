"""A figure knows which code it measured, and is stale when another stands there."""

import json

import pytest

from benchmarks import code, figures, machine, stale
from benchmarks.code import code_sha256, is_stale, module_of

FILES = {
    "benchmarks/__init__.py": "",
    "benchmarks/speed.py": "from mvlm_core import model\n\n\ndef main():\n    from . import clock\n    return clock, model\n",  # noqa: E501
    "benchmarks/clock.py": "TICKS = 1\n",
    "benchmarks/other.py": "UNRELATED = 1\n",
    "mvlm_core/__init__.py": "",
    "mvlm_core/model.py": 'from .parts import part\n\nVERB = "mvlm_core.verbs:train"\n',
    "mvlm_core/parts.py": '"""Parts."""\n\n\ndef part():\n    """One."""\n    return 1\n',
    "mvlm_core/verbs.py": "import json\n\nTRAIN = json\n",
    "mvlm_core/recipe.yaml": "steps: 3\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def changed(root, name: str, old: str, new: str) -> bool:
    before = code_sha256("benchmarks.speed", root)
    text = (root / name).read_text()
    assert old in text
    (root / name).write_text(text.replace(old, new))
    code_sha256.cache_clear()
    return code_sha256("benchmarks.speed", root) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("benchmarks/speed.py", "return clock, model", "return model, clock"),
        ("benchmarks/clock.py", "1", "2"),  # imported inside a function, from its own package
        ("mvlm_core/parts.py", "return 1", "return 2"),  # what an import imports
        ("mvlm_core/verbs.py", "TRAIN", "TRAINED"),  # named as package.module:command
        ("mvlm_core/__init__.py", "", "X = 1"),
        ("mvlm_core/recipe.yaml", "3", "4"),
    ],
)
def test_what_a_figure_measures_counts(root, name, old, new):
    assert changed(root, name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("benchmarks/other.py", "1", "2"),
        ("mvlm_core/parts.py", '"""One."""', '"""The one."""'),
        ("mvlm_core/parts.py", "    return 1", "    # why\n    return 1"),
    ],
    ids=["another module", "a docstring", "a comment"],
)
def test_what_it_does_not_measure_and_what_is_said_do_not(root, name, old, new):
    assert not changed(root, name, old, new)


def test_the_module_of_a_command():
    assert module_of("python -m benchmarks.decode.step_profile --size 1") == "benchmarks.decode.step_profile"
    assert module_of("python -m benchmarks.gpu --stage fast") == "benchmarks.gpu.fast"
    assert module_of("mvlm demo") is None


def test_a_figure_is_stale_when_the_code_is_another_or_not_known(monkeypatch):
    command = "python -m benchmarks.train.step"
    assert not is_stale({"command": command, "code": code_sha256("benchmarks.train.step")})
    assert is_stale({"command": command, "code": "another"})
    assert is_stale({"command": command})
    assert is_stale({"command": "make demo", "code": code_sha256("benchmarks.train.step")})


def test_what_is_kept_says_its_code_and_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    file = machine.keep("novel", "python -m benchmarks.train.step --size tiny", ratio=2.0)
    facts = json.loads(file.read_text())
    assert facts["code"] == code_sha256("benchmarks.train.step")
    assert facts["took_s"] >= 0
    assert figures.when(facts) == facts["date"]
    (tmp_path / "old.json").write_text(json.dumps({**facts, "measured": "old", "code": "another"}))
    lines = stale.listed(tmp_path)
    assert [line.split()[0] for line in lines] == ["stale", "fresh", "1"]
    assert figures.when(figures.read(tmp_path / "old.json")) == f"{facts['date']}, stale"
    assert figures.unmarked(f"on {facts['date']}, stale") == f"on {facts['date']}"


def test_every_benchmark_of_the_results_is_a_module_here():
    for file in figures.RESULTS.glob("*.json"):
        module = module_of(figures.read(file)["command"])
        assert module, file
        places = [code.ROOT.joinpath(*module.split(".")), code.ROOT.joinpath(*module.split(".")).with_suffix(".py")]
        assert any(place.exists() for place in places), file
