"""A lender's CUDA device for tests: the stand-in driver, and the program that uses it."""

from __future__ import annotations

import pytest

from framework.native import helper
from vmcoal.holding.binaries import find_binary
from vmcoal.host import cuda
from vmcoal.lending.gpu_server import missing
from vmcoal.model.gpu import GpuDevice


async def cuda_device(monkeypatch: pytest.MonkeyPatch) -> GpuDevice:
    """Return the stand-in's device, which is found as a lender finds any other; the test is skipped where it cannot be
    lent."""
    if why := missing(opencl=False):
        pytest.skip(f"GPUs cannot be lent here: {why}; tools/setup installs what is needed")
    monkeypatch.setenv("VMCOAL_CUDA_DRIVER", str(helper("libvmcoal-cuda-standin.so")))
    (device,) = cuda.join([], await cuda.find_cuda())
    return device


def program(*what: str) -> list[str]:
    """Return the command line of dataplane/tests/cuda_program.c with this build's client library."""
    return [str(helper("cuda-program")), "--library", str(find_binary("libvmcoal-cuda.so")), *what]
