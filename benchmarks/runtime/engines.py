"""How large a TensorRT engine is by its profiles, and what building it takes: NVIDIA's compiler for RTX, without a GPU.

    python -m benchmarks.runtime.engines --layers 4

The decoder has random weights; sizes do not depend on them. Every build is a process of its own, to see its memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from benchmarks.machine import keep
from export.device.profiles import dimensions
from export.runtime.backends.engine_files import Fingerprint, Profile
from export.runtime.backends.tensorrt_api import Tensorrt
from export.runtime.machine import resident_mib

_POSITIONS = 1024
_PROMPTS = (Profile(2, 48, 80), Profile(2, 176, 256), Profile(2, 608, 1023))
_DECODE, _SHARED = Profile(1, 1, 1), Profile(1, 1, 1023)
# What is in the engine: profiles of prompts, and that of single tokens.
LAYOUTS = {
    "single tokens alone": (_DECODE,),
    "one prompt alone": _PROMPTS[:1],
    "one range for all, 1 to 1023": (Profile(1, 48, 1023),),
    "single tokens and 1 prompt": (*_PROMPTS[:1], _DECODE),
    "single tokens and 2 prompts": (*_PROMPTS[:2], _DECODE),
    "single tokens and 3 prompts": (*_PROMPTS, _DECODE),
    "3 prompts, single tokens shared": (*_PROMPTS, _SHARED),
}


def write(folder: Path, precision: str, layers: int) -> None:
    """A decoder of `layers` x 896 for RTX, as the exporter writes it."""
    import onnx
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from export.graphs.decoder import write_decoder
    from export.graphs.targets import target
    from export.graphs.weights import WeightFile

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=896, num_hidden_layers=layers, num_attention_heads=14, num_key_value_heads=2, head_dim=64,
        intermediate_size=4864, vocab_size=32000, max_position_embeddings=_POSITIONS, tie_word_embeddings=True,
    )  # fmt: skip
    rtx = target("rtx")
    with WeightFile(folder / "weights.bin") as weights:
        graph, _ = write_decoder(
            LlamaForCausalLM(config).eval(), weights.tensor, rtx.writer_dialect(_POSITIONS), "decoder.onnx",
            product=rtx.product(precision), floats=rtx.floats_of(precision), positions=_POSITIONS,
        )  # fmt: skip
    onnx.save(graph, folder / "decoder.onnx")


def build(folder: Path, precision: str, layout: str, gpu: str) -> dict[str, Any]:
    """One engine, and this process's peak of memory."""
    from export.device.build import Builder, Order

    parts = dict.fromkeys(("prefill", "decode"), precision)
    manifest: Any = SimpleNamespace(folder=folder, precision=parts, path=lambda file: folder / file)
    api = Tensorrt("tensorrt-rtx")
    prompt: Any = None
    builder = Builder(
        api, manifest, prompt, Order(1, "own"), Fingerprint(api.product, api.version, gpu, "", "", "", {})
    )
    sizes = [dimensions(profile, _POSITIONS) for profile in LAYOUTS[layout]]
    built = builder.engine("decoder.onnx", sizes, folder / "decoder.engine")
    return {"engine_mib": round(built.engine_bytes / 2**20, 1), "seconds": round(built.seconds, 1)}


@click.command()
@click.option("--layers", type=int, default=4, show_default=True)
@click.option("--gpu", default="sm89", show_default=True)
@click.option("--precision", "precisions", multiple=True, default=["float16", "int8", "int4"], show_default=True)
@click.option("--one", type=(click.Path(path_type=Path), str), hidden=True, help="Folder and layout of one build.")
def main(layers: int, gpu: str, precisions: tuple[str, ...], one: tuple[Path, str] | None) -> None:
    """Build every layout in every precision and keep the sizes in results/engines_<layers>.json."""
    if one:
        built = build(one[0], precisions[0], one[1], gpu)
        click.echo(json.dumps(built | {"peak_mib": round(resident_mib("VmHWM") or 0)}))
        return
    found: dict[str, Any] = {}
    for precision in precisions:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, precision, layers)
            weights = (folder / "weights.bin").stat().st_size
            found[precision] = {"weights_mib": round(weights / 2**20, 1)}
            for layout in LAYOUTS:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.runtime.engines",
                    "--one",
                    name,
                    layout,
                    "--precision",
                    precision,
                    "--gpu",
                    gpu,
                ]
                done = subprocess.run(command, capture_output=True, text=True)
                said = done.stdout.strip().splitlines()
                found[precision][layout] = json.loads(said[-1]) if done.returncode == 0 else {"failed": _reason(done)}
                click.echo(f"{precision:>8}  {layout:<34} {found[precision][layout]}")
    version = Tensorrt("tensorrt-rtx").version
    command = f"python -m benchmarks.runtime.engines --layers {layers} --gpu {gpu}"
    click.echo(keep(f"engines_{layers}", command, tensorrt_rtx=version, layers=layers, gpu=gpu, engines=found))


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]


if __name__ == "__main__":
    main()
