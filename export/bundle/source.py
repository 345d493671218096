"""What a bundle is made from: a run, the scales asked for, and a router that was fitted for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.runtime.artefact import place_said, read_artefact
from export.runtime.errors import MvlmError
from export.runtime.routing.offered import known_to
from export.runtime.routing.router_folder import RouterSource, read_router
from export.runtime.views.scale import ScaleWord, coarse_to_fine
from export.runtime.views.spec import ViewSpec, tokens_of_view
from mvlm_core.checkpoints.run_folder import load_run, model_sha256
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor
from mvlm_core.modeling.scales import require_scales

from .stored import compute_in_float32

_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Source:
    """Everything that goes into a bundle, checked to belong together. Scales go from coarse to fine."""

    model: MvlmForConditionalGeneration
    processor: MvlmProcessor
    tokenizer_file: Path
    model_sha256: str
    scales: tuple[ScaleWord, ...]
    router: RouterSource | None
    metrics_said: tuple[str, ...] = ()  # what labels were told to be scored by, where that is known

    @property
    def positions(self) -> int:
        """How many positions the language model was made for."""
        return self.model.config.text_config.max_position_embeddings

    @property
    def views(self) -> ViewSpec | None:
        """How pictures are cut; None where one is shown whole."""
        return self.processor.image_processor.view_spec

    @property
    def size_px(self) -> int:
        """The side of a view."""
        return self.views.size_px if self.views else self.processor.image_processor.size_px

    @property
    def view_tokens(self) -> list[int]:
        """The numbers of tokens that the scales show a view in, ascending."""
        return sorted({self.tokens(scale) for scale in self.scales})

    def tokens(self, scale: ScaleWord) -> int:
        """Of one view at a scale."""
        return tokens_of_view(scale, self.views)


def read_source(run: Path, router_folder: Path | None, scales: Sequence[ScaleWord] | None) -> Source:
    """Load a run with the router made for it. Without `scales`, the router's.

    Raises `MvlmError`: no run, no router, a router of another model, feature version or scales, a scale that the
    connector or the model's views do not allow, neither router nor scales.
    """
    hash_of_model = model_sha256(run)
    router = read_router(router_folder, hash_of_model) if router_folder else None
    if scales is None:
        if router is None:
            raise MvlmError("there is no router to take the scales from: name them with --scales, as in 9,36,144")
        scales = router.scales
    if router:
        _require_fitted(scales, router)
    tokenizer_file = run / _TOKENIZER_FILE
    if not tokenizer_file.is_file():
        raise MvlmError(f"{run} holds no {_TOKENIZER_FILE}: save its tokenizer as a fast one")
    model, processor = load_run(run, dtype="stored")
    compute_in_float32(model)
    _require_views(scales, processor.image_processor.view_spec)
    require_scales(scales, model.connector.scales)
    said = tuple((router.facts.get("labelled") or {}).get("metrics_said") or ()) if router else ()
    return Source(model, processor, tokenizer_file, hash_of_model, tuple(coarse_to_fine(scales)), router, said)


def rows_labelled(router: Path | None) -> Path | None:
    """The rows that a router's labels are of, where it says them and they are there."""
    if router is None or not (router / "router.json").is_file():
        return None
    said = (read_artefact(router, "router").get("labelled") or {}).get("rows")
    rows = place_said(router, said) if said else None
    return rows if rows and rows.exists() else None


def _require_fitted(scales: Sequence[ScaleWord], router: RouterSource) -> None:
    """Raise `MvlmError` for scales that the router knows nothing of."""
    if not known_to(router.scales, scales):
        raise MvlmError(
            f"the bundle is to hold the scales {_listed(scales)}, and the router {router.folder} was fitted for"
            f" {_listed(router.scales)}: stay between its ends, with tiles among its scales, or label and fit again"
        )


def _require_views(scales: Sequence[ScaleWord], views: ViewSpec | None) -> None:
    """Raise `MvlmError` for a view's own number of tokens where the model has none. Scales such as 9@4 may be of clips,
    which every model can be shown."""
    for scale in scales:
        tokens_of_view(scale, views)


def _listed(scales: Sequence[ScaleWord]) -> str:
    return ", ".join(map(str, scales))
