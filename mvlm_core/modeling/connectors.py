"""The idea: one encoding of the picture, shown to the language model in as many tokens as one likes.

Letters: B pictures, P patches (a square grid of side G), M queries, m visual tokens (the scale), H heads,
D_vision and D the widths of vision tower and language model.

Every connector works in two steps, so that the picture is encoded once and every scale follows from that:
`values` is what each patch contributes whatever the scale, `tokens` gathers it into m tokens. `words` is each
patch on its own, as the language model would read it; the patch loss and the router look at it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .projection import Projector
from .scales import nested_pool_scales, pool_scales, query_scales, require_scales

# A softmax that has settled on one patch no longer learns, so no query of the pyramid starts sharper than this.
_FEWEST_PATCHES = 2.0


class PatchPositions(nn.Module):
    """Adds a learned position to each patch and normalises: for towers that leave no position in their features."""

    def __init__(self, num_patches: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_patches, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(features + self.table)  # (B, P, D_vision)


class PoolConnector(nn.Module):
    """M3 (arXiv 2405.17430): a two-layer MLP on every patch, then average pooling of the grid to the scale.

    An imported model keeps its own projector in the MLP's place. Where that makes one token of several patches, the
    grid that is pooled, and P, are its tokens'. `newline` is a vector (D,) that ends each row of a grid of several
    views, where the model puts them together.
    """

    def __init__(
        self, grid_side: int, vision_width: int, text_width: int, *,
        positions: bool, projector: Projector | None = None, newline: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.projector, self.patches_side = projector or Projector(), grid_side
        self.grid_side = grid_side // self.projector.shuffle
        self.positions = PatchPositions(grid_side**2, vision_width) if positions else nn.Identity()
        self.mlp = self.projector.build(vision_width, text_width)
        self.newline = nn.Parameter(torch.empty(text_width)) if newline else None

    @property
    def scales(self) -> Sequence[int]:
        return pool_scales(self.grid_side)

    def values(self, features: Tensor) -> Tensor:
        """What each patch contributes: (B, patches, D_vision) -> (B, P, D)."""
        return self.mlp(self.projector.gather(self.positions(features), self.patches_side))

    def tokens(self, values: Tensor, num_visual_tokens: int) -> Tensor:
        """Average the patches of each cell: (B, P, D) -> (B, m, D). Raises `MvlmError` for a scale not allowed."""
        require_scales([num_visual_tokens], self.scales)
        side = round(num_visual_tokens**0.5)
        step = self.grid_side // side
        cells = values.unflatten(1, (side, step, side, step))  # (B, √m, G/√m, √m, G/√m, D)
        return cells.mean(dim=(2, 4)).flatten(1, 2)  # (B, m, D)

    def ladder(self, values: Tensor, scales: Sequence[int]) -> dict[int, Tensor]:
        """The tokens at several scales: (B, P, D) -> for each m (B, m, D)."""
        return {scale: self.tokens(values, scale) for scale in scales}

    def words(self, values: Tensor) -> Tensor:
        """Each patch on its own: (B, P, D) -> (B, P, D)."""
        return values


class NestedPoolConnector(PoolConnector):
    """The patches of `PoolConnector` told from coarse to fine: the first m tokens hold what m pooled ones hold.

    The tokens are a fixed invertible linear map of the patches (`nested_basis`), so token i is the same for every
    m >= i, and at the squares of `nested_sides` the m tokens and the m averages of `PoolConnector` are each a linear
    map of the other. Between two squares a prefix holds a part of the finer grid. The weights are those of pooling.
    """

    def __init__(
        self, grid_side: int, vision_width: int, text_width: int, *,
        positions: bool, projector: Projector | None = None, newline: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            grid_side, vision_width, text_width, positions=positions, projector=projector, newline=newline
        )  # fmt: skip
        self.basis: Tensor
        self.register_buffer("basis", torch.zeros(self.grid_side**2, self.grid_side**2), persistent=False)

    @property
    def scales(self) -> Sequence[int]:
        return nested_pool_scales(self.grid_side)

    def tokens(self, values: Tensor, num_visual_tokens: int) -> Tensor:
        """The first m tokens: (B, P, D) -> (B, m, D). Raises `MvlmError` for a scale that is not allowed."""
        require_scales([num_visual_tokens], self.scales)
        return self.basis[:num_visual_tokens] @ values

    def ladder(self, values: Tensor, scales: Sequence[int]) -> dict[int, Tensor]:
        """The tokens at several scales: (B, P, D) -> for each m (B, m, D). Coarse ones begin the finest."""
        return _prefixes(self.tokens(values, max(scales)), scales)


class QueryConnector(nn.Module):
    """MQT (arXiv 2405.19315): one cross-attention from the first m of M learned queries to the patches.

    Keys are position codes only, so the attention is a constant of the weights, and queries never see each other, so
    token i is the same for every m >= i. `value_mlp` puts the MLP of LLaVA before the values and leaves the queries
    without a norm, which lets a start be sharp or flat; MQT's own layout has neither.
    """

    def __init__(
        self, grid_side: int, vision_width: int, text_width: int, *,
        positions: bool, num_queries: int, num_heads: int, value_mlp: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid_side, self.num_queries, self.num_heads = grid_side, num_queries, num_heads
        width = vision_width
        self.positions = PatchPositions(grid_side**2, width) if positions else nn.Identity()
        self.query_codes: Tensor
        self.key_codes: Tensor
        self.query = nn.Parameter(torch.empty(num_queries, width))
        self.register_buffer("query_codes", torch.zeros(num_queries, width))
        self.register_buffer("key_codes", torch.zeros(grid_side**2, width))
        self.ln_q = nn.Identity() if value_mlp else nn.LayerNorm(width, eps=1e-6)
        self.ln_k = nn.LayerNorm(width, eps=1e-6)
        self.ln_v = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU()) if value_mlp else nn.Identity()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, text_width, bias=False)

    @property
    def scales(self) -> Sequence[int]:
        return query_scales(self.num_queries)

    def values(self, features: Tensor) -> Tensor:
        """What each patch contributes: (B, P, D_vision) -> (B, P, D_vision), all heads side by side."""
        return self.v_proj(self.mlp(self.ln_v(self.positions(features))))

    def attention(self, num_visual_tokens: int) -> Tensor:
        """How much each of the first m queries takes of each patch, whatever the picture: (H, m, P)."""
        queries = self.q_proj(self.ln_q((self.query + self.query_codes)[:num_visual_tokens]))  # (m, D_vision)
        keys = self.k_proj(self.ln_k(self.key_codes))  # (P, D_vision)
        return _attend(queries, keys, self.num_heads)

    def tokens(self, values: Tensor, num_visual_tokens: int, attention: Tensor | None = None) -> Tensor:
        """(B, P, D_vision) -> (B, m, D). `attention` (H, m, P) may be given when it was folded to a constant.

        Raises `MvlmError` for a scale that is not allowed.
        """
        require_scales([num_visual_tokens], self.scales)
        return self.gathered(values, self.attention(num_visual_tokens) if attention is None else attention)

    def gathered(self, values: Tensor, attention: Tensor) -> Tensor:
        """What each query takes of the patches: (B, P, D_vision), (H, m, P) -> (B, m, D)."""
        heads = values.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, P, d)
        gathered = (attention @ heads).transpose(1, 2).flatten(2)  # (B, m, D_vision)
        return self.words(gathered)

    def ladder(self, values: Tensor, scales: Sequence[int]) -> dict[int, Tensor]:
        """The tokens at several scales: (B, P, D_vision) -> for each m (B, m, D). Coarse ones begin the finest."""
        return _prefixes(self.tokens(values, max(scales)), scales)

    def words(self, values: Tensor) -> Tensor:
        """Each patch on its own: (B, P, D_vision) -> (B, P, D)."""
        return self.proj(self.out_proj(values))


Connector = PoolConnector | NestedPoolConnector | QueryConnector


def _prefixes(finest: Tensor, scales: Sequence[int]) -> dict[int, Tensor]:
    return {scale: finest[:, :scale] for scale in scales}  # (B, m, D) each


def sincos_codes(side: int, width: int) -> Tensor:
    """Fixed two-dimensional sine and cosine codes of a square grid, (side², width), as in MAE and MQT.

    The first half of the channels codes the column, the second the row; in each, sines before cosines.
    """
    frequencies = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    line = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # (side, width / 4)
    line = torch.cat([line.sin(), line.cos()], dim=1)  # (side, width / 2)
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()


def start_random(connector: QueryConnector) -> None:
    """MQT's own start: small random queries, fixed codes on a grid of √M (upwards), resized for the keys."""
    side, width = math.isqrt(connector.num_queries - 1) + 1, connector.query.shape[1]
    codes = sincos_codes(side, width)
    nn.init.trunc_normal_(connector.query, std=0.02)
    grid = codes.T.reshape(1, width, side, side)
    resized = F.interpolate(grid, size=(connector.grid_side,) * 2, mode="bicubic", align_corners=False)
    connector.query_codes.copy_(codes[: connector.num_queries])
    connector.key_codes.copy_(resized.flatten(2)[0].T)


def start_pyramid(connector: QueryConnector) -> None:
    """Start as pooling does: query 1 looks everywhere, the next ones at the cells of ever finer grids.

    MQT's random queries all read the same average for a long time, and a ladder has to be found; here it stands from
    the first step, and everything of it can still be learned. The first m queries fill the grids up to side √m.
    Each query is the code of its cell, as sharp as makes it see about as many patches as the cell has.
    """
    side, width = connector.grid_side, connector.query.shape[1]
    points, tiers = _pyramid_points(side, connector.num_queries)
    centres = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    patches = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).reshape(-1, 2)  # (P, 2)
    norm = nn.LayerNorm(width, elementwise_affine=False)
    keys, queries = norm(_cell_codes(patches, side, width)), norm(_cell_codes(points, side, width))
    heads = connector.num_heads
    sharpness = {
        t: _sharpness(queries[tiers == t], keys, heads, wanted=max(side**2 / t, _FEWEST_PATCHES))
        for t in set(tiers.tolist())
    }
    with torch.no_grad():
        for layer in (connector.q_proj, connector.k_proj, connector.v_proj, connector.out_proj):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        connector.key_codes.copy_(keys)
        connector.query_codes.zero_()
        scale = torch.tensor([sharpness[tier] for tier in tiers.tolist()])
        connector.query.copy_(queries * scale[:, None])


