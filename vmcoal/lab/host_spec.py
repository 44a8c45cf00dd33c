"""One host of a lab as plain data, and QEMU's command line for it: pure, and the same for the same spec.

Decisions that are not obvious from the line itself:

- ``-cpu max`` under TCG is an AMD processor with SVM and nested paging, so the host's own KVM is real; without
  five-level page tables, which make each walk of an emulated one longer.
- A host that reboots or panics ends: what it had was in its memory.
- Both disks are read-only and shared by all hosts; what a host writes is in its own memory.
- The control channel is virtio-serial: `CHANNELS` ports, each with an agent of its own, so that as many clients can
  work in a host at once, and none of them uses the network under test.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import msgspec

from vmcoal.errors import UsageError
from vmcoal.layout import check_name
from vmcoal.model.machine import Accel
from vmcoal.model.units import GIB, MIB, format_size

CPUS = 2
MEMORY = 1536 * MIB
CHANNELS = 4
FUNCTIONS = ("bochs-display", "edu")
"""PCI functions that a host with an IOMMU can pass through to its guests; QEMU's names for them."""

HELD = ("legacy-bus", "ivshmem-plain", "VGA")
"""Functions that it does not give away, each for a reason of its own: `edu` and a network card on a conventional bus,
which are one IOMMU group; 64 MiB that need a large window; the display that the host boots on."""

FIRST_NETWORK_FD = 64
"""The first descriptor number that the network's arguments may use in QEMU; up to 255."""

SOCKETS = ("qmp", "console", *(f"agent{number}" for number in range(CHANNELS)))
"""The listening sockets that QEMU is given, keys of ``fds``."""

