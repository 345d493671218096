"""Tiny random checkpoints of the families that people deploy, as transformers saves them, and what it computes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

QUESTION = "what colour is the star?"
KINDS = ("smolvlm", "idefics3", "internvl", "llava_next", "llava_onevision")
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE\n{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SMOL = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}"
    "{% if message.content[0].type == 'image' %}:{% else %}: {% endif %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_VISION = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3}


def _tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **named)
    fast.add_special_tokens({"additional_special_tokens": special})
    return fast


def _text(kind: str, words: PreTrainedTokenizerFast) -> dict[str, Any]:
    ends = {key: getattr(words, key) for key in ("pad_token_id", "eos_token_id", "bos_token_id")}
    return {
        "model_type": kind, "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "head_dim": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 4096,
        **ends,
    }  # fmt: skip


@dataclass
class _Made:
    config: Any
    words: PreTrainedTokenizerFast
    images: Any
    template: str
    processor: dict[str, Any]


def _smolvlm(kind: str) -> _Made:
    rows = [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
    special = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *rows]
    words = _tokenizer(special, eos_token="<end_of_utterance>", bos_token="<|im_start|>", pad_token="<|im_end|>")
    title = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[kind]
    config = getattr(transformers, f"{title}Config")(
        vision_config=_VISION | {"num_hidden_layers": 2, "image_size": 64, "patch_size": 8}, scale_factor=2,
        text_config=_text("llama", words), image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = getattr(transformers, f"{title}ImageProcessorPil")(
        size={"longest_edge": 256}, max_image_size={"longest_edge": 64}
    )
    return _Made(config, words, images, _SMOL, {"image_seq_len": 16})


def _internvl(kind: str) -> _Made:
    named = {"start_image_token": "<img>", "end_image_token": "</img>"}
    words = _tokenizer(["<img>", "</img>", "<CONTEXT>", "<|im_start|>"], eos_token="<|im_end|>", pad_token="<|pad|>")
    words.init_kwargs |= named
    vision = _VISION | {"num_hidden_layers": 2, "image_size": [56, 56], "patch_size": [7, 7]}
    config = transformers.InternVLConfig(
        vision_config=vision, text_config=_text("qwen3", words), image_seq_length=16,
        image_token_id=words.get_vocab()["<CONTEXT>"],
    )  # fmt: skip
    images = transformers.GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=6
    )
    return _Made(config, words, images, _CHATML.replace("IMAGE", "<CONTEXT>"), {"image_seq_length": 16})


def _llava(kind: str) -> _Made:
    words = _tokenizer(["<image>", "<|im_start|>"], eos_token="<|im_end|>", pad_token="<|pad|>")
    side, grid = 48, [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]
    told = {"image_size": side, "patch_size": 8, **_VISION}
    common: dict[str, Any] = {"image_token_id": words.convert_tokens_to_ids("<image>"), "image_grid_pinpoints": grid}
    square = {"height": side, "width": side}
    if kind == "llava_next":
        vision = told | {"model_type": "clip_vision_model", "num_hidden_layers": 3}
        config: Any = transformers.LlavaNextConfig(vision_config=vision, text_config=_text("llama", words), **common)
        images: Any = transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=grid
        )
        extra = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    else:
        grid.append([144, 144])
        vision = told | {"model_type": "siglip_vision_model", "num_hidden_layers": 2, "vision_use_head": False}
        config = transformers.LlavaOnevisionConfig(
            vision_config=vision, text_config=_text("qwen2", words), vision_aspect_ratio="anyres_max_4", **common
        )
        images = transformers.LlavaOnevisionImageProcessorPil(size=square, image_grid_pinpoints=grid)
        extra = {
            "num_image_tokens": 36,
            "vision_aspect_ratio": "anyres_max_4",
            "vision_feature_select_strategy": "full",
        }
    return _Made(config, words, images, _CHATML.replace("IMAGE", "<image>"), extra)


def make(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint. Norms and biases are random too, so that every tensor shows."""
    torch.manual_seed(seed)
    made = {"internvl": _internvl, "llava_next": _llava, "llava_onevision": _llava}.get(kind, _smolvlm)(kind)
    model = AutoModelForImageTextToText.from_config(made.config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.generation_config.eos_token_id = made.words.eos_token_id
    model.generation_config.pad_token_id = made.words.pad_token_id
    model.save_pretrained(folder)
    made.words.save_pretrained(folder)
    made.images.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(made.processor))
    (folder / "chat_template.jinja").write_text(made.template)
    return folder


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    noise = random.integers(0, 255, (max(2, height // 9), max(2, width // 9), 3), np.uint8)
    drawn = Image.fromarray(noise).resize((width, height))
    ImageDraw.Draw(drawn).ellipse([width // 4, height // 4, width // 2, height // 2], fill=(10, 200, 90))
    return drawn


@dataclass
class Theirs:
    """What transformers' own class and image processor make of a picture and a question."""

    ids: Tensor
    pixels: Tensor
    logits: Tensor
    answer: Tensor


class Reference:
    """A checkpoint in transformers' own class."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.words: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        name = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
        self.images: Any = getattr(transformers, f"{name}Pil").from_pretrained(folder)
        self.template = (folder / "chat_template.jinja").read_text()

    @torch.no_grad()
    def see(self, image: Image.Image, question: str = QUESTION) -> Theirs:
        rows = {"return_row_col_info": True} if self.kind in ("smolvlm", "idefics3") else {}
        x = dict(self.images([image], return_tensors="pt", **rows))
        token = self.words.convert_ids_to_tokens(self.model.config.image_token_id)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self.words.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
        )
        text = text.replace(token, self._expanded(x, token))
        ids = self.words(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        logits = self.model(input_ids=ids, **x).logits[0, -1]
        told = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 6}
        answer = self.model.generate(input_ids=ids, **x, **told)[0, ids.shape[1] :]
        return Theirs(ids[0], x["pixel_values"].reshape(-1, *x["pixel_values"].shape[-3:]), logits, answer)

    def _expanded(self, x: dict[str, Any], token: str) -> str:
        if self.kind in ("smolvlm", "idefics3"):
            around = {"fake_token_around_image": "<fake_token_around_image>", "global_image_token": "<global-img>"}
            rows, cols = (int(np.ravel(x.pop(key))[0]) for key in ("rows", "cols"))
            return get_image_prompt_string(rows, cols, 16, image_token=token, **around)
        if self.kind == "internvl":
            return f"<img>{token * 16 * int(x.pop('num_patches')[0])}</img>"
        features = self.model.model.get_image_features(x["pixel_values"], image_sizes=x["image_sizes"])
        return token * len(features.pooler_output[0])

    @torch.no_grad()
    def projected(self, pixels: Tensor) -> Tensor:
        """The tokens that views make by themselves, before any stitching: (views, 3, H, W) -> (views, m, D)."""
        inner = self.model.model
        if self.kind in ("smolvlm", "idefics3"):
            return inner.connector(inner.vision_model(pixels).last_hidden_state)
        if self.kind == "internvl":
            return inner.get_image_features(pixels).pooler_output
        layer = self.model.config.vision_feature_layer
        states = inner.vision_tower(pixels, output_hidden_states=True).hidden_states[layer]
        return inner.multi_modal_projector(states[:, 1:] if self.kind == "llava_next" else states)
