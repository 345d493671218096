"""Writes the files of a bundle: graphs, one weight file, tokenizer, router, and the manifest that names them all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
from transformers import PreTrainedModel

from export.graphs.decoder import write_decoder
from export.graphs.grids import Numbers
from export.graphs.quantize import Dense
from export.graphs.recipe import Recipe
from export.graphs.targets import FLOATS, PHASES, Plan
from export.graphs.vision import connector_models, vision_model, vision_outputs
from export.graphs.weights import WeightFile
from export.rounding.layers import Layer, every_layer
from export.runtime.artefact import describe, read_artefact, sha256_file, write_json
from export.runtime.chat_template import ChatTemplate
from export.runtime.errors import MvlmError
from export.runtime.features import FEATURE_VERSION
from export.runtime.image import ImageSpec
from export.runtime.manifest import SEAL, ChatFacts, DecoderGraph, Graph, RouterFacts, seal
from export.runtime.routing.router_folder import ROUTER_FILE, RouterSource
from mvlm_core.modeling.processing import MvlmProcessor, prompt_of

from .source import Source
from .table import write_newline, write_table

NAME = "bundle"
_WEIGHTS = "weights.bin"
_TOKENIZER = "tokenizer.json"
_CHAT_TEMPLATE = "chat_template.jinja"
# A little more than the weights themselves: graphs, tokenizer and what is written before it is renamed.
_MARGIN = 1.1
# phase -> layer -> numbers.
Calibrated = Mapping[str, Mapping[str, Numbers]]


def graph_count(source: Source, plan: Plan) -> int:
    """How many steps of progress `write_bundle` makes: vision, decoder or two, a connector for each scale of a view."""
    return 2 + plan.apart + len(source.view_tokens)


def write_bundle(
    source: Source, plan: Plan, folder: Path, progress: Callable[[int], None], numbers: Calibrated | None = None
) -> None:
    """Write everything of a bundle but its verification into an empty `folder`.

    `numbers` are what calibration made of the weights of some layers, by phase; others are rounded to the nearest.
    Raises `MvlmError` for a model or a chat template that cannot be exported.
    """
    model: Any = source.model
    processor = source.processor
    with WeightFile(folder / _WEIGHTS) as weights:
        numbers = numbers or {}
        decoder = _write_decoder(model.language_model, plan, numbers, folder, weights, progress)
        vision = _write_vision(source, plan.precision["tower"], folder, weights, source.size_px)
        progress(1)
        connectors = {}
        for m, graph in connector_models(model, source.view_tokens, weights, plan.precision["connector"]):
            file = f"connector_{m}.onnx"
            onnx.save(graph, folder / file)
            connectors[str(m)] = asdict(Graph(file, {"values": "values"}, {"tokens": "tokens"}))
            progress(1)
        table = write_table(model.get_input_embeddings().weight, plan, weights)
        newline = write_newline(model, source.views, weights)
    shutil.copyfile(source.tokenizer_file, folder / _TOKENIZER)
    chat = _write_chat(processor, folder)
    router = None if source.router is None else asdict(_copy_router(source.router, folder))
    manifest = describe(
        NAME,
        family=model.config.connector,
        target=plan.target.name,
        provider=plan.target.provider,
        precision=dict(plan.precision),
        scales=list(source.scales),
        image=_image(source).to_json(),
        views=source.views.to_json() if source.views else None,
        newline=asdict(newline) if newline else None,
        prompt=prompt_of(processor).to_json(),
        image_token_id=model.config.image_token_id,
        stop_ids=stop_ids(model),
        max_length=plan.positions,
        tokenizer=_TOKENIZER,
        chat=asdict(chat),
        embedding=asdict(table),
        forms={phase: dict(words) for phase, words in plan.words.items()},
        calibrated={phase: sorted(layers) for phase, layers in numbers.items()},
        graphs={"vision": asdict(vision), "connectors": connectors, "decoder": asdict(decoder)},
        router=router,
        feature_version=FEATURE_VERSION,
        model_sha256=source.model_sha256,
        router_sha256=None if source.router is None else sha256_file(source.router.folder / "router.json"),
    )
    _write_manifest(folder, manifest)


def _image(source: Source) -> ImageSpec:
    """How a picture is made the tower's input where it is shown whole; of a model with views, what they say of it."""
    spec, views = source.processor.image_processor.spec, source.views
    return ImageSpec(views.size_px, views.mean, views.std) if views else spec


