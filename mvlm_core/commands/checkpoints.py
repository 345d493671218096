"""The verbs that let models of other code in and out."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from export.runtime.artefact import output_folder, refuse_if_filled
from export.runtime.errors import MvlmError
from mvlm_core.progress import Bars, quiet

from .train_label import OVERWRITE, out_option, say_next


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@out_option("run")
@click.option(
    "--vision-tower",
    type=click.Path(path_type=Path),
    help="Folder of the vision tower that the checkpoint names and does not hold (for LLaVA-1.5 the files of"
    " openai/clip-vit-large-patch14-336).",
)
@click.option(
    "--num-heads",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Heads of MQT's resampler. No file says it; the default is what MQT's published code fixes.",
)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Folder of the model that adapters (LoRA), or a projector alone, were trained on.",
)
@OVERWRITE
def import_(
    checkpoint: Path, out: Path, vision_tower: Path | None, num_heads: int, base: Path | None, overwrite: bool
) -> None:
    """Read a published checkpoint as a run, and account for every tensor of it.

    SmolVLM, Idefics3, InternVL, LLaVA-NeXT and LLaVA-OneVision are read as transformers saves them;
    LLaVA-1.5, M3 and MQT in their own layouts, and LLaVA-1.5 in transformers' too. Pictures and questions can be put to
    the run when the checkpoint comes with its tokenizer.

    \b
    Example:
      mvlm import llava-v1.5-7b-m3 --vision-tower clip-vit-large-patch14-336 --out run
    """
    from mvlm_core.backbones.processor_files import TOKENIZER_FILES
    from mvlm_core.checkpoints.import_checkpoint import import_checkpoint

    if not checkpoint.is_dir():
        raise MvlmError(f"there is no folder {checkpoint}: download the checkpoint and name its folder")
    refuse_if_filled(out, overwrite=overwrite)
    with output_folder(out, overwrite=overwrite) as folder, Bars() as bars, quiet():
        read = import_checkpoint(
            checkpoint, folder, vision_tower=vision_tower, num_heads=num_heads, bar=bars.start, base=base
        )
    for note in read.notes:
        click.echo(note)
    if not read.has_tokenizer:
        click.echo(
            f"NO TOKENIZER: {checkpoint} holds no {' and no '.join(TOKENIZER_FILES)}, so only tensors can be fed to"
            f" {out}. Put the language model's tokenizer files into {checkpoint} and import it again."
        )
        named = {"--vision-tower": vision_tower, "--base": base}
        more = [word for option, folder in named.items() if folder for word in (option, str(folder))]
        say_next(shlex.join(["mvlm", "import", str(checkpoint), *more, "--out", str(out), "--overwrite"]))
        return
    scales = ",".join(map(str, read.scales or _fourfold(read.num_queries)))
    words = ["mvlm", "label", *([] if out == Path("run") else [str(out)]), "--scales", scales]
    if not Path("rows").exists():
        click.echo("a checkpoint brings no rows: write yours for ROWS (docs/data.md)")
        words += ["--rows", "ROWS"]
    say_next(shlex.join(words))


def _fourfold(finest: int) -> list[int]:
    """A ladder over every number up to `finest`: each step four times the one before, down to 1."""
    ladder = [finest]
    while ladder[0] >= 4:
        ladder.insert(0, ladder[0] // 4)
    return ladder


@click.command("export-checkpoint")
@click.argument("run", type=click.Path(path_type=Path), default="run")
@click.option("--to", "target", type=click.Choice(["llava-hf"]), default="llava-hf", show_default=True)
@click.option("--scale", type=int, required=True, help="Visual tokens; a plain LLaVA shows all patches.")
@out_option("llava")
@OVERWRITE
def export_checkpoint(run: Path, target: str, scale: int, out: Path, overwrite: bool) -> None:
    """Write a run as a plain LLaVA, which transformers loads without this package and which gives the same logits.

    Where that cannot be, the message says what the other tool would have to do.

    \b
    Example:
      mvlm export-checkpoint run --to llava-hf --scale 576 --out llava
    """
    from mvlm_core.checkpoints.export_llava import export_llava

    with output_folder(out, overwrite=overwrite) as folder, quiet():
        notes = export_llava(run, folder, scale)
    for note in notes:
        click.echo(note)
    click.echo(f"a plain LLaVA in {out}, with {scale} visual tokens a picture")
    say_next(f"python -c \"from transformers import LlavaForConditionalGeneration as L; L.from_pretrained('{out}')\"")
