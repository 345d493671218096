"""Which versions are installed: the lock that people start from, and the two ends of what `pyproject.toml` allows.

    python requirements/resolve.py lock              # renew lock.txt and torch.txt, and say what changed
    python requirements/resolve.py lowest out.txt    # the oldest versions within the bounds
    python requirements/resolve.py newest out.txt    # the newest that the registry has, past the upper bounds

torch stands in a file of its own, without hashes: its build for CPUs and the registry's, for CUDA, are one version and
differ in theirs. Both ends are tried with the locked torch, as another one may be gigabytes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import uv
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
PYPROJECT, LOCK, TORCH, HELD_BACK = (
    HERE.parent / "pyproject.toml", HERE / "lock.txt", HERE / "torch.txt", HERE / "held_back.txt"
)  # fmt: skip
# Beside what pyproject.toml names: lmms-eval without what it names itself (uv.toml), and for the ends what tests need.
_BESIDE = "lmms-eval==0.7.3\n"
_OF_TESTS = _BESIDE + "pytest>=8\n"
_PINNED = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.MULTILINE)


def pins(text: str) -> dict[str, list[str]]:
    """Package -> the versions that a requirements file pins, several where Pythons differ."""
    found: dict[str, list[str]] = {}
    for name, version in _PINNED.findall(text):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def changes(old: dict[str, list[str]], new: dict[str, list[str]]) -> list[str]:
    """What a person wants to know of a renewed lock, a line for each package that differs."""
    told = []
    for name in sorted(old.keys() | new.keys()):
        before, after = (", ".join(lock.get(name, ["none"])) for lock in (old, new))
        if before != after:
            told.append(f"{name}: {before} -> {after}")
    return told


def without_upper_bounds(pyproject: Path = PYPROJECT) -> list[str]:
    """The requirements of the extra `all`, whatever is newer allowed, but for torch."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras, found, wanted = project["optional-dependencies"], [], ["mvlm[all]", *project["dependencies"]]
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement.name == project["name"]:
            wanted += [line for extra in requirement.extras for line in extras[extra]]
            continue
        if requirement.name != "torch":
            kept = [bound for bound in requirement.specifier if bound.operator not in ("<", "<=")]
            requirement.specifier = SpecifierSet(",".join(map(str, kept)))
        found.append(str(requirement))
    return sorted(set(found))


def held_back(file: Path = HELD_BACK) -> dict[str, str]:
    """What the newest set leaves out -> why. Raises `ValueError` for a line that gives no reason."""
    told = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            requirement, _, reason = line.partition("#")
            if not reason.strip():
                raise ValueError(f"{file.name}: {line!r} gives no reason: write it behind a #")
            told[requirement.strip()] = reason.strip()
    return told


def compiled(requirements: str, *arguments: str) -> str:
    """What uv makes of requirements. Ends the program where nothing fits together, with uv's own words."""
    command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--no-header", "--config-file", str(HERE / "uv.toml"),
               "--python", sys.executable, *arguments, "-"]  # fmt: skip
    done = subprocess.run(command, input=requirements, capture_output=True, text=True, cwd=HERE.parent)
    if done.returncode:
        sys.exit(f"no versions fit together:\n{done.stderr}")
    return done.stdout


def part_torch(text: str) -> tuple[str, str]:
    """A compiled file without torch, and the line that pins torch."""
    blocks = re.split(r"^(?=\S)", text, flags=re.MULTILINE)
    torch = [block for block in blocks if block.startswith("torch==")]
    return "".join(block for block in blocks if block not in torch), f"torch=={pins(''.join(torch))['torch'][0]}\n"


def locked_versions() -> dict[str, list[str]]:
    return pins("".join(file.read_text(encoding="utf-8") for file in (LOCK, TORCH) if file.exists()))


def lock() -> None:
    old = locked_versions()
    text = compiled(_BESIDE, "--universal", "--python-version", "3.11", "--generate-hashes", "--upgrade",
                    "--no-annotate", "pyproject.toml", "--extra", "dev")  # fmt: skip
    locked, torch = part_torch(text)
    LOCK.write_text(
        "# Made by `make lock`: Python 3.11 to 3.13, Linux. torch is in torch.txt.\n" + locked, encoding="utf-8"
    )
    TORCH.write_text(torch, encoding="utf-8")
    told = changes(old, pins(locked) | pins(torch))
    print("\n".join(told) or "nothing changed")


def end(which: str, out: Path) -> None:
    if which == "lowest":
        text = compiled(_OF_TESTS, "--resolution", "lowest-direct", "pyproject.toml", "--extra", "all")
    else:
        for requirement, reason in held_back().items():
            print(f"HELD BACK from the newest versions: {requirement}, as {reason}")
        wanted = "\n".join(without_upper_bounds())
        text = compiled(_OF_TESTS + wanted, "--constraint", str(HELD_BACK))
        locked, newest = locked_versions(), pins(text)
        newer = {name: versions for name, versions in newest.items() if not set(versions) <= set(locked.get(name, []))}
        print("newer than the lock:", *changes({name: locked.get(name, []) for name in newer}, newer), sep="\n  ")
    out.write_text(part_torch(text)[0], encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "lock":
        lock()
    else:
        end(sys.argv[1], Path(sys.argv[2]))
