"""Granular far memory: one virtio-mem device that grows and shrinks in 2 MiB grains.

Each far node has a root port for one such device. Its size is a request to the guest's driver, which follows as far as
it can; the device itself can be unplugged only when empty, and only by a QEMU that supports it (not 7.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmcoal.errors import ConflictError, NotFoundError, RefusedError, UsageError
from vmcoal.machine import pci
from vmcoal.machine.memory import add_backend, backend_kept, has_device, plan_backend
from vmcoal.machine.names import memory_ids, memory_port_id
from vmcoal.machine.qmp_errors import translated
from vmcoal.machine.seam import Monitor
from vmcoal.machine.unplug import Clock, remove_device, remove_object
from vmcoal.model.attachment import MemoryStyle
from vmcoal.model.lease import MemoryRegion
from vmcoal.model.machine import FarNode
from vmcoal.model.units import MIB, format_size
from vmcoal_qmp import QmpTimeoutError, commands
from vmcoal_qmp.types import VirtioMem

GRAIN = 2 * MIB
"""The block size that is asked of QEMU: its default follows the host's huge pages and differs between hosts."""

_DRIVER = "virtio-mem-pci"
_POLL = 0.1
_SIZE = "requested-size"


def plan_plug(region: MemoryRegion, far: FarNode, lease: str, requested: int) -> list[dict[str, Any]]:
    """Return the QMP commands of `plug` for lease ``lease``, asking for ``requested`` bytes at once."""
    backend, device = memory_ids(lease, MemoryStyle.GRANULAR)
    arguments = {"driver": _DRIVER, "id": device, **_props(far, backend, requested), "bus": memory_port_id(far.node)}
    return [plan_backend(region, backend), {"execute": "device_add", "arguments": arguments}]


def plan_resize(device: str, size: int) -> list[dict[str, Any]]:
    """Return the QMP commands of `resize`."""
    return [{"execute": "qom-set", "arguments": {"path": _path(device), "property": _SIZE, "value": size}}]


async def plug(
    monitor: Monitor, region: MemoryRegion, far: FarNode, device: str, backend: str, *, deadline: float
) -> None:
    """Make ``region`` memory backend ``backend`` and plug it, empty, as virtio-mem ``device`` of far node ``far``.

    On failure the backend is deleted again. Raises `ConflictError` where the node has such a device, `RefusedError`,
    `DeadlineError`, `UnreachableError`.
    """
    clock = Clock(deadline)
    await add_backend(monitor, region, backend, clock)
    async with backend_kept(monitor, backend):
        port = memory_port_id(far.node)
        if await pci.behind(monitor, port, deadline=clock.command()):
            raise ConflictError(f"node {far.node} has a granular memory device", hint="resize that one, or plug DIMMs")
        await pci.plug_into(monitor, port, _DRIVER, device, _props(far, backend, 0), deadline=max(1.0, clock.left))


async def find(monitor: Monitor, device: str, *, deadline: float = 30.0) -> VirtioMem:
    """Return virtio-mem ``device``; raises `NotFoundError` if it is not plugged."""
    with translated("tell its memory devices"):
        devices = await commands.query_memory_devices(monitor, deadline=deadline)
    for found in devices:
        if isinstance(found, VirtioMem) and found.id == device:
            return found
    raise NotFoundError(f"there is no virtio-mem device {device}", hint="see: vmcoal status")


async def resize(
    monitor: Monitor,
    device: str,
    size: int,
    *,
    deadline: float,
    progress: Callable[[int], object] = lambda size: None,
) -> int:
    """Ask the guest for ``size`` bytes and return what it has plugged when that is reached or the deadline is over.

    A smaller (growing) or larger (shrinking) result is how far the guest came; the request stands, so it may go on.
    ``progress`` is told each size on the way. Raises `UsageError` for a size that is no multiple of the grain or beyond
    the device, `NotFoundError`, `RefusedError`, `DeadlineError` where QEMU itself does not answer, `UnreachableError`.
    """
    clock = Clock(deadline)
    doing = f"resize {device} to {format_size(size)}"
    now = await find(monitor, device, deadline=clock.command())
    if not 0 <= size <= now.max_size or size % now.block_size:
        raise UsageError(
            f"{device} cannot have {format_size(size)}",
            hint=f"use a multiple of {format_size(now.block_size)} up to {format_size(now.max_size)}",
        )
    with translated(doing):
        async with monitor.events(
            "MEMORY_DEVICE_SIZE_CHANGE", match=lambda event: event.data.get("id") == device
        ) as changes:
            if now.requested_size != size:
                await commands.qom_set(monitor, _path(device), _SIZE, size, deadline=clock.command())
            while True:
                # QEMU sends these events at most once a second, so the size is asked for in between.
                now = await find(monitor, device, deadline=clock.command())
                progress(now.size)
                if now.size == size or not clock.left:
                    return now.size
                try:
                    await changes.wait_for(deadline=min(_POLL, clock.left))
                except QmpTimeoutError:
                    continue


async def unplug(monitor: Monitor, device: str, backend: str, *, deadline: float) -> None:
    """Unplug an empty virtio-mem device and delete its backend; what is gone already is left out.

    Raises `RefusedError` where QEMU cannot do it (before 8.2) or the device is not empty, `DeadlineError`,
    `UnreachableError`.
    """
    clock = Clock(deadline)
    await remove_device(monitor, device, f"virtio-mem device {device}", deadline=deadline)
    await remove_object(monitor, backend, deadline=clock.command())


async def ensure_unplugged(monitor: Monitor, device: str, backend: str, *, deadline: float) -> None:
    """Undo of `plug`, whatever of it was done: empty the device, then remove it.

    Raises `RefusedError` where the device has to stay until shutdown; ``left`` says so.
    """
    clock = Clock(deadline)
    if await has_device(monitor, device, deadline=clock.command()):
        rest = await resize(monitor, device, 0, deadline=clock.left)
        if rest:
            raise RefusedError(
                f"the guest keeps {format_size(rest)} of {device}",
                left="the device stays plugged; the guest may still empty it",
                hint="free memory in the guest, then detach",
            )
    await unplug(monitor, device, backend, deadline=max(1.0, clock.left))


def _path(device: str) -> str:
    return f"/machine/peripheral/{device}"


def _props(far: FarNode, backend: str, requested: int) -> dict[str, Any]:
    return {"memdev": backend, "node": far.node, _SIZE: requested, "block-size": GRAIN}
