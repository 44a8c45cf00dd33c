"""Builds the spec of a machine from what the user asked for, with every check that needs no QEMU.

The limits are QEMU's and the PC's, not vmcoal's; each error says which one was hit and what to lower.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from vmcoal.errors import NotFoundError, PrerequisiteError, UsageError
from vmcoal.layout import check_name
from vmcoal.machine.firmware import find_uefi
from vmcoal.model.engine import MemoryEngineName
from vmcoal.model.machine import GPU_WINDOW, Accel, CpuMode, Disk, DiskBoot, FarNode, KernelBoot, MachineSpec, Net
from vmcoal.model.units import GIB, MIB, format_size
from vmcoal.policy.distance import FARTHEST, LOCAL, default_tiers

CPUS = 2
MEMORY = 1 * GIB
FAR_NODES = 4
FAR_CPUS = 4
FAR_MEMORY = 8 * GIB
PORTS = {Accel.KVM: 2, Accel.TCG: 1}
"""PCI root ports of each far node: each costs a TCG guest a quarter of a second of its boot."""

DIMM_SLOTS = 32

BLOCK = 128 * MIB
"""A Linux memory block on x86-64: far memory comes and goes in multiples of it."""

MAX_FAR_NODES = 15
"""Expanders need a slot on pcie.0 and a share of its 256 bus numbers; 15 keep 16 buses and slots 0x10 to 0x1e each."""

MAX_DISKS = 6
MAX_PORTS = 8
OLDEST_QEMU = (7, 2)

_MAX_BUSES = 256
_WIDEST_SPACING = 32
_MAX_APIC_ID = 254  # 255 is the broadcast; more needs x2APIC, which TCG lacks before QEMU 9.0 and guests may not take
_PHYSICAL_MODE = 9
_MAX_SLOTS = 256  # ACPI_MAX_RAM_SLOTS
_TCG_PHYS_BITS = 40
_LOW_WINDOW = 64 * MIB
_WIDEST_WINDOW = 512 * GIB
_KERNEL_HEADER = 0x202  # "HdrS"; Linux Documentation/arch/x86/boot.rst
_INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_CPU_MODEL = re.compile(r"[A-Za-z0-9_.,+=-]{1,256}")
_DISPLAY = re.compile(r"none|gtk|sdl|vnc=\S+|spice=\S+")
_RELEASE = re.compile(r"(\d+)\.(\d+)")
_NOT_FOR_USERS = frozenset({"daemonize", "S", "preconfig", "runas", "chroot", "run-with", "pidfile"})


def bus_spacing(far_nodes: int) -> int:
    """Return how many PCI bus numbers lie between two far nodes' expanders: 32 for up to seven of them, else 16."""
    spacing = _WIDEST_SPACING
    while spacing * (far_nodes + 1) > _MAX_BUSES:
        spacing //= 2
    return spacing


