"""Plugs and unplugs memory backends as DIMMs of far nodes."""

from __future__ import annotations

import contextlib
from typing import Any

from vmcoal.errors import NotFoundError
from vmcoal.machine.names import memory_ids
from vmcoal.machine.qmp_errors import translated
from vmcoal.machine.seam import Monitor
from vmcoal.machine.unplug import Clock, remove_device, remove_object
from vmcoal.model.attachment import MemoryStyle
from vmcoal.model.lease import MemoryRegion
from vmcoal_qmp import QmpError, commands
from vmcoal_qmp.types import Dimm

_DRIVER = "pc-dimm"


def plan_backend(region: MemoryRegion, backend: str) -> dict[str, Any]:
    """Return the QMP command that makes ``region`` a memory backend."""
    return {"execute": "object-add", "arguments": {"qom-type": region.backend, "id": backend, **region.props}}


def plan_plug(region: MemoryRegion, node: int, lease: str) -> list[dict[str, Any]]:
    """Return the QMP commands of `plug_dimm` for lease ``lease``."""
    backend, device = memory_ids(lease, MemoryStyle.DIMM)
    arguments = {"driver": _DRIVER, "id": device, **_props(node, backend)}
    return [plan_backend(region, backend), {"execute": "device_add", "arguments": arguments}]


def plan_unplug(device: str, backend: str) -> list[dict[str, Any]]:
    """Return the QMP commands of `unplug_dimm`."""
    return [
        {"execute": "device_del", "arguments": {"id": device}},
        {"execute": "object-del", "arguments": {"id": backend}},
    ]


async def plug_dimm(
    monitor: Monitor, region: MemoryRegion, node: int, device: str, backend: str, *, deadline: float
) -> Dimm:
    """Make ``region`` memory backend ``backend`` and plug it as DIMM ``device`` of node ``node``.

    Returns where QEMU put it. On failure the backend is deleted again, as QEMU keeps it. Raises `RefusedError`,
    `DeadlineError`, `UnreachableError`.
    """
    clock = Clock(deadline)
    await add_backend(monitor, region, backend, clock)
    async with backend_kept(monitor, backend):
        with translated(f"plug DIMM {device} into node {node}"):
            await commands.device_add(monitor, _DRIVER, device, _props(node, backend), deadline=clock.command())
    return await find_dimm(monitor, device, deadline=clock.command())


async def unplug_dimm(monitor: Monitor, device: str, backend: str, *, deadline: float) -> None:
    """Unplug DIMM ``device`` and delete its backend; what of the two is gone already is left out.

    The guest decides: raises `RefusedError` with its reason, `DeadlineError` where it does not answer,
    `UnreachableError`. Only after that is the backend's file free.
    """
    clock = Clock(deadline)
    await remove_device(monitor, device, f"DIMM {device}", deadline=deadline, repeatable=True)
    await remove_object(monitor, backend, deadline=clock.command())


async def ensure_unplugged(monitor: Monitor, device: str, backend: str, *, deadline: float) -> None:
    """Undo of `plug_dimm`, whatever of it was done."""
    await unplug_dimm(monitor, device, backend, deadline=deadline)


async def find_dimm(monitor: Monitor, device: str, *, deadline: float = 30.0) -> Dimm:
    """Return DIMM ``device`` with its guest physical address and size; raises `NotFoundError` if it is not plugged."""
    with translated("tell its memory devices"):
        devices = await commands.query_memory_devices(monitor, deadline=deadline)
    for found in devices:
        if isinstance(found, Dimm) and found.id == device:
            return found
    raise NotFoundError(f"there is no DIMM {device}", hint="it has left the machine; see: vmcoal status")


async def has_device(monitor: Monitor, device: str, *, deadline: float = 30.0) -> bool:
    """Return whether a device of that id is plugged."""
    with translated("tell its devices"):
        return device in await commands.device_ids(monitor, deadline=deadline)


async def add_backend(monitor: Monitor, region: MemoryRegion, backend: str, clock: Clock) -> None:
    """Make ``region`` memory backend ``backend``; one that was asked for and not confirmed is deleted again."""
    async with backend_kept(monitor, backend):
        with translated(f"map the {region.size >> 20} MiB of lease {region.lease}"):
            await commands.object_add(monitor, region.backend, backend, region.props, deadline=clock.command())


@contextlib.asynccontextmanager
async def backend_kept(monitor: Monitor, backend: str) -> Any:
    """Delete ``backend`` if the body fails, as far as the monitor still answers; never hides the body's error."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(QmpError):
            await commands.object_del(monitor, backend, deadline=2.0)
        raise


def _props(node: int, backend: str) -> dict[str, Any]:
    return {"memdev": backend, "node": node}
