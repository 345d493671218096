"""Tiny runs, routers, rows and bundles for the tests of `export`: made once for a whole session, and read only."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch

from export.bundle.files import write_bundle
from export.bundle.source import Source, read_source
from export.graphs.targets import plan
from export.runtime.artefact import describe, sha256_file, write_json
from export.runtime.features import FEATURE_VERSION, SIZE_FEATURES, image_feature_names, question_feature_names
from export.runtime.views.scale import ScaleWord
from mvlm_core.checkpoints.run_folder import model_sha256
from mvlm_core.modeling.model import MvlmForConditionalGeneration
from router.estimators.base import PlattScaling
from router.estimators.learned import ScaleLogistic
from router.estimators.novelty import Familiarity
from router.graph.decision import router_graph
from tests.support.tiny import QUESTIONS, SCALES, drawn_picture, tiny_model, tiny_processor

PRICE = 0.1


@dataclass(frozen=True, eq=False)
class MadeBundle:
    """A run, what was read from it, and the bundle that came out."""

    folder: Path
    source: Source

    run = property(lambda self: self.folder / "run")
    bundle = property(lambda self: self.folder / "bundle")


class Made(MadeBundle):
    """The same with rows and a router."""

    rows = property(lambda self: self.folder / "rows")
    router = property(lambda self: self.folder / "router")

    def picture(self, number: int) -> Path:
        return self.rows / f"{number}.png"


@functools.cache
def made(connector: str, tower: str, language: str) -> Made:
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_run(folder / "run", connector, tower, language)
    write_rows(folder / "rows")
    write_router(folder / "router", folder / "run")
    source = read_source(folder / "run", folder / "router", None)
    (folder / "bundle").mkdir()
    write_bundle(source, plan("ort-cpu", None, None, source.positions), folder / "bundle", lambda steps: None)
    return Made(folder, source)


def pool_bundle() -> Made:
    return made("pool", "resnet", "qwen3")


def query_bundle() -> Made:
    return made("query", "clip", "llama")


def nested_pool_bundle() -> Made:
    return made("nested_pool", "resnet", "llama")


FAMILIES: dict[str, Callable[[], Made]] = {
    "pool": pool_bundle,
    "nested_pool": nested_pool_bundle,
    "query": query_bundle,
}


@functools.cache
def bundle_for(made: Made, target: str, precision: str | None, scales: tuple[int, ...] = (4, 9)) -> Made:
    """The same run as another bundle; `source` holds the scales that are in it."""
    folder, source = Path(tempfile.mkdtemp()), replace(made.source, scales=scales)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in ("run", "rows", "router"):
        (folder / name).symlink_to(made.folder / name)
    (folder / "bundle").mkdir()
    asked_for = plan(target, precision, None, source.positions)
    write_bundle(source, asked_for, folder / "bundle", lambda steps: None)
    return Made(folder, source)


def write_run(folder: Path, connector: str, tower: str, language: str) -> None:
    processor = tiny_processor()
    narrow = tiny_model(connector, tower=tower, language=language, processor=processor)
    narrow.config.text_config.head_dim = 16  # the narrowest head that onnxruntime rotates
    torch.manual_seed(1)
    model = MvlmForConditionalGeneration(narrow.config)
    model.generation_config = narrow.generation_config
    for norm in model.modules():  # a norm's weights start at one, and would hide being forgotten
        if hasattr(norm, "variance_epsilon"):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_rows(folder: Path, count: int = 6) -> None:
    folder.mkdir()
    lines = []
    for i in range(count):
        drawn_picture(i).save(folder / f"{i}.png")
        question = QUESTIONS[i % len(QUESTIONS)]
        row = {"id": f"row{i}", "image": f"{i}.png", "question": question, "answers": ["red"], "task": "any"}
        lines.append(json.dumps(row | {"group": str(i), "split": "test" if i % 2 else "val"}))
    (folder / "rows.jsonl").write_text("\n".join(lines))


def write_router(
    folder: Path, run: Path, scales: tuple[ScaleWord, ...] = SCALES, sizes: tuple[float, ...] = (), **other_facts
) -> None:
    """A router of two random matrices, with the tensor names of the design. With tiles, `sizes` are what the scales
    cost."""
    folder.mkdir()
    image = [*image_feature_names(), *(SIZE_FEATURES if sizes else ())]
    onnx.save(_router_graph(scales, sizes, len(image)), folder / "router.onnx")
    facts = {
        "scales": list(scales), "costs": [float(cost) for cost in sizes or scales], "cost_unit": "tokens",
        "default_price": PRICE, "feature_version": FEATURE_VERSION, "model_sha256": model_sha256(run),
        "feature_names": {"image": image, "question": question_feature_names()},
        "files": {"router.onnx": sha256_file(folder / "router.onnx")},
    }  # fmt: skip
    write_json(folder / "router.json", describe("router", **(facts | other_facts)))


def _router_graph(scales: tuple[ScaleWord, ...], sizes: tuple[float, ...], d_image: int) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    widths = d_image, len(question_feature_names())
    x = generator.standard_normal((64, sum(widths))).astype(np.float32)
    estimator, calibration = ScaleLogistic().fit(x, generator.random((64, len(scales)))), PlattScaling()
    estimator.weights_ = 0.02 * generator.standard_normal(estimator.weights_.shape)
    calibration.slope_, calibration.intercept_ = 1.0, 0.0
    known = {
        "scales": list(scales), "least_p_value": 0.0, "validation": generator.random((50, len(scales))).tolist(),
        "risk_bounds": [], "escalation": None, **({"sizes": list(sizes)} if sizes else {}),
    }  # fmt: skip
    p_value = Familiarity().fit(x, np.arange(64).astype(str))
    return router_graph(estimator, calibration, p_value, known, d_image=widths[0], d_question=widths[1])


@torch.no_grad()
def torch_answer(made: Made, picture: Path, question: str, scale: int, max_new_tokens: int) -> list[int]:
    """The slow, obvious way: transformers' own generate, on what the processor makes of row and picture."""
    processor, model = made.source.processor, made.source.model
    batch = processor(images=[picture], text=[processor.ask(question)], num_visual_tokens=scale)
    prompt = batch["input_ids"].shape[1]
    ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)[0, prompt:].tolist()
    end = processor.tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids
