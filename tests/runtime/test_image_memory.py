"""What a picture takes while it is opened: measured in a process of its own, since peaks do not go down."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
MEASURE = """
import sys
import numpy
from export.runtime.errors import MvlmError
from export.runtime.image import ImageSpec, open_picture, preprocess
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
data = sys.stdin.buffer.read()
before = peak()
try:
    preprocess(open_picture(data), ImageSpec(336, (0.5,) * 3, (0.5,) * 3, sys.argv[1]))
except MvlmError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def taken_mib(picture: Image.Image, kind: str, fit: str = "stretch") -> tuple[float, str]:
    """MiB on top of what stood before, and what was refused."""
    picture.save(file := io.BytesIO(), kind, **({"quality": 1, "method": 0} if kind == "WEBP" else {}))
    run = subprocess.run([sys.executable, "-c", MEASURE, fit], input=file.getvalue(), capture_output=True, cwd=ROOT)
    return float(run.stdout), run.stderr.decode()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc")
@pytest.mark.parametrize(("kind", "most"), [("WEBP", 540), ("PNG", 300), ("JPEG", 300)])
def test_a_picture_of_32_megapixels_is_held_about_once(kind, most):
    """As pixels it is 128 MiB; the decoder of WebP holds it three times more."""
    taken, refused = taken_mib(Image.new("RGB", (8000, 4000), (200, 30, 30)), kind)
    assert refused == ""
    assert 100 < taken < most


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system has no /proc")
def test_a_line_is_refused_before_it_is_decoded():
    taken, refused = taken_mib(Image.new("RGB", (60_000, 900)), "PNG")
    assert "too narrow" in refused
    assert taken < 20
