"""What is true of the families: coarse from fine, prefixes, constants, and errors that name what is allowed."""

import pytest
import torch
from torch import nn

from export.runtime.errors import MvlmError
from mvlm_core.modeling.connectors import (
    NestedPoolConnector,
    PoolConnector,
    QueryConnector,
    sincos_codes,
    start_pyramid,
    start_random,
)
from mvlm_core.modeling.nested_basis import nested_basis
from mvlm_core.modeling.scales import nested_sides, parse_scales, pool_scales, query_scales, require_scales

SIDE, WIDTH, TEXT_WIDTH, QUERIES = 12, 16, 24, 144


def pool() -> PoolConnector:
    torch.manual_seed(0)
    connector = PoolConnector(SIDE, WIDTH, TEXT_WIDTH, positions=True)
    nn.init.normal_(connector.positions.table)
    return connector.eval()


def nested_pool() -> NestedPoolConnector:
    torch.manual_seed(0)
    connector = NestedPoolConnector(SIDE, WIDTH, TEXT_WIDTH, positions=False)
    connector.basis.copy_(torch.from_numpy(nested_basis(SIDE)))
    return connector.eval()


def query(start=start_pyramid, *, value_mlp: bool = True, heads: int = 2) -> QueryConnector:
    torch.manual_seed(0)
    connector = QueryConnector(
        SIDE, WIDTH, TEXT_WIDTH, positions=False, num_queries=QUERIES, num_heads=heads, value_mlp=value_mlp
    )
    with torch.no_grad():
        start(connector)
    return connector.eval()


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(2, SIDE**2, WIDTH, generator=torch.Generator().manual_seed(1))


