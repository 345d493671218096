"""Pixels -> model input: the only preprocessing in the project, used in training and on the device."""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from .errors import MvlmError

Picture = Image.Image | NDArray[np.uint8] | bytes | str | Path
Order = Literal["rgb", "bgr"]
MAX_PIXELS = 64_000_000
# Formats that are pixels and nothing else: no program is called, and no page is drawn, to read them.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_LARGEST_SHRINK = 64
_LONGEST_NAME = 200
_MOST_SIDE = 16_384
_FITS = ("stretch", "crop", "pad")
_ORIENTATION = 0x0112  # of EXIF
_SWITCHING = threading.Lock()
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes the tower's input.

    `fit` says what happens to a picture that is not square: `stretch` it, `crop` its centre, or `pad` it to a square
    with the mean colour (LLaVA-1.5). `resample` is the filter that resizes it: CLIP's cubic one, or SigLIP 2's linear.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    resample: Literal["bicubic", "bilinear"] = "bicubic"

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ImageSpec:
        resample = value.get("resample", "bicubic")
        if resample not in FILTERS:
            raise MvlmError(f"pictures are to be resized by {resample!r}, and only by {', '.join(FILTERS)} they can be")
        size_px, (mean, std) = value["size_px"], (_channels(value[name]) for name in ("mean", "std"))
        if not isinstance(size_px, int) or not 1 <= size_px <= _MOST_SIDE or value["fit"] not in _FITS or 0 in std:
            raise MvlmError(f"pictures of {size_px!r} pixels, fit {value['fit']!r}, std {std} are not made here")
        return cls(size_px, mean, std, value["fit"], resample)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _channels(value: Any) -> tuple[float, float, float]:
    red, green, blue = (float(channel) for channel in value)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError("a mean or deviation that is not finite")
    return red, green, blue


def open_picture(
    picture: Picture, *, name: str = "the picture", order: Order = "rgb", most_pixels: int | None = None,
    on_white: bool = False,
) -> Image.Image:  # fmt: skip
    """Read a PIL picture, an array (H, W, 3) uint8 with its channels in `order`, encoded bytes or a file: upright, RGB.

    What is transparent lies on white where `on_white` says so, as transformers has it, and else shows the colours that
    are stored behind it.

    Raises `MvlmError` when there is no such file, when it is no picture, or when it has more than
    `most_pixels` (`MAX_PIXELS` unless named).
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture, name, order)
    if isinstance(picture, str | Path):
        name = str(picture) if str(picture).isprintable() else repr(str(picture))
        if not os.path.isfile(picture):  # False for names that no file can have, too
            raise MvlmError(f"there is no picture {_short(name)}: check the path", code="no-picture")
    elif not isinstance(picture, Image.Image | bytes):
        raise MvlmError(
            f"{name} is a {type(picture).__name__}: give a path, bytes, a PIL picture or an array", code="bad-picture"
        )
    try:
        if isinstance(picture, Image.Image):
            return _upright_rgb(picture, name, most_pixels or MAX_PIXELS, on_white)
        source = io.BytesIO(picture) if isinstance(picture, bytes) else picture
        with _whole_files_only(), Image.open(source, formats=_FORMATS) as opened:
            return _upright_rgb(opened, name, most_pixels or MAX_PIXELS, on_white)
    except MvlmError:
        raise
    except UnidentifiedImageError:
        raise MvlmError(
            f"{name} cannot be read as a picture (it is none of {', '.join(_FORMATS)}): save it anew",
            code="bad-picture",
        ) from None
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        reason = (str(error).split("\n")[0] or type(error).__name__)[:120]
        raise MvlmError(f"{name} cannot be read as a picture ({reason}): save it anew", code="bad-picture") from None


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """PIL fills what a cut file lacks with grey where a library of the same process has asked it to: not here."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _SWITCHING:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


def _short(name: str) -> str:
    """A name for a message: a picture's bytes or base64 that are given as a path can be long."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}... ({len(name)} characters)"


def _from_array(picture: NDArray[np.uint8], name: str, order: Order) -> Image.Image:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise MvlmError(
            f"{name} has shape {picture.shape} and type {picture.dtype}: give (H, W, 3) uint8, RGB", code="bad-picture"
        )
    if order not in get_args(Order):
        raise MvlmError(f"there is no order of channels {order!r}: name rgb or bgr", code="bad-option")
    return Image.fromarray(picture if order == "rgb" else np.ascontiguousarray(picture[:, :, ::-1]))


def _upright_rgb(picture: Image.Image, name: str, most_pixels: int, on_white: bool) -> Image.Image:
    width, height = picture.size
    if width * height > most_pixels:
        raise MvlmError(f"{name} has {width} x {height} pixels: at most {most_pixels} are read", code="bad-picture")
    # PIL opens 16-bit PGM files, and scales them to 16 bits, as whole numbers of 32.
    is_grey_16 = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM")
    if picture.mode in ("I", "F") and not is_grey_16:
        raise MvlmError(f"{name} has 32 bits a pixel: save it with 8 or 16", code="bad-picture")
    require_shape(picture)
    if picture.getexif().get(_ORIENTATION, 1) != 1:  # only then: each step here copies all pixels
        picture = ImageOps.exif_transpose(picture)
    if is_grey_16:  # PIL clips it instead of scaling it
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if on_white and ("A" in picture.getbands() or picture.info.get("transparency") is not None):
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    if picture.mode != "RGB":
        return picture.convert("RGB")
    picture.load()  # while its file is open
    return picture


def require_shape(image: Image.Image) -> None:
    """Raise `MvlmError` for a picture that is a line rather than a picture."""
    if max(image.size) > _LARGEST_SHRINK * max(min(image.size), 1):
        raise MvlmError(
            f"the picture is {image.size[0]} x {image.size[1]}: too narrow to make sense of", code="bad-picture"
        )


def preprocess(picture: Picture, spec: ImageSpec, order: Order = "rgb") -> NDArray[np.float32]:
    """One picture as the vision tower takes it: (3, size_px, size_px) float32, normalised."""
    image = _squared(open_picture(picture, order=order), spec)
    if image.size != (spec.size_px, spec.size_px):
        image = image.resize((spec.size_px, spec.size_px), FILTERS[spec.resample])
    scaled = np.asarray(image, np.float32) * np.float32(1 / 255)  # (size_px, size_px, 3)
    normalised = (scaled - np.asarray(spec.mean, np.float32)) / np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))  # (3, size_px, size_px)


def _squared(image: Image.Image, spec: ImageSpec) -> Image.Image:
    require_shape(image)
    side = min(image.size)
    if spec.fit == "stretch" or image.size[0] == image.size[1]:
        return image
    if spec.fit == "crop":
        return ImageOps.fit(image, (side, side), method=FILTERS[spec.resample])
    colour = tuple(int(255 * channel) for channel in spec.mean)  # rounded down, as LLaVA does
    return ImageOps.pad(image, (max(image.size),) * 2, color=colour)
