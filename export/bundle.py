"""Writes the files of a bundle: graphs, one weight file, tokenizer, router, and the manifest that names them all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from transformers import PreTrainedModel

from export.decoder import write_decoder
from export.runtime.artefact import describe, read_artefact, sha256_file, write_json
from export.runtime.errors import MvlmError
from export.runtime.features import FEATURE_VERSION
from export.runtime.manifest import SEAL, DecoderGraph, Embedding, Graph, RouterFacts, seal
from export.source import ROUTER_FILE, RouterSource, Source
from export.targets import target
from export.towers import connector_model, vision_model, vision_outputs
from export.weights import WeightFile
from mvlm_core.processing import prompt_of

NAME = "bundle"
_WEIGHTS = "weights.bin"
_TOKENIZER = "tokenizer.json"


def graph_count(source: Source) -> int:
    """How many steps of progress `write_bundle` makes: vision, decoder, and a connector for each scale."""
    return 2 + len(source.scales)


def write_bundle(source: Source, folder: Path, progress: Callable[[int], None]) -> None:
    """Write everything of a bundle but its verification into an empty `folder`.

    Raises `MvlmError` for a model or a chat template that cannot be exported.
    """
    model: Any = source.model
    processor = source.processor
    with WeightFile(folder / _WEIGHTS) as weights:
        decoder = _write_decoder(model.language_model, folder, weights)
        progress(1)
        spec = processor.image_processor.spec
        vision = _write_vision(source, folder, weights, spec.size_px)
        progress(1)
        connectors = {}
        for m in source.scales:
            connectors[str(m)] = asdict(_write_connector(source, folder, weights, m))
            progress(1)
        table = model.get_input_embeddings().weight.detach().float().cpu().numpy()  # (V, D)
        place = weights.place(table)
    shutil.copyfile(source.tokenizer_file, folder / _TOKENIZER)
    router = None if source.router is None else asdict(_copy_router(source.router, folder))
    manifest = describe(
        NAME,
        family=model.config.connector,
        scales=list(source.scales),
        image=spec.to_json(),
        prompt=prompt_of(processor).to_json(),
        image_token_id=model.config.image_token_id,
        stop_ids=stop_ids(model),
        max_length=model.config.text_config.max_position_embeddings,
        tokenizer=_TOKENIZER,
        embedding=asdict(Embedding(_WEIGHTS, place.offset, tuple(table.shape), "float32")),
        graphs={"vision": asdict(vision), "connectors": connectors, "decoder": asdict(decoder)},
        router=router,
        feature_version=FEATURE_VERSION,
        model_sha256=source.model_sha256,
        router_sha256=None if source.router is None else sha256_file(source.router.folder / "router.json"),
    )
    _write_manifest(folder, manifest)


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
        if path.name != own
    }
    write_json(folder / own, manifest | {SEAL: seal(manifest)})


def _write_vision(source: Source, folder: Path, weights: WeightFile, size_px: int) -> Graph:
    _save(vision_model(source.model, size_px), folder / "vision.onnx", weights)
    return Graph("vision.onnx", {"pixel_values": "pixel_values"}, vision_outputs(source.model))


def _write_connector(source: Source, folder: Path, weights: WeightFile, m: int) -> Graph:
    file = f"connector_{m}.onnx"
    _save(connector_model(source.model, m), folder / file, weights)
    return Graph(file, {"values": "values"}, {"tokens": "tokens"})


def _write_decoder(language_model: PreTrainedModel, folder: Path, weights: WeightFile) -> DecoderGraph:
    cpu, positions = target("ort-cpu"), language_model.config.max_position_embeddings
    graph, facts = write_decoder(
        language_model, weights.tensor, cpu.writer_dialect(positions), "decoder.onnx",
        product=cpu.product("float32"), positions=positions,
    )  # fmt: skip
    onnx.save(graph, folder / facts.graph.file)
    return facts


def _save(graph: onnx.ModelProto, path: Path, weights: WeightFile) -> None:
    weights.take(graph)
    onnx.save(graph, path)


def _copy_router(router: RouterSource, folder: Path) -> RouterFacts:
    shutil.copyfile(router.folder / ROUTER_FILE, folder / ROUTER_FILE)
    facts = router.facts
    return RouterFacts(
        ROUTER_FILE, router.scales, tuple(facts["costs"]), facts["cost_unit"], facts["default_price"]
    )  # fmt: skip
