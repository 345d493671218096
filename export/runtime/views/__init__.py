"""What of a picture a model is shown: overview and tiles, their pixels, and what stands for them in the prompt.

One description (`ViewSpec`), without torch, which training, labelling and the device share and a model folder carries.
"""

from .cutting import OVERVIEW, Canvas, ClosestAspect, LongestEdge, Pinpoints, Size, View, Whole
from .pixels import view_pixels
from .scale import NATIVE, Scale, parse_words
from .shown import NEWLINE, Shown, Stitch, joined
from .spec import Marks, Stitching, ViewSpec

__all__ = [
    "NATIVE", "NEWLINE", "OVERVIEW", "Canvas", "ClosestAspect", "LongestEdge", "Marks", "Pinpoints", "Scale", "Shown",
    "Size", "Stitch", "Stitching", "View", "ViewSpec", "Whole", "joined", "parse_words", "view_pixels",
]  # fmt: skip
