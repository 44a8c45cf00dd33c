"""What the guest says of itself: the types of the agent's answers."""

from __future__ import annotations

import msgspec


class GuestInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Which system the guest is. ``release`` kernel release; ``os`` PRETTY_NAME; ``agent`` vmcoal or
    qemu-guest-agent, with its ``agent_version``; ``boot_id`` changes with every boot."""

    release: str
    os: str
    hostname: str = ""
    agent: str
    agent_version: str
    boot_id: str = ""
    uptime: float = 0.0


class GuestCpu(msgspec.Struct, frozen=True, kw_only=True):
    """One CPU the guest knows. ``socket`` and ``core`` from its topology, ``None`` where an offline CPU does not tell;
    ``node`` its NUMA node or ``None``."""

    number: int
    online: bool
    socket: int | None = None
    core: int | None = None
    node: int | None = None


class GuestNode(msgspec.Struct, frozen=True, kw_only=True):
    """One online NUMA node: bytes, and its row of distances by node id."""

    node: int
    memory_total: int
    memory_free: int
    distances: dict[int, int] = {}


class MemoryBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One hotpluggable memory block. ``number`` of memoryN; ``state`` online | offline | going-offline; ``zone``
    Movable, Normal, … or empty."""

    number: int
    state: str
    node: int | None = None
    zone: str = ""
    removable: bool = True


class GuestTopology(msgspec.Struct, frozen=True, kw_only=True):
    """CPUs, nodes and memory blocks; ``block_size`` in bytes."""

    cpus: tuple[GuestCpu, ...]
    nodes: tuple[GuestNode, ...]
    blocks: tuple[MemoryBlock, ...] = ()
    block_size: int = 128 << 20


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """Whether ``needed`` bytes in use on the leaving memory fit into what stays: ``available`` bytes there."""

    fits: bool
    needed: int
    available: int


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """Demand: load averages, PSI ``some`` avg10 in percent (``None``: kernel without PSI), free bytes."""

    load: tuple[float, float, float]
    cpu: float | None = None
    memory: float | None = None
    io: float | None = None
    memory_available: int = 0
    memory_total: int = 0
