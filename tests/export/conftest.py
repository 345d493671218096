"""A version of TensorRT put into this machine, and a bundle that may be written to."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest

from export.runtime.backends import cuda as cuda_module
from tests.support.cuda_double import CudaDouble
from tests.support.tensorrt_builds import RTX
from tests.support.tensorrt_bundles import bundle_for
from tests.support.tensorrt_double import tensorrt_double


@pytest.fixture
def install(monkeypatch):
    """Put a version of TensorRT, and a GPU, into this machine."""

    def installed(key: str, cuda: CudaDouble | None = None) -> SimpleNamespace:
        trt, gpu = tensorrt_double(key), cuda or CudaDouble()
        for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx" if key == RTX else "tensorrt", trt)
        monkeypatch.setattr(cuda_module, "_open", lambda names: gpu)
        return SimpleNamespace(trt=trt, cuda=gpu, product="tensorrt-rtx" if key == RTX else "tensorrt")

    return installed


@pytest.fixture
def copy(tmp_path):
    return lambda name, precision="float16": shutil.copytree(bundle_for(name, precision), tmp_path / "bundle")
