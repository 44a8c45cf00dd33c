"""The vmcoal agent's answers as the model's types; nothing that the guest says is taken without a check."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from vmcoal.errors import RefusedError
from vmcoal.guest.agent_link import guest_words
from vmcoal.model.guest import (
    CommandEnd,
    CpuName,
    GuestCpu,
    GuestInfo,
    GuestNode,
    GuestTopology,
    MemoryBlock,
    MemorySpan,
    Pressure,
    Room,
)

MAX_BLOCKS = 65536

T = TypeVar("T")
_Small = Annotated[int, msgspec.Meta(ge=0, le=1 << 32)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]


def convert(value: Any, kind: type[T]) -> T:
    """Return the guest's answer as ``kind``; raises `RefusedError` where it is not one."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise RefusedError(
            f"the guest's agent gave an answer that makes no sense: {guest_words(error)}",
            hint="install the agent that comes with this vmcoal in the guest (guest-agent/README.md)",
        ) from error


class _Info(msgspec.Struct):
    release: str
    os: str
    hostname: str = ""
    boot_id: str = ""
    uptime: float = 0.0


def info(answer: Any, agent: str, version: str) -> GuestInfo:
    """Decode ``info``."""
    value = convert(answer, _Info)
    return GuestInfo(
        release=guest_words(value.release, 100),
        os=guest_words(value.os, 100),
        hostname=guest_words(value.hostname, 100),
        agent=agent,
        agent_version=version,
        boot_id=guest_words(value.boot_id, 40),
        uptime=value.uptime,
    )


class _Cpu(msgspec.Struct, array_like=True):
    number: _Small
    online: bool
    socket: _Small | None
    core: _Small | None
    node: _Small | None


class _Node(msgspec.Struct, array_like=True):
    node: _Small
    total: _Bytes
    free: _Bytes
    distances: list[tuple[_Small, _Small]]


class _Run(msgspec.Struct, array_like=True):
    first: _Bytes
    count: _Small
    state: str
    node: _Small | None
    zone: str
    removable: bool


class _Topology(msgspec.Struct):
    block_size: _Bytes
    cpus: list[_Cpu]
    nodes: list[_Node]
    blocks: list[_Run]


def topology(answer: Any) -> GuestTopology:
    """Decode ``topology``; the blocks come as runs of equal ones."""
    value = convert(answer, _Topology)
    if sum(run.count for run in value.blocks) > MAX_BLOCKS:
        raise RefusedError(f"the guest claims more than {MAX_BLOCKS} memory blocks")
    return GuestTopology(
        cpus=tuple(
            GuestCpu(number=cpu.number, online=cpu.online, socket=cpu.socket, core=cpu.core, node=cpu.node)
            for cpu in value.cpus
        ),
        nodes=tuple(
            GuestNode(node=node.node, memory_total=node.total, memory_free=node.free, distances=dict(node.distances))
            for node in value.nodes
        ),
        blocks=tuple(
            MemoryBlock(
                number=run.first + index,
                state=guest_words(run.state, 20),
                node=run.node,
                zone=guest_words(run.zone, 20),
                removable=run.removable,
            )
            for run in value.blocks
            for index in range(run.count)
        ),
        block_size=value.block_size,
    )


class Failed(msgspec.Struct):
    """One thing that a call could not do: ``what`` in words, the errno name and the guest's words for it."""

    what: str
    error: str
    message: str


class _CpuItem(msgspec.Struct):
    online: bool
    number: _Small | None = None
    socket: _Small | None = None
    core: _Small | None = None
    node: _Small | None = None
    error: str = ""
    message: str = ""


def cpu_name(name: CpuName) -> str:
    """Return a CPU's name for people."""
    return f"CPU {name.number}" if name.number is not None else f"the CPU of socket {name.socket}, core {name.core}"


def cpus(items: Any) -> tuple[list[GuestCpu], list[Failed]]:
    """Decode the items of ``cpu_set``: what was done and what was not."""
    done: list[GuestCpu] = []
    failed: list[Failed] = []
    for item in convert(items, list[_CpuItem]):
        if item.error:
            name = cpu_name(CpuName(number=item.number, socket=item.socket, core=item.core))
            failed.append(Failed(name, guest_words(item.error, 20), guest_words(item.message)))
        else:
            done.append(
                GuestCpu(
                    number=item.number if item.number is not None else -1,
                    online=item.online,
                    socket=item.socket,
                    core=item.core,
                    node=item.node,
                )
            )
    return done, failed


class _BlockItem(msgspec.Struct, array_like=True):
    number: _Bytes
    state: str
    node: _Small | None
    zone: str


class _BlockError(msgspec.Struct):
    number: _Bytes
    error: str
    message: str


def blocks(items: Any) -> tuple[list[MemoryBlock], list[Failed]]:
    """Decode the items of ``memory_set``: what was done and what was not."""
    done: list[MemoryBlock] = []
    failed: list[Failed] = []
    for raw in convert(items, list[Any]):
        if isinstance(raw, dict):
            error = convert(raw, _BlockError)
            failed.append(Failed(f"block {error.number}", guest_words(error.error, 20), guest_words(error.message)))
        else:
            item = convert(raw, _BlockItem)
            state, zone = guest_words(item.state, 20), guest_words(item.zone, 20)
            done.append(MemoryBlock(number=item.number, state=state, node=item.node, zone=zone))
    return done, failed


class _Room(msgspec.Struct):
    fits: bool
    needed: _Bytes
    available: _Bytes
    swap: _Bytes = 0
    explanation: str = ""


def room(answer: Any) -> Room:
    """Decode ``room``."""
    value = convert(answer, _Room)
    words = guest_words(value.explanation)
    return Room(fits=value.fits, needed=value.needed, available=value.available, swap=value.swap, explanation=words)


class _Pressure(msgspec.Struct):
    load: tuple[float, float, float]
    cpu: float | None = None
    memory: float | None = None
    io: float | None = None
    memory_available: _Bytes = 0
    memory_total: _Bytes = 0


def pressure(answer: Any) -> Pressure:
    """Decode ``pressure``."""
    return Pressure(**msgspec.structs.asdict(convert(answer, _Pressure)))


class _End(msgspec.Struct):
    code: _Small | None
    signal: _Small | None = None


def end(answer: Any) -> CommandEnd:
    """Decode how a command ended."""
    value = convert(answer, _End)
    return CommandEnd(code=value.code, signal=value.signal)


class _Step(msgspec.Struct):
    done: _Bytes
    total: _Bytes
    note: str | None = None


def step(event: Any) -> tuple[int, int, str | None]:
    """Decode a report of progress: done, total and a note."""
    value = convert(event, _Step)
    return value.done, value.total, None if value.note is None else guest_words(value.note)


def count(answer: Any, most: int) -> int:
    """Decode how many of ``most`` things were done."""
    done = convert(answer, _Small)
    if done > most:
        raise RefusedError(f"the guest claims that it did {done} of {most} things")
    return done


def where_args(where: int | MemorySpan) -> dict[str, int]:
    """Return the arguments that name a node or a physical range."""
    return {"node": where} if isinstance(where, int) else {"start": where.start, "size": where.size}
