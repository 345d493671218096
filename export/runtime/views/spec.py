"""A model's views as a description that its folder carries: how pictures are cut, normalised, marked and stitched."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from PIL import Image

from export.runtime.errors import MvlmError

from .clip_words import KINDS, ClipWords
from .cutting import OVERVIEW, Canvas, Rule, Size, View, Whole, rule_from_json, rule_to_json, tiles_of
from .scale import Scale, ScaleWord

FILTERS = tuple(name.lower() for name in Image.Resampling.__members__)


@dataclass(frozen=True)
class Marks:
    """What stands around a picture's placeholders in the prompt, as text.

    `none` puts nothing, `span` puts `start` and `end` around all of them (InternVL), `grid` puts `start` and a word
    for its place before every view, `start` behind the last, and line ends between rows (SmolVLM).
    """

    kind: Literal["none", "span", "grid"] = "none"
    start: str = ""
    end: str = ""
    overview: str = ""

    def around(self, canvas: Canvas | None, view_text: str) -> str:
        """The text of a picture, where `view_text` are the placeholders of a view."""
        if self.kind == "none":
            return view_text * (canvas.tiles + 1 if canvas else 1)
        if self.kind == "span":
            return self.start + view_text * (canvas.tiles + 1 if canvas else 1) + self.end
        whole = f"{self.start}{self.overview}{view_text}{self.start}"
        if canvas is None:
            return whole
        rows = [
            "".join(f"{self.start}<row_{row}_col_{col}>{view_text}" for col in range(1, canvas.cols + 1))
            for row in range(1, canvas.rows + 1)
        ]
        return "".join(f"{row}\n" for row in rows) + f"\n{whole}"


@dataclass(frozen=True)
class Stitching:
    """LLaVA-NeXT: the tiles' tokens become one grid, its padding is cut away, and a newline vector ends each row.

    `most_tiles` (LLaVA-OneVision's `anyres_max`) is for how many tiles' tokens the grid may hold before it is shrunk.
    """

    most_tiles: int | None = None


@dataclass(frozen=True)
class ViewSpec:
    """How a model sees a picture. All of a family's image processor that matters, and nothing else.

    Attributes:
        size_px: the side of a view.
        grid_side: of the square of tokens that a view makes by itself.
        rule: how tiles are cut.
        resample: the filter that resizes, by PIL's name.
        rescale, mean, std: of the pixels.
        overview_last: whether the tiles stand before the overview.
        image_token: the placeholder in the prompt.
        marks: what stands around the placeholders.
        stitching: how tokens of tiles are put together; None leaves them view by view.
        clip_words: what stands between the frames of a clip.
    """

    size_px: int
    grid_side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rule: Rule = Whole()  # noqa: RUF009 - frozen
    resample: str = "bicubic"
    rescale: float = 1 / 255
    overview_last: bool = False
    image_token: str = "<image>"
    marks: Marks = Marks()
    stitching: Stitching | None = None
    clip_words: ClipWords = "none"

    def __post_init__(self) -> None:
        if self.resample not in FILTERS:
            raise MvlmError(f"pictures are resized by {self.resample!r}, and there are only {', '.join(FILTERS)}")
        if self.clip_words not in KINDS:
            raise MvlmError(f"clips are told by {self.clip_words!r}, and there are only {', '.join(KINDS)}")

    def tokens(self, scale: Scale) -> int:
        """The tokens of a view at a scale."""
        return self.grid_side**2 if scale.tokens is None else scale.tokens

    def canvas(self, size: Size, scale: Scale) -> Canvas | None:
        """The tiles of a picture of (height, width) at a scale; None where the overview is all.

        Raises `MvlmError` for a scale with tiles when the model has none.
        """
        if scale.tiles == 0:
            return None
        if scale.tiles is None:
            return self.rule.native(size, self.size_px)
        if isinstance(self.rule, Whole):
            raise MvlmError(
                f"this model sees a picture as a whole, and {scale} asks for tiles: name tokens alone, as in"
                f" {self.tokens(scale)}",
                code="scale-not-allowed",
            )
        return self.rule.within(size, self.size_px, scale.tiles)

    def views(self, size: Size, scale: Scale) -> list[View]:
        """The views of a picture at a scale, in the order in which their tokens stand (before any stitching)."""
        canvas = self.canvas(size, scale)
        tiles = tiles_of(canvas) if canvas else []
        return [*tiles, OVERVIEW] if self.overview_last else [OVERVIEW, *tiles]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"rule": rule_to_json(self.rule)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ViewSpec:
        """Raises `MvlmError` for what is no such description."""
        try:
            stitching = value["stitching"]
            return cls(
                size_px=int(value["size_px"]),
                grid_side=int(value["grid_side"]),
                mean=_three(value["mean"]),
                std=_three(value["std"]),
                rule=rule_from_json(value["rule"]),
                resample=str(value["resample"]),
                rescale=float(value["rescale"]),
                overview_last=bool(value["overview_last"]),
                image_token=str(value["image_token"]),
                marks=Marks(**value["marks"]),
                stitching=None if stitching is None else Stitching(**stitching),
                clip_words=value.get("clip_words", "none"),  # not there in runs of before
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MvlmError(f"the description of the model's views is not in order ({error!r}): make it anew") from None


def tokens_of_view(word: ScaleWord | Scale, spec: ViewSpec | None) -> int:
    """The tokens of one view at a scale; without a `spec` a view has none of its own.

    Raises `MvlmError` where a scale asks for these.
    """
    scale = Scale.parse(word)
    if spec is not None:
        return spec.tokens(scale)
    if scale.tokens is None:
        raise MvlmError(
            f"a view of this model has no tokens of its own, and {scale} asks for them: name some, as in 9@4",
            code="scale-not-allowed",
        )
    return scale.tokens


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
