"""Plugs PCI functions of the host into far nodes by VFIO."""

from __future__ import annotations

from typing import Any

from vmcoal.machine import pci
from vmcoal.machine.names import gpu_ids, port_id
from vmcoal.machine.seam import Monitor
from vmcoal.model.machine import FarNode
from vmcoal.model.pci import DRIVER


def lease_of(address: str) -> str:
    """Return what the loan of the host's function ``address`` is called: QEMU's ids know no colon."""
    return f"pci-{address.replace(':', '-')}"


def plan_plug(far: FarNode, address: str) -> list[dict[str, Any]]:
    """Return the QMP commands of `plug`."""
    device = gpu_ids(lease_of(address)).device
    bus = f"<a free port of node {far.node}>"
    return [{"execute": "device_add", "arguments": {"driver": DRIVER, "id": device, "host": address, "bus": bus}}]


def plan_unplug(address: str) -> list[dict[str, Any]]:
    """Return the QMP command that takes the host's function ``address`` out."""
    return [{"execute": "device_del", "arguments": {"id": gpu_ids(lease_of(address)).device}}]


async def free_ports(monitor: Monitor, far: FarNode) -> int:
    """Return how many root ports of ``far`` have nothing behind them."""
    ports = [port_id(far.node, number) for number in range(far.ports)]
    return sum([not await pci.behind(monitor, port) for port in ports])


async def plug(monitor: Monitor, far: FarNode, address: str, *, deadline: float) -> int:
    """Plug the host's function ``address`` behind a free root port of ``far``; return the number of the guest's slot.

    QEMU pins all of the guest's memory for it, which takes about a second for each 4 GiB. Raises `ConflictError` where
    no port is free, `RefusedError`, `DeadlineError`, `UnreachableError`.
    """
    device = gpu_ids(lease_of(address)).device
    port = await pci.plug(monitor, far, DRIVER, device, {"host": address}, deadline=deadline, slow=True)
    return await pci.slot_of(monitor, port)