def _pyramid_points(side: int, count: int) -> tuple[Tensor, Tensor]:
    """Centres (count, 2) in 0..1 and tiers (count,): each finer grid adds its cells farthest from those taken."""
    points, tiers = torch.tensor([[0.5, 0.5]]), [1]
    for tier in [*(s for s in pool_scales(side) if 1 < s < count), count]:
        cells = math.isqrt(tier - 1) + 1
        centres = (torch.arange(cells, dtype=torch.float32) + 0.5) / cells
        candidates = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).reshape(-1, 2)
        while len(points) < min(tier, count):
            farthest = torch.cdist(candidates, points).amin(dim=1).argmax()
            points = torch.cat([points, candidates[farthest : farthest + 1]])
            tiers.append(tier)
    return points[:count], torch.tensor(tiers[:count])


def _cell_codes(points: Tensor, side: int, width: int) -> Tensor:
    """Sines and cosines of a position (n, 2) at wavelengths from two grids down to three cells: (n, width)."""
    wavelengths = torch.logspace(0, 1, width // 4, base=3 / (2 * side)) * 2  # in units of the grid's side
    phases = 2 * torch.pi * points[:, :, None] / wavelengths  # (n, 2, width / 4)
    return torch.stack([phases.sin(), phases.cos()], dim=-1).flatten(1)


def _sharpness(queries: Tensor, keys: Tensor, heads: int, *, wanted: float) -> float:
    """The factor on the queries at which their attention spreads over `wanted` patches (its perplexity)."""
    if wanted >= len(keys):
        return 0.0
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        attention = _attend(middle * queries, keys, heads)
        spread = torch.special.entr(attention).sum(dim=-1).exp().mean()
        low, high = (middle, high) if spread > wanted else (low, middle)
    return low


def _attend(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Softmax of the scaled products, head by head: (m, D_vision), (P, D_vision) -> (H, m, P)."""
    queries, keys = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (queries, keys))  # (H, m|P, d)
    return (queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(dim=-1)
