"""What each verb takes of a large checkpoint in half precision: the peak of memory, and seconds.

`python -m benchmarks.size --size 0.5b` makes a LLaVA of random weights in shards, as transformers saves one, and walks
it through import, export in four bits, verify, label and run, each a process of its own. `private` is what the system
cannot take back (anonymous pages), `resident` counts mapped files too, which it can.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import RESULTS, keep
from benchmarks.tiny_models import byte_words, drawn_picture

# Hidden width, layers, heads, width of the feed-forward; LLaVA-1.5's vocabulary.
SIZES = {"tiny": (64, 2, 4, 128), "0.5b": (1024, 24, 16, 4096), "2b": (2048, 24, 16, 8192), "7b": (4096, 32, 32, 11008)}
_VOCABULARY, _POSITIONS, _SHARD = 32_064, 2048, "1GB"
_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_SIDE, _PATCH_PX, _SCALE, _ROWS = 24, 14, "36", 8
_WATCH_S, _LIMIT_S = 0.2, 3600


def write_checkpoint(folder: Path, size: str) -> int:
    """Save a LLaVA of random halves, and return how many weights it has."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    hidden, layers, heads, wide = SIZES[size]
    side_px = _SIDE * _PATCH_PX
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_TOWER, image_size=side_px, patch_size=_PATCH_PX),
        text_config=LlamaConfig(
            vocab_size=_VOCABULARY, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=wide, max_position_embeddings=_POSITIONS, rms_norm_eps=1e-5,
        ),
        image_token_index=len(byte_words()), vision_feature_layer=-2,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    model = LlavaForConditionalGeneration(config)
    model.save_pretrained(folder, max_shard_size=_SHARD)
    byte_words().save_pretrained(folder)
    pictures = {
        "crop_size": {"height": side_px, "width": side_px}, "do_center_crop": True, "do_resize": True, "resample": 3,
        "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": side_px},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    return sum(weight.numel() for weight in model.parameters())


def write_rows(folder: Path) -> None:
    """A few questions about drawn pictures; half of them to verify with."""
    folder.mkdir()
    lines = []
    for i in range(_ROWS):
        drawn_picture(i).save(folder / f"{i}.png")
        row = {"id": f"r{i}", "image": f"{i}.png", "question": "what is it?", "answers": ["a red square"]}
        lines.append(json.dumps(row | {"split": "test" if i % 2 else "train"}))
    (folder / "rows.jsonl").write_text("\n".join(lines))


def verbs(calibration_rows: int) -> dict[str, list[str]]:
    """What is typed, one after another, in a folder that holds `checkpoint` and `rows`."""
    few = ["--verify-rows", "2"]
    export = ["--rows", "rows", "--no-router", "--scales", _SCALE, "--precision", "int4", "--max-length", "1024"]
    # Random weights lose whatever four bits lose: how much is not the question here.
    export += [*few, "--calibration-rows", str(calibration_rows), "--max-loss", "9"]
    return {
        "import": ["import", "checkpoint", "--out", "run"],
        "export": ["export", "run", *export],
        "verify": ["verify", "bundle", "--run", "run", "--rows", "rows", *few, "--max-loss", "9"],
        "label": ["label", "run", "--rows", "rows", "--scales", _SCALE, "--precision", "bfloat16"],
        "run": ["run", "rows/1.png", "what is it?", "--bundle", "bundle", "--scale", _SCALE, "--max-new-tokens", "8"],
    }


def watched(verb: list[str], folder: Path) -> dict[str, float]:
    """Run a verb and return its seconds and peaks in MiB. Raises `RuntimeError` where it fails."""
    started, peaks = time.perf_counter(), {"private_mib": 0.0, "resident_mib": 0.0}
    with (folder / "said.txt").open("w") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", "mvlm_core.cli", *verb], cwd=folder, stdout=said, stderr=subprocess.STDOUT
        )
        while child.poll() is None:
            for name, value in _memory(child.pid).items():
                peaks[name] = max(peaks[name], value)
            time.sleep(_WATCH_S)
            if time.perf_counter() - started > _LIMIT_S:
                child.kill()
    if child.returncode:
        lines = (folder / "said.txt").read_text().strip().splitlines()
        raise RuntimeError(f"mvlm {' '.join(verb)}: {lines[-1] if lines else child.returncode}")
    return {"seconds": time.perf_counter() - started, **peaks}


def _memory(process: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return {"private_mib": kib["Anonymous"] / 1024, "resident_mib": kib["Rss"] / 1024} if kib else {}


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="0.5b", show_default=True)
@click.option("--calibration-rows", type=int, default=4, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where the checkpoint and all else go; else temporary.")
@click.option("--only", multiple=True, help="A verb, in a --folder that was walked before; left out: all.")
def main(size: str, calibration_rows: int, folder: Path | None, only: tuple[str, ...]) -> None:
    """Walk a checkpoint of a size through the verbs; results/size.json keeps every size that was walked."""
    file = RESULTS / "size.json"
    sizes = json.loads(file.read_text())["sizes"] if file.is_file() else {}
    before = sizes.get(size, {}) if only else {}
    with tempfile.TemporaryDirectory() as temporary:
        home = folder or Path(temporary)
        home.mkdir(exist_ok=True)
        weights = before.get("weights") or write_checkpoint(home / "checkpoint", size)
        if not (home / "rows").is_dir():
            write_rows(home / "rows")
        walked: dict[str, Any] = before.get("verbs", {})
        for name, verb in verbs(calibration_rows).items():
            if only and name not in only:
                continue
            try:
                walked[name] = watched(verb, home)
            except RuntimeError as error:
                walked[name] = {"failed": str(error)[:300]}
            click.echo(
                f"{name:<8}" + "  ".join(f"{k} {v:.0f}" if k != "failed" else v for k, v in walked[name].items())
            )
        bundle = sum(file.stat().st_size for file in (home / "bundle").glob("*") if file.is_file()) / 2**20
    facts = {"weights": weights, "float16_mib": weights * 2 / 2**20, "bundle_mib": bundle,
             "calibration_rows": calibration_rows, "verbs": walked}  # fmt: skip
    click.echo(keep("size", f"python -m benchmarks.size --size {size}", sizes=sizes | {size: facts}))


if __name__ == "__main__":
    main()
