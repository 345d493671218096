"""What is pinned, what is allowed, and that both are the same set of packages (requirements/, pyproject.toml)."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_LOCKED = {"onnxruntime-gpu", "tensorrt", "bitsandbytes"}  # extras for a device that no test has


@pytest.fixture(scope="module")
def resolve():
    spec = importlib.util.spec_from_file_location("resolve", ROOT / "requirements" / "resolve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def locked(resolve) -> dict[str, list[str]]:
    return resolve.locked_versions()


def named(*extras: str) -> list[Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [one for one in map(Requirement, lines) if one.name != "mvlm"]


def over(version: str) -> set[str]:
    """The next minor release, and the next major one, as packages count that number their releases by the year."""
    major, minor = Version(version).release[:2]
    return {f"{major}.{minor + 1}", str(major + 1)}


def test_the_lock_holds_all_that_is_named_within_its_bounds(locked):
    for one in named(*EXTRAS):
        if one.name not in NOT_LOCKED:
            versions = locked[one.name.lower()]
            assert all(version in one.specifier for version in versions), (str(one), versions)


def test_bounds_end_behind_what_was_tested(locked):
    """An upper bound is the first release that no test has seen; a lower one is there."""
    for one in named(*(extra for extra in EXTRAS if extra != "dev")):
        bounds = {bound.operator: bound.version for bound in one.specifier}
        assert bounds.keys() == {">=", "<"}, f"{one}: a lower and an upper bound"
        if one.name not in NOT_LOCKED:
            assert bounds["<"] in over(max(locked[one.name.lower()], key=Version)), str(one)


def test_every_file_is_known_by_its_hash():
    text = (ROOT / "requirements" / "lock.txt").read_text()
    blocks = [block for block in re.split(r"^(?=[A-Za-z])", text, flags=re.MULTILINE) if "==" in block]
    assert len(blocks) > 100
    assert all("--hash=sha256:" in block for block in blocks)
    assert not re.search(r"^(nvidia|cuda|triton)", text, re.MULTILINE)


def test_what_changed_is_told(resolve):
    old = resolve.pins("a==1.0 \\\nb==2 ; python_full_version < '3.12' \\\nb==3 \\\nGone==1\n")
    new = resolve.pins("a==1.0\nb==2\nb==4\nnew-one==5\n")
    assert resolve.changes(old, new) == ["b: 2, 3 -> 2, 4", "gone: 1 -> none", "new-one: none -> 5"]


def test_the_newest_set_knows_no_upper_bound_but_torchs(resolve):
    wanted = {one.name: one for one in map(Requirement, resolve.without_upper_bounds())}
    assert {
        "transformers",
        "onnxruntime",
        "starlette",
        "scikit-learn",
        "lightgbm",
        "click",
        "filelock",
    } <= wanted.keys()
    upper = {name for name, one in wanted.items() if any(bound.operator.startswith("<") for bound in one.specifier)}
    assert upper == {"torch"}


def test_what_is_held_back_says_why(resolve, tmp_path):
    assert all(Requirement(one) for one in resolve.held_back())
    (tmp_path / "held.txt").write_text("filelock<4\n")
    with pytest.raises(ValueError, match="gives no reason"):
        resolve.held_back(tmp_path / "held.txt")


def test_a_set_that_does_not_fit_together_is_no_set(resolve):
    with pytest.raises(SystemExit, match="no versions fit together"):
        resolve.compiled("numpy<1.0\nnumpy>2\n", "--offline")
