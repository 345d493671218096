"""The columns of a labels folder, which `mvlm label` writes and the router reads: names, and Arrow's names of types."""

from __future__ import annotations

from collections.abc import Mapping

FLOATS, TEXTS = "list of float32", "list of string"
# labels.parquet: what was answered at one scale.
LABELS: Mapping[str, str] = {
    "id": "string", "group": "string", "task": "string", "split": "string", "scale": "string",
    "num_visual_tokens": "int32", "tiles": "int32", "sample": "int32", "metric": "string", "score": "float32",
    "loss": "float32", "probability": "float32", "confidence": "float32", "margin": "float32",
    "prediction": "string", "answer": "string",
}  # fmt: skip
# features.parquet: what a router sees of a row.
FEATURES: Mapping[str, str] = {"id": "string", "image": FLOATS, "question": FLOATS}
# ood_probes.parquet: features of pictures of other kinds.
OOD_PROBES: Mapping[str, str] = {"kind": "string", "image": FLOATS, "question": FLOATS}
# asked.parquet: what a report shows of the test rows: questions, and small pictures, held by the first row about each.
ASKED: Mapping[str, str] = {"id": "string", "question": "string", "picture_of": "string", "picture": "binary"}
# references.parquet: what answers are held against, and the metric that a row names itself; for scoring anew.
REFERENCES: Mapping[str, str] = {"id": "string", "metric": "string", "answers": TEXTS, "votes": TEXTS, "options": TEXTS}
# What every labels.parquet has, and its scale or its tokens; those of an earlier version may lack the others.
ALWAYS = ("id", "group", "task", "split", "score", "prediction", "answer")
# What a router that reads pictures is fitted on, where labels hold it: each picture's patches, in float16; which
# picture a row asks about and the tokens of its question; the words that these tokens stand for, in float16; and what
# both were projected by, float32 (width of the language model, numbers kept of it).
PATCHES, QUESTIONS, WORDS, PROJECTION = "patches.parquet", "questions.parquet", "words.parquet", "projection.npy"
READING = (PATCHES, QUESTIONS, WORDS, PROJECTION)
