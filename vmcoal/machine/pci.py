"""Plugs PCI devices behind the root ports of far nodes (native PCIe hotplug), and unplugs them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from vmcoal.errors import ConflictError, NotFoundError
from vmcoal.machine.names import port_id
from vmcoal.machine.qmp_errors import is_busy, translated
from vmcoal.machine.seam import Monitor
from vmcoal.machine.unplug import Clock, remove_device
from vmcoal.model.machine import FarNode
from vmcoal.model.pci import Bar
from vmcoal_qmp import QmpCommandError, commands
from vmcoal_qmp.types import PciRegion

_RETRY = 0.25


async def plug(
    monitor: Monitor,
    far: FarNode,
    driver: str,
    device: str,
    props: Mapping[str, Any],
    *,
    deadline: float,
    slow: bool = False,
) -> str:
    """Plug a ``driver`` device behind a free root port of ``far`` and return the port's id; see `plug_into`.

    The guest needs a moment more to find the device. It should use MSI or MSI-X: legacy interrupts from behind an
    expander do not arrive. Raises `ConflictError` where no port is free, `RefusedError`, `DeadlineError`,
    `UnreachableError`.
    """
    clock = Clock(deadline)
    port = await free_port(monitor, far, deadline=clock.command())
    await plug_into(monitor, port, driver, device, props, deadline=max(1.0, clock.left), slow=slow)
    return port


async def plug_into(
    monitor: Monitor,
    port: str,
    driver: str,
    device: str,
    props: Mapping[str, Any],
    *,
    deadline: float,
    slow: bool = False,
) -> None:
    """Plug a ``driver`` device behind root port ``port``, trying again while that is busy with its last plug or unplug.

    ``slow``: QEMU may take all of the deadline for the command, as for one that pins memory. Raises `RefusedError`,
    `DeadlineError`, `UnreachableError`.
    """
    clock = Clock(deadline)
    with translated(f"plug {device} into {port}"):
        while True:
            try:
                patience = max(1.0, clock.left) if slow else clock.command()
                await commands.device_add(monitor, driver, device, {**props, "bus": port}, deadline=patience)
            except QmpCommandError as error:
                if not is_busy(error) or not clock.left:
                    raise
            else:
                return
            await asyncio.sleep(min(_RETRY, clock.left))


async def unplug(monitor: Monitor, device: str, *, deadline: float) -> None:
    """Unplug PCI device ``device``; returns when it is gone, or at once if it is not there.

    The guest takes 5 s and more for it (the time in which a person could press the slot's button again) unless its
    agent powers the slot off first. Raises `RefusedError`, `DeadlineError`, `UnreachableError`.
    """
    await remove_device(monitor, device, f"PCI device {device}", deadline=deadline)


async def free_port(monitor: Monitor, far: FarNode, *, deadline: float = 30.0) -> str:
    """Return the id of the first root port of ``far`` with nothing behind it; raises `ConflictError`."""
    for number in range(far.ports):
        port = port_id(far.node, number)
        if not await behind(monitor, port, deadline=deadline):
            return port
    raise ConflictError(f"all {far.ports} PCI ports of node {far.node} are taken", hint="detach a device from it first")


async def behind(monitor: Monitor, port: str, *, deadline: float = 30.0) -> list[str]:
    """Return the ids of the devices behind root port ``port``.

    Read from QEMU's objects: query-pci goes by the bus numbers that the firmware has yet to give.
    """
    bus = f"/machine/peripheral/{port}/{port}"
    with translated(f"tell what is behind {port}"):
        properties = await commands.qom_list(monitor, bus, deadline=deadline)
        children = [one.name for one in properties if one.name.startswith("child[")]
        paths = [str(await commands.qom_get(monitor, bus, name, deadline=deadline)) for name in children]
    return [path.rpartition("/")[2] for path in paths]


async def slot_of(monitor: Monitor, port: str, *, deadline: float = 30.0) -> int:
    """Return the number of the slot that the guest sees at root port ``port``."""
    with translated(f"tell the slot of {port}"):
        return int(await commands.qom_get(monitor, f"/machine/peripheral/{port}", "slot", deadline=deadline))


async def bars(monitor: Monitor, device: str, *, deadline: float = 30.0) -> tuple[Bar, ...]:
    """Return the BARs of PCI device ``device``, mapped or not; its bus must have its number, as it has when the guest
    shows the device. Raises `NotFoundError` where QEMU does not list it."""
    with translated(f"tell the BARs of {device}"):
        roots = await commands.query_pci(monitor, deadline=deadline)
    waiting = [one for root in roots for one in root.devices]
    while waiting:
        one = waiting.pop()
        if one.qdev_id == device:
            return tuple(map(_bar, one.regions))
        waiting += one.pci_bridge.devices if one.pci_bridge else []
    raise NotFoundError(
        f"QEMU lists no PCI device {device}", hint="the guest gave its bus no number: see its kernel log"
    )


def _bar(region: PciRegion) -> Bar:
    return Bar(
        number=region.bar,
        size=region.size,
        prefetchable=bool(region.prefetch),
        wide=bool(region.mem_type_64),
        io=region.type == "io",
    )
