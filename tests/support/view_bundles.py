"""Bundles of the families that people deploy, made once for a session, and what torch answers."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from export.bundle.files import write_bundle
from export.bundle.source import read_source
from export.graphs.targets import plan
from mvlm_core.checkpoints.import_checkpoint import import_checkpoint
from tests.support.bundles import MadeBundle, write_router
from tests.support.families import QUESTION, make, picture

SCALES = (1, 4, "1@2", "4@4", "4@native", "native")
SIZES = (1.0, 4.0, 23.0, 60.0, 90.0, 200.0)  # what they cost a router, in tokens
PICTURES = {
    "wide": picture(200, 90), "tall": picture(100, 240), "small": picture(60, 60), "line": picture(640, 10),
    "grey": picture(180, 150).convert("L"), "one pixel": Image.new("RGB", (1, 1), (3, 200, 7)),
    "see-through": Image.merge("RGBA", [*picture(90, 60).split(), Image.linear_gradient("L").resize((90, 60))]),
}  # fmt: skip


@functools.cache
def view_bundle(kind: str, *, routed: bool = False) -> MadeBundle:
    """With `routed`, the bundle holds a router of random matrices."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "run").mkdir()
    (folder / "bundle").mkdir()
    checkpoint = make(kind, folder / "checkpoint")
    import_checkpoint(checkpoint, folder / "run", vision_tower=None, num_heads=16, bar=lambda *_: lambda _: None)
    router = folder / "router" if routed else None
    if router:
        write_router(router, folder / "run", SCALES, SIZES, tile_tokens=10.0)
    source = read_source(folder / "run", router, SCALES)
    write_bundle(source, plan("ort-cpu", None, None, source.positions), folder / "bundle", lambda steps: None)
    return MadeBundle(folder, source)


def inputs(made: MadeBundle, image: Any, scale: Any, question: str = QUESTION) -> Any:
    """The slow, obvious way: what the processor makes of a picture and a question."""
    processor = made.source.processor
    return processor(text=processor.ask(question), images=[image], scale=scale)


@torch.no_grad()
def torch_answer(made: MadeBundle, image: Any, scale: Any, most: int = 6, question: str = QUESTION) -> list[int]:
    batch = inputs(made, image, scale, question)
    prompt = batch["input_ids"].shape[1]
    ids = made.source.model.generate(**batch, do_sample=False, max_new_tokens=most)[0, prompt:].tolist()
    end = made.source.processor.tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids
