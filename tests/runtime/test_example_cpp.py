"""The C++ example, built by CMake where onnxruntime's headers are, against Python's runtime on the same bundles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from export.runtime import Runtime
from tests.support.bundles import Made, pool_bundle, query_bundle
from tests.support.tiny import SIZE_PX

SOURCE = Path(__file__).parents[2] / "examples" / "cpp"
QUESTIONS = ("what colour is the star?", "is it day  or night? it's 2047!", " I'd say\n 12, <image> or _x_")
LONGEST = 12


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    """The example, built; without what it needs the tests of it are skipped."""
    if not shutil.which("cmake") or not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("no cmake, or no C++ compiler")
    root = Path(os.environ.get("ONNXRUNTIME_ROOT", "/usr"))
    if not next((path for path in (root / "include").rglob("onnxruntime_c_api.h")), None):
        pytest.skip("no onnxruntime_c_api.h: unpack a release of onnxruntime and name it in ONNXRUNTIME_ROOT")
    build = tmp_path_factory.mktemp("build")
    for command in (["-S", SOURCE, "-B", build, f"-DONNXRUNTIME_ROOT={root}"], ["--build", build]):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    return build / "answer"


def picture_of(made: Made, folder: Path) -> Path:
    file = folder / "picture.ppm"
    Image.open(made.picture(1)).convert("RGB").resize((SIZE_PX, SIZE_PX)).save(file)
    return file


def answered(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, errors="replace")


@pytest.mark.parametrize("make", [pool_bundle, query_bundle])
def test_answers_are_those_of_python(program, make, tmp_path):
    made = make()
    picture, runtime = picture_of(made, tmp_path), Runtime.load(made.bundle)
    lengths = set()
    for question in QUESTIONS:
        for scale in runtime.manifest.scales[-2:]:
            expected = runtime.ask(picture, question, scale, max_new_tokens=LONGEST)
            done = answered(program, made.bundle, picture, question, scale, LONGEST)
            assert done.returncode == 0, done.stderr
            assert [int(token) for token in done.stderr.split()[1:]] == list(expected.token_ids)
            if "\ufffd" not in expected.text:
                assert done.stdout.strip() == expected.text
            lengths.add(expected.token_ids)
    assert len(lengths) > 1


def without_merges_of_bytes(tokenizer: dict) -> None:
    tokenizer["model"]["type"] = "Unigram"


def with_a_normalizer(tokenizer: dict) -> None:
    tokenizer["normalizer"] = {"type": "NFC"}


def split_elsewhere(tokenizer: dict) -> None:
    tokenizer["pre_tokenizer"]["pretokenizers"][0] = {"type": "Punctuation", "behavior": "Isolated"}


@pytest.mark.parametrize("change", [without_merges_of_bytes, with_a_normalizer, split_elsewhere])
def test_another_tokenizer_is_refused(program, change, tmp_path):
    made = pool_bundle()
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    tokenizer = json.loads((bundle / "tokenizer.json").read_text())
    change(tokenizer)
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = answered(program, bundle, picture_of(made, tmp_path), QUESTIONS[0], 9)
    assert_refused(done, "is not read by this example")


def assert_refused(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert why in done.stderr


def test_what_is_wrong_is_said_in_one_line(program, tmp_path):
    made = pool_bundle()
    picture, question = picture_of(made, tmp_path), QUESTIONS[0]
    small, cut = tmp_path / "small.ppm", tmp_path / "cut.ppm"
    Image.new("RGB", (8, 9)).save(small)
    cut.write_bytes(picture.read_bytes()[:-1])
    broken = shutil.copytree(made.bundle, tmp_path / "bundle")
    (broken / "decoder.onnx").write_bytes(b"nothing")
    unread = shutil.copytree(made.bundle, tmp_path / "unread")
    (unread / "bundle.json").write_text('{"tokenizer": [1, 2')
    for arguments, why in (
        ((made.bundle, picture, question, 7), "no scale 7: name one of 1, 4, 9, 36, 144"),
        ((made.bundle, small, question, 9), f"8 x 9: resize it to {SIZE_PX} x {SIZE_PX}"),
        ((made.bundle, made.picture(0), question, 9), "no binary PPM"),
        ((made.bundle, cut, question, 9), "cut short"),
        ((made.bundle, picture, "où?", 9), "outside ASCII"),
        ((made.bundle, picture, question, 9, 0), "at least 1"),
        ((made.bundle, picture, question, 9, 4000), "ask in fewer words"),
        ((tmp_path / "none", picture, question, 9), "cannot be read"),
        ((unread, picture, question, 9), "is not valid JSON"),
        ((broken, picture, question, 9), "onnxruntime: "),
    ):
        assert_refused(answered(program, *arguments), why)
    assert "usage" in answered(program).stderr
