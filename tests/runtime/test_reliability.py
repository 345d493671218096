"""Broken pictures, broken bundles and many questions: one line each, nothing left behind."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from export.runtime import MvlmError, Runtime
from tests.runtime.test_manifest import edit, reseal
from tests.support.bundles import Made, pool_bundle
from tests.support.tiny import QUESTIONS, drawn_picture

QUESTION = QUESTIONS[0]
LARGEST_MIB = 400  # what a picture of as many pixels as are read may take on its way, several times over


@pytest.fixture(scope="module")
def made() -> Made:
    return pool_bundle()


@pytest.fixture(scope="module")
def runtime(made) -> Runtime:
    return Runtime.load(made.bundle, threads=1)


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    picture.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def png_that_says(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 10_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def odd_pictures() -> dict[str, bytes]:
    """What cameras, editors and attackers send."""
    picture = drawn_picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "empty": b"", "no picture": b"hello", "a bomb": png_that_says(50_000, 50_000),
        "a bomb beneath PIL's limit": png_that_says(9_000, 9_000), "a line": png_that_says(20_000, 1),
        "one pixel": encoded(Image.new("RGB", (1, 1)), "PNG"),
        "animated": encoded(picture, "GIF", save_all=True, append_images=[drawn_picture(1)]),
        "CMYK": encoded(picture.convert("CMYK"), "JPEG"), "CMYK TIFF": encoded(picture.convert("CMYK"), "TIFF"),
        "16 bit": encoded(Image.fromarray(np.full((40, 40), 40_000, np.uint16)), "PNG"),
        "32 bit": encoded(Image.fromarray(np.full((40, 40), 0.5, np.float32)), "TIFF"),
        "one bit": encoded(picture.convert("1"), "PNG"), "palette": encoded(picture.convert("P"), "PNG"),
        "alpha": encoded(picture.convert("RGBA"), "PNG"), "grey alpha": encoded(picture.convert("LA"), "PNG"),
        "turned": encoded(picture, "JPEG", exif=exif), "WebP": encoded(picture, "WEBP"),
        "a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PDF": b"%PDF-1.4\n", "SVG": b"<svg/>",
    }  # fmt: skip


def malformed(count: int) -> list[bytes]:
    """Real pictures in every format, cut short or with bytes changed."""
    chance = random.Random(0)
    whole = [encoded(drawn_picture(i), kind) for i, kind in enumerate(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])]
    pictures = []
    for number in range(count):
        data = bytearray(whole[number % len(whole)])
        if number % 2:
            data = data[: chance.randrange(len(data))]
        for _ in range(chance.randrange(1, 30)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        pictures.append(bytes(data))
    return pictures


def peak_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def test_two_hundred_malformed_pictures_are_answered_or_refused_in_one_line(runtime):
    pictures = [*odd_pictures().values(), *malformed(200)]
    before, refused = peak_mib(), []
    for picture in pictures:
        try:
            runtime.ask(picture, QUESTION, 1, max_new_tokens=1)
        except MvlmError as error:
            refused.append(error)
    assert peak_mib() - before < LARGEST_MIB
    assert {error.code for error in refused} == {"bad-picture"}
    assert not any("\n" in str(error) for error in refused)
    assert 40 < len(refused) < len(pictures) - 20  # both ways are tried


@pytest.mark.parametrize(
    ("name", "answered"),
    [("a bomb", False), ("a line", False), ("empty", False), ("a program", False), ("PDF", False), ("SVG", False),
     ("animated", True), ("CMYK", True), ("16 bit", True), ("one pixel", True), ("alpha", True), ("turned", True)],
)  # fmt: skip
def test_what_becomes_of(runtime, name, answered):
    if answered:
        runtime.ask(odd_pictures()[name], QUESTION, 1, max_new_tokens=1)
    else:
        with pytest.raises(MvlmError):
            runtime.look(odd_pictures()[name])


@pytest.mark.parametrize("picture", [None, 3, [1], np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8), "a\0b", "a\nb"])
def test_things_that_are_no_picture(runtime, picture):
    with pytest.raises(MvlmError) as caught:
        runtime.look(picture)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [3, None, b"bundle"])
def test_things_that_are_no_bundle(path):
    with pytest.raises(MvlmError, match="no path of a bundle"):
        Runtime.load(path)


# Bundles

REGIONS = 12


def test_a_byte_flipped_in_any_region_of_any_file_is_refused(made, tmp_path):
    bundle = shutil.copytree(made.bundle, tmp_path / "bundle")
    for file in sorted(bundle.iterdir()):
        data = file.read_bytes()
        for region in range(REGIONS):
            at = (2 * region + 1) * len(data) // (2 * REGIONS)
            while file.suffix == ".json" and chr(data[at]).isspace():  # white space between JSON values means nothing
                at += 1
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(MvlmError) as caught:
                Runtime.load(bundle)
            assert "\n" not in str(caught.value), file.name
        file.write_bytes(data)
    Runtime.load(bundle)


@pytest.fixture
def bundle(made, tmp_path):
    return shutil.copytree(made.bundle, tmp_path / "bundle")


def refused(bundle) -> str:
    with pytest.raises(MvlmError) as caught:
        Runtime.load(bundle)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_description_nested_ten_thousand_deep(bundle):
    (bundle / "bundle.json").write_text("[" * 10_000 + "]" * 10_000)
    assert "not valid JSON" in refused(bundle)


def test_a_tokenizer_with_a_giant_regex(bundle):
    tokenizer = json.loads((bundle / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": "(a|" * 200_000 + ")" * 200_000}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    (bundle / "tokenizer.json").write_text(json.dumps(tokenizer))
    reseal(bundle, "tokenizer.json")
    assert "no tokenizer" in refused(bundle)


@pytest.mark.parametrize("name", ["tokenizer", "embedding", "vision"])
def test_a_name_that_leads_out_of_the_bundle(bundle, name):
    (bundle.parent / "secret").write_bytes(b"x" * 10**6)

    def change(value) -> None:
        if name == "tokenizer":
            value["tokenizer"] = "../secret"
        elif name == "embedding":
            value["embedding"]["file"] = "../secret"
        else:
            value["graphs"]["vision"]["file"] = "../secret"

    edit(bundle, change)
    assert "no hash for ../secret" in refused(bundle)


def test_a_graph_whose_weights_lie_outside(bundle):
    """The weights' place stands in the graph itself, where no manifest sees it."""
    import onnx

    (bundle.parent / "secret.bin").write_bytes(b"x" * 10**6)
    graph = onnx.load(bundle / "vision.onnx", load_external_data=False)
    moved = 0
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value, moved = "../secret.bin", moved + 1
    assert moved
    onnx.save(graph, bundle / "vision.onnx")
    reseal(bundle, "vision.onnx")
    assert "vision.onnx reads ../secret.bin, which bundle.json gives no hash for" in refused(bundle)


# Long use


def test_ten_thousand_questions_leave_memory_where_it_was(runtime, made):
    """A step of a tiny model is short, so the questions are real ones; the first thousand warm everything up."""

    def resident_mib() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    view = runtime.look(made.picture(0))
    sizes = []
    for number in range(10_000):
        view.ask(QUESTIONS[number % len(QUESTIONS)], (1, 4)[number % 2], max_new_tokens=1)
        if number % 1000 == 999:
            sizes.append(resident_mib())
    assert sizes[-1] - sizes[1] < 8