def cores_per_socket(spec: MachineSpec) -> int:
    """Return the uniform number of vCPU slots of every socket.

    QEMU knows one number for all sockets. Where the near node and the far nodes have different counts, the surplus
    slots stay empty: nothing is ever plugged into them.

    Under TCG a machine with far nodes has more than eight slots. With eight or fewer, Linux before 6.12 addresses CPUs
    by a bit mask, and QEMU's own local APIC stops looking for the addressed ones at the first absent CPU: interrupts
    between CPUs get lost, and the guest hangs in a moment.
    """
    cores = max([spec.cpus, *(far.cpus for far in spec.far_nodes)])
    if spec.accel is Accel.TCG and spec.far_nodes:
        sockets = len(spec.far_nodes) + 1
        cores = max(cores, -(-_PHYSICAL_MODE // sockets))
    return cores


def choose_cpu_mode(accel: Accel, release: str | None) -> CpuMode:
    """Return how far vCPUs come and go.

    Under KVM they are hot-plugged. Under TCG QEMU dies of unplugging a vCPU, so they are parked instead. Newer guests
    ignore absent CPUs there (6.1 does not, 6.12 does, between them is unmeasured): those and unknown ones have all of
    them from boot.
    """
    if accel is Accel.KVM:
        return CpuMode.HOTPLUG
    match = _RELEASE.match(release or "")
    return CpuMode.PLUG_PARK if match and (int(match[1]), int(match[2])) < (6, 2) else CpuMode.PARKED


def kernel_release(kernel: Path) -> str | None:
    """Return the release that a bzImage's boot header names (``6.1.0-50-cloud-amd64``), or ``None``."""
    try:
        with kernel.open("rb") as file:
            head = file.read(64 << 10)
    except OSError:
        return None
    if head[_KERNEL_HEADER : _KERNEL_HEADER + 4] != b"HdrS":
        return None
    start = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    text = head[start : start + 256].split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")
    return text if _RELEASE.match(text) else None


def make_spec(
    *,
    name: str,
    accel: Accel,
    qemu_version: tuple[int, int],
    boot: KernelBoot | DiskBoot,
    accel_reason: str = "",
    qemu: str = "qemu-system-x86_64",
    cpu_model: str | None = None,
    cpus: int = CPUS,
    memory: int = MEMORY,
    far_nodes: int = FAR_NODES,
    far_cpus: int = FAR_CPUS,
    far_memory: int = FAR_MEMORY,
    distances: Sequence[int] | None = None,
    dimm_slots: int = DIMM_SLOTS,
    ports: int | None = None,
    gpu_window: int = GPU_WINDOW,
    disks: Sequence[Disk] = (),
    net: Net | None = None,
    display: str = "none",
    metrics: str | None = None,
    memory_engine: MemoryEngineName = MemoryEngineName.AUTO,
    qemu_args: Sequence[str] = (),
    identity: str | None = None,
) -> MachineSpec:
    """Return the spec of a new machine.

    ``memory`` and ``far_memory`` (headroom of each far node) in bytes; ``far_cpus`` vCPU slots and ``ports`` PCI root
    ports (by default `PORTS`) of each far node, each with ``gpu_window`` bytes of 64-bit window; ``distances`` of the
    far nodes, nearest first, by default the tiers of `vmcoal.policy.distance`; ``qemu_args`` the user's own arguments
    for QEMU; ``cpu_model`` by default ``host`` under KVM and ``max`` under TCG; ``identity`` a UUID, by default a new
    one. File names become absolute, a kernel's release is read from it where not given, and UEFI firmware
    is looked up.

    Raises `UsageError` for what no host could do, `NotFoundError` for a missing file, `PrerequisiteError` for a QEMU
    that is too old and for missing firmware.
    """
    check_name(name)
    _check_version(qemu, qemu_version)
    _check_amounts(cpus, memory, far_nodes, far_cpus, far_memory, dimm_slots)
    if ports is not None and not 1 <= ports <= MAX_PORTS:
        raise UsageError(f"a far node can have 1 to {MAX_PORTS} PCI ports, not {ports}", hint="leave it to the default")
    _check_gpu_window(gpu_window)
    tiers = default_tiers(far_nodes) if distances is None else tuple(distances)
    _check_distances(tiers, far_nodes)
    net = net or Net()
    _check_net(net)
    _check_text(cpu_model, display)
    _check_qemu_args(qemu_args)
    if len(disks) > MAX_DISKS:
        raise UsageError(f"{len(disks)} extra disks are more than the {MAX_DISKS} that fit", hint="use fewer --disk")
    boot = _resolve_boot(boot)
    spacing = bus_spacing(far_nodes)
    spec = MachineSpec(
        name=name,
        uuid=identity or str(uuid.uuid4()),
        qemu=qemu,
        accel=accel,
        accel_reason=accel_reason,
        cpu_model=cpu_model or ("host" if accel is Accel.KVM else "max"),
        cpus=cpus,
        memory=memory,
        far_nodes=tuple(
            FarNode(index, far_cpus, far_memory, tiers[index - 1], spacing * index, ports or PORTS[accel], gpu_window)
            for index in range(1, far_nodes + 1)
        ),
        dimm_slots=dimm_slots,
        cpu_mode=choose_cpu_mode(accel, boot.release),
        boot=boot,
        disks=tuple(msgspec.structs.replace(disk, path=_existing(disk.path, "disk")) for disk in disks),
        net=net,
        display=display,
        metrics=metrics,
        memory_engine=memory_engine,
        qemu_args=tuple(qemu_args),
    )
    _check_apic_ids(spec)
    _check_address_space(spec)
    return spec


def _check_version(qemu: str, version: tuple[int, int]) -> None:
    if tuple(version[:2]) < OLDEST_QEMU:
        raise PrerequisiteError(
            f"{qemu} is version {version[0]}.{version[1]}, and vmcoal needs {OLDEST_QEMU[0]}.{OLDEST_QEMU[1]} or newer",
            hint="install a newer QEMU, or name another one with --qemu",
        )


def _check_amounts(cpus: int, memory: int, far_nodes: int, far_cpus: int, far_memory: int, slots: int) -> None:
    if cpus < 1:
        raise UsageError(f"a machine needs at least one vCPU, not {cpus}", hint="use --cpus 1 or more")
    if memory < BLOCK or memory % MIB:
        raise UsageError(
            f"{format_size(memory)} cannot be the memory of node 0",
            hint="use --memory with whole MiB, at least 128M",
        )
    if not 0 <= far_nodes <= MAX_FAR_NODES:
        raise UsageError(
            f"a machine can have 0 to {MAX_FAR_NODES} far nodes, not {far_nodes}",
            hint=f"use --far-nodes {MAX_FAR_NODES} or fewer: each needs its own range of PCI bus numbers",
        )
    if far_cpus < 0:
        raise UsageError(f"a far node cannot have {far_cpus} vCPU slots", hint="use --far-cpus 0 or more")
    if far_memory < 0 or far_memory % BLOCK:
        raise UsageError(
            f"{format_size(far_memory) if far_memory > 0 else far_memory} cannot be the headroom of a far node",
            hint="use --far-memory with a multiple of 128M: Linux plugs memory in blocks of that size",
        )
    if not 1 <= slots <= _MAX_SLOTS:
        raise UsageError(f"a machine can have 1 to {_MAX_SLOTS} DIMM slots, not {slots}", hint="the default is 32")


def _check_gpu_window(size: int) -> None:
    if not MIB <= size <= _WIDEST_WINDOW or size & (size - 1):
        raise UsageError(
            f"{format_size(max(size, 0))} cannot be the window of a PCI port",
            hint=f"use a power of two from 1M to {_WIDEST_WINDOW // GIB}G: twice a GPU's memory, where all of it shows",
        )


def _check_distances(distances: tuple[int, ...], far_nodes: int) -> None:
    if len(distances) != far_nodes:
        raise UsageError(
            f"{len(distances)} distances were given for {far_nodes} far nodes", hint="give one distance for each"
        )
    if any(not LOCAL < value <= FARTHEST for value in distances):
        raise UsageError(
            f"far nodes lie at distances {LOCAL + 1} to {FARTHEST}, not {', '.join(map(str, distances))}",
            hint=f"{LOCAL} is the node itself and 255 is unreachable",
        )


def _check_net(net: Net) -> None:
    if net.mode not in {"user", "tap", "bridge", "none"}:
        raise UsageError(f"{net.mode!r} is not a network mode", hint="use user, tap=DEVICE, bridge=DEVICE or none")
    if net.mode in {"tap", "bridge"}:
        if not net.device or not _INTERFACE.fullmatch(net.device):
            raise UsageError(
                f"{net.device or ''!r} cannot be a network device",
                hint=f"use --net {net.mode}=DEVICE, as ip link names it",
            )
    elif net.device is not None:
        raise UsageError(f"network mode {net.mode} takes no device", hint="use --net tap=DEVICE or bridge=DEVICE")
    if net.ssh_port is not None and (net.mode != "user" or not 1 <= net.ssh_port <= 65535):
        raise UsageError(
            f"port {net.ssh_port} cannot be forwarded to the guest's ssh",
            hint="use a port from 1 to 65535, with --net user",
        )


def _check_text(cpu_model: str | None, display: str) -> None:
    if cpu_model is not None and not _CPU_MODEL.fullmatch(cpu_model):
        raise UsageError(f"{cpu_model!r} is not a CPU model", hint="see: qemu-system-x86_64 -cpu help")
    if not _DISPLAY.fullmatch(display):
        raise UsageError(
            f"{display!r} is not a display", hint="use none, gtk, sdl, vnc=127.0.0.1:1 or spice=port=5900,…"
        )


def _check_qemu_args(arguments: Sequence[str]) -> None:
    """Check that the user's arguments are options, and leave QEMU a child of its holder that begins to run."""
    if arguments and not arguments[0].startswith("-"):
        raise UsageError(
            f"{arguments[0]!r} is no option of QEMU", hint="write them as --qemu-args '-device virtio-balloon'"
        )
    for argument in arguments:
        if re.match(r"--?incoming\b", argument):
            raise UsageError(
                f"{argument} in --qemu-args: a VM is not live-migrated, as what it borrows is plugged and leased here",
                hint="detach all, shut it down, and boot its disk on the other host",
            )
        if argument.lstrip("-") in _NOT_FOR_USERS and argument.startswith("-"):
            raise UsageError(
                f"{argument} in --qemu-args takes QEMU out of vmcoal's hands",
                hint="leave it away; vmcoal does its part",
            )


def _existing(path: str, what: str) -> str:
    try:
        file = Path(path).expanduser().resolve()
        with file.open("rb"):
            return str(file)
    except OSError as error:
        raise NotFoundError(
            f"cannot read the {what} {path}: {error.strerror}", hint="check its name and its mode"
        ) from error


def _resolve_boot(boot: KernelBoot | DiskBoot) -> KernelBoot | DiskBoot:
    if isinstance(boot, KernelBoot):
        kernel = _existing(boot.kernel, "kernel")
        return msgspec.structs.replace(
            boot,
            kernel=kernel,
            initrd=None if boot.initrd is None else _existing(boot.initrd, "initrd"),
            release=boot.release or kernel_release(Path(kernel)),
        )
    if boot.format not in {"qcow2", "raw"}:
        raise UsageError(f"a disk image is qcow2 or raw, not {boot.format!r}", hint="convert it: qemu-img convert")
    if boot.firmware not in {"bios", "uefi"}:
        raise UsageError(f"firmware is bios or uefi, not {boot.firmware!r}", hint="use --firmware bios or uefi")
    boot = msgspec.structs.replace(boot, image=_existing(boot.image, "image"))
    if boot.firmware == "uefi" and (boot.uefi_code is None or boot.uefi_vars is None):
        uefi = find_uefi()
        return msgspec.structs.replace(boot, uefi_code=uefi.code, uefi_vars=uefi.variables)
    return boot


def _check_apic_ids(spec: MachineSpec) -> None:
    """Check that every vCPU slot has an 8-bit APIC ID: the socket number above as many bits as the cores need."""
    cores = cores_per_socket(spec)
    highest = (len(spec.far_nodes) << (cores - 1).bit_length()) + cores - 1
    if highest > _MAX_APIC_ID:
        sockets = len(spec.far_nodes) + 1
        raise UsageError(
            f"{sockets} nodes of {cores} vCPU slots need APIC ID {highest}, and {_MAX_APIC_ID} is the highest",
            hint="use fewer --cpus, --far-cpus or --far-nodes: every node has as many slots as the largest one",
        )


def _physical_bits(accel: Accel) -> int:
    if accel is Accel.TCG:
        return _TCG_PHYS_BITS
    match = re.search(r"address sizes\s*:\s*(\d+) bits physical", Path("/proc/cpuinfo").read_text(encoding="ascii"))
    return int(match[1]) if match else _TCG_PHYS_BITS


def _check_address_space(spec: MachineSpec) -> None:
    """Check that memory, headroom and the ports' windows fit below the guest's highest physical address.

    q35 puts up to 2 GiB below 4 GiB and rounds the start of the hotplug range up to 1 GiB; the range has 1 GiB of
    slack for the alignment of each slot. Firmware puts the 64-bit PCI windows behind it.
    """
    headroom = sum(far.memory for far in spec.far_nodes)
    slack = spec.dimm_slots * GIB if headroom else 0
    windows = sum(far.ports * (far.gpu_window + _LOW_WINDOW) for far in spec.far_nodes)
    bits = _physical_bits(spec.accel)
    end = 5 * GIB + spec.memory + headroom + slack + windows
    if end > 1 << bits:
        raise UsageError(
            f"{format_size(spec.memory + headroom)} of memory and headroom and {format_size(windows)} of windows for "
            f"GPUs do not fit into {bits} address bits",
            hint="use less --memory, --far-memory or --gpu-window, or fewer --far-nodes",
        )
