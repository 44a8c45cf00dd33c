"""The OpenCL devices of this host, as its loader lists them.

``python -m vmcoal.host.opencl`` prints them as JSON: a driver that crashes takes that process with it, not the lender.
Constants are those of the OpenCL 3.0 headers (CL/cl.h, CL/cl_ext.h).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec

from vmcoal.errors import UNREADABLE, PrerequisiteError, UsageError
from vmcoal.host.facts import Host
from vmcoal.model.gpu import GpuDevice, GpuKind
from vmcoal.model.units import GIB

T = TypeVar("T")

_PROBE = 60.0
_TYPE, _NAME, _VENDOR, _DRIVER, _MEMORY = 0x1000, 0x102B, 0x102C, 0x102D, 0x101F
_PCI_KHR, _PCI_BUS_NV, _PCI_SLOT_NV, _PCI_DOMAIN_NV = 0x410F, 0x4008, 0x4009, 0x400A
_GPU, _ACCELERATOR = 1 << 2, 1 << 3
_ALL = 0xFFFFFFFF
_MAX = 16
_TEXT_MAX = 128
_ID = re.compile(r"(\d{1,2}|cuda):\d{1,2}")
REMEDY = "install a driver, or the CPU's: apt install ocl-icd-libopencl1 pocl-opencl-icd"


async def find_devices() -> list[GpuDevice]:
    """Return every OpenCL device of this host; raises `PrerequisiteError` where there is no loader or it crashes."""
    try:
        return await asked("vmcoal.host.opencl", list[GpuDevice])
    except (TimeoutError, *UNREADABLE):
        raise PrerequisiteError("OpenCL does not work on this host", hint=f"see what clinfo says; {REMEDY}") from None


async def asked(module: str, kind: type[T]) -> T:
    """Return what ``python -m MODULE`` prints as JSON; raises `TimeoutError`, or as `UNREADABLE` where it crashed."""
    # What the sandbox of a GPU server does not have either, so that the numbers are the same there.
    env = {name: value for name, value in os.environ.items() if name not in ("OCL_ICD_VENDORS", "LD_LIBRARY_PATH")}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=env,
    )
    try:
        async with asyncio.timeout(_PROBE):
            out, _ = await child.communicate()
        return msgspec.json.decode(out, type=kind)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()


def choose(devices: list[GpuDevice], wanted: str) -> list[GpuDevice]:
    """Return the devices that ``wanted`` means: ``auto`` (GPUs and accelerators; where there are none, CPUs), ``none``,
    or ids separated by commas. Raises `UsageError` for anything else, `PrerequisiteError` where there is nothing."""
    if wanted == "none":
        return []
    if wanted == "auto":
        chosen = [device for device in devices if device.kind is not GpuKind.CPU] or devices
        if not chosen:
            raise PrerequisiteError("this host has no GPU and no OpenCL device to lend", hint=REMEDY)
        return chosen
    by_id = {device.id: device for device in devices}
    names = list(dict.fromkeys(wanted.split(",")))
    unknown = [name for name in names if name not in by_id]
    if unknown:
        known = "; ".join(f"{device.id} is {device.name} ({device.kind})" for device in devices) or "none"
        if not all(_ID.fullmatch(name) for name in names):
            raise UsageError(f"{wanted!r} is no choice of GPUs", hint=f"give auto, none or ids; here are: {known}")
        raise PrerequisiteError(f"this host has no device {unknown[0]}", hint=f"here are: {known}")
    return [by_id[name] for name in names]


def cpu_memory(total: int) -> int:
    """Return how much of a host's ``total`` bytes its CPU may use as an OpenCL device: a quarter, in whole GiB, because
    that is how PoCL is told."""
    return max(1, total // 4 // GIB) * GIB


def _probe() -> list[GpuDevice]:
    try:
        library = ctypes.CDLL("libOpenCL.so.1")
    except OSError:
        return []
    found = []
    for number, platform in enumerate(_list(library.clGetPlatformIDs)):
        devices = _list(partial(library.clGetDeviceIDs, platform, ctypes.c_uint64(_ALL)))
        for index, device in enumerate(devices):
            kind = int.from_bytes(_info(library, device, _TYPE)[:8], sys.byteorder)
            memory = int.from_bytes(_info(library, device, _MEMORY)[:8], sys.byteorder)
            cpu = not kind & (_GPU | _ACCELERATOR)
            found.append(
                GpuDevice(
                    name=_text(library, device, _NAME),
                    kind=GpuKind.CPU if cpu else GpuKind.GPU if kind & _GPU else GpuKind.ACCELERATOR,
                    memory=min(memory, cpu_memory(Host().memory_total())) if cpu else memory,
                    vendor=_text(library, device, _VENDOR),
                    driver=_text(library, device, _DRIVER),
                    platform=number,
                    index=index,
                    address=_address(library, device),
                )
            )
    return found


def _list(call: Callable[..., int]) -> list[ctypes.c_void_p]:
    ids, count = (ctypes.c_void_p * _MAX)(), ctypes.c_uint32()
    if call(_MAX, ids, ctypes.byref(count)):
        return []
    return [ctypes.c_void_p(ids[number]) for number in range(min(_MAX, count.value))]


def _info(library: ctypes.CDLL, device: ctypes.c_void_p, what: int) -> bytes:
    data, size = ctypes.create_string_buffer(1024), ctypes.c_size_t()
    if library.clGetDeviceInfo(device, what, ctypes.c_size_t(1024), data, ctypes.byref(size)):
        return b""
    return data.raw[: size.value]


def _address(library: ctypes.CDLL, device: ctypes.c_void_p) -> str:
    """Return where a device is on the PCI bus (cl_khr_pci_bus_info, cl_nv_device_attribute_query), or ``""``."""
    where = _info(library, device, _PCI_KHR)
    if len(where) == 16:
        return pci_address(*struct.unpack("<4I", where))
    bus, slot, domain = (_info(library, device, what) for what in (_PCI_BUS_NV, _PCI_SLOT_NV, _PCI_DOMAIN_NV))
    if len(bus) != 4 or len(slot) != 4:
        return ""
    number = int.from_bytes(slot, sys.byteorder)
    return pci_address(
        int.from_bytes(domain[:4], sys.byteorder), int.from_bytes(bus, sys.byteorder), number >> 3, number & 7
    )


def pci_address(domain: int, bus: int, slot: int, function: int) -> str:
    """Return an address as sysfs writes it, ``0000:01:00.0``."""
    return f"{domain:04x}:{bus & 0xFF:02x}:{slot & 0x1F:02x}.{function & 7}"


def _text(library: ctypes.CDLL, device: ctypes.c_void_p, what: int) -> str:
    text = _info(library, device, what).partition(b"\0")[0].decode(errors="replace")
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_TEXT_MAX]


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_probe()))
