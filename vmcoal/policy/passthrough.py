"""Whether a guest can have a PCI function of its host by VFIO, and how much room its BARs need. Pure: facts to reasons.

VFIO pins every page of the guest and gives a whole IOMMU group away: that, and what the host itself does with the
functions, is what is checked. Linux Documentation/driver-api/vfio.rst has the rules of groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vmcoal.errors import ConflictError, ExecutionError, NotFoundError, PrerequisiteError, UsageError, VmcoalError
from vmcoal.model.machine import FarNode, MachineSpec
from vmcoal.model.paging import HOME
from vmcoal.model.pci import DRIVER, Bar, GuestFunction, HostDriver, PassthroughFacts, PciFunction
from vmcoal.model.units import GIB, MIB, format_size

MARGIN = 64 * MIB
"""What QEMU locks beside the guest's memory: firmware, option ROMs, video memory."""

_HARMLESS = frozenset({DRIVER, "pci-stub", None})
"""Drivers that a group's other functions may have; ports may have their own."""


def to_bind(facts: PassthroughFacts) -> tuple[PciFunction, ...]:
    """Return the functions that `DRIVER` has to take: the one that is wanted, and those of the same card in its group,
    because the kernel gives a group away only as a whole."""
    wanted = facts.function
    card = [] if wanted.integrated else [x for x in facts.group if x.slot == wanted.slot and not x.is_bridge]
    along = [x for x in card if x.address != wanted.address and x.driver not in _HARMLESS]
    return tuple(x for x in (wanted, *along) if x.driver != DRIVER)


def before(functions: Iterable[PciFunction]) -> tuple[HostDriver, ...]:
    """Return what giving ``functions`` back restores."""
    return tuple(HostDriver(address=x.address, driver=x.driver, override=x.override) for x in functions)


def objections(facts: PassthroughFacts, locked: int) -> list[VmcoalError]:
    """Return what stands against giving the function to a guest that has ``locked`` bytes of memory, worst first."""
    function = facts.function
    at, binding = function.address, to_bind(facts)
    found: list[VmcoalError] = []
    if function.is_bridge:
        found.append(
            UsageError(f"{at} is a bridge ({function.title})", hint="name the device behind it: lspci -D lists them")
        )
    if not facts.iommu:
        found.append(
            PrerequisiteError(
                "this host has no IOMMU that is on, and without one a guest's device could write anywhere",
                hint="switch VT-d or AMD-Vi on in the firmware, on Intel boot with intel_iommu=on, then reboot; "
                "dmesg | grep -i -e DMAR -e AMD-Vi says what was found",
            )
        )
    elif function.group is None:
        found.append(
            PrerequisiteError(f"{at} is behind no IOMMU", hint="another slot may be; ls /sys/kernel/iommu_groups")
        )
    elif facts.unsafe:
        found.append(
            PrerequisiteError(
                f"the IOMMU group of {at} is one of the kernel's no-IOMMU mode, which protects nothing",
                hint="boot with an IOMMU, and without vfio.enable_unsafe_noiommu_mode",
            )
        )
    found += [error for one in binding if (error := _in_use(one)) is not None]
    taken = {function.address, *(one.address for one in binding)}
    others = [x for x in facts.group if x.address not in taken and not x.is_port and x.driver not in _HARMLESS]
    if others:
        names = ", ".join(f"{one.address} ({one.title}, driver {one.driver})" for one in others)
        found.append(
            ConflictError(
                f"{at} shares IOMMU group {function.group} with {names}, and a group goes to a guest as a whole",
                hint="move one of the cards to another slot, or switch ACS on in the firmware; functions that this "
                f"host can spare may be bound to {DRIVER} by hand",
            )
        )
    if not facts.vfio:
        found.append(PrerequisiteError(f"this host's kernel has no {DRIVER}", hint=f"sudo modprobe {DRIVER} says why"))
    if any(one.driver != DRIVER for one in binding) and not facts.writable:
        found.append(
            PrerequisiteError(
                f"this user may not give {at} another driver",
                hint="as root: "
                + "; ".join(line for one in binding for line in _by_hand(one))
                + f'; chown "$USER" /dev/vfio/{function.group}',
            )
        )
    elif facts.opens is not None:
        found.append(
            ConflictError(
                f"the IOMMU group of {at} cannot be opened: {facts.opens}",
                hint=f"another program may have it (sudo fuser -v /dev/vfio/{function.group}), or only root may: "
                f'sudo chown "$USER" /dev/vfio/{function.group}',
            )
        )
    need = locked + MARGIN
    if facts.memlock is not None and facts.memlock < need:
        found.append(
            PrerequisiteError(
                f"QEMU may lock {format_size(facts.memlock)} of memory, and VFIO locks all that the guest has: "
                f"{format_size(need)}",
                hint=f"sudo prlimit --memlock={need} --pid PID, with QEMU's PID of vmcoal status; for every VM: "
                "memlock in /etc/security/limits.conf, or LimitMEMLOCK= of a unit",
            )
        )
    return found


