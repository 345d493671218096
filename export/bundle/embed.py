"""Rows of a data set as the language model of a run reads them: the question with the picture's tokens in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mvlm_core.data.row import Row
from mvlm_core.modeling.processing import prompt_of

from .source import Source

# Tokens of a reference answer that are read at most.
_MOST_ANSWER = 64


def embed_question(source: Source, row: Row, tokens: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """A prompt with `tokens` (1, m, D) of its picture: embeddings (1, S, D), and its ids (1, S), those of the picture
    being the placeholder's."""
    model: Any = source.model
    text = source.processor.ask(row.question)
    ids = source.processor(text=text, images=[row.image.read()], num_visual_tokens=m)["input_ids"]
    places = ids == model.config.image_token_id  # past the word table, where the language model has no row
    embeds = model.get_input_embeddings()(ids.masked_fill(places, 0))
    embeds[places] = tokens[0]
    return embeds, ids


@torch.no_grad()
def embed_rows(source: Source, rows: Sequence[Row]) -> list[tuple[Tensor, int]]:
    """Questions with their reference answers, the scales in turn: embeddings (1, S, D), and the first position behind
    the picture's last token."""
    model: Any = source.model
    prompt, table, embedded = prompt_of(source.processor), model.get_input_embeddings(), []
    for i, row in enumerate(rows):
        m = source.scales[i % len(source.scales)]
        values = model.encode_images(source.processor.image_processor([row.image.read()])["pixel_values"])
        embeds, ids = embed_question(source, row, model.connector.tokens(values, m), m)
        answer = prompt.text_ids(row.answers[0])[:_MOST_ANSWER] if row.answers else []
        if answer:
            embeds = torch.cat([embeds, table(torch.tensor([answer]))], dim=1)
        last = int((ids[0] == model.config.image_token_id).nonzero().max())
        embedded.append((embeds, last))
    return embedded
