"""The only preprocessing of the project: what it reads, and what it refuses in one line."""

import io

import numpy as np
import pytest
from PIL import Image

from export.runtime import image
from export.runtime.errors import MvlmError
from export.runtime.image import ImageSpec, open_picture, preprocess
from tests.support.tiny import drawn_picture

SPEC = ImageSpec(96, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_form_of_a_picture_is_the_same_picture(tmp_path):
    picture = drawn_picture()
    picture.save(tmp_path / "p.png")
    wanted = preprocess(picture, SPEC)
    assert wanted.shape == (3, 96, 96)
    assert wanted.dtype == np.float32
    for form in (np.asarray(picture), encoded(picture), tmp_path / "p.png", str(tmp_path / "p.png")):
        assert np.array_equal(preprocess(form, SPEC), wanted)


def test_values_are_normalised():
    red = preprocess(Image.new("RGB", (10, 10), (255, 0, 0)), SPEC)
    assert np.allclose(red[:, 0, 0], [(1 - 0.5) / 0.2, -0.4 / 0.2, -0.3 / 0.2], atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1"])
def test_modes_are_converted(mode):
    assert open_picture(drawn_picture().convert(mode)).mode == "RGB"


def test_sixteen_bits_are_scaled_not_clipped():
    grey = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert np.asarray(open_picture(encoded(grey)))[0, 0, 0] == 0x80


def test_exif_turns_the_picture_upright():
    picture = Image.new("RGB", (20, 10))
    turned = picture.getexif()
    turned[0x0112] = 6
    assert open_picture(encoded(picture, "JPEG", exif=turned)).size == (10, 20)


def test_fits():
    wide = Image.new("RGB", (40, 20), (255, 255, 255))
    padded = preprocess(wide, ImageSpec(40, (0.5,) * 3, (0.5,) * 3, "pad"))
    assert padded[0, 0, 0] == pytest.approx((127 / 255 - 0.5) / 0.5, abs=1e-6)  # the mean colour, rounded down
    assert padded[0, 20, 20] == pytest.approx(1)
    assert preprocess(wide, ImageSpec(20, (0.5,) * 3, (0.5,) * 3, "crop")).min() == pytest.approx(1)


def test_what_is_refused(tmp_path, monkeypatch):
    with pytest.raises(MvlmError, match="there is no picture"):
        open_picture(tmp_path / "absent.png")
    with pytest.raises(MvlmError, match="cannot be read as a picture"):
        open_picture(b"not a picture")
    with pytest.raises(MvlmError, match="cannot be read as a picture"):
        open_picture(encoded(drawn_picture())[:200])
    with pytest.raises(MvlmError, match=r"give \(H, W, 3\) uint8"):
        open_picture(np.zeros((4, 4), np.uint8))
    with pytest.raises(MvlmError, match="too narrow"):
        preprocess(Image.new("RGB", (1000, 2)), SPEC)
    monkeypatch.setattr(image, "MAX_PIXELS", 10)
    with pytest.raises(MvlmError, match="at most 10 are read"):
        open_picture(drawn_picture())


def test_spec_survives_json():
    assert ImageSpec.from_json(SPEC.to_json()) == SPEC
