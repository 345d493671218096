"""Packed weights: what a node multiplies by is what `rounded` says, and that is near to the weight."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from benchmarks.runtime.products import one_product
from export.graphs.grids import Grid, nearest
from export.graphs.quantize import WIDE_BLOCK, Blocks, Dense, DynamicInt8, StoredInt4, StoredInt8, form, per_output
from export.runtime import MvlmError

PRODUCTS = {
    "dense": Dense(), "4 bits": Blocks(4), "4 bits, wide blocks": Blocks(4, WIDE_BLOCK), "8 bits": Blocks(8),
    "4 bits, zero points": Blocks(4, zeros=True), "8 bits, blocks of 64": Blocks(8, 64),
    "4 bits, zero points, half scales": Blocks(4, zeros=True, half=True),
    "8 bits, wide blocks, zero points": Blocks(8, WIDE_BLOCK, zeros=True),
    "dynamic": DynamicInt8(), "stored, 8 bits": StoredInt8(), "stored, 4 bits": StoredInt4(),
}  # fmt: skip


def multiplied(folder, product, weight, x, *, head: bool = False):
    """One product, written and run."""
    return one_product(folder, product, weight, head=head).run(None, {"x": x})[0]


def random_weight(n: int, k: int):
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(0))
    weight[0] = 0  # a row of noughts, which has no scale of its own
    weight[1, 3] = 40  # and an outlier
    return weight


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("k", [64, 48])
def test_the_node_multiplies_by_the_rounded_weight(tmp_path, name, head, k):
    """One-hot rows read the matrix out, and are exact in 8 bits too."""
    product, weight = PRODUCTS[name], random_weight(24, k)
    wanted = product.rounded(weight).T.numpy()  # (K, N)
    read = multiplied(tmp_path, product, weight, np.eye(k, dtype=np.float32), head=head)
    np.testing.assert_allclose(read, wanted, atol=2e-5 * np.abs(wanted).max())


# Of what is stored for other engines, onnxruntime makes blocks of its own, and rounds activations where they do not.
@pytest.mark.parametrize("name", [name for name in PRODUCTS if "stored" not in name])
def test_activations_are_rounded_as_the_node_rounds_them(tmp_path, name):
    product, weight = PRODUCTS[name], random_weight(24, 96)
    x = np.random.default_rng(0).standard_normal((5, 96), np.float32)
    x[2] *= 30
    run = one_product(tmp_path, product, weight).run
    found = run(None, {"x": x})[0]
    wanted = (product.seen(torch.from_numpy(x)) @ product.rounded(weight).T).numpy()
    np.testing.assert_allclose(found, wanted, atol=3e-6 * np.abs(wanted).max())
    alone = np.concatenate([run(None, {"x": row[None]})[0] for row in x])
    wanted = (product.seen(torch.from_numpy(x), one_by_one=True) @ product.rounded(weight).T).numpy()
    np.testing.assert_allclose(alone, wanted, atol=3e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("name", [name for name in PRODUCTS if PRODUCTS[name].grid_of(96)])
def test_what_is_read_from_the_file_is_what_was_written(tmp_path, name):
    product, weight = PRODUCTS[name], random_weight(24, 96)
    multiplied(tmp_path, product, weight, np.eye(96, dtype=np.float32))
    tensors = {t.name: t for t in onnx.load(tmp_path / "one.onnx", load_external_data=False).graph.initializer}

    def stored(ending):
        tensor = tensors[f"w{ending}"]
        facts = {entry.key: entry.value for entry in tensor.external_data}
        place, length = int(facts["offset"]), int(facts["length"])
        data = np.fromfile(tmp_path / "weights.bin", np.uint8)[place : place + length]
        if tensor.data_type == onnx.TensorProto.INT4:
            return data
        return data.view(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tuple(tensor.dims))

    read, wanted = product.read(stored, 24, 96), nearest(weight, product.grid_of(96))
    assert torch.equal(read.values, wanted.values)
    assert torch.equal(read.restored(), wanted.restored())


def test_forms_by_their_words():
    assert form("4b32z") == Blocks(4, 32, zeros=True)
    assert form("8b128") == Blocks(8, 128)
    assert form("4b64zh") == Blocks(4, 64, zeros=True, half=True)
    assert isinstance(form("dynamic8"), DynamicInt8)
    for word in ("4b31", "5b32", "4b32y", "int4", ""):
        with pytest.raises(ValueError, match="no form of a layer"):
            form(word)


@pytest.mark.parametrize(("name", "within"), [("4 bits", 0.13), ("8 bits", 0.01), ("dynamic", 0.02), ("dense", 0)])
def test_rounded_weights_are_near(name, within):
    weight = random_weight(24, 64)[2:]
    error = (PRODUCTS[name].rounded(weight) - weight).norm() / weight.norm()
    assert 0 <= error <= within


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_position_gives_the_same_whoever_stands_beside_it(tmp_path, name):
    product, weight = PRODUCTS[name], random_weight(24, 256)
    x = np.random.default_rng(0).standard_normal((8, 256), np.float32)
    x[-1] *= 100  # one that a scale for all would fit
    run = one_product(tmp_path, product, weight).run
    together = run(None, {"x": x})[0]
    alone = np.concatenate([run(None, {"x": row[None]})[0] for row in x])
    # What is rounded again in the next layer must be the same in its last digit.
    exact = isinstance(product, Blocks) and "wide" not in name
    assert product.by_row == (name != "dynamic" and "wide" not in name)
    if product.by_row:
        np.testing.assert_allclose(together, alone, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-4)
    elif name == "dynamic":
        assert np.abs(together - alone).max() > 0.1


def test_every_number_of_a_row_rounds_to_the_nearest():
    weight = np.asarray([[1.27, -0.5, 0.004, 0.006]], np.float32)
    numbers, scale = per_output(weight)
    np.testing.assert_allclose(scale, [0.01])
    assert numbers.tolist() == [[127, -50, 0, 1]]


def test_the_largest_of_a_block_is_exact():
    weight = np.asarray([[0.1, -0.2, 0.8, 0.3, -0.7, 0, 0, 0.1]], np.float32)
    numbers = nearest(torch.from_numpy(weight), Grid(4, 4))
    assert numbers.values[0, 2] == numbers.values[0, 4] == 0
    np.testing.assert_allclose(numbers.scale, [[-0.1, 0.0875]])


def test_zero_points_reach_over_the_whole_range():
    weight = torch.tensor([[0.0, 1.5, 0.6, 0.3]])
    numbers = nearest(weight, Grid(4, 4, zeros=True))
    assert numbers.values.tolist() == [[0, 15, 6, 3]]
    np.testing.assert_allclose(numbers.scale, [[0.1]])
    shifted = nearest(weight - 0.5, Grid(4, 4, zeros=True))
    assert shifted.zero.tolist() == [[5]]
    np.testing.assert_allclose(shifted.restored(), weight - 0.5, atol=1e-6)


def test_blocks_that_do_not_divide():
    with pytest.raises(MvlmError, match="24 inputs, which no block of four-bit weights divides"):
        StoredInt4().rounded(torch.ones(8, 24))
