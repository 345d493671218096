"""Where the tests marked `cuda` run: on CUDA, or where `MVLM_CUDA_TESTS_ON` says, to rehearse them without it."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    device = os.environ.get("MVLM_CUDA_TESTS_ON", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    return device


@pytest.fixture(scope="session")
def cuda(device) -> str:
    """For what no CPU can stand in for."""
    if device != "cuda":
        pytest.skip("needs CUDA")
    return device


@pytest.fixture(autouse=True)
def whole_float32():
    """Products of float32 numbers are that: TensorFloat-32 keeps ten bits of each, which is no error of ours."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