def require_room(source: Source, plan: Plan, out: Path) -> None:
    """Raise `MvlmError` when the disk of `out` cannot hold the bundle: every weight once, in its own precision."""
    needed = _bytes_needed(source.model, plan)
    home = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(home).free
    if free < needed:
        raise MvlmError(
            f"the bundle needs about {needed / 2**20:.0f} MiB, and {home} has {free / 2**20:.0f} MiB free:"
            " make room, or name another place with --out"
        )


def weight_bytes(graph: Path) -> int:
    """How many bytes of weights a graph reads from the files beside it."""
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    return sum(int(entry.value) for tensor in tensors for entry in tensor.external_data if entry.key == "length")


def _bytes_needed(model: Any, plan: Plan) -> int:
    language = model.language_model
    others = sum(weight.numel() for weight in model.parameters()) - sum(w.numel() for w in language.parameters())
    table = model.get_input_embeddings().weight.numel() * plan.floats.itemsize
    phases = PHASES if plan.apart else ("decode",)
    bits = sum(_bits(plan.recipe(phase), layer, plan) for phase in phases for layer in every_layer(language))
    return int(_MARGIN * (bits / 8 + table + others * FLOATS["float32"].itemsize))


def _bits(recipe: Recipe, layer: Layer, plan: Plan) -> float:
    form = recipe.of(layer.name)
    grid = form.grid_of(layer.shape[1])
    wide = 8 * plan.floats.itemsize if isinstance(form, Dense) else 8
    return layer.size * (grid.bits_a_weight if grid else wide)


def reseal(folder: Path) -> None:
    """Let the manifest answer for every file that now lies in the bundle."""
    _write_manifest(folder, read_artefact(folder, NAME))


def stop_ids(model: PreTrainedModel) -> list[int]:
    """The ids that end an answer. Raises `MvlmError` when the run names none."""
    ids = model.generation_config.eos_token_id
    if ids is None:
        raise MvlmError("the run names no token that ends an answer: set eos_token_id in its generation_config.json")
    return [ids] if isinstance(ids, int) else list(ids)


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    own = f"{NAME}.json"
    manifest["files"] = {
        path.name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != own  # what was built and measured on a device lies in folders of its own
    }
    write_json(folder / own, manifest | {SEAL: seal(manifest)})


def _write_vision(source: Source, precision: str, folder: Path, weights: WeightFile, size_px: int) -> Graph:
    graph = vision_model(source.model, size_px, precision)
    weights.take(graph)
    onnx.save(graph, folder / "vision.onnx")
    return Graph("vision.onnx", {"pixel_values": "pixel_values"}, vision_outputs(source.model))


def _write_decoder(
    language_model: PreTrainedModel,
    plan: Plan,
    numbers: Calibrated,
    folder: Path,
    weights: WeightFile,
    progress: Callable[[int], None],
) -> DecoderGraph:
    """One graph, or one for each phase where they differ in precision; both read and write one cache."""

    def write(phase: str, file: str) -> DecoderGraph:
        dialect, recipe = plan.target.writer_dialect(plan.positions), plan.recipe(phase, numbers.get(phase))
        graph, facts = write_decoder(
            language_model, weights.tensor, dialect, file,
            product=recipe, floats=plan.floats, positions=plan.positions,
        )  # fmt: skip
        onnx.save(graph, folder / file)
        progress(1)
        return facts

    decoder = write("decode", "decoder.onnx")
    return replace(decoder, prefill=write("prefill", "prefill.onnx").graph) if plan.apart else decoder


def _write_chat(processor: MvlmProcessor, folder: Path) -> ChatFacts:
    """The chat template as the processor renders it. Raises `MvlmError` for one that the runtime would not take."""
    text = str(processor.chat_template)
    tokens = {name: token for name, token in processor.tokenizer.special_tokens_map.items() if isinstance(token, str)}
    ChatTemplate(text, tokens)
    (folder / _CHAT_TEMPLATE).write_text(text, encoding="utf-8", newline="")
    return ChatFacts(_CHAT_TEMPLATE, tokens)


def _copy_router(router: RouterSource, folder: Path) -> RouterFacts:
    for name in filter(None, (ROUTER_FILE, router.known.reader)):
        shutil.copyfile(router.folder / name, folder / name)
    return router.known
