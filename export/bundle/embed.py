"""Rows of a data set as the language model of a run reads them: the question with the picture's tokens in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from export.runtime.views.scale import ScaleWord
from mvlm_core.data.row import Row
from mvlm_core.label.shown_pictures import ShownPictures
from mvlm_core.modeling.processing import prompt_of

from .source import Source

# Tokens of a reference answer that are read at most.
_MOST_ANSWER = 64


def shown_row(source: Source, row: Row, scales: Sequence[ScaleWord]) -> ShownPictures:
    """The picture of a row with all the views that some scales want of it, each encoded once."""
    return ShownPictures(source.model, source.processor, [row.image], scales)


@torch.no_grad()
def embed_question(source: Source, row: Row, shown: ShownPictures, scale: ScaleWord) -> tuple[Tensor, Tensor]:
    """A prompt with the row's picture at a scale: embeddings (1, S, D), and its ids (1, S), those of the picture
    being the placeholder's where a visual token stands."""
    model: Any = source.model
    text = source.processor.ask(row.question)
    ids = source.processor(text=text, images=[row.image.read()], scale=scale)["input_ids"]
    ids_of_picture = torch.tensor(shown.pictures.ids(0, scale))
    visual = shown.embeds([0], scale)[0][ids_of_picture == model.config.image_token_id]  # (T, D)
    return model.placed(ids, visual), ids


@torch.no_grad()
def embed_rows(source: Source, rows: Sequence[Row]) -> list[tuple[Tensor, int]]:
    """Questions with their reference answers, the scales in turn: embeddings (1, S, D), and the first position behind
    the picture's last token."""
    model: Any = source.model
    prompt, table, embedded = prompt_of(source.processor), model.get_input_embeddings(), []
    for i, row in enumerate(rows):
        scale = source.scales[i % len(source.scales)]
        embeds, ids = embed_question(source, row, shown_row(source, row, [scale]), scale)
        answer = prompt.text_ids(row.answers[0])[:_MOST_ANSWER] if row.answers else []
        if answer:
            embeds = torch.cat([embeds, table(torch.tensor([answer]))], dim=1)
        last = int((ids[0] == model.config.image_token_id).nonzero().max())
        embedded.append((embeds, last))
    return embedded
