"""Tiny runs, routers, rows and bundles for the tests of `export`: made once for a whole session, and read only."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny import QUESTIONS, SCALES, drawn_picture, tiny_model, tiny_processor

from export.bundle import write_bundle
from export.runtime.artefact import describe, sha256_file, write_json
from export.runtime.features import FEATURE_VERSION, image_feature_names, question_feature_names
from export.source import Source, read_source
from mvlm_core.model import MvlmForConditionalGeneration
from mvlm_core.runs import model_sha256

PRICE = 0.1


@dataclass(frozen=True)
class Made:
    """A run, its rows and router, what was read from them, and the bundle that came out."""

    folder: Path
    source: Source

    run = property(lambda self: self.folder / "run")
    rows = property(lambda self: self.folder / "rows")
    router = property(lambda self: self.folder / "router")
    bundle = property(lambda self: self.folder / "bundle")

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
    write_bundle(source, folder / "bundle", lambda steps: None)
    return Made(folder, source)


def pool_bundle() -> Made:
    return made("pool", "resnet", "qwen3")


def query_bundle() -> Made:
    return made("query", "clip", "llama")


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


def write_router(folder: Path, run: Path, scales: tuple[int, ...] = SCALES, **other_facts) -> None:
    """A router of two random matrices, with the tensor names of the design."""
    folder.mkdir()
    onnx.save(_router_graph(len(scales)), folder / "router.onnx")
    facts = {
        "scales": list(scales), "costs": [float(scale) for scale in scales], "cost_unit": "tokens",
        "default_price": PRICE, "feature_version": FEATURE_VERSION, "model_sha256": model_sha256(run),
        "feature_names": {"image": image_feature_names(), "question": question_feature_names()},
        "files": {"router.onnx": sha256_file(folder / "router.onnx")},
    }  # fmt: skip
    write_json(folder / "router.json", describe("router", **(facts | other_facts)))


def _router_graph(scales: int) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    widths = {"image": len(image_feature_names()), "question": len(question_feature_names())}
    weights = {f"w_{k}": (0.02 * generator.standard_normal((d, scales))).astype(np.float32) for k, d in widths.items()}
    node, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        *(node("MatMul", [part, f"w_{part}"], [f"from_{part}"]) for part in widths),
        node("Add", ["from_image", "from_question"], ["score"]),
        node("Sigmoid", ["score"], ["probability"]),
        node("ReduceMax", ["cost"], ["dearest"], keepdims=0),
        node("Div", ["cost", "dearest"], ["relative"]),
        node("Mul", ["price", "relative"], ["charge"]),
        node("Sub", ["probability", "charge"], ["worth"]),
        node("ArgMax", ["worth"], ["choice"], axis=1, keepdims=0),
    ]
    inputs = [
        *(info(part, TensorProto.FLOAT, ["n", d]) for part, d in widths.items()),
        info("price", TensorProto.FLOAT, []), info("cost", TensorProto.FLOAT, [scales]),
    ]  # fmt: skip
    outputs = [info("probability", TensorProto.FLOAT, ["n", scales]), info("choice", TensorProto.INT64, ["n"])]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "router", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@torch.no_grad()
def torch_answer(made: Made, picture: Path, question: str, scale: int, max_new_tokens: int) -> list[int]:
    """The slow, obvious way: transformers' own generate, on what the processor makes of row and picture."""
    processor, model = made.source.processor, made.source.model
    batch = processor(images=[picture], text=[processor.ask(question)], num_visual_tokens=scale)
    prompt = batch["input_ids"].shape[1]
    ids = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)[0, prompt:].tolist()
    end = processor.tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids
