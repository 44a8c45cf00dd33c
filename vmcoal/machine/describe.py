"""What is plugged into a running machine, as QEMU says it: the truth that a restarted controller starts from."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from vmcoal.machine.cpu import places_taken
from vmcoal.machine.names import is_backend_id, port_id
from vmcoal.machine.pci import behind
from vmcoal.machine.qmp_errors import translated
from vmcoal.machine.seam import Monitor
from vmcoal.model.attachment import MemoryStyle
from vmcoal.model.machine import MachineSpec
from vmcoal_qmp import commands
from vmcoal_qmp.types import Dimm, OtherMemoryDevice


@dataclass(frozen=True)
class PluggedMemory:
    """One memory device. ``backend`` its id; ``address`` in the guest; ``size`` bytes the guest has of it, ``capacity``
    bytes of the device; ``requested`` bytes asked of the guest (a DIMM: all of it)."""

    device: str
    backend: str
    style: MemoryStyle
    node: int
    address: int
    size: int
    capacity: int
    requested: int


@dataclass(frozen=True)
class PluggedPci:
    """One PCI device behind port ``port`` of far node ``node``."""

    device: str
    node: int
    port: int


@dataclass(frozen=True)
class PluggedState:
    """Everything in the far nodes.

    ``cpus`` by node and core; ``backends`` every memory backend of a lease, in use or left over.
    """

    cpus: frozenset[tuple[int, int]]
    memory: tuple[PluggedMemory, ...]
    backends: frozenset[str]
    pci: tuple[PluggedPci, ...]

    @property
    def devices(self) -> frozenset[str]:
        """Ids of the memory devices."""
        return frozenset(device.device for device in self.memory)

    @property
    def orphans(self) -> frozenset[str]:
        """Memory backends without a device: left by a plug that was broken off."""
        return self.backends - {device.backend for device in self.memory}

    def cores(self, node: int) -> frozenset[int]:
        """Return the plugged cores of far node ``node``."""
        return frozenset(core for where, core in self.cpus if where == node)


async def describe(monitor: Monitor, spec: MachineSpec, *, deadline: float = 10.0) -> PluggedState:
    """Read back what is plugged; ``deadline`` is for each question.

    Raises `RefusedError`, `DeadlineError`, `UnreachableError`.
    """
    far = {node.node for node in spec.far_nodes}
    with translated("tell what is plugged"):
        cpus = await commands.query_hotpluggable_cpus(monitor, deadline=deadline)
        memory = await commands.query_memory_devices(monitor, deadline=deadline)
        memdevs = await commands.query_memdev(monitor, deadline=deadline)
    ports = [(node.node, number) for node in spec.far_nodes for number in range(node.ports)]
    found = await asyncio.gather(*(behind(monitor, port_id(*port), deadline=deadline) for port in ports))
    taken = ((place.props.socket_id, place.props.core_id or 0) for place in places_taken(cpus))
    return PluggedState(
        cpus=frozenset((socket, core) for socket, core in taken if socket is not None and socket in far),
        memory=tuple(
            PluggedMemory(
                device=device.id or "",
                backend=device.memdev.rpartition("/")[2],
                style=MemoryStyle.DIMM if isinstance(device, Dimm) else MemoryStyle.GRANULAR,
                node=device.node,
                address=device.addr if isinstance(device, Dimm) else device.memaddr,
                size=device.size,
                capacity=device.size if isinstance(device, Dimm) else device.max_size,
                requested=device.size if isinstance(device, Dimm) else device.requested_size,
            )
            for device in memory
            if not isinstance(device, OtherMemoryDevice)
        ),
        backends=frozenset(memdev.id for memdev in memdevs if memdev.id is not None and is_backend_id(memdev.id)),
        pci=tuple(
            PluggedPci(device, node, number)
            for (node, number), devices in zip(ports, found, strict=True)
            for device in devices
        ),
    )
