"""Pictures that a data set ought not to hold: each is read as a person would see it, or refused in one line."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from mvlm_core.data.reading import read_rows
from tests.support.tiny import SIZE_PX, drawn_picture, tiny_processor

DRAWN = np.asarray(drawn_picture())
_CHUNKS = b"\x89PNG\r\n\x1a\n"


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(size: tuple[int, int], bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG written chunk by chunk, as PIL writes no 16-bit colours and should not make 20000 x 20000 pixels here."""

    def chunk(kind: bytes, held: bytes) -> bytes:
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    header = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    return _CHUNKS + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def sixteen_bits_in_colour() -> bytes:
    wide = (DRAWN.astype(np.uint16) << 8) + 77
    return png((SIZE_PX, SIZE_PX), 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide))


def sixteen_bits_of_grey(**options) -> bytes:
    wide = (np.asarray(drawn_picture().convert("L")).astype(np.uint16) << 8) + 77
    return encoded(Image.fromarray(wide), **options)


def animated(kind: str) -> Callable[[], bytes]:
    later = [Image.new("RGB", (SIZE_PX, SIZE_PX), colour) for colour in ("red", "blue")]
    return lambda: encoded(drawn_picture(), kind, save_all=True, append_images=later, duration=9, lossless=True)


def turned(orientation: int, kind: str = "PNG") -> Callable[[], bytes]:
    def write() -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return encoded(drawn_picture(), kind, exif=exif)

    return write


def cmyk() -> Image.Image:
    """The drawn picture in inks: what is not red is cyan, and so on."""
    return Image.merge("CMYK", [*Image.fromarray(255 - DRAWN).split(), Image.new("L", (SIZE_PX, SIZE_PX))])


GREY = np.repeat(np.asarray(drawn_picture().convert("L"))[:, :, None], 3, 2)
# How a camera held so stores what is DRAWN when it is turned back: EXIF's eight orientations.
UPRIGHT = {
    1: DRAWN, 2: DRAWN[:, ::-1], 3: DRAWN[::-1, ::-1], 4: DRAWN[::-1], 5: DRAWN.transpose(1, 0, 2),
    6: np.rot90(DRAWN, -1), 7: DRAWN[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(DRAWN),
}  # fmt: skip

# What is written, what a person sees, and by how much a lossy file may differ.
READ = {
    "1 x 1": (lambda: encoded(Image.new("RGB", (1, 1), (9, 99, 199))), np.full_like(DRAWN, (9, 99, 199)), 0),
    "an animated GIF": (lambda: animated("GIF")(), np.asarray(drawn_picture().quantize().convert("RGB")), 0),
    "an animated PNG": (animated("PNG"), DRAWN, 0),
    "an animated WebP": (animated("WEBP"), DRAWN, 0),
    "CMYK TIFF": (lambda: encoded(cmyk(), "TIFF"), DRAWN, 1),
    "CMYK JPEG": (lambda: encoded(cmyk(), "JPEG", quality=100, subsampling=0), DRAWN, 8),
    "16 bits of grey": (sixteen_bits_of_grey, GREY, 0),
    "16 bits in colour": (sixteen_bits_in_colour, DRAWN, 0),
    "16 bits of grey in a TIFF": (lambda: sixteen_bits_of_grey(kind="TIFF"), GREY, 0),
    "16 bits of grey in a PGM": (lambda: sixteen_bits_of_grey(kind="PPM"), GREY, 0),
    **{f"EXIF orientation {n}": (turned(n), UPRIGHT[n], 0) for n in UPRIGHT},
    "EXIF orientation 6 in a JPEG": (turned(6, "JPEG"), UPRIGHT[6], None),
}

REFUSED = {
    "0 bytes": (lambda: b"", "cannot be read as a picture"),
    "no picture": (lambda: b"<html>404</html>", "cannot be read as a picture"),
    "cut short": (lambda: encoded(drawn_picture())[:300], "cannot be read as a picture"),
    "20000 x 20000": (
        lambda: png((20_000, 20_000), 1, 0, bytes(2501) * 20_000), "cannot be read as a picture|at most 64000000"
    ),
    "10000 x 10000": (lambda: png((10_000, 10_000), 1, 0, bytes(1251) * 10_000), "has 10000 x 10000 pixels: at most"),
    "a line": (lambda: encoded(Image.new("L", (1000, 2))), "1000 x 2: too narrow"),
    "32 bits of grey": (lambda: encoded(Image.new("F", (9, 9), 0.5), "TIFF"), "32 bits a pixel"),
}  # fmt: skip


def rows_about(folder: Path, held: bytes) -> Path:
    (folder / "p.img").write_bytes(held)
    drawn_picture(5).save(folder / "good.png")
    lines = [{"id": name, "image": file, "question": "what?", "answers": ["it"]}
             for name, file in (("bad", "p.img"), ("good", "good.png"))]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("kind", READ)
def test_pictures_that_are_read_as_a_person_sees_them(tmp_path, mvlm, kind):
    write, wanted, most = READ[kind]
    folder = rows_about(tmp_path, write())
    assert mvlm("data", "check", folder).exit_code == 0
    processor = tiny_processor()
    pixels = processor.image_processor([read_rows(folder)[0].image.read()])["pixel_values"][0].numpy()
    seen = (pixels.transpose(1, 2, 0) * 0.5 + 0.5) * 255  # undoes the mean and the deviation of 0.5
    away = np.abs(seen - wanted)
    if most is None:  # JPEG blurs colours: by and large it must be the picture
        assert away.mean() < 4 < np.abs(seen - DRAWN).mean()
    else:
        assert away.max() <= most + 0.01


@pytest.mark.parametrize("kind", REFUSED)
def test_pictures_that_are_refused_in_one_line(tmp_path, mvlm, kind):
    write, says = REFUSED[kind]
    result = mvlm("data", "check", rows_about(tmp_path, write()))
    assert result.exit_code == 1
    faults = [line for line in result.output.splitlines() if line.startswith("  id ")]
    assert len(faults) == 1
    assert faults[0].startswith(f"  id bad, {tmp_path / 'p.img'}: ")
    assert any(text in faults[0] for text in says.split("|")), faults[0]
    assert "Traceback" not in result.output


def test_a_library_that_has_cut_files_filled_with_grey_changes_nothing_here(tmp_path, mvlm, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as lmms-eval does when it is imported
    test_pictures_that_are_refused_in_one_line(tmp_path, mvlm, "cut short")
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("kind", ["20000 x 20000", "10000 x 10000"])
def test_a_picture_of_too_many_pixels_is_never_decoded(tmp_path, mvlm, monkeypatch, kind):
    def decode(*_):
        raise AssertionError("decoded")

    folder = rows_about(tmp_path, REFUSED[kind][0]())
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    (tmp_path / "good.png").unlink()
    lines = (folder / "rows.jsonl").read_text().splitlines()[:1]
    (folder / "rows.jsonl").write_text(lines[0])
    assert "decoded" not in mvlm("data", "check", folder).output


def test_sixteen_bits_are_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = rows_about(tmp_path, sixteen_bits_of_grey(exif=exif))
    pixels = tiny_processor().image_processor([read_rows(folder)[0].image.read()])["pixel_values"][0]
    seen = (pixels.numpy().transpose(1, 2, 0) * 0.5 + 0.5) * 255
    assert np.abs(seen - np.rot90(GREY, -1)).max() < 0.01
