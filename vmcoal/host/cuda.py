"""The CUDA devices of this host, beside its OpenCL devices: a GPU that has both is one device.

``vmcoal-cuda check`` loads the driver and prints them; a driver that crashes takes that process with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import msgspec

from vmcoal.errors import UNREADABLE, PrerequisiteError
from vmcoal.holding.binaries import find_binary
from vmcoal.host import opencl
from vmcoal.model.gpu import GpuDevice, GpuKind

_CHECK = 60.0
_MAX = 16


class CudaDevice(msgspec.Struct, frozen=True):
    """A device as its driver describes it: ``index`` its number, ``bus`` its PCI address, ``memory`` bytes, ``driver``
    the newest version of CUDA that the driver knows, ``capability`` that of the device."""

    index: int
    name: str
    bus: str
    memory: int
    driver: str
    capability: str


def driver() -> str:
    """Return the CUDA driver's library: ``$VMCOAL_CUDA_DRIVER``, a path, else what the loader finds."""
    path = os.environ.get("VMCOAL_CUDA_DRIVER", "")
    return path if path.startswith("/") else "libcuda.so.1"


async def find_cuda() -> list[CudaDevice]:
    """Return the CUDA devices of this host: none where it has no driver, or one that does not work."""
    try:
        argv = [str(find_binary("vmcoal-cuda")), "check", "--driver", driver()]
    except PrerequisiteError:
        return []
    child = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_CHECK):
            out, _ = await child.communicate()
        return msgspec.json.decode(out, type=list[CudaDevice])[:_MAX] if child.returncode == 0 else []
    except (TimeoutError, *UNREADABLE):
        return []
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


def join(found: list[GpuDevice], cuda: list[CudaDevice]) -> list[GpuDevice]:
    """Return the OpenCL devices ``found``, those that are CUDA devices too marked so, and the others of ``cuda``.

    A GPU is known by its PCI address; where OpenCL does not tell it, by its name, and GPUs of one name by their order.
    """
    left = list(cuda)
    devices = []
    for device in found:
        same = [one for one in left if device.kind is GpuKind.GPU and _is_same(device, one)]
        if same:
            left.remove(same[0])
        devices.append(msgspec.structs.replace(device, cuda=same[0].index) if same else device)
    return devices + [
        GpuDevice(
            name=one.name,
            kind=GpuKind.GPU,
            memory=one.memory,
            vendor="NVIDIA Corporation",
            driver=f"CUDA {one.driver}",
            opencl=False,
            cuda=one.index,
            address=one.bus.lower(),
        )
        for one in left
    ]


def _is_same(device: GpuDevice, one: CudaDevice) -> bool:
    return device.address == one.bus.lower() if device.address else device.name == one.name


async def find_devices() -> list[GpuDevice]:
    """Return every device of this host that can be lent; raises `PrerequisiteError` where OpenCL does not work and
    there is no CUDA device either."""
    cuda = await find_cuda()
    try:
        found = await opencl.find_devices()
    except PrerequisiteError:
        if not cuda:
            raise
        found = []
    return join(found, cuda)
