"""Plugs the PCI function through which a guest reaches a lent GPU: a virtio-serial controller of display class.

QEMU replaces class 0x0302 (3D controller) silently; 0x0380 (other display controller) stays.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmcoal.machine import pci
from vmcoal.machine.names import gpu_ids
from vmcoal.machine.qmp_errors import is_missing, translated
from vmcoal.machine.seam import Monitor
from vmcoal.machine.unplug import Clock
from vmcoal.model.machine import FarNode
from vmcoal_qmp import QmpCommandError, commands

CLASS = 0x0380
_DRIVER, _PORT_DRIVER = "virtio-serial-pci", "virtserialport"


def _chardev(name: str, socket: Path) -> dict[str, Any]:
    address = {"type": "unix", "data": {"path": str(socket)}}
    return {"id": name, "backend": {"type": "socket", "data": {"addr": address, "server": True, "wait": False}}}


def _function() -> dict[str, Any]:
    return {"class": CLASS, "max_ports": 2}


def _port(lease: str) -> dict[str, Any]:
    ids = gpu_ids(lease)
    return {"bus": f"{ids.device}.0", "nr": 1, "chardev": ids.chardev, "name": ids.device}


def plan_plug(far: FarNode, lease: str, socket: Path) -> list[dict[str, Any]]:
    """Return the QMP commands of `open_way` and `plug`."""
    ids = gpu_ids(lease)
    function = {"driver": _DRIVER, "id": ids.device, **_function(), "bus": f"<a free port of node {far.node}>"}
    return [
        {"execute": "chardev-add", "arguments": _chardev(ids.chardev, socket)},
        {"execute": "device_add", "arguments": function},
        {"execute": "device_add", "arguments": {"driver": _PORT_DRIVER, "id": ids.port, **_port(lease)}},
    ]


def plan_unplug(lease: str) -> list[dict[str, Any]]:
    """Return the QMP commands of `unplug` and `close_way`."""
    ids = gpu_ids(lease)
    return [
        {"execute": "device_del", "arguments": {"id": ids.device}},
        {"execute": "chardev-remove", "arguments": {"id": ids.chardev}},
    ]


async def open_way(monitor: Monitor, lease: str, socket: Path, *, deadline: float = 30.0) -> None:
    """Make the host side of the guest's port: QEMU listens on ``socket``."""
    ids = gpu_ids(lease)
    with translated(f"make the way of {ids.device}"):
        await monitor.execute("chardev-add", _chardev(ids.chardev, socket), deadline=deadline)


async def close_way(monitor: Monitor, lease: str, *, deadline: float = 30.0) -> None:
    """Remove the host side of the guest's port; returns at once if it is not there."""
    ids = gpu_ids(lease)
    with translated(f"remove the way of {ids.device}"):
        try:
            await monitor.execute("chardev-remove", {"id": ids.chardev}, deadline=deadline)
        except QmpCommandError as error:
            if not is_missing(error):
                raise


async def plug(monitor: Monitor, far: FarNode, lease: str, *, deadline: float) -> int:
    """Plug the function of a GPU lease behind a free root port of ``far``, with its port; return the number of the
    guest's slot.

    Raises `ConflictError` where no root port is free, `RefusedError`, `DeadlineError`, `UnreachableError`; what was
    plugged then stays, see `unplug`.
    """
    clock = Clock(deadline)
    ids = gpu_ids(lease)
    port = await pci.plug(monitor, far, _DRIVER, ids.device, _function(), deadline=clock.command())
    with translated(f"plug {ids.port}"):
        await commands.device_add(monitor, _PORT_DRIVER, ids.port, _port(lease), deadline=clock.command())
    return await pci.slot_of(monitor, port, deadline=clock.command())


async def unplug(monitor: Monitor, lease: str, *, deadline: float) -> None:
    """Unplug the function of a GPU lease; returns when it is gone, or at once if it is not there.

    Raises `RefusedError`, `DeadlineError`, `UnreachableError`.
    """
    await pci.unplug(monitor, gpu_ids(lease).device, deadline=deadline)
