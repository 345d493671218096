"""bundle.json: what is in a bundle and how its graphs are called. Read once, checked whole, before anything opens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .artefact import read_artefact, sha256_json
from .bundle_facts import BYTES, CACHE_FORMS, ChatFacts, DecoderGraph, Embedding, Graph, RouterFacts
from .bundle_files import Verify, require_files, require_known_data
from .errors import MvlmError
from .families import PREFIX_NESTED, current_name
from .features import FEATURE_VERSION
from .image import ImageSpec
from .routing.offered import known_to
from .views.scale import Scale, ScaleWord, coarse_to_fine
from .views.spec import ViewSpec, tokens_of_view

SEAL = "manifest_sha256"
_MOST = 2**31
_STEP_INPUTS = {
    "inputs_embeds", "position_ids", "seqlens_k", "total_sequence_length", "attention_mask", "write_indices",
}  # fmt: skip

__all__ = [
    "CACHE_FORMS", "SEAL", "ChatFacts", "DecoderGraph", "Embedding", "Graph", "Manifest", "RouterFacts",
    "read_manifest", "read_verification", "require_passed", "require_provider", "seal",
]  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """A bundle, checked: every file is there and unchanged, and every name below stands for one of them.

    `scales` go from coarse to fine, and `connectors` by the tokens of one view. `views` says how pictures are cut, None
    where a picture is shown whole; `newline` is the vector that ends each row of a grid of tiles.
    """

    folder: Path
    family: str
    target: str
    provider: str  # which engine the files were made for
    precision: dict[str, str]  # tower, connector, prefill, decode
    scales: tuple[Any, ...]  # numbers, or with tiles words such as 16@4
    image: ImageSpec
    prompt: list[dict[str, Any]]
    image_token_id: int
    stop_ids: frozenset[int]
    max_length: int
    tokenizer: str
    embedding: Embedding
    vision: Graph
    connectors: dict[int, Graph]
    decoder: DecoderGraph
    router: RouterFacts | None
    model_sha256: str
    sha256: str  # of bundle.json, which answers for every other file
    chat: ChatFacts | None = None  # None in a bundle of before, which takes one question about one picture
    # By phase: in which form each layer of the language model is written, and which of them were calibrated. None in
    # bundles of before, whose precisions stood for one form each.
    forms: dict[str, dict[str, str]] | None = None
    calibrated: dict[str, list[str]] = field(default_factory=dict)
    views: ViewSpec | None = None
    newline: Embedding | None = None

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def nested(self) -> bool:
        """Whether the tokens of a scale are the first ones of every finer scale."""
        return self.family in PREFIX_NESTED

    @property
    def many_views(self) -> bool:
        """Whether a scale may show more than one view: tiles of a picture, or frames of a clip."""
        return self.views is not None or any(isinstance(scale, str) for scale in self.scales)

    @property
    def size_px(self) -> int:
        """The side of a view."""
        return self.views.size_px if self.views else self.image.size_px

    @property
    def finest(self) -> Any:
        return self.scales[-1]

    @property
    def coarsest(self) -> Any:
        return self.scales[0]


def read_manifest(folder: Path, *, sha256: str | None = None, verify: Verify | None = None) -> Manifest:
    """Read and check a bundle. `sha256` is what its manifest's hash must be; `verify` is of `require_files`.

    Raises `MvlmError`: no bundle, another than the one of `sha256`, a newer format or feature version, a file that is
    missing or changed, or that no hash is given for, a path that leads out of the folder, a description that was
    edited or makes no sense.
    """
    value = read_artefact(folder, "bundle")
    sealed = _seal_of(folder, value)
    if value.get(SEAL) != sealed:
        raise MvlmError(f"{folder / 'bundle.json'} was changed after export: export again", code="changed-bundle")
    if sha256 is not None and sha256 != sealed:
        raise MvlmError(
            f"{folder} is another bundle than the one asked for: its hash is {sealed}, and {sha256} was named",
            code="wrong-bundle",
        )
    try:
        manifest = _parse(folder, value)
        files = {str(name): (str(facts["sha256"]), int(facts["bytes"])) for name, facts in value["files"].items()}
        feature_version = int(value["feature_version"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise MvlmError(f"{folder / 'bundle.json'} is not in order ({reason}): export again") from None
    if manifest.router and feature_version != FEATURE_VERSION:
        raise MvlmError(
            f"the router of {folder} reads features of version {feature_version}, and this mvlm computes version"
            f" {FEATURE_VERSION}: export again with this mvlm"
        )
    require_files(folder, files, sealed, verify or ("changed" if sha256 is None else "always"))
    _check_names(manifest, files)
    require_known_data(folder, sorted({graph.file for graph in _graphs(manifest)}), files)
    return manifest


def read_verification(manifest: Manifest) -> dict[str, Any] | None:
    """What `mvlm export` compared with torch, as verify.json has it; None in a bundle that was not verified."""
    file = manifest.path("verify.json")
    if not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise MvlmError(f"{file} is not in order: `mvlm verify` the bundle again", code="bad-bundle") from None


def require_passed(manifest: Manifest) -> None:
    """Raise `MvlmError` for a bundle that its verification refused."""
    if "refused" in (read_verification(manifest) or {}):
        raise MvlmError(
            f"{manifest.folder} was refused when it was verified, and its verify.json says why: export again, or allow"
            f" more with `mvlm verify {manifest.folder} --max-loss`",
            code="refused-bundle",
        )


def require_provider(manifest: Manifest, provider: str) -> None:
    """Raise `MvlmError` for a bundle that was made for another engine than the one it is to run on."""
    if provider != manifest.provider:
        raise MvlmError(
            f"{manifest.folder} was made for {manifest.target} (provider {manifest.provider}), not for {provider}:"
            " export again with another --target, or name that provider",
            code="wrong-device",
        )


def seal(value: dict[str, Any]) -> str:
    """The hash that bundle.json carries of everything else in it."""
    return sha256_json({key: part for key, part in value.items() if key != SEAL})


def _seal_of(folder: Path, value: dict[str, Any]) -> str:
    try:
        return seal(value)
    except (ValueError, RecursionError):  # half a character, or nested too deep to be written again
        raise MvlmError(f"{folder / 'bundle.json'} is not in order: export again") from None


def _graphs(manifest: Manifest) -> list[Graph]:
    decoder = manifest.decoder
    return [
        manifest.vision, *manifest.connectors.values(), decoder.graph, *([decoder.prefill] if decoder.prefill else [])
    ]  # fmt: skip


def _check_names(manifest: Manifest, files: dict[str, tuple[str, int]]) -> None:
    used = {manifest.tokenizer, manifest.embedding.file, *(graph.file for graph in _graphs(manifest))}
    used |= set(filter(None, (manifest.router.file, manifest.router.reader))) if manifest.router else set()
    used |= {manifest.chat.template} if manifest.chat else set()
    unknown = sorted(used - set(files))
    if unknown:
        raise MvlmError(f"{manifest.folder / 'bundle.json'} gives no hash for {', '.join(unknown)}: export again")
    if manifest.router:
        _check_scales(manifest, manifest.router.scales)
    if not _lies_in(manifest.embedding, files):
        raise MvlmError(
            f"the embedding table of {manifest.folder} does not lie in {manifest.embedding.file}: export again"
        )
    newline, stitched = manifest.newline, manifest.views is not None and manifest.views.stitching is not None
    if (newline is None) == stitched or (newline and not _is_newline(newline, manifest.embedding, files)):
        raise MvlmError(f"the newline vector of {manifest.folder} is not where its views want it: export again")


def _check_scales(manifest: Manifest, fitted: Sequence[ScaleWord]) -> None:
    """Raise `MvlmError` for scales that the router knows nothing of."""
    if not known_to(fitted, manifest.scales):
        raise MvlmError(
            f"the router of {manifest.folder} was fitted for {fitted[0]} to {fitted[-1]} tokens, and the bundle's"
            " scales go beyond: export again"
        )


def _lies_in(table: Embedding, files: dict[str, tuple[str, int]]) -> bool:
    known = ("uint8",) if table.block else tuple(BYTES)
    sound = table.file in files and table.dtype in known and table.scale_dtype in BYTES
    sound = sound and min(table.offset, table.scale_offset, min(table.shape) - 1) >= 0
    return sound and table.ends <= files[table.file][1]


def _is_newline(place: Embedding, table: Embedding, files: dict[str, tuple[str, int]]) -> bool:
    return place.shape == (1, table.shape[1]) and place.dtype == "float32" and _lies_in(place, files)


def _parse(folder: Path, value: dict[str, Any]) -> Manifest:
    graphs = value["graphs"]
    scales = tuple(coarse_to_fine(_scales(value["scales"])))
    views = ViewSpec.from_json(value["views"]) if value.get("views") else None
    if not scales or len(set(scales)) < len(scales):
        raise ValueError("no scales, or one of them twice")
    router, connectors = value["router"], sorted({_tokens(scale, views) for scale in scales})
    return Manifest(
        folder=folder,
        family=current_name(str(value["family"])),
        target=str(value["target"]),
        provider=str(value["provider"]),
        precision={str(part): str(precision) for part, precision in value["precision"].items()},
        scales=scales,
        image=ImageSpec.from_json(value["image"]),
        prompt=_prompt(value["prompt"]),
        image_token_id=int(value["image_token_id"]),
        stop_ids=frozenset(int(token) for token in value["stop_ids"]),
        max_length=int(value["max_length"]),
        tokenizer=str(value["tokenizer"]),
        embedding=_embedding(value["embedding"]),
        vision=_graph(graphs["vision"], ("pixel_values",), ("values", "words")),
        connectors={m: _graph(graphs["connectors"][str(m)], ("values",), ("tokens",)) for m in connectors},
        decoder=_decoder(graphs["decoder"]),
        router=None if router is None else _router(router),
        model_sha256=str(value["model_sha256"]),
        sha256=str(value[SEAL]),
        chat=_chat(value["chat"]) if value.get("chat") else None,
        forms={str(phase): dict(words) for phase, words in value["forms"].items()} if "forms" in value else None,
        calibrated={str(phase): list(layers) for phase, layers in value.get("calibrated", {}).items()},
        views=views, newline=_embedding(value["newline"]) if value.get("newline") else None,
    )  # fmt: skip


def _scales(words: Any) -> tuple[ScaleWord, ...]:
    try:
        return tuple(Scale.parse(word).word for word in words)
    except MvlmError as error:
        raise ValueError(str(error)) from None


def _tokens(scale: ScaleWord, views: ViewSpec | None) -> int:
    try:
        return tokens_of_view(scale, views)
    except MvlmError as error:
        raise ValueError(str(error)) from None


def _embedding(table: dict[str, Any]) -> Embedding:
    return Embedding(
        str(table["file"]), int(table["offset"]), (int(table["shape"][0]), int(table["shape"][1])), table["dtype"],
        int(table["block"]) if table.get("block") else None, int(table.get("scale_offset", 0)),
        str(table.get("scale_dtype", "float32")),
    )  # fmt: skip


def _prompt(value: Any) -> list[dict[str, Any]]:
    parts = [dict(part) for part in value]
    if any(type(token) is not int or not 0 <= token < _MOST for part in parts for token in part.get("ids", [])):
        raise ValueError("a prompt of ids that are none")
    return parts


def _chat(value: dict[str, Any]) -> ChatFacts:
    tokens = {str(name): str(token) for name, token in value["special_tokens"].items()}
    return ChatFacts(str(value["template"]), tokens)


def _graph(value: dict[str, Any], inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> Graph:
    """A graph that has at least the inputs and outputs of these roles."""
    return Graph(str(value["file"]), _names(value["inputs"], inputs), _names(value["outputs"], outputs))


def _names(value: dict[str, Any], roles: Sequence[str]) -> dict[str, str]:
    if not all(isinstance(name, str) for name in value.values()) or not set(roles) <= set(value):
        raise ValueError(f"a graph whose tensors are called {value!r}"[:100])
    return dict(value)


def _decoder(value: dict[str, Any]) -> DecoderGraph:
    past, present = tuple(value["past"]), tuple(value["present"])
    sizes = [int(value[name]) for name in ("kv_heads", "head_dim", "positions")]
    if not past or len(past) != len(present) or not all(isinstance(name, str) for name in (*past, *present)):
        raise ValueError("a cache without names")
    graphs = [_graph(value[key], (), ("logits",)) for key in ("graph", "prefill") if value.get(key)]
    if not all(1 <= size <= _MOST for size in sizes) or any(set(graph.inputs) - _STEP_INPUTS for graph in graphs):
        raise ValueError("a decoder of no sizes, or with inputs that nothing gives")
    kv_heads, head_dim, positions = sizes
    return DecoderGraph(
        graphs[0], past, present, kv_heads, head_dim, _one_of(value["cache"], CACHE_FORMS),
        _one_of(value["cache_dtype"], tuple(BYTES)), positions, graphs[1] if len(graphs) > 1 else None,
    )  # fmt: skip


def _one_of(value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return str(value)


def _router(value: dict[str, Any]) -> RouterFacts:
    scales = _scales(value["scales"])
    costs = tuple(float(cost) for cost in value["costs"])
    if not scales or len(costs) != len(scales) or not all(0 < cost < float("inf") for cost in costs):
        raise ValueError("the router needs a cost above 0 for each of its scales")
    tile_tokens = value.get("tile_tokens")
    if tile_tokens is not None and not 0 < float(tile_tokens) < float("inf"):
        raise ValueError(f"a tile that is worth {tile_tokens} tokens")
    return RouterFacts(
        str(value["file"]), scales, costs, str(value["cost_unit"]), float(value["default_price"]),
        str(value["reader"]) if value.get("reader") else None, None if tile_tokens is None else float(tile_tokens),
    )  # fmt: skip
