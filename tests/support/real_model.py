"""A run whose language model is a real one and whose eyes are not: what 4 and 8 bits do to real weights."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.real_weights import save_real_model
from mvlm_core.train.build import build_model, build_processor, resolve_config
from mvlm_core.train.config import TrainConfig
from tests.support.tiny import drawn_picture

# Questions to which the model knows an answer whatever the picture shows, which is noise to it.
FACTS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "How many days are in a week?": "There are seven days in a week.",
    "What colour is the sky on a clear day?": "The sky is blue on a clear day.",
    "Which planet do we live on?": "We live on the planet Earth.",
    "What do bees make?": "Bees make honey from the nectar of flowers.",
    "What is two plus two?": "Two plus two is equal to four.",
    "Who wrote Romeo and Juliet?": "Romeo and Juliet was written by William Shakespeare.",
    "What is water made of?": "Water is made of hydrogen and oxygen.",
    "What is the largest ocean?": "The largest ocean on Earth is the Pacific Ocean.",
    "How do plants make food?": "Plants make their food from sunlight, water and carbon dioxide by photosynthesis.",
    "What does a thermometer measure?": "A thermometer measures how hot or cold something is.",
    "Name a fruit that is yellow.": "A banana is a fruit that is yellow when it is ripe.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "Why do we sleep?": "We sleep so that the body and the brain can rest and repair themselves.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "What is the freezing point of water?": "Water freezes at zero degrees Celsius, or 32 degrees Fahrenheit.",
}


def real_run(folder: Path, language: Path | None = None) -> Path:
    """Write a run and its rows into a folder; `language` is where `save_real_model` saved one, made where it is left
    out. Raises `RuntimeError` where the weights cannot be had."""
    if language is None:
        language = folder / "language"
        save_real_model(language, mixed=True)
    told = {
        "vision": {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                   "layer_type": "basic", "downsample_in_first_stage": False},
        "text": {"name": str(language)}, "image": {"size_px": 96}, "connector": "pool",
    }  # fmt: skip
    stage = {"name": "none", "show": [4], "steps": 1, "pictures": 1, "questions": 1, "lr": 1e-3}
    config = resolve_config(TrainConfig.model_validate({"model": told, "scales": [4], "stages": [stage]}))
    processor = build_processor(config, [])
    build_model(config, processor).save_pretrained(folder / "run")
    processor.save_pretrained(folder / "run")
    (folder / "rows").mkdir()
    lines = []
    for i, (question, answer) in enumerate(FACTS.items()):
        drawn_picture(i).save(folder / "rows" / f"{i}.png")
        split = "test" if i % 4 == 0 else "train"
        row = {"id": f"fact{i}", "image": f"{i}.png", "question": question, "answers": [answer], "split": split}
        lines.append(json.dumps(row))
    (folder / "rows" / "rows.jsonl").write_text("\n".join(lines))
    return folder / "run"
