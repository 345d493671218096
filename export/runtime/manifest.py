"""bundle.json: what is in a bundle and how its graphs are called. Read once, checked whole, before anything opens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .artefact import read_artefact, sha256_json
from .bundle_files import Verify, require_files, require_known_data
from .errors import MvlmError
from .families import PREFIX_NESTED, current_name
from .features import FEATURE_VERSION
from .image import ImageSpec
from .views.scale import ScaleWord

SEAL = "manifest_sha256"
_MOST = 2**31
_STEP_INPUTS = {
    "inputs_embeds", "position_ids", "seqlens_k", "total_sequence_length", "attention_mask", "write_indices",
}  # fmt: skip
CACHE_FORMS = ("in place", "scatter", "concat")
# Families whose coarse tokens begin the finer ones; another's are read anew at every scale, which is always right.
_BYTES = {"float32": 4, "float16": 2}  # of one number


@dataclass(frozen=True)
class Graph:
    """A file, and what its tensors are called: role -> name."""

    file: str
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True)
class DecoderGraph:
    """The language model. `past` and `present` hold one name for each layer's keys, then values, layer by layer.

    Each of these is (1, kv_heads, length, head_dim) of `cache_dtype`. By `cache`, the length is: "in place", what the
    caller likes, past and present being one buffer; "scatter", always `positions`, past and present being one buffer;
    "concat", what is in the cache before and after the step. A conversation holds at most `positions`.
    Where prompts are read in another precision than single tokens, `prefill` is the graph that reads them: same
    tensors, same cache.
    """

    graph: Graph
    past: tuple[str, ...]
    present: tuple[str, ...]
    kv_heads: int
    head_dim: int
    cache: str
    cache_dtype: str
    positions: int
    prefill: Graph | None = None


@dataclass(frozen=True)
class Embedding:
    """Where the embedding table (V, D) lies in a file of the bundle.

    With a `block` it lies there in 8 bits, `dtype` uint8: rows made up to whole blocks, 128 standing for nought, and at
    `scale_offset` a scale for each block, row by row, of `scale_dtype`.
    """

    file: str
    offset: int
    shape: tuple[int, int]
    dtype: str
    block: int | None = None
    scale_offset: int = 0
    scale_dtype: str = "float32"

    @property
    def blocks(self) -> int:
        """How many blocks a row has."""
        return -(-self.shape[1] // self.block) if self.block else 0

    @property
    def ends(self) -> int:
        """The first byte of the file behind table and scales."""
        rows, width = self.shape
        if not self.block:
            return self.offset + _BYTES[self.dtype] * rows * width
        scales = _BYTES[self.scale_dtype] * rows * self.blocks
        return max(self.offset + rows * self.blocks * self.block, self.scale_offset + scales)


@dataclass(frozen=True)
class RouterFacts:
    """The router's file, its scales (ascending), what each costs, and the picture's part of a router that reads it."""

    file: str
    scales: tuple[ScaleWord, ...]
    costs: tuple[float, ...]
    cost_unit: str
    default_price: float
    reader: str | None = None


@dataclass(frozen=True)
class ChatFacts:
    """The model's chat template, and the special tokens that it may name, as `bos_token`."""

    template: str
    special_tokens: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """A bundle, checked: every file is there and unchanged, and every name below stands for one of them."""

    folder: Path
    family: str
    target: str
    provider: str  # which engine the files were made for
    precision: dict[str, str]  # tower, connector, prefill, decode
    scales: tuple[int, ...]
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

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def nested(self) -> bool:
        """Whether the tokens of a scale are the first ones of every finer scale."""
        return self.family in PREFIX_NESTED


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
    of_router = [int(scale) for scale in (manifest.router.scales if manifest.router else manifest.scales)]
    if not of_router[0] <= min(manifest.scales) <= max(manifest.scales) <= of_router[-1]:
        raise MvlmError(
            f"the router of {manifest.folder} was fitted for {of_router[0]} to {of_router[-1]} tokens, and the bundle's"
            " scales go beyond: export again"
        )
    table = manifest.embedding
    known = ("uint8",) if table.block else tuple(_BYTES)
    sound = table.dtype in known and table.scale_dtype in _BYTES
    sound = sound and min(table.offset, table.scale_offset, min(table.shape) - 1) >= 0
    if not sound or table.ends > files[table.file][1]:
        raise MvlmError(f"the embedding table of {manifest.folder} does not lie in {table.file}: export again")


def _parse(folder: Path, value: dict[str, Any]) -> Manifest:
    graphs = value["graphs"]
    scales = tuple(int(scale) for scale in value["scales"])
    if not scales:
        raise ValueError("no scales")
    table, router = value["embedding"], value["router"]
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
        embedding=Embedding(
            str(table["file"]), int(table["offset"]), (int(table["shape"][0]), int(table["shape"][1])), table["dtype"],
            int(table["block"]) if table.get("block") else None, int(table.get("scale_offset", 0)),
            str(table.get("scale_dtype", "float32")),
        ),
        vision=_graph(graphs["vision"], ("pixel_values",), ("values", "words")),
        connectors={scale: _graph(graphs["connectors"][str(scale)], ("values",), ("tokens",)) for scale in scales},
        decoder=_decoder(graphs["decoder"]),
        router=None if router is None else _router(router),
        model_sha256=str(value["model_sha256"]),
        sha256=str(value[SEAL]),
        chat=_chat(value["chat"]) if value.get("chat") else None,
        forms={str(phase): dict(words) for phase, words in value["forms"].items()} if "forms" in value else None,
        calibrated={str(phase): list(layers) for phase, layers in value.get("calibrated", {}).items()},
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
        _one_of(value["cache_dtype"], tuple(_BYTES)), positions, graphs[1] if len(graphs) > 1 else None,
    )  # fmt: skip


def _one_of(value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return str(value)


def _router(value: dict[str, Any]) -> RouterFacts:
    scales = tuple(int(scale) for scale in value["scales"])
    costs = tuple(float(cost) for cost in value["costs"])
    if not scales or len(costs) != len(scales) or not all(0 < cost < float("inf") for cost in costs):
        raise ValueError("the router needs a cost above 0 for each of its scales")
    return RouterFacts(
        str(value["file"]), scales, costs, str(value["cost_unit"]), float(value["default_price"]),
        str(value["reader"]) if value.get("reader") else None,
    )  # fmt: skip
