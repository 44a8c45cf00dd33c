"""Programs that know nothing of vmcoal, on a lent CUDA device: numba-cuda and tinygrad find the driver, compile to PTX,
have it loaded and launch it. The driver behind it is the stand-in, which runs the PTX."""

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
NUMBA = """
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


# The stand-in knows no vectors, which tinygrad's optimizations make.
TINYGRAD = """
import os
os.environ |= {"DEV": "CUDA:PTX", "NOOPT": "1"}
from tinygrad import Device, Tensor
print(Device.DEFAULT)
a = [float(number) for number in range(1000)]
b = [2 * number for number in a]
print("right" if (Tensor(a) + Tensor(b)).tolist() == [3 * number for number in a] else "wrong")
"""


@pytest.mark.parametrize(
    ("module", "install", "program", "says"),
    [
        ("numba_cuda", "numba-cuda[cu12]", NUMBA, "['vmcoal stand-in']\nright\n"),
        ("tinygrad", "tinygrad", TINYGRAD, "CUDA\nright\n"),
    ],
    ids=["numba", "tinygrad"],
)
def test_it_computes(tmp_path: Path, module: str, install: str, program: str, says: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: .venv/bin/pip install '{install}'")
    server = Server(tmp_path)
    (tmp_path / "lib").mkdir()
    for name in ("libcuda.so.1", "libcuda.so"):
        (tmp_path / "lib" / name).symlink_to(find_binary("libvmcoal-cuda.so"))
    folders = [str(tmp_path / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env = server.env | {"LD_LIBRARY_PATH": ":".join(folders), "XDG_CACHE_HOME": str(tmp_path)}
    try:
        argv = [sys.executable, "-W", "ignore", "-c", program]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240, check=False)
    finally:
        server.close()
    assert done.stdout == says, done.stderr
