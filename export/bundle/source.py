"""What a bundle is made from: a run, the scales asked for, and a router that was fitted for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.runtime.artefact import place_said, read_artefact
from export.runtime.errors import MvlmError
from export.runtime.routing.router_folder import RouterSource, read_router
from export.runtime.views.scale import ScaleWord
from mvlm_core.checkpoints.run_folder import load_run, model_sha256
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from mvlm_core.modeling.processing import MvlmProcessor, require_one_view
from mvlm_core.modeling.scales import require_scales

from .stored import compute_in_float32

_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Source:
    """Everything that goes into a bundle, checked to belong together."""

    model: MvlmForConditionalGeneration
    processor: MvlmProcessor
    tokenizer_file: Path
    model_sha256: str
    scales: tuple[int, ...]
    router: RouterSource | None
    metrics_said: tuple[str, ...] = ()  # what labels were told to be scored by, where that is known

    @property
    def positions(self) -> int:
        """How many positions the language model was made for."""
        return self.model.config.text_config.max_position_embeddings


def read_source(run: Path, router_folder: Path | None, scales: Sequence[ScaleWord] | None) -> Source:
    """Load a run with the router made for it. Without `scales`, the router's.

    Raises `MvlmError`: no run, no router, a router of another model, feature version or scales, a scale that the
    connector does not allow, neither router nor scales, a model with tiles or marks.
    """
    hash_of_model = model_sha256(run)
    router = read_router(router_folder, hash_of_model) if router_folder else None
    if scales is None:
        if router is None:
            raise MvlmError("there is no router to take the scales from: name them with --scales, as in 9,36,144")
        scales = router.scales
    # Between its scales the router's log odds are interpolated; beyond its ends it knows nothing.
    offered, fitted = _numbers(scales), _numbers(router.scales) if router else []
    if router and not fitted[0] <= min(offered) <= max(offered) <= fitted[-1]:
        raise MvlmError(
            f"the bundle is to hold the scales {_listed(scales)}, and the router {router_folder} was fitted for"
            f" {_listed(router.scales)}: stay between its ends, or label and fit again"
        )
    tokenizer_file = run / _TOKENIZER_FILE
    if not tokenizer_file.is_file():
        raise MvlmError(f"{run} holds no {_TOKENIZER_FILE}: save its tokenizer as a fast one")
    model, processor = load_run(run, dtype="stored")
    compute_in_float32(model)
    require_one_view(processor, "a bundle")
    require_scales(scales, model.connector.scales)
    said = tuple((router.facts.get("labelled") or {}).get("metrics_said") or ()) if router else ()
    return Source(model, processor, tokenizer_file, hash_of_model, tuple(sorted(offered)), router, said)


def rows_labelled(router: Path | None) -> Path | None:
    """The rows that a router's labels are of, where it says them and they are there."""
    if router is None or not (router / "router.json").is_file():
        return None
    said = (read_artefact(router, "router").get("labelled") or {}).get("rows")
    rows = place_said(router, said) if said else None
    return rows if rows and rows.exists() else None


def _numbers(scales: Sequence[ScaleWord]) -> list[int]:
    """Scales that are numbers of tokens. Raises `MvlmError` for one with tiles."""
    tiled = [str(scale) for scale in scales if not isinstance(scale, int)]
    if tiled:
        raise MvlmError(f"a bundle shows whole pictures, and {', '.join(tiled)} asks for tiles: ask it in torch")
    return [scale for scale in scales if isinstance(scale, int)]


def _listed(scales: Sequence[ScaleWord]) -> str:
    return ", ".join(map(str, scales))
