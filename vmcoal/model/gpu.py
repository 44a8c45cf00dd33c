"""A GPU that is lent: what it is, and how to reach the server in front of it."""

from __future__ import annotations

import enum

import msgspec

PROGRAMS = 32
"""Programs of a guest that can use a GPU at once: each has two of the 64 streams (docs/internals/gpu-protocol.md)."""


class GpuKind(enum.StrEnum):
    """What a device is. A CPU is one too, where there is no GPU, and is called so."""

    GPU = "gpu"
    ACCELERATOR = "accelerator"
    CPU = "cpu"
    PCI = "pci"  # another PCI function of the VM's own host


class GpuDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a lender. ``memory`` bytes a borrower may use; ``driver`` its driver's version; ``platform`` and
    ``index`` its numbers in the order in which the lender's OpenCL loader lists them, if it is an ``opencl`` device;
    ``cuda`` its number in the order in which the lender's CUDA driver does, if it is one of its devices; ``address`` of
    its PCI function on the lender, where its driver tells; ``programs`` of a guest that may use it at once."""

    name: str
    kind: GpuKind
    memory: int
    vendor: str = ""
    driver: str = ""
    platform: int = 0
    index: int = 0
    address: str = ""
    programs: int = PROGRAMS
    opencl: bool = True
    cuda: int | None = None

    @property
    def id(self) -> str:
        """How an operator names it: ``PLATFORM:DEVICE`` of OpenCL, else ``cuda:DEVICE``."""
        return f"{self.platform}:{self.index}" if self.opencl else f"cuda:{self.cuda}"


class GpuLimits(msgspec.Struct, frozen=True):
    """What the borrower of a GPU may have of it at most: bytes of ``memory`` (0: all of it), ``programs`` at once."""

    memory: int = 0
    programs: int = PROGRAMS

    def apply(self, device: GpuDevice) -> GpuDevice:
        """Return what of a device is lent."""
        memory = min(device.memory, self.memory) if self.memory else device.memory
        return msgspec.structs.replace(device, memory=memory, programs=min(device.programs, self.programs))


class NvidiaGpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU as NVIDIA's driver lists it: ``address`` of its PCI function, ``memory`` bytes and ``used`` of them, part
    of the last second in ``use`` (``None``: it does not say), and the newest version of CUDA its driver knows."""

    name: str
    uuid: str
    address: str
    driver: str
    memory: int = 0
    used: int = 0
    use: float | None = None
    cuda: str = ""


class GpuServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach a lent GPU: streams over TCP with TLS-PSK (docs/internals/gpu-protocol.md). ``psk`` is hex. The
    address is that of the session's own peer unless ``address`` says otherwise."""

    port: int
    psk_identity: str
    psk: str
    device: GpuDevice
    address: str | None = None

    def __repr__(self) -> str:
        return f"GpuServer(port={self.port}, device={self.device.name!r}, psk=…)"
