"""Which prompt lengths a decoder engine is built for: one range for each scale, one for single tokens.

Letters: S positions of a step, L positions of the cache.
TensorRT chooses kernels for one length of each range, and takes 1.3 times as long far from it (pytorch/TensorRT#4441),
so every scale has its own, unless two are so near that one serves both. Every range but that of single tokens begins
at 2, as what is appended to a cache may have any length; the narrowest that holds a step is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from export.runtime.backends.engine_files import Profile
from export.runtime.chat_text import ChatText
from export.runtime.errors import MvlmError
from export.runtime.manifest import Manifest
from export.runtime.prompt import Prompt
from export.runtime.views.laid import Layout
from export.runtime.views.scale import Scale, ScaleWord

# The compiler of TensorRT for RTX 1.7 fails on ranges that one tile of its attention covers, 1 alone apart ("Error
# while verifying IR"). Tiles of 32 and 64 positions were seen, by the length of the cache; from 2 to here is more.
_SHORTEST_RANGE_END = 65
# A question is as long as this share of the longest one that was asked for, when nothing else is known.
_LIKELY_SHARE = 0.25
# No family cuts more tiles than this along a side.
_MOST_TILES_ACROSS = 16
# So many views go through an engine of a model with tiles at once; more are encoded one batch after another.
VIEWS_AT_ONCE = 16
Bounds = tuple[int, int, int]


@dataclass(frozen=True)
class Lengths:
    """Positions of a prompt at one scale: the shortest question, a likely one, the longest, of pictures of any size."""

    scale: ScaleWord
    least: int
    likely: int
    most: int


def prompt_lengths(manifest: Manifest, prompt: Prompt, question_tokens: int) -> list[Lengths]:
    """Lengths at each scale, ascending, for questions of up to `question_tokens` tokens.

    Raises `MvlmError` when the longest prompt leaves no room for an answer. Pictures of more tiles than there is room
    for are refused one by one, so of a scale with tiles the picture without any counts.
    """
    empty = prompt.ids("", 0, manifest.image_token_id)
    around = len(empty)
    likely = max(1, round(question_tokens * _LIKELY_SHARE))
    layout = Layout(manifest.views, ChatText(prompt.tokenizer).ids, manifest.image_token_id)
    most, of_pictures = manifest.max_length - 1, {m: picture_lengths(layout, m) for m in manifest.scales}
    least = {scale: around + lengths[0] for scale, lengths in of_pictures.items()}
    dearest = max(least, key=lambda scale: least[scale])
    if least[dearest] + question_tokens > most:
        raise MvlmError(
            f"questions of {question_tokens} tokens at scale {dearest} make prompts of"
            f" {least[dearest] + question_tokens}, and the decoder has {manifest.max_length} positions: build with"
            f" --question-tokens {max(most - least[dearest], 1)}"
        )
    found = []
    for scale, lengths in of_pictures.items():
        longest = around + lengths[-1]
        likely_most, very_most = min(longest + likely, most), min(longest + question_tokens, most)
        found.append(Lengths(scale, least[scale] + 1, likely_most, very_most))
    return sorted(found, key=lambda at: at.most)


def picture_lengths(layout: Layout, scale: ScaleWord) -> list[int]:
    """How many positions pictures of all shapes take at a scale, ascending."""
    if layout.spec is None:
        return [len(layout.at((1, 1), scale))]
    side, parsed = layout.spec.size_px, Scale.parse(scale)
    most = _MOST_TILES_ACROSS if parsed.tiles is None else min(parsed.tiles, _MOST_TILES_ACROSS)
    sizes = [(rows * side, cols * side) for rows in range(1, most + 1) for cols in range(1, most + 1)] or [(side, side)]
    return sorted({len(layout.at(size, scale)) for size in sizes} | {layout.least(scale)})


def of_views(views_at_once: int) -> list[dict[str, Bounds]]:
    """Sizes that vision tower and connectors are built for: one view, and where there are tiles, many."""
    many = [{"batch": (1, max(views_at_once // 4, 1), views_at_once)}] if views_at_once > 1 else []
    return [ONE_PICTURE, *many]


def profiles_of(lengths: Sequence[Lengths], *, own_decode: bool) -> tuple[Profile, ...]:
    """Ranges for prompts, ascending by where they end, and after them the one for single tokens.

    A scale falls together with the one before it when its likely prompt is no longer than the longest prompt there.
    With `own_decode` the last range is 1 alone; without, it reaches as far as all others, and weights need not be
    packed a second time for it.
    """
    groups: list[list[Lengths]] = []
    for at in lengths:
        if groups and at.likely <= max(groups[-1][-1].most, _SHORTEST_RANGE_END):
            groups[-1].append(at)
        else:
            groups.append([at])
    found: list[Profile] = []
    for group in groups:
        most = max(group[-1].most, _SHORTEST_RANGE_END)
        found.append(Profile(2, group[-1].likely, most, tuple(at.scale for at in group)))
    decode = Profile(1, 1, 1 if own_decode else found[-1].most)
    return (*found, decode)


def merged(profiles: Sequence[Profile]) -> list[str]:
    """What to say of scales that share a range."""
    return [
        f"scales {', '.join(map(str, at.scales))} share one profile of up to {at.most} positions"
        for at in profiles
        if len(at.scales) > 1
    ]


def dimensions(profile: Profile, positions: int) -> dict[str, Bounds]:
    """Sizes of a decoder's named dimensions under a profile: least, likely, most, for a cache of L = `positions`.

    `past` is what the cache holds and `positions` what it holds after the step (graphs that concatenate; where the
    cache is a buffer of L, neither name occurs).
    """
    past = (0, 0 if profile.likely > 1 else positions // 2, positions - profile.least)
    steps = (profile.least, profile.likely, profile.most)
    total = tuple(a + b for a, b in zip(past, steps, strict=True))
    return {"steps": steps, "past": past, "positions": (total[0], total[1], total[2])}


ONE_PICTURE: dict[str, Bounds] = {"batch": (1, 1, 1)}