def test_coarse_pooled_tokens_are_averages_of_fine_ones(features):
    connector = pool()
    values = connector.values(features)
    finest = connector.tokens(values, SIDE**2)
    assert torch.equal(finest, values)
    for scale in connector.scales:
        side = round(scale**0.5)
        by_hand = nn.functional.avg_pool2d(finest.transpose(1, 2).unflatten(2, (SIDE, SIDE)), SIDE // side)
        torch.testing.assert_close(connector.tokens(values, scale), by_hand.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_nested_pool_tokens_and_pooled_ones_are_linear_maps_of_each_other(features):
    """Both ways, at every nested grid; and a constant map, whatever the picture."""
    connector, pooled = nested_pool(), PoolConnector(SIDE, WIDTH, TEXT_WIDTH, positions=False)
    values = connector.values(features).double()
    for m in (side**2 for side in nested_sides(SIDE)):
        cells = pooled.tokens(values, m)  # (B, m, D)
        tokens = connector.double().tokens(values, m)  # (B, m, D)
        there = map_from_pooling(connector, m)  # (m, m)
        torch.testing.assert_close(there @ cells, tokens, atol=1e-6, rtol=0)
        torch.testing.assert_close(torch.linalg.inv(there) @ tokens, cells, atol=1e-6, rtol=0)


def map_from_pooling(connector: NestedPoolConnector, m: int) -> torch.Tensor:
    """What the first m tokens are of a picture of which one cell shows 1 and all others nothing: (m, m)."""
    cells = torch.eye(m, dtype=torch.float64)[..., None]  # (B = m, m, 1)
    side = round(m**0.5)
    grid = cells.unflatten(1, (side, side)).repeat_interleave(SIDE // side, 1).repeat_interleave(SIDE // side, 2)
    return (connector.basis[:m] @ grid.flatten(1, 2)).squeeze(-1).T


def test_the_map_is_not_an_accident_of_this_test():
    """One wrong number in the basis, and the maps are none."""
    connector = nested_pool().double()
    connector.basis[4, 100] += 0.1
    values = torch.randn(1, SIDE**2, 3, dtype=torch.float64)
    cells = PoolConnector(SIDE, WIDTH, TEXT_WIDTH, positions=False).tokens(values, 9)
    assert not torch.allclose(map_from_pooling(connector, 9) @ cells, connector.basis[:9] @ values, atol=1e-3)


def test_nested_pool_tokens_are_prefixes(features):
    connector = nested_pool()
    values = connector.values(features)
    finest = connector.tokens(values, SIDE**2)
    ladder = connector.ladder(values, (2, 4, 36, 143))
    for scale in (1, 2, 4, 36, 143):
        alone = connector.tokens(values, scale)
        torch.testing.assert_close(alone, finest[:, :scale], atol=1e-6, rtol=0)
        if scale in ladder:
            torch.testing.assert_close(ladder[scale], alone, atol=1e-6, rtol=0)


def test_every_nested_pool_token_is_one_of_the_pooled_ones_of_some_grid(features):
    connector, pooled = nested_pool(), PoolConnector(SIDE, WIDTH, TEXT_WIDTH, positions=False)
    values = connector.values(features)
    cells = torch.cat([pooled.tokens(values, side**2) for side in nested_sides(SIDE)], dim=1)  # (B, ·, D)
    tokens = connector.tokens(values, SIDE**2)  # (B, P, D)
    assert (tokens[:, :, None] - cells[:, None]).abs().amax(-1).amin(-1).max() < 1e-5
    torch.testing.assert_close(connector.tokens(values, 1), values.mean(1, keepdim=True), atol=1e-6, rtol=0)


def test_gradients_of_a_nested_pool_token_reach_the_patches_it_sees(features):
    connector = nested_pool()
    values = connector.values(features).detach().requires_grad_()
    connector.tokens(values, 9)[0].sum().backward()
    torch.testing.assert_close(values.grad[0], connector.basis[:9].sum(0)[:, None].expand(-1, TEXT_WIDTH))
    assert not values.grad[1].any()


@pytest.mark.parametrize("start", [start_random, start_pyramid])
def test_query_tokens_are_prefixes(features, start):
    connector = query(start, value_mlp=start is start_pyramid)
    values = connector.values(features)
    finest = connector.tokens(values, QUERIES)
    for scale in (1, 2, 7, 36, 143):
        alone = connector.tokens(values, scale)
        torch.testing.assert_close(alone, finest[:, :scale], atol=1e-6, rtol=0)
        sliced = connector.tokens(values, QUERIES)[:, :scale]
        assert torch.equal(sliced, finest[:, :scale])


def test_query_attention_holds_no_picture_and_folds(features):
    connector = query()
    values = connector.values(features)
    folded = connector.attention(36).detach().clone()
    assert torch.equal(connector.tokens(values, 36, folded), connector.tokens(values, 36))


def test_query_attention_is_multihead_attention(features):
    """The slow obvious way: torch's own module with keys that are codes only, as the paper's code has it."""
    connector = query(start_random, value_mlp=False)
    attention = nn.MultiheadAttention(WIDTH, connector.num_heads, batch_first=True)
    with torch.no_grad():
        parts = (connector.q_proj, connector.k_proj, connector.v_proj)
        attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        attention.out_proj.load_state_dict(connector.out_proj.state_dict())
    queries = connector.ln_q(connector.query + connector.query_codes).expand(2, -1, -1)
    keys = connector.ln_k(connector.key_codes).expand(2, -1, -1)
    expected = connector.proj(attention(queries, keys, connector.ln_v(features))[0])
    torch.testing.assert_close(connector.tokens(connector.values(features), QUERIES), expected, atol=1e-5, rtol=1e-5)


def test_pyramid_starts_as_pooling_does():
    """Query 1 sees all patches alike, and each finer tier about as many as a cell of its grid has."""
    spread = torch.special.entr(query(heads=1).attention(QUERIES)[0]).sum(-1).exp().detach()
    assert spread[0] == pytest.approx(SIDE**2, rel=1e-3)
    assert spread[1:4].mean() == pytest.approx(SIDE**2 / 4, rel=0.1)
    assert spread[4:9].mean() == pytest.approx(SIDE**2 / 9, rel=0.1)
    assert spread[-10:].mean() < 4


def test_random_start_of_any_number_of_queries():
    connector = QueryConnector(3, 8, 4, num_queries=5, num_heads=2, value_mlp=False, positions=False)
    start_random(connector)
    torch.testing.assert_close(connector.query_codes, sincos_codes(3, 8)[:5])


def test_random_start_resizes_codes_to_the_patches():
    connector = query(start_random, value_mlp=False)
    assert torch.equal(connector.query_codes, sincos_codes(12, WIDTH))
    torch.testing.assert_close(connector.key_codes, sincos_codes(12, WIDTH))  # 12 x 12 to 12 x 12 changes nothing


@pytest.mark.parametrize(
    ("connector", "words"),
    [
        (pool(), "1, 4, 9, 16, 36, 144"),
        (nested_pool(), "number from 1 to 144"),
        (query(), "every number from 1 to 144"),
    ],
)
def test_a_scale_that_is_not_allowed_names_those_that_are(connector, words, features):
    with pytest.raises(MvlmError, match=words):
        connector.tokens(connector.values(features), 145)


def test_scales():
    assert pool_scales(24) == (1, 4, 9, 16, 36, 64, 144, 576)
    assert query_scales(3) == range(1, 4)
    require_scales([1, 144], pool_scales(12))
    assert parse_scales("144,9,36") == (9, 36, 144)


@pytest.mark.parametrize("text", ["9,x", "", "9,9", "0,4", "-1"])
def test_what_is_no_list_of_scales(text):
    with pytest.raises(MvlmError, match="not a list of scales"):
        parse_scales(text)
