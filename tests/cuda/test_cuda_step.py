"""One training step on a GPU against the same step on the CPU, and each of its shortcuts against the long way."""

import importlib.util

import pytest
import torch

from benchmarks.train.step import Step, take
from mvlm_core.train.config import scenes_config
from mvlm_core.train.kernels import use_kernels

pytestmark = pytest.mark.cuda
# How far the gradient of a weight may be from the other's, as a part of its length: float32 sums in another order.
FLOAT32 = 2e-4


def step_on(device: str, *, attention: str = "sdpa", bf16: bool = False) -> Step:
    """The same weights and conversations on any device."""
    step = Step("tiny", pictures=3, turns=2, device=device)
    step.bf16, step.attention = bf16, {"packed": attention}
    return step


def taken(step: Step, way: str = "packed") -> tuple[float, dict[str, torch.Tensor]]:
    _, loss = take(step, way)
    return loss, {name: p.grad.cpu() for name, p in step.model.named_parameters() if p.grad is not None}


def furthest(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest distance of a gradient, as a part of its length; where that is mere rounding it is passed by."""
    assert set(found) == set(wanted)
    longest = max(gradient.norm() for gradient in wanted.values())
    return max(
        float((found[name] - gradient).norm() / gradient.norm())
        for name, gradient in wanted.items()
        if gradient.norm() > 1e-6 * longest
    )


@pytest.fixture(scope="module")
def on_the_cpu() -> tuple[float, dict[str, torch.Tensor]]:
    return taken(step_on("cpu"))


def test_a_step_is_the_cpus(device, on_the_cpu):
    loss, gradients = taken(step_on(device))
    assert loss == pytest.approx(on_the_cpu[0], rel=1e-5)
    assert furthest(gradients, on_the_cpu[1]) < FLOAT32


def test_packed_is_one_scale_after_another(device):
    packed, m3 = taken(step_on(device)), taken(step_on(device), "m3")
    assert packed[0] == pytest.approx(m3[0], rel=1e-5)
    assert furthest(packed[1], m3[1]) < FLOAT32


def test_flex_attention_is_the_dense_mask_in_values_and_gradients(cuda, on_the_cpu):
    loss, gradients = taken(step_on(cuda, attention="flex_attention"))
    assert loss == pytest.approx(on_the_cpu[0], rel=1e-5)
    assert furthest(gradients, on_the_cpu[1]) < 1e-3


def test_in_bf16_the_gradient_points_the_same_way(device, on_the_cpu):
    loss, gradients = taken(step_on(device, bf16=True))
    assert loss == pytest.approx(on_the_cpu[0], rel=0.01)
    names = [name for name in on_the_cpu[1] if name in gradients]
    found, wanted = (torch.cat([g[n].flatten() for n in names]) for g in (gradients, on_the_cpu[1]))
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=0) > 0.98


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="needs liger-kernel")
def test_ligers_kernels_change_nothing(cuda, on_the_cpu, tmp_path):
    step = step_on(cuda)
    use_kernels(step.model, scenes_config("pool", rows=tmp_path, seed=0).model_copy(update={"liger": True}))
    assert any("liger" in str(getattr(module.forward, "__module__", "")) for module in step.model.modules())
    loss, gradients = taken(step)
    assert loss == pytest.approx(on_the_cpu[0], rel=1e-4)
    assert furthest(gradients, on_the_cpu[1]) < 2e-3