_EMULATED = "max,la57=off"
_SMALLEST = 768 * MIB
_TRANSLATIONS = 192  # MiB of translated code under TCG; QEMU's own default is 1 GiB for each host
_EDU = "edu,dma_mask=0xffffffffff"  # its own reaches 256 MiB
_FUNCTION: dict[str, tuple[str, ...]] = {
    "bochs-display": ("-device", "bochs-display,addr={addr:#x}"),
    "edu": ("-device", f"{_EDU},addr={{addr:#x}}"),
    "legacy-bus": (
        *("-device", "pcie-pci-bridge,id=legacy,addr={addr:#x}", "-device", f"{_EDU},bus=legacy,addr=1"),
        *("-device", "virtio-net-pci,bus=legacy,addr=2,romfile="),
    ),
    "ivshmem-plain": (
        *("-object", "memory-backend-ram,id=shared,size=64M,share=on"),
        *("-device", "ivshmem-plain,memdev=shared,addr={addr:#x}"),
    ),
    "VGA": ("-device", "VGA,addr={addr:#x}"),
}
_FIRST_FUNCTION, _SERIAL, _RNG, _FIRST_DISK = 0x10, 3, 4, 5


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One host: ``memory`` in bytes; ``disks`` read-only raw files; ``iommu`` an emulated one with interrupt remapping;
    ``functions`` of `FUNCTIONS` and `HELD`; ``flavor`` and ``release`` of its image, for people; ``tsc_khz`` of the
    time stamp counter, 0 for the kernel to find out."""

    name: str
    qemu: str
    accel: Accel
    accel_reason: str = ""
    cpus: int = CPUS
    memory: int = MEMORY
    flavor: str
    release: str
    kernel: str
    initrd: str
    append: str
    disks: tuple[str, ...]
    iommu: bool = False
    functions: tuple[str, ...] = ()
    tsc_khz: int = 0


def check_host(name: str, cpus: int, memory: int, iommu: bool, functions: Sequence[str]) -> None:
    """Raise `UsageError` for a host that cannot be."""
    check_name(name, "host")
    if not 1 <= cpus <= 64:
        raise UsageError(f"a lab host has 1 to 64 CPUs, not {cpus}", hint=f"the default is {CPUS}")
    if memory < _SMALLEST or memory % MIB or memory > 1024 * GIB:
        raise UsageError(
            f"{format_size(max(memory, 0))} cannot be the memory of a lab host",
            hint=f"use whole MiB, at least {_SMALLEST // MIB}M; the default is {MEMORY // MIB}M",
        )
    unknown = [name for name in functions if name not in _FUNCTION]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is not a function a lab host can have", hint=f"use {' or '.join(_FUNCTION)}")
    if functions and not iommu:
        raise UsageError("functions are passed through by an IOMMU", hint="add --iommu")


def host_argv(spec: HostSpec, fds: Mapping[str, int], network: Sequence[str] = ()) -> list[str]:
    """Return QEMU's argv; ``fds`` are the descriptor numbers of `SOCKETS`, ``network`` arguments of its own."""
    accel = f"tcg,thread=multi,tb-size={_TRANSLATIONS}" if spec.accel is Accel.TCG else "kvm"
    argv = [
        *(spec.qemu, "-name", f"guest=lab-{spec.name},debug-threads=on", "-nodefaults", "-no-user-config"),
        *("-msg", "timestamp=on", "-display", "none", "-no-reboot"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-machine", "q35,vmport=off,dump-guest-core=off" + _split(spec), "-accel", accel),
        *("-cpu", _EMULATED if spec.accel is Accel.TCG else "host", "-smp", str(spec.cpus)),
        *("-m", f"{spec.memory // MIB}M"),
        *("-kernel", spec.kernel, "-initrd", spec.initrd, "-append", kernel_arguments(spec)),
    ]
    if spec.iommu:
        argv += ["-device", "intel-iommu,intremap=on,caching-mode=on"]  # before the devices that it serves
    for name in ("qmp", "console"):
        log = ",logfile=/dev/stdout,logappend=on" if name == "console" else ""
        argv += ["-chardev", f"socket,id={name},fd={fds[name]},server=on,wait=off{log}"]
    argv += ["-mon", "chardev=qmp,mode=control", "-serial", "chardev:console"]
    argv += ["-device", f"virtio-serial-pci,id=ports,addr={_SERIAL:#x}"]
    for number in range(CHANNELS):
        name = f"agent{number}"
        argv += ["-chardev", f"socket,id={name},fd={fds[name]},server=on,wait=off"]
        argv += ["-device", f"virtserialport,bus=ports.0,nr={number + 1},chardev={name},name={port_name(number)}"]
    argv += ["-object", "rng-builtin,id=rng", "-device", f"virtio-rng-pci,rng=rng,addr={_RNG:#x}"]
    for index, path in enumerate(spec.disks):
        file = {"driver": "file", "filename": path}
        node = {"driver": "raw", "node-name": f"disk{index}", "read-only": True, "file": file}
        argv += ["-blockdev", json.dumps(node, separators=(",", ":"))]
        argv += ["-device", f"virtio-blk-pci,drive=disk{index},addr={_FIRST_DISK + index:#x}"]
    for index, function in enumerate(spec.functions):
        argv += [word.format(addr=_FIRST_FUNCTION + index) for word in _FUNCTION[function]]
    return [*argv, *network]


def _split(spec: HostSpec) -> str:
    """Interrupt remapping under KVM needs the interrupt controllers split between the kernel and QEMU."""
    return ",kernel-irqchip=split" if spec.iommu and spec.accel is Accel.KVM else ""


def port_name(number: int) -> str:
    """Return the name of the virtio-serial port of channel ``number``, as the host's agents look for it."""
    return f"org.vmcoal.lab.{number}"


def kernel_arguments(spec: HostSpec) -> str:
    """Return the command line of the host's kernel."""
    words = ["console=ttyS0", f"hostname={spec.name}", spec.append]
    if spec.iommu:
        words.append("intel_iommu=on")
    if spec.tsc_khz:
        words.append(f"tsc_early_khz={spec.tsc_khz}")
    return " ".join(words)
