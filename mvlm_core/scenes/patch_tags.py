"""What each patch of the drawn pictures shows: the tags of a rows folder, as the patch loss reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from export.runtime.artefact import read_artefact
from export.runtime.errors import MvlmError
from mvlm_core.data.clips import ClipFrames
from mvlm_core.data.pictures import PictureFile, PictureSource
from mvlm_core.modeling.losses import TagGroup
from mvlm_core.modeling.processing import MvlmProcessor

from .rows_folder import TAGS_FILE


class PatchTags:
    """The patch tags of a rows folder, and the ids of the words they are told in.

    `total` is what the groups count together, by their `weights` (1 where none is named).
    """

    def __init__(self, folder: Path, processor: MvlmProcessor, weights: Mapping[str, float], *, total: float) -> None:
        file = folder / TAGS_FILE
        if not file.is_file():
            raise MvlmError(f"{file} is missing: the loss `patches` needs tags, as `mvlm data scenes` writes them")
        stored = np.load(file, allow_pickle=False)
        groups = read_artefact(folder, "rows")["tag_words"]
        if unknown := sorted(set(weights) - set(groups)):
            raise MvlmError(f"tag_weights names {', '.join(unknown)}: {file} has the groups {', '.join(groups)}")
        shares = {group: weights.get(group, 1.0) for group in groups}
        self._folder = folder
        self._index = {str(name): i for i, name in enumerate(stored["images"])}
        self._words = {group: torch.tensor([_word_id(processor, w) for w in words]) for group, words in groups.items()}
        self._shown = {group: stored[group] for group in groups}
        self._weights = {group: total * share / sum(shares.values()) for group, share in shares.items()}

    def of(self, pictures: Sequence[PictureSource]) -> list[TagGroup]:
        """The tags of some pictures, a group of words after another. Raises `MvlmError` for a picture without tags."""
        places = [self._place(picture) for picture in pictures]
        return [
            (ids, torch.from_numpy(self._shown[group][places].astype(np.int64)).flatten(1), self._weights[group])
            for group, ids in self._words.items()  # (W,), (B, P)
        ]

    def _place(self, picture: PictureSource) -> int:
        if isinstance(picture, ClipFrames):  # the middle frame is a clip's overview
            picture = picture.sources[len(picture.sources) // 2]
        if isinstance(picture, PictureFile) and picture.path.is_relative_to(self._folder):
            name = picture.path.relative_to(self._folder).as_posix()
            if name in self._index:
                return self._index[name]
        raise MvlmError(f"{picture} has no tags in {self._folder / TAGS_FILE}: the loss `patches` needs them for each")


def _word_id(processor: MvlmProcessor, word: str) -> int:
    """The token that stands for a word after a space; of a word of several tokens, the last."""
    return processor.tokenizer.encode(f" {word}", add_special_tokens=False)[-1]
