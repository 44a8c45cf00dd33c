"""A guest in memory: `FakeGuest` is the machine that a test changes, `FakeAgent` is how vmcoal sees it.

`FakeAgent` implements `vmcoal.guest.channel.Agent` and passes the same suite as the real agent
(tests/contract/test_agent_suite.py). To make it fail:

    guest.refuse_cpu(2, "EBUSY"); guest.refuse_block(8, "EBUSY"); guest.busy_block(8, 3)   # one thing, or a while
    guest.hang_cpu(2); guest.hang_block(8)                                                 # the call never ends
    agent.fail["memory_set"] = RefusedError("no")                                          # a whole call
    agent.silent.add("topology")                                                           # a call never answers
    agent.lose()                                                                           # the channel breaks
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vmcoal.errors import DeadlineError, RefusedError, UnreachableError, VmcoalError
from vmcoal.guest.agent_vmcoal import OnOutput, Progress, check_command
from vmcoal.model.guest import (
    CommandEnd,
    CommandInput,
    CpuName,
    GuestCommand,
    GuestCpu,
    GuestInfo,
    GuestNode,
    GuestTopology,
    MemoryBlock,
    MemorySpan,
    Pressure,
    Room,
)

BLOCK = 128 << 20
_TICK = 0.01


@dataclass
class Cpu:
    number: int
    socket: int
    core: int
    online: bool
    refuse: str = ""
    hang: bool = False


@dataclass
class Block:
    number: int
    node: int
    state: str
    zone: str
    refuse: str = ""
    busy: int = 0
    hang: bool = False


@dataclass
class FakeGuest:
    """Socket N is node N. ``room`` and ``pressure`` are what the agent will answer."""

    cpus: dict[int, Cpu] = field(default_factory=dict)
    blocks: dict[int, Block] = field(default_factory=dict)
    nodes: set[int] = field(default_factory=lambda: {0})
    sysctls: dict[str, str] = field(default_factory=lambda: {"vm.swappiness": "60"})
    pci_nodes: dict[str, int] = field(default_factory=dict)
    slots: dict[str, bool] = field(default_factory=dict)
    room: Room | None = None
    pressure: Pressure = field(
        default_factory=lambda: Pressure(load=(0.5, 0.25, 0.1), memory_available=1 << 29, memory_total=1 << 30)
    )

    @classmethod
    def booted(cls, *, cores: int = 2, memory_blocks: int = 4) -> FakeGuest:
        """A guest with socket 0 online and ``memory_blocks`` in node 0."""
        guest = cls()
        for core in range(cores):
            guest.add_cpu(core, 0, core, online=True)
        for number in range(memory_blocks):
            guest.add_block(number, 0, "online", "Normal")
        return guest

    def add_node(self, node: int) -> None:
        self.nodes.add(node)

    def add_cpu(self, number: int, socket: int, core: int, *, online: bool = False) -> None:
        self.cpus[number] = Cpu(number, socket, core, online)

    def remove_cpu(self, number: int) -> None:
        del self.cpus[number]

    def add_block(self, number: int, node: int, state: str = "offline", zone: str = "") -> None:
        self.nodes.add(node)
        self.blocks[number] = Block(number, node, state, zone)

    def remove_block(self, number: int) -> None:
        del self.blocks[number]

    def refuse_cpu(self, number: int, code: str) -> None:
        self.cpus[number].refuse = code

    def hang_cpu(self, number: int) -> None:
        self.cpus[number].hang = True

    def refuse_block(self, number: int, code: str) -> None:
        self.blocks[number].refuse = code

    def busy_block(self, number: int, times: int) -> None:
        self.blocks[number].busy = times

    def hang_block(self, number: int) -> None:
        self.blocks[number].hang = True


def _words(code: str) -> str:
    return os.strerror(getattr(errno, code))


class FakeAgent:
    """See the module; ``calls`` records (name, arguments)."""

    kind = "vmcoal"
    version = "0.1.0"
    limits: tuple[str, ...] = ()

    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest
        self.calls: list[tuple[str, Any]] = []
        self.silent: set[str] = set()
        self.fail: dict[str, VmcoalError] = {}
        self._lost: asyncio.Future[VmcoalError] = asyncio.get_running_loop().create_future()

    def lose(self, reason: str = "the guest's agent hung up") -> None:
        """Break the channel."""
        if not self._lost.done():
            self._lost.set_result(UnreachableError(reason))

    async def _begin(self, name: str, arguments: Any, deadline: float | None) -> None:
        self.calls.append((name, arguments))
        if name in self.silent:
            await asyncio.wait([self._lost], timeout=deadline)
            if not self._lost.done():
                raise DeadlineError(f"the guest's agent did not answer to {name} within {deadline:g} s")
        if self._lost.done():
            raise self._lost.result()
        if name in self.fail:
            raise self.fail[name]

    async def info(self, *, deadline: float = 10.0) -> GuestInfo:
        await self._begin("info", None, deadline)
        return GuestInfo(release="6.1.0-fake", os="Fake GNU/Linux", agent=self.kind, agent_version=self.version)

    async def topology(self, *, deadline: float = 10.0) -> GuestTopology:
        await self._begin("topology", None, deadline)
        guest = self.guest
        online = guest.nodes | {cpu.socket for cpu in guest.cpus.values() if cpu.online}
        return GuestTopology(
            cpus=tuple(self._cpu(cpu) for _, cpu in sorted(guest.cpus.items())),
            nodes=tuple(
                GuestNode(
                    node=node,
                    memory_total=sum(BLOCK for b in guest.blocks.values() if b.node == node and b.state == "online"),
                    memory_free=0,
                    distances={other: 10 if other == node else 10 + 10 * max(node, other) for other in sorted(online)},
                )
                for node in sorted(online)
            ),
            blocks=tuple(self._block(block) for _, block in sorted(guest.blocks.items())),
            block_size=BLOCK,
        )

    @staticmethod
    def _cpu(cpu: Cpu) -> GuestCpu:
        return GuestCpu(number=cpu.number, online=cpu.online, socket=cpu.socket, core=cpu.core, node=cpu.socket)

    @staticmethod
    def _block(block: Block) -> MemoryBlock:
        zone = block.zone if block.state == "online" else ""
        return MemoryBlock(number=block.number, state=block.state, node=block.node, zone=zone)

    def _find(self, name: CpuName) -> Cpu | None:
        if name.number is not None:
            return self.guest.cpus.get(name.number)
        places = {(cpu.socket, cpu.core): cpu for cpu in self.guest.cpus.values()}
        return places.get((name.socket if name.socket is not None else -1, name.core if name.core is not None else -1))

    async def cpu_set(
        self, cpus: Sequence[CpuName], online: bool, *, deadline: float = 30.0, progress: Progress | None = None
    ) -> tuple[GuestCpu, ...]:
        await self._begin("cpu_set", (tuple(cpus), online), deadline)
        until = time.monotonic() + deadline
        done: list[GuestCpu] = []
        failed: dict[str, str] = {}
        missing = False
        for name in cpus:
            while (cpu := self._find(name)) is None or (cpu.hang and cpu.online != online):
                if time.monotonic() > until:
                    break
                await asyncio.sleep(_TICK)
            if cpu is None or (cpu.hang and cpu.online != online):
                missing = True
                failed[str(name)] = "ENODEV: it has not appeared"
            elif cpu.refuse and cpu.online != online:
                failed[f"CPU {cpu.number}"] = f"{cpu.refuse}: {_words(cpu.refuse)}"
            else:
                cpu.online = online
                done.append(self._cpu(cpu))
            if progress:
                progress(len(done) + len(failed), len(cpus), None)
        self._check("CPUs", done, failed, online, missing and len(failed) == 1)
        return tuple(done)

    async def park_far(self, *, keep: int = 0, deadline: float = 30.0) -> tuple[GuestCpu, ...]:
        far = [cpu.number for cpu in self.guest.cpus.values() if cpu.online and cpu.socket > keep]
        return await self.cpu_set([CpuName(number=number) for number in far], False, deadline=deadline)

    def _inside(self, where: int | MemorySpan) -> tuple[list[Block], int | None]:
        if isinstance(where, int):
            return [block for _, block in sorted(self.guest.blocks.items()) if block.node == where], None
        if where.start % BLOCK or where.size % BLOCK:
            raise RefusedError("the range is not made of whole memory blocks", code="EINVAL")
        numbers = range(where.start // BLOCK, (where.start + where.size) // BLOCK)
        return [self.guest.blocks[number] for number in numbers if number in self.guest.blocks], len(numbers)

    async def memory_set(
        self, where: int | MemorySpan, online: bool, *, deadline: float = 60.0, progress: Progress | None = None
    ) -> tuple[MemoryBlock, ...]:
        await self._begin("memory_set", (where, online), deadline)
        until = time.monotonic() + deadline * 0.8
        blocks, expected = self._inside(where)
        while online and (len(blocks) < expected if expected is not None else not blocks):
            if time.monotonic() > until:
                raise DeadlineError(f"{len(blocks)} of {expected} blocks have appeared in the guest")
            await asyncio.sleep(_TICK)
            blocks, expected = self._inside(where)
        done: list[MemoryBlock] = []
        failed: dict[str, str] = {}
        late = False
        for block in blocks:
            if block.state == ("online" if online else "offline") and (not online or block.zone == "Movable"):
                done.append(self._block(block))
                continue
            code = block.refuse
            while time.monotonic() < until and (block.hang or block.busy > 0 or code in ("EBUSY", "EAGAIN")):
                block.busy -= 1
                await asyncio.sleep(_TICK)
            late = late or block.hang
            if code or block.hang or block.busy > 0:
                failed[f"block {block.number}"] = f"{code or 'EBUSY'}: {_words(code or 'EBUSY')}"
                continue
            block.state, block.zone = ("online", "Movable") if online else ("offline", "")
            done.append(self._block(block))
            if progress:
                progress(len(done), len(blocks), None)
        self._check("memory blocks", done, failed, online, late)
        return tuple(done)

    @staticmethod
    def _check(what: str, done: Sequence[Any], failed: dict[str, str], online: bool, late: bool) -> None:
        if not failed:
            return
        state = f"{what} are {'online' if online else 'offline'}"
        kind: Callable[..., VmcoalError] = DeadlineError if late else RefusedError
        name, why = next(iter(failed.items()))
        raise kind(
            f"the guest refuses {name}: {why}",
            left=f"{len(done)} of {len(done) + len(failed)} {state}" if done else None,
            done=[item.number for item in done],
            failed=failed,
        )

    async def room(self, where: int | MemorySpan, *, deadline: float = 10.0) -> Room:
        await self._begin("room", where, deadline)
        return self.guest.room or Room(fits=True, needed=0, available=1 << 29, explanation="0 MiB in use must move")

    async def pressure(self, *, deadline: float = 10.0) -> Pressure:
        await self._begin("pressure", None, deadline)
        return self.guest.pressure

    async def pci_fix_node(self, addresses: Sequence[str], node: int, *, deadline: float = 10.0) -> tuple[str, ...]:
        await self._begin("pci_fix_node", (tuple(addresses), node), deadline)
        for address in addresses:
            if address not in self.guest.pci_nodes:
                raise RefusedError(f"the guest refuses: there is no PCI device {address}", code="ENODEV")
            self.guest.pci_nodes[address] = node
        return tuple(addresses)

    async def pci_power_off(self, address: str, *, deadline: float = 15.0) -> None:
        await self._begin("pci_power_off", address, deadline)
        if address not in self.guest.slots:
            raise RefusedError(f"the guest refuses: no hotplug slot holds {address}", code="ENODEV")
        self.guest.slots[address] = False

    async def sysctl(self, name: str, value: str | None = None, *, deadline: float = 10.0) -> str:
        await self._begin("sysctl", (name, value), deadline)
        if name not in self.guest.sysctls:
            raise RefusedError(f"the guest refuses: {name} is not a setting that the agent reads", code="EPERM")
        if value is not None:
            self.guest.sysctls[name] = value
        return self.guest.sysctls[name]

    async def migrate(self, pid: int, source: Sequence[int], target: Sequence[int], *, deadline: float = 60.0) -> int:
        await self._begin("migrate", (pid, tuple(source), tuple(target)), deadline)
        return 0

    async def exec(
        self,
        command: GuestCommand,
        *,
        on_output: OnOutput,
        stdin: asyncio.Queue[CommandInput] | None = None,
        deadline: float | None = None,
    ) -> CommandEnd:
        """Knows ``true``, ``false``, ``echo WORD…``, ``cat`` and ``sleep SECONDS``."""
        await self._begin("exec", command, deadline)
        check_command(command)
        name, *words = command.argv
        try:
            async with asyncio.timeout(deadline):
                if name == "echo":
                    await on_output(1, (" ".join(words) + "\n").encode())
                elif name == "sleep":
                    await asyncio.wait([self._lost], timeout=float(words[0]))
                elif name == "cat":
                    while stdin is not None:
                        part = await stdin.get()
                        if part.data:
                            await on_output(1, part.data)
                        if part.eof:
                            break
                elif name not in ("true", "false"):
                    raise RefusedError(f"the guest cannot run it: {name}: {_words('ENOENT')}", code="ENOENT")
        except TimeoutError as error:
            raise DeadlineError(f"{name} did not end within {deadline:g} s") from error
        if self._lost.done():
            raise self._lost.result()
        return CommandEnd(code=int(name == "false"))

    async def poweroff(self, *, force: bool = False, deadline: float = 10.0) -> None:
        await self._begin("poweroff", force, deadline)

    async def ping(self, *, deadline: float = 5.0) -> float:
        await self._begin("ping", None, deadline)
        return 0.0001

    async def wait_lost(self) -> VmcoalError:
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        self.lose("the connection to the guest's agent was closed")


__all__ = ["BLOCK", "FakeAgent", "FakeGuest"]
