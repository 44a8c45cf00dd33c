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
    """Whether ``needed`` bytes in use on the leaving memory fit into what stays: ``available`` bytes there.

    ``swap``: free bytes of swap, not part of ``available``; ``explanation`` the estimate in words.
    """

    fits: bool
    needed: int
    available: int
    swap: int = 0
    explanation: str = ""


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """Demand: load averages, PSI ``some`` avg10 in percent (``None``: kernel without PSI), free bytes."""

    load: tuple[float, float, float]
    cpu: float | None = None
    memory: float | None = None
    io: float | None = None
    memory_available: int = 0
    memory_total: int = 0


class CpuName(msgspec.Struct, frozen=True, kw_only=True):
    """Names one CPU: by ``socket`` and ``core`` (the one thread there), or by Linux's ``number`` of it."""

    socket: int | None = None
    core: int | None = None
    number: int | None = None


class MemorySpan(msgspec.Struct, frozen=True):
    """A range of guest-physical memory: ``start`` and ``size`` in bytes, both whole memory blocks."""

    start: int
    size: int


class GuestCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command to run in the guest, as the agent's user (root). ``tty`` gives it a terminal of ``rows`` × ``columns``,
    then stdout and stderr are one stream; ``env`` is added to a minimal environment."""

    argv: tuple[str, ...]
    env: dict[str, str] = {}
    cwd: str | None = None
    tty: bool = False
    rows: int = 24
    columns: int = 80


class CommandInput(msgspec.Struct, frozen=True, kw_only=True):
    """What is given to a running command: ``data`` for its standard input, ``eof`` closes it; ``rows`` and ``columns``
    resize its terminal."""

    data: bytes = b""
    eof: bool = False
    rows: int | None = None
    columns: int | None = None


class CommandEnd(msgspec.Struct, frozen=True, kw_only=True):
    """How a command ended: exit ``code``, or the ``signal`` that ended it."""

    code: int | None
    signal: int | None = None