def _by_hand(function: PciFunction) -> list[str]:
    at = f"/sys/bus/pci/devices/{function.address}"
    unbind = [f"echo {function.address} > {at}/driver/unbind"] if function.driver else []
    return [
        f"echo {DRIVER} > {at}/driver_override",
        *unbind,
        f"echo {function.address} > /sys/bus/pci/drivers_probe",
    ]


def _in_use(function: PciFunction) -> VmcoalError | None:
    """Return why the host cannot spare a function that it has a driver for, or ``None``."""
    if function.driver in _HARMLESS:
        return None
    if function.boot_vga:
        ids = f"{function.vendor:04x}:{function.device:04x}"
        return ConflictError(
            f"{function.address} ({function.title}) is the display that this host booted on",
            hint=f"make another display the first one in the firmware; or keep the host off it from its start: "
            f"vfio-pci.ids={ids} as argument of its kernel",
        )
    if function.uses:
        return ConflictError(
            f"this host uses {function.address} ({function.title}): {'; '.join(function.uses)}",
            hint="end that, then attach again",
        )
    return None


def remarks(facts: PassthroughFacts) -> list[str]:
    """Return what people should know though it stands against nothing."""
    function = facts.function
    found = []
    if not function.resets:
        found.append(
            f"the kernel knows no way to reset {function.address}: the guest gets it as this host left it, and the "
            "other way round"
        )
    along = [one for one in to_bind(facts) if one.address != function.address]
    if along:
        names = ", ".join(f"{one.address} ({one.title})" for one in along)
        found.append(f"{names} of the same card and IOMMU group is held for it, and given to nobody")
    return found


def window_needed(bars: Sequence[Bar]) -> int:
    """Return the bytes of 64-bit prefetchable window that a function's ``bars`` need, a power of two; 0 for none.

    A bridge's window need not begin at a multiple of the largest BAR: so there is room for it twice, and what is
    left then holds smaller ones of half its size in all.
    """
    sizes = [bar.size for bar in bars if bar.wide and bar.prefetchable and not bar.io]
    if not sizes:
        return 0
    largest = _power(max(sizes))
    return largest * 2 if sum(sizes) - max(sizes) <= largest // 2 else largest * 4


def low_window_needed(bars: Sequence[Bar]) -> int:
    """Return the bytes of 32-bit window that ``bars`` need, a power of two; 0 for none. Linux puts everything there
    that is not both 64 bits wide and prefetchable."""
    total = sum(bar.size for bar in bars if not bar.io and not (bar.wide and bar.prefetchable))
    return _power(total) if total else 0


def check_window(function: PciFunction, far: FarNode, low: int) -> None:
    """Raise `ConflictError` unless the BARs of ``function`` fit behind a port of ``far``; ``low`` is the size of the
    port's 32-bit window."""
    need = window_needed(function.bars)
    if need > far.gpu_window:
        raise ConflictError(
            f"the BARs of {function.address} need a window of {format_size(need)}, and the PCI ports of node "
            f"{far.node} have {format_size(far.gpu_window)}",
            hint=f"a VM gets its ports when it is made: vmcoal boot --gpu-window {option_size(need)}",
        )
    if (need := low_window_needed(function.bars)) > low:
        raise ConflictError(
            f"{function.address} needs {format_size(need)} below 4 GiB, and the PCI ports of node {far.node} have "
            f"{format_size(low)}",
            hint="the ports share what is there: boot with fewer --far-nodes",
        )


