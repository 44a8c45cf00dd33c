"""The machine of a VM as it was asked for: everything that decides QEMU's command line."""

from __future__ import annotations

import enum

import msgspec

from vmcoal.model.engine import MemoryEngineName
from vmcoal.model.units import MIB

GPU_WINDOW = 512 * MIB
"""Bytes of 64-bit prefetchable window of a far node's PCI port: for a GPU whose memory shows through 256 MiB."""


class Accel(enum.StrEnum):
    """What runs the guest's vCPUs."""

    KVM = "kvm"
    TCG = "tcg"


class CpuMode(enum.StrEnum):
    """How far vCPUs come and go.

    ``hotplug``: device_add and device_del. ``plug-park``: device_add once, then parked (offline in the guest) and
    unparked, because device_del of a vCPU kills QEMU under TCG. ``parked``: all are present from boot and offline
    until attached, because guests from 6.12 on ignore absent CPUs under TCG.
    """

    HOTPLUG = "hotplug"
    PLUG_PARK = "plug-park"
    PARKED = "parked"


class Engine(enum.StrEnum):
    """Where a far node's vCPU executes."""

    LOCAL = "local"  # on this host
    FAR = "far"  # on the lender


class FarNode(msgspec.Struct, frozen=True):
    """One empty NUMA node that a lender's resources are plugged into.

    ``node`` the NUMA node id, also its socket id; ``cpus`` vCPU slots; ``memory`` headroom in bytes; ``distance`` its
    SLIT distance to node 0; ``bus_nr`` the first PCI bus of its expander; ``ports`` root ports on it, each with
    ``gpu_window`` bytes for what is plugged there to show its memory through.
    """

    node: int
    cpus: int
    memory: int
    distance: int
    bus_nr: int
    ports: int = 2
    gpu_window: int = GPU_WINDOW


class KernelBoot(msgspec.Struct, frozen=True, tag="kernel"):
    """Direct kernel boot. ``release`` is the guest kernel's version where known (``6.1.0-50-cloud-amd64``)."""

    kernel: str
    initrd: str | None = None
    append: str = ""
    release: str | None = None


class DiskBoot(msgspec.Struct, frozen=True, tag="disk"):
    """Firmware boot from an overlay over the user's image.

    ``image`` the base, never written; ``format`` qcow2 or raw; ``firmware`` bios or uefi; ``seed``: attach the NoCloud
    seed; ``release`` as in `KernelBoot`; ``uefi_code`` and ``uefi_vars`` the firmware's program and the template of its
    variables, for uefi only.
    """

    image: str
    format: str
    firmware: str = "bios"
    seed: bool = False
    release: str | None = None
    uefi_code: str | None = None
    uefi_vars: str | None = None


class Disk(msgspec.Struct, frozen=True):
    """An extra disk of the user's; written to unless ``readonly``."""

    path: str
    format: str = "raw"
    readonly: bool = False


class Net(msgspec.Struct, frozen=True):
    """Guest network. ``mode`` user | tap | bridge | none; ``device`` the tap or bridge; ``ssh_port`` the host port
    (on 127.0.0.1) forwarded to the guest's 22 in user mode, ``None`` for no forward."""

    mode: str = "user"
    device: str | None = None
    ssh_port: int | None = None


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides the command line of one VM's QEMU. Written once to machine.json.

    ``memory`` bytes of node 0; ``dimm_slots`` hotplug slots; ``accel_reason`` why this acceleration was chosen, for
    people; ``display`` QEMU's ``-display``/``-vnc``/``-spice`` choice (``none``, ``vnc=127.0.0.1:1``, ``gtk``,
    ``spice=…``); ``ssh_key`` public key (OpenSSH, one line) that a directly booted guest is given through fw_cfg;
    ``metrics`` address of the Prometheus endpoint, or ``None``; ``memory_engine`` what was asked for; ``qemu_args`` the
    user's own arguments; ``version`` of this structure.
    """

    version: int = 1
    name: str
    uuid: str
    qemu: str = "qemu-system-x86_64"
    accel: Accel
    accel_reason: str = ""
    cpu_model: str = "max"
    cpus: int = 1
    memory: int
    far_nodes: tuple[FarNode, ...] = ()
    dimm_slots: int = 32
    cpu_mode: CpuMode = CpuMode.PLUG_PARK
    boot: KernelBoot | DiskBoot
    disks: tuple[Disk, ...] = ()
    net: Net = Net()
    display: str = "none"
    ssh_key: str | None = None
    metrics: str | None = None
    memory_engine: MemoryEngineName = MemoryEngineName.AUTO
    qemu_args: tuple[str, ...] = ()

    def far_node(self, node: int) -> FarNode:
        """Return far node ``node``; raises `KeyError`."""
        for far in self.far_nodes:
            if far.node == node:
                return far
        raise KeyError(node)
