"""Plugs and unplugs the vCPUs of far nodes. What the guest makes of them (online, offline) is not QEMU's business.

A place is named by far node and core: the socket has the node's number. Unplugging is for KVM only: under TCG
``device_del`` of a vCPU kills QEMU, so there the controller parks them in the guest instead (`CpuMode`).
"""

from __future__ import annotations

from typing import Any

from vmcoal.errors import ConflictError
from vmcoal.machine.names import cpu_id
from vmcoal.machine.qmp_errors import translated
from vmcoal.machine.seam import Monitor
from vmcoal.machine.unplug import Clock, remove_device
from vmcoal.model.machine import MachineSpec
from vmcoal_qmp import commands
from vmcoal_qmp.types import HotpluggableCpu


def plan_plug(spec: MachineSpec, node: int, core: int) -> list[dict[str, Any]]:
    """Return the QMP commands of `plug_cpu`. QEMU names the driver when asked; it follows the CPU model."""
    driver = f"{spec.cpu_model.split(',')[0]}-x86_64-cpu"
    where = {"socket-id": node, "die-id": 0, "core-id": core, "thread-id": 0}
    return [{"execute": "device_add", "arguments": {"driver": driver, "id": cpu_id(node, core), **where}}]


def plan_unplug(node: int, core: int) -> list[dict[str, Any]]:
    """Return the QMP commands of `unplug_cpu`."""
    return [{"execute": "device_del", "arguments": {"id": cpu_id(node, core)}}]


async def plug_cpu(monitor: Monitor, spec: MachineSpec, node: int, core: int, *, deadline: float) -> str:
    """Plug vCPU ``core`` of far node ``node`` and return its device id. One that is plugged already is left alone.

    Raises `ConflictError` where the machine has no such place, `RefusedError`, `DeadlineError`, `UnreachableError`.
    """
    clock = Clock(deadline)
    doing = f"plug vCPU {core} into node {node}"
    with translated(doing):
        places = await commands.query_hotpluggable_cpus(monitor, deadline=clock.command())
    place = next((place for place in places if _where(place) == (node, core)), None)
    if place is None or core >= spec.far_node(node).cpus:
        raise ConflictError(f"node {node} has no place for vCPU {core}", hint="boot with more --far-cpus")
    if place.qom_path is None:
        with translated(doing):
            arguments = place.props.arguments()
            await commands.device_add(monitor, place.type, cpu_id(node, core), arguments, deadline=clock.command())
    return cpu_id(node, core)


async def unplug_cpu(monitor: Monitor, node: int, core: int, *, deadline: float) -> None:
    """Unplug vCPU ``core`` of far node ``node``; returns when it is gone, or at once if it is not there.

    Raises `RefusedError`, `DeadlineError`, `UnreachableError`.
    """
    what = f"vCPU {core} of node {node}"
    await remove_device(monitor, cpu_id(node, core), what, deadline=deadline, repeatable=True)


async def ensure_unplugged(monitor: Monitor, node: int, core: int, *, deadline: float) -> None:
    """Undo of `plug_cpu`, whatever of it was done."""
    await unplug_cpu(monitor, node, core, deadline=deadline)


async def plugged_cores(monitor: Monitor, node: int, *, deadline: float = 30.0) -> frozenset[int]:
    """Return the cores of far node ``node`` that are plugged."""
    with translated("tell its vCPUs"):
        places = await commands.query_hotpluggable_cpus(monitor, deadline=deadline)
    return frozenset(core for socket, core in map(_where, places_taken(places)) if socket == node)


def places_taken(places: list[HotpluggableCpu]) -> list[HotpluggableCpu]:
    """Return the places that hold a vCPU."""
    return [place for place in places if place.qom_path is not None]


def _where(place: HotpluggableCpu) -> tuple[int | None, int]:
    return place.props.socket_id, place.props.core_id or 0
