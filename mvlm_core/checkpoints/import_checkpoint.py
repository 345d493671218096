"""Published checkpoints -> a run: LLaVA-1.5, M3 (the same tensors) and MQT. Every tensor is accounted for.

Letters: M queries, P patches (a grid of side G), D_vision and D the widths of vision tower and language model, V words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from export.runtime.artefact import describe, sha256_file, write_json
from export.runtime.errors import MvlmError, listed
from export.runtime.views import ViewSpec
from export.runtime.views.scale import NATIVE
from mvlm_core.backbones.processor_files import TOKENIZER_FILES, read_images, read_words
from mvlm_core.backbones.tensor_files import Stored, faults_of, read_json, read_tensors, telling
from mvlm_core.modeling.model import MvlmConfig, MvlmForConditionalGeneration
from mvlm_core.modeling.scales import pool_scales

from .config_files import (
    M3_SCALES,
    QuerySizes,
    original_config,
    tower_config,
    tower_folder,
    trained_scales,
    transformers_config,
)
from .config_sizes import require_sizes
from .family import FAMILIES
from .import_family import FamilyCheckpoint, is_family
from .layouts import CLIP_TEXT_HALF, CONNECTOR, HEAD, TOWER, WORD_TABLE, Layout, recognise, tower_prefix
from .over_base import folder_with, read_over_base
from .remote_code import carry_code
from .run_folder import write_run_facts
from .unmerged import require_merged, require_nothing_beside

# Opens a progress bar with a label and a length, and returns what advances it.
Bar = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class Imported:
    """What was read, for a person. `scales` are those that it was trained at; None for MQT, which drew them."""

    notes: list[str]
    scales: tuple[int, ...] | None
    num_queries: int
    has_tokenizer: bool


@dataclass(frozen=True)
class _Part:
    """A folder of tensors, and what each that is wanted is called here: its name -> ours."""

    stored: Stored
    ours: dict[str, str]
    unused: frozenset[str] = frozenset()


def import_checkpoint(
    checkpoint: Path, out: Path, *, vision_tower: Path | None, num_heads: int, bar: Bar, base: Path | None = None
) -> Imported:
    """Write a checkpoint into the empty folder `out` as a run. `num_heads` is of MQT's resampler, and `base` the model
    that adapters, or a projector alone, were trained on.

    Raises `MvlmError` for a checkpoint that is not whole, naming every tensor that is left over, missing, of another
    shape or type, or not finite; and for one that describes what our model does not do.
    """
    if base is None:
        require_merged(checkpoint)
    holders = [checkpoint, *([base] if base else [])]  # adapters come without what their base has
    described = folder_with(["config.json"], *holders)
    require_sizes(described / "config.json", with_weights=False)
    if base is not None and is_family(described):
        kind = FAMILIES[read_json(described / "config.json")["model_type"]].title
        raise MvlmError(
            f"adapters of {kind} are merged by peft, and not here: load {base} with transformers, put the adapters on"
            " it with PeftModel.from_pretrained, save what merge_and_unload() gives, and import that without --base"
        )
    # What is wrong with the weights is told before what they are too small for.
    stored, merged = read_over_base(checkpoint, base) if base else (read_tensors(checkpoint), [])
    require_sizes(described / "config.json", with_weights=described == holders[-1])
    if is_family(described):
        return _import_family(checkpoint, out, vision_tower, bar)
    if base is None:
        require_nothing_beside(stored)
    layout, told = recognise(stored.tensors), read_json(described / "config.json")
    tower = _tower_folder(described, layout, vision_tower)
    config = _read_config(described, layout, stored, tower, num_heads)
    scales = trained_scales(told, config)
    folders = [*holders, *([tower] if tower else [])]
    images = read_images(folders, told.get("image_aspect_ratio"), config.vision_config.image_size)
    words = read_words(folder_with(TOKENIZER_FILES, *holders), config, images)

    with telling(described / "config.json"):
        shapes = _shapes(config, layout)
    parts = _parts(stored, layout, tower, shapes)
    state = _collect(parts, shapes, config, bar)
    config.dtype = state[WORD_TABLE].dtype
    notes = [*_notes(layout, M3_SCALES in told, parts, images.fit), *merged]
    if layout.kind == "mqt":
        state = _resampler(state, config.grid_side)
        notes.append(f"resampler: {config.num_queries} queries, and {num_heads} heads as --num-heads says")
    if words:
        config.image_token_id = words.processor.image_token_id
        notes += [*words.notes, *grow_words(state, config)]

    if words:
        words.processor.default_scale = max(scales or (config.num_queries,))
    _save(words.processor if words else images, out, described)
    write_model(state, config, out)
    carry_code(out)
    write_run_facts(out)
    files = [file for part in parts for file in part.stored.files]
    unused = sorted(name for part in parts for name in part.unused)
    _tell(out, layout.words, _hashes(files, bar), unused, notes)
    return Imported(notes, scales, config.num_queries, words is not None)


def _save(processor: Any, out: Path, checkpoint: Path) -> None:
    """Raise `MvlmError` for settings that JSON can spell, and no file of text can hold."""
    try:
        processor.save_pretrained(out)
    except UnicodeEncodeError:
        raise MvlmError(
            f"{checkpoint}: a setting of its tokenizer or processor holds half of a surrogate pair: get it again"
        ) from None


def _import_family(checkpoint: Path, out: Path, vision_tower: Path | None, bar: Bar) -> Imported:
    if vision_tower:
        raise MvlmError(f"{checkpoint} holds its vision tower: leave --vision-tower away")
    read = FamilyCheckpoint(checkpoint)
    state, processor = read.state(), read.processor()
    processor.default_scale = NATIVE
    _save(processor, out, checkpoint)
    write_model(state, read.config, out, read.generation_config())
    carry_code(out)
    hashes = _hashes(read.stored.files, bar)
    _tell(out, f"{read.family.title} of transformers", hashes, [], read.notes())
    return Imported(read.notes(), pool_scales(ViewSpec.from_json(read.views).grid_side), 0, True)


def _hashes(files: list[Path], bar: Bar) -> dict[str, str]:
    advance, hashes = bar("hashing what was read", len(files)), {}
    for file in files:
        hashes[file.relative_to(file.parent.parent).as_posix()] = sha256_file(file)
        advance(1)
    return hashes


def _tell(out: Path, layout: str, files: dict[str, str], unused: list[str], notes: list[str]) -> None:
    write_json(out / "import.json", describe("import", layout=layout, files=files, unused=unused, notes=notes))


def grow_words(state: dict[str, Tensor], config: MvlmConfig) -> list[str]:
    """Give the image token a row of the word table and of the head where it has none, and say so in a line.

    The row is the mean of the others: it is never looked up, and its logit, their mean, is never the largest.
    """
    rows, wanted = config.text_config.vocab_size, config.image_token_id + 1
    if wanted <= rows:
        return []
    for name in {WORD_TABLE, HEAD} & set(state):
        mean = state[name].float().mean(dim=0, keepdim=True).to(state[name].dtype)  # (1, D)
        state[name] = torch.cat([state[name], mean.expand(wanted - rows, -1)])  # (V, D)
    config.text_config.vocab_size = wanted
    return [f"word table and head grew from {rows} to {wanted} rows for the image token; each new row is their mean"]


def write_model(
    state: dict[str, Tensor], config: MvlmConfig, out: Path, generation: GenerationConfig | None = None
) -> None:
    """Write configuration and weights as transformers reads them. `state` must hold every tensor of the model.

    Without `generation`, the language model's configuration says where answers end.
    """
    text = config.text_config
    config.architectures = [MvlmForConditionalGeneration.__name__]
    config.save_pretrained(out)
    ends = {key: getattr(text, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (generation or GenerationConfig(**ends)).save_pretrained(out)
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, out / "model.safetensors", {"format": "pt"}
    )


def _tower_folder(checkpoint: Path, layout: Layout, named: Path | None) -> Path | None:
    """Where the configuration of the vision tower stands, when not in the checkpoint's own."""
    if layout.kind != "transformers":
        return tower_folder(checkpoint, named)
    if named:
        raise MvlmError(f"{checkpoint} holds its vision tower: leave --vision-tower away")
    return None


def _read_config(checkpoint: Path, layout: Layout, stored: Stored, tower: Path | None, num_heads: int) -> MvlmConfig:
    if tower is None:
        return transformers_config(checkpoint / "config.json")
    query = None
    if layout.kind == "mqt":
        tables = (layout.name_of(f"{CONNECTOR}{end}") for end in ("pos_embed", "query"))
        rows = max((len(stored.tensors[name]) for name in tables if name in stored.tensors), default=1)
        if round(rows**0.5) ** 2 != rows:
            raise MvlmError(f"{checkpoint}: {rows} queries fill no square grid, and MQT's have a place on one each")
        query = QuerySizes(rows, num_heads)
    return original_config(checkpoint / "config.json", tower_config(tower), query)


def _shapes(config: MvlmConfig, layout: Layout) -> dict[str, torch.Size]:
    """Our names of all tensors that a checkpoint must hold, and their shapes; of MQT's resampler, those before it is
    taken apart."""
    with torch.device("meta"):
        skeleton = MvlmForConditionalGeneration(config)
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop(HEAD)
    if layout.kind == "mqt":
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(CONNECTOR)}
        shapes |= {f"{CONNECTOR}{end}": torch.Size(shape) for end, shape in _resampler_shapes(config).items()}
    return shapes


def _resampler_shapes(config: MvlmConfig) -> dict[str, tuple[int, ...]]:
    """`Resampler` of llava/model/multimodal_projector/builder.py in the code of arXiv 2405.19315."""
    width, queries = config.vision_config.hidden_size, config.num_queries
    norms = {f"ln_{part}.{end}": (width,) for part in "qkv" for end in ("weight", "bias")}
    return norms | {
        "query": (queries, width),
        "pos_embed": (queries, width),
        "proj": (width, config.text_config.hidden_size),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
    }


def _parts(stored: Stored, layout: Layout, tower: Path | None, shapes: dict[str, torch.Size]) -> list[_Part]:
    """The checkpoint itself, and the folder of its vision tower when that is not inside."""
    prefix = layout.prefixes[TOWER]
    if any(name.startswith(prefix) for name in stored.tensors) or tower is None:
        return [_Part(stored, {layout.name_of(ours): ours for ours in shapes})]
    apart = read_tensors(tower)
    begin = tower_prefix(apart.tensors, "")
    return [
        _Part(stored, {layout.name_of(ours): ours for ours in shapes if not ours.startswith(TOWER)}),
        _Part(
            apart,
            {begin + ours.removeprefix(TOWER): ours for ours in shapes if ours.startswith(TOWER)},
            frozenset(name for name in apart.tensors if name.startswith(CLIP_TEXT_HALF)),
        ),
    ]


def _collect(parts: list[_Part], shapes: dict[str, torch.Size], config: MvlmConfig, bar: Bar) -> dict[str, Tensor]:
    """All tensors by our names, after every one was looked at. Raises `MvlmError` naming all that are not in order."""
    advance = bar("checking tensors", sum(len(part.stored.tensors) - len(part.unused) for part in parts))
    faults: list[str] = []
    state: dict[str, Tensor] = {}
    for part in parts:
        tensors = {name: tensor for name, tensor in part.stored.tensors.items() if name not in part.unused}
        wanted = {name: shapes[ours] for name, ours in part.ours.items()}
        found = faults_of(tensors, wanted, _constants(config, tensors), advance)
        faults += [f"{part.stored.folder.resolve().name}: {fault}" for fault in found]
        state |= {ours: tensors[name] for name, ours in part.ours.items() if name in tensors}
    if faults:
        raise MvlmError(f"tensors not in order: {len(faults)}; get the checkpoint again:{listed(faults, most=200)}")
    return state


def _constants(config: MvlmConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What old checkpoints store although models compute it, by the end of the name."""
    known = {"embeddings.position_ids": torch.arange(config.grid_side**2 + 1).float()}
    if any(name.endswith("rotary_emb.inv_freq") for name in tensors):
        with torch.device("meta"):
            language_model = MvlmForConditionalGeneration(config).language_model
        rotary = next(part for name, part in language_model.named_modules() if name.endswith("rotary_emb"))
        known["rotary_emb.inv_freq"] = type(rotary)(config=config.text_config).inv_freq
    return known


def _resampler(state: dict[str, Tensor], grid_side: int) -> dict[str, Tensor]:
    """MQT's resampler taken apart into our connector's tensors.

    The position table is kept in half precision; its code adds it to the queries as it is, and resizes it to the
    patches for the keys on every call, in float32. Both are constants, so they are computed here once.
    """
    rest = {name: tensor for name, tensor in state.items() if not name.startswith(CONNECTOR)}
    raw = {name.removeprefix(CONNECTOR): tensor for name, tensor in state.items() if name.startswith(CONNECTOR)}
    codes = raw["pos_embed"].float()  # (M, D_vision)
    side = round(len(codes) ** 0.5)
    grid = codes.T.reshape(1, -1, side, side)  # (1, D_vision, √M, √M)
    resized = F.interpolate(grid, size=(grid_side,) * 2, mode="bicubic", align_corners=False)  # (1, D_vision, G, G)
    ours = {name: raw[name] for name in raw if name.startswith("ln_")} | {
        "query": raw["query"],
        "query_codes": codes,
        "key_codes": resized.flatten(2)[0].T,  # (P, D_vision)
        "proj.weight": raw["proj"].T,  # (D, D_vision)
        "out_proj.weight": raw["attn.out_proj.weight"],
        "out_proj.bias": raw["attn.out_proj.bias"],
    }
    for end in ("weight", "bias"):
        for part, chunk in zip("qkv", raw[f"attn.in_proj_{end}"].chunk(3), strict=True):
            ours[f"{part}_proj.{end}"] = chunk
    return rest | {f"{CONNECTOR}{name}": tensor for name, tensor in ours.items()}


def _notes(layout: Layout, is_m3: bool, parts: list[_Part], fit: str) -> list[str]:
    tower = parts[1:]
    title = "MQT" if layout.kind == "mqt" else "M3" if is_m3 else "LLaVA-1.5"
    held = sum(len(part.stored.tensors) for part in parts)
    notes = [f"{title}, in {layout.words}: {held} tensors, every one accounted for"]
    notes.append(f"vision tower from {tower[0].stored.folder if tower else 'inside the checkpoint'}")
    notes += [f"{len(part.unused)} tensors of CLIP's text half are not used" for part in tower if part.unused]
    if layout.kind != "mqt" and not is_m3:
        notes.append("trained with all patches only: pooled scales are allowed, and it never saw them")
    return [*notes, f"pictures that are not square: {fit}"]
