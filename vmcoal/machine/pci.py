"""Plugs PCI devices behind the root ports of far nodes (native PCIe hotplug), and unplugs them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from vmcoal.errors import ConflictError
from vmcoal.machine.names import parse_port_id, port_id
from vmcoal.machine.qmp_errors import is_busy, translated
from vmcoal.machine.seam import Monitor
from vmcoal.machine.unplug import Clock, remove_device
from vmcoal.model.machine import FarNode
from vmcoal_qmp import QmpCommandError, commands
from vmcoal_qmp.types import PciBus, PciDevice

_RETRY = 0.25


async def plug(
    monitor: Monitor, far: FarNode, driver: str, device: str, props: Mapping[str, Any], *, deadline: float
) -> str:
    """Plug a ``driver`` device behind a free root port of ``far`` and return the port's id.

    A port that is still busy with the last plug or unplug is tried again. The guest needs a moment more to find the
    device. Raises `ConflictError` where no port is free, `RefusedError`, `DeadlineError`, `UnreachableError`.
    """
    clock = Clock(deadline)
    with translated(f"plug {device} into node {far.node}"):
        port = free_port(await commands.query_pci(monitor, deadline=clock.command()), far)
        while True:
            try:
                await commands.device_add(monitor, driver, device, {**props, "bus": port}, deadline=clock.command())
            except QmpCommandError as error:
                if not is_busy(error) or not clock.left:
                    raise
            else:
                return port
            await asyncio.sleep(min(_RETRY, clock.left))


async def unplug(monitor: Monitor, device: str, *, deadline: float) -> None:
    """Unplug PCI device ``device``; returns when it is gone, or at once if it is not there.

    The guest takes 5 s and more for it (the time in which a person could press the slot's button again) unless its
    agent powers the slot off first. Raises `RefusedError`, `DeadlineError`, `UnreachableError`.
    """
    await remove_device(monitor, device, f"PCI device {device}", deadline=deadline)


def free_port(buses: list[PciBus], far: FarNode) -> str:
    """Return the id of the first root port of ``far`` with nothing behind it; raises `ConflictError`."""
    taken = {port for port, _ in devices_behind_ports(buses)}
    for number in range(far.ports):
        if (far.node, number) not in taken:
            return port_id(far.node, number)
    raise ConflictError(f"all {far.ports} PCI ports of node {far.node} are taken", hint="detach a device from it first")


def devices_behind_ports(buses: list[PciBus]) -> Iterator[tuple[tuple[int, int], PciDevice]]:
    """Yield each device behind a far node's root port, with the node and number of the port."""
    for bus in buses:
        for device in bus.devices:
            port = parse_port_id(device.qdev_id)
            if port is not None and device.pci_bridge is not None:
                for behind in device.pci_bridge.devices:
                    yield port, behind
