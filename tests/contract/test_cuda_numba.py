"""numba-cuda, unchanged, on a lent CUDA device: it finds the driver, compiles to PTX, has it linked and launches it.
The driver behind it is the stand-in, which runs the PTX."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from framework.cuda_server import Server
from vmcoal.holding.binaries import find_binary

pytestmark = [pytest.mark.contract, pytest.mark.soak]

# Without nvJitLink numba has the driver link, as PTX; the stand-in runs no machine code.
PROGRAM = """
import cuda.pathfinder as pathfinder
load = pathfinder.load_nvidia_dynamic_lib
def without_nvjitlink(name):
    if name == "nvJitLink":
        raise pathfinder.DynamicLibNotFoundError(name)
    return load(name)
pathfinder.load_nvidia_dynamic_lib = without_nvjitlink
import numpy as np
from numba import cuda

@cuda.jit
def vadd(a, b, c):
    i = cuda.grid(1)
    if i < c.size:
        c[i] = a[i] + b[i]

print([device.name.decode() if isinstance(device.name, bytes) else device.name for device in cuda.gpus])
a = np.arange(1000, dtype=np.float32)
c = cuda.device_array(1000, dtype=np.float32)
vadd[8, 128](cuda.to_device(a), cuda.to_device(2 * a), c)
cuda.synchronize()
print("right" if (c.copy_to_host() == 3 * a).all() else "wrong")
"""


def test_numba_computes(tmp_path: Path) -> None:
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed: .venv/bin/pip install 'numba-cuda[cu12]'")
    server = Server(tmp_path)
    (tmp_path / "lib").mkdir()
    for name in ("libcuda.so.1", "libcuda.so"):
        (tmp_path / "lib" / name).symlink_to(find_binary("libvmcoal-cuda.so"))
    folders = [str(tmp_path / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env = server.env | {"LD_LIBRARY_PATH": ":".join(folders)}
    try:
        argv = [sys.executable, "-W", "ignore", "-c", PROGRAM]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240, check=False)
    finally:
        server.close()
    assert done.stdout == "['vmcoal stand-in']\nright\n", done.stderr