def without_address(bars: Sequence[Bar], seen: GuestFunction) -> list[Bar]:
    """Return the memory BARs that the guest gave no address or another size. I/O ports are left out: no port has a
    window for them, and PCI Express functions work without."""
    missing = []
    for bar in bars:
        start, size = seen.bars[bar.number] if bar.number < len(seen.bars) else (0, 0)
        if not bar.io and (not start or size != bar.size):
            missing.append(bar)
    return missing


def check_bars(title: str, bars: Sequence[Bar], seen: GuestFunction, far: FarNode) -> None:
    """Raise `ExecutionError` unless the guest gave every one of ``bars``, those of the function ``title`` behind a port
    of ``far``, an address: a function without one is there and of no use."""
    missing = without_address(bars, seen)
    if missing:
        which = ", ".join(f"BAR {bar.number} ({format_size(bar.size)})" for bar in missing)
        need = option_size(max(2 * far.gpu_window, window_needed(bars)))
        raise ExecutionError(
            f"the guest gave {which} of {title} no address",
            hint=f"a larger window may help: vmcoal boot --gpu-window {need}; the guest's kernel log says more",
        )


def choose_own_node(spec: MachineSpec, bound: dict[int, str], free: dict[int, int], wanted: int | None) -> FarNode:
    """Return the far node for a function of this host: the one ``wanted``, else one that has such a function already,
    else the nearest that is bound to nobody. ``free`` is how many ports each node has free.

    Raises `UsageError` for a node the machine does not have, `ConflictError` where no port is free.
    """
    if wanted is not None and wanted not in free:
        known = ", ".join(map(str, free)) or "none"
        raise UsageError(f"{spec.name} has no far node {wanted}", hint=f"its far nodes are: {known}")
    nodes = [far for far in spec.far_nodes if wanted in (None, far.node)]
    if not nodes:
        raise ConflictError(
            "this VM was booted without far nodes, so there is nowhere to attach to", hint="boot it with --far-nodes"
        )
    usable = [far for far in nodes if free[far.node] and bound.get(far.node, HOME) == HOME]
    if not usable:
        raise ConflictError(
            "; ".join(_taken(far, bound, free) for far in nodes),
            hint="detach something first, or boot with more --far-nodes",
        )
    return min(usable, key=lambda far: (far.node not in bound, far.distance))


def _taken(far: FarNode, bound: dict[int, str], free: dict[int, int]) -> str:
    owner = bound.get(far.node, HOME)
    if owner != HOME:
        return f"node {far.node} is bound to {owner}"
    return f"the {far.ports} PCI ports of node {far.node} are taken"


def check_address(text: str) -> str:
    """Return the full address that ``text`` (``01:00.0``, ``0000:01:00.0``) stands for; raises `UsageError`."""
    words = text.lower().split(":")
    full = [*(["0000"] if len(words) == 2 else []), *words]
    slot, dot, number = full[-1].partition(".")
    parts = [(full[0], 4), *((one, 2) for one in [*full[1:-1], slot])]
    good = all(len(one) == size and set(one) <= set("0123456789abcdef") for one, size in parts)
    if len(full) != 3 or not good or not dot or number not in set("01234567") or int(slot, 16) > 0x1F:
        raise UsageError(f"{text!r} is not a PCI address", hint="write it as 0000:01:00.0, as lspci -D shows it")
    return ":".join(full)


def no_such(address: str) -> NotFoundError:
    """Return the error that says that a host has no function ``address``."""
    return NotFoundError(f"this host has no PCI function {address}", hint="lspci -D lists them")


def option_size(size: int) -> str:
    """Return a window's size as an option takes it."""
    return f"{size // GIB}G" if size >= GIB else f"{size // MIB}M"


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()
