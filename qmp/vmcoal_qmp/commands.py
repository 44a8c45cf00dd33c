"""QMP commands as functions over anything that can execute them.

Each takes ``deadline`` in seconds and raises the errors of `vmcoal_qmp.errors`, as ``execute`` does. A command that
plugs or unplugs is done when QEMU's side is done: what the guest makes of it comes as events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from vmcoal_qmp import types
from vmcoal_qmp.types import convert

DEADLINE = 10.0


class Executor(Protocol):
    """What runs a command: `QmpClient`, or a stand-in."""

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, deadline: float = 30.0) -> Any:
        """Run one command and return its ``return`` value as plain data."""


async def query_version(qmp: Executor, *, deadline: float = DEADLINE) -> types.Version:
    """Return QEMU's version."""
    return convert("query-version", await qmp.execute("query-version", deadline=deadline), types.Version)


async def query_status(qmp: Executor, *, deadline: float = DEADLINE) -> types.Status:
    """Return whether the guest runs."""
    return convert("query-status", await qmp.execute("query-status", deadline=deadline), types.Status)


async def query_kvm(qmp: Executor, *, deadline: float = DEADLINE) -> types.Kvm:
    """Return whether the guest runs on KVM."""
    return convert("query-kvm", await qmp.execute("query-kvm", deadline=deadline), types.Kvm)


async def query_cpus_fast(qmp: Executor, *, deadline: float = DEADLINE) -> list[types.Cpu]:
    """Return the vCPUs that are there."""
    return convert("query-cpus-fast", await qmp.execute("query-cpus-fast", deadline=deadline), list[types.Cpu])


async def query_hotpluggable_cpus(qmp: Executor, *, deadline: float = DEADLINE) -> list[types.HotpluggableCpu]:
    """Return every place for a vCPU, taken or empty. QEMU lists them from the last to the first."""
    answer = await qmp.execute("query-hotpluggable-cpus", deadline=deadline)
    return convert("query-hotpluggable-cpus", answer, list[types.HotpluggableCpu])


async def query_memory_devices(qmp: Executor, *, deadline: float = DEADLINE) -> list[types.MemoryDevice]:
    """Return the plugged memory devices, by address."""
    answer = await qmp.execute("query-memory-devices", deadline=deadline)
    return [types.memory_device(raw) for raw in convert("query-memory-devices", answer, list[Any])]


async def query_memory_size_summary(qmp: Executor, *, deadline: float = DEADLINE) -> types.MemorySummary:
    """Return how much memory the machine has, from boot and plugged."""
    answer = await qmp.execute("query-memory-size-summary", deadline=deadline)
    return convert("query-memory-size-summary", answer, types.MemorySummary)


async def query_memdev(qmp: Executor, *, deadline: float = DEADLINE) -> list[types.Memdev]:
    """Return every memory backend, plugged or not."""
    return convert("query-memdev", await qmp.execute("query-memdev", deadline=deadline), list[types.Memdev])


async def query_pci(qmp: Executor, *, deadline: float = DEADLINE) -> list[types.PciBus]:
    """Return the PCI root buses and what is on them."""
    return convert("query-pci", await qmp.execute("query-pci", deadline=deadline), list[types.PciBus])


async def query_chardev(qmp: Executor, *, deadline: float = DEADLINE) -> list[types.Chardev]:
    """Return the character devices."""
    return convert("query-chardev", await qmp.execute("query-chardev", deadline=deadline), list[types.Chardev])


async def object_add(
    qmp: Executor, qom_type: str, object_id: str, props: Mapping[str, Any] | None = None, *, deadline: float = DEADLINE
) -> None:
    """Create a user object (``/objects/ID``); ``props`` go beside its type and id, as QEMU takes them since 6.0.

    Raises `ValueError` for a negative ``size``: QEMU would abort.
    """
    props = props or {}
    size = props.get("size", 0)
    if isinstance(size, int) and size < 0:
        raise ValueError(f"size of {object_id} is negative: {size}")
    await qmp.execute("object-add", {"qom-type": qom_type, "id": object_id, **props}, deadline=deadline)


async def object_del(qmp: Executor, object_id: str, *, deadline: float = DEADLINE) -> None:
    """Destroy a user object; QEMU refuses while it is in use."""
    await qmp.execute("object-del", {"id": object_id}, deadline=deadline)


async def device_add(
    qmp: Executor, driver: str, device_id: str, props: Mapping[str, Any] | None = None, *, deadline: float = DEADLINE
) -> None:
    """Plug a device. On failure QEMU keeps nothing of the device, and everything that was made for it (its backend)."""
    await qmp.execute("device_add", {"driver": driver, "id": device_id, **(props or {})}, deadline=deadline)


async def device_del(qmp: Executor, device_id: str, *, deadline: float = DEADLINE) -> None:
    """Ask for a device's removal. It returns when the request is made: DEVICE_DELETED says that the device is gone, and
    may never come."""
    await qmp.execute("device_del", {"id": device_id}, deadline=deadline)


async def qom_get(qmp: Executor, path: str, name: str, *, deadline: float = DEADLINE) -> Any:
    """Return the value of property ``name`` of the object at ``path`` (absolute, or a unique id)."""
    return await qmp.execute("qom-get", {"path": path, "property": name}, deadline=deadline)


async def qom_set(qmp: Executor, path: str, name: str, value: Any, *, deadline: float = DEADLINE) -> None:
    """Set property ``name`` of the object at ``path``."""
    await qmp.execute("qom-set", {"path": path, "property": name, "value": value}, deadline=deadline)


async def qom_list(qmp: Executor, path: str, *, deadline: float = DEADLINE) -> list[types.QomProperty]:
    """Return the properties and children of the object at ``path``."""
    answer = await qmp.execute("qom-list", {"path": path}, deadline=deadline)
    return convert("qom-list", answer, list[types.QomProperty])


async def object_ids(qmp: Executor, *, deadline: float = DEADLINE) -> set[str]:
    """Return the ids of the user objects: what object_add made and what came from the command line."""
    children = await qom_list(qmp, "/objects", deadline=deadline)
    return {child.name for child in children if child.type.startswith("child<")}


async def device_ids(qmp: Executor, *, deadline: float = DEADLINE) -> set[str]:
    """Return the ids of the devices that have one."""
    children = await qom_list(qmp, "/machine/peripheral", deadline=deadline)
    return {child.name for child in children if child.type.startswith("child<")}


async def stop(qmp: Executor, *, deadline: float = DEADLINE) -> None:
    """Stop the vCPUs; nothing happens if they are stopped."""
    await qmp.execute("stop", deadline=deadline)


async def cont(qmp: Executor, *, deadline: float = DEADLINE) -> None:
    """Let the vCPUs run."""
    await qmp.execute("cont", deadline=deadline)


async def system_powerdown(qmp: Executor, *, deadline: float = DEADLINE) -> None:
    """Press the power button. The guest decides what comes of it."""
    await qmp.execute("system_powerdown", deadline=deadline)


async def quit_(qmp: Executor, *, deadline: float = DEADLINE) -> None:
    """End QEMU at once; the connection is lost right after the answer."""
    await qmp.execute("quit", deadline=deadline)
