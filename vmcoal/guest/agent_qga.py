"""The guest through qemu-guest-agent, where vmcoal's own agent is not installed.

What it cannot do is refused with a hint. The wire is `vmcoal.guest.qga_link`; the commands are described in
https://www.qemu.org/docs/master/interop/qemu-ga-ref.html.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from vmcoal.errors import DeadlineError, RefusedError, UnreachableError, UsageError, VmcoalError
from vmcoal.guest import agent_answers as answers
from vmcoal.guest.agent_answers import convert, cpu_name
from vmcoal.guest.agent_link import guest_words
from vmcoal.guest.agent_vmcoal import OnOutput, Progress, check_command
from vmcoal.guest.qga_link import HINT, QgaLink, open_link
from vmcoal.model.guest import (
    CommandEnd,
    CommandInput,
    CpuName,
    GuestCommand,
    GuestCpu,
    GuestInfo,
    GuestTopology,
    MemoryBlock,
    MemorySpan,
    Pressure,
    Room,
)

_SYNC = 2.0
_STDIN_MAX = 1 << 20
_MAX_BLOCKS = 65536


class _Vcpu(msgspec.Struct, rename="kebab"):
    logical_id: int
    online: bool
    can_offline: bool = False


class _Block(msgspec.Struct, rename="kebab"):
    phys_index: int
    online: bool
    can_offline: bool = False


class _Response(msgspec.Struct, rename="kebab"):
    response: str = ""


class _Exec(msgspec.Struct, rename="kebab"):
    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: bytes = b""
    err_data: bytes = b""


class QgaAgent:
    """Implements `vmcoal.guest.channel.Agent` as far as qemu-guest-agent goes. Made by `open_qga`."""

    kind = "qemu-guest-agent"
    limits = (
        "qemu-guest-agent brings memory online outside the movable zone: it may not come off again",
        "qemu-guest-agent does not tell which socket a CPU is in, nor which node a memory block is in",
    )

    def __init__(self, link: QgaLink) -> None:
        self._link = link
        self.version = ""

    # -- what it can do

    async def info(self, *, deadline: float = 10.0) -> GuestInfo:
        """See `Agent.info`."""
        until = time.monotonic() + deadline
        agent = await self._link.execute("guest-info", None, deadline)
        self.version = guest_words(agent.get("version"), 40) if isinstance(agent, dict) else ""
        system = await self._link.execute("guest-get-osinfo", None, until - time.monotonic())
        system = system if isinstance(system, dict) else {}
        return GuestInfo(
            release=guest_words(system.get("kernel-release", ""), 100),
            os=guest_words(system.get("pretty-name", ""), 100),
            agent=self.kind,
            agent_version=self.version,
        )

    async def topology(self, *, deadline: float = 10.0) -> GuestTopology:
        """See `Agent.topology`; sockets, nodes and zones are not known."""
        until = time.monotonic() + deadline
        cpus = await self._vcpus(deadline)
        blocks: list[_Block] = []
        size = 0
        with contextlib.suppress(RefusedError):  # kernels without memory hotplug
            blocks, size = await self._blocks(until - time.monotonic())
        return GuestTopology(
            cpus=tuple(GuestCpu(number=cpu.logical_id, online=cpu.online) for cpu in cpus),
            nodes=(),
            blocks=tuple(_model(block) for block in blocks),
            block_size=size,
        )

    async def _vcpus(self, deadline: float) -> list[_Vcpu]:
        return convert(await self._link.execute("guest-get-vcpus", None, deadline), list[_Vcpu])

    async def _blocks(self, deadline: float) -> tuple[list[_Block], int]:
        until = time.monotonic() + deadline
        info = await self._link.execute("guest-get-memory-block-info", None, deadline)
        size = convert(info.get("size") if isinstance(info, dict) else None, int)
        blocks = convert(
            await self._link.execute("guest-get-memory-blocks", None, until - time.monotonic()), list[_Block]
        )
        if len(blocks) > _MAX_BLOCKS or size <= 0:
            raise RefusedError("the guest's memory blocks make no sense")
        return sorted(blocks, key=lambda block: block.phys_index), size

    async def cpu_set(
        self, cpus: Sequence[CpuName], online: bool, *, deadline: float = 30.0, progress: Progress | None = None
    ) -> tuple[GuestCpu, ...]:
        """See `Agent.cpu_set`; CPUs must be named by number."""
        for cpu in cpus:
            if cpu.number is None:
                self._lacks(f"finding {cpu_name(cpu)}")
        until = time.monotonic() + deadline
        wanted = {cpu.number for cpu in cpus if cpu.number is not None}
        while True:
            table = {cpu.logical_id: cpu for cpu in await self._vcpus(until - time.monotonic())}
            missing = wanted - table.keys()
            if not missing:
                break
            if time.monotonic() + 0.1 > until:
                raise DeadlineError(f"CPU {min(missing)} has not appeared in the guest within {deadline:g} s")
            await asyncio.sleep(0.1)
        todo = [{"logical-id": number, "online": online} for number in sorted(wanted) if table[number].online != online]
        if todo:
            # It stops at the first that fails, and the answer counts those done before it.
            answer = await self._link.execute("guest-set-vcpus", {"vcpus": todo}, until - time.monotonic())
            done = answers.count(answer, len(todo))
            if done < len(todo):
                left = f"{done} of {len(todo)} CPUs are {'online' if online else 'offline'}"
                raise RefusedError(f"the guest refuses CPU {todo[done]['logical-id']}", left=left)
        if progress:
            progress(len(wanted), len(wanted), None)
        return tuple(GuestCpu(number=number, online=online) for number in sorted(wanted))

    async def memory_set(
        self, where: int | MemorySpan, online: bool, *, deadline: float = 60.0, progress: Progress | None = None
    ) -> tuple[MemoryBlock, ...]:
        """See `Agent.memory_set`; only by range, and going online ends in a zone that may not come off again."""
        if isinstance(where, int):
            self._lacks(f"finding the memory of node {where}")
        until = time.monotonic() + deadline
        while True:
            blocks, size = await self._blocks(until - time.monotonic())
            if where.start % size or where.size % size:
                raise UsageError(f"the range is not made of whole memory blocks of {size} bytes")
            first, count = where.start // size, where.size // size
            inside = [block for block in blocks if first <= block.phys_index < first + count]
            if len(inside) == count or not online:
                break
            if time.monotonic() + 0.1 > until:
                raise DeadlineError(f"{len(inside)} of {count} memory blocks have appeared within {deadline:g} s")
            await asyncio.sleep(0.1)
        numbers = [block.phys_index for block in inside if block.online != online]
        todo = [{"phys-index": number, "online": online} for number in numbers]
        answer = (
            await self._link.execute("guest-set-memory-blocks", {"mem-blks": todo}, until - time.monotonic())
            if todo
            else []
        )
        results = convert(answer, list[_Response])
        failed = [number for number, result in zip(numbers, results, strict=False) if result.response != "success"]
        if failed or len(results) != len(numbers):
            state = "online" if online else "offline"
            raise RefusedError(
                f"the guest refuses {len(numbers) - len(results) + len(failed)} of {len(inside)} memory blocks",
                left=f"{len(inside) - len(failed)} memory blocks are {state}",
                hint=HINT,
                failed={f"block {number}": "refused" for number in failed[:64]},
            )
        if progress:
            progress(len(inside), len(inside), None)
        return tuple(MemoryBlock(number=block.phys_index, state="online" if online else "offline") for block in inside)

    async def exec(
        self,
        command: GuestCommand,
        *,
        on_output: OnOutput,
        stdin: asyncio.Queue[CommandInput] | None = None,
        deadline: float | None = None,
    ) -> CommandEnd:
        """See `Agent.exec`; output comes at the end and input goes in at the start, 16 and 1 MiB at most."""
        check_command(command)
        if command.tty:
            self._lacks("a terminal")
        argv = list(command.argv)
        if command.cwd is not None:
            argv = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', command.cwd, *argv]
        arguments: dict[str, Any] = {"path": argv[0], "arg": argv[1:], "capture-output": True}
        if command.env:
            arguments["env"] = [f"{name}={value}" for name, value in command.env.items()]
        try:
            async with asyncio.timeout(deadline):
                if stdin is not None:
                    arguments["input-data"] = base64.b64encode(await _all_input(stdin)).decode()
                started = await self._link.execute("guest-exec", arguments, 30.0)
                pid = convert(started.get("pid") if isinstance(started, dict) else None, int)
                try:
                    end = await self._wait_exec(pid)
                except BaseException:
                    await asyncio.shield(self._kill(pid))
                    raise
                for stream, data in ((1, end.out_data), (2, end.err_data)):
                    if data:
                        await on_output(stream, data)
        except TimeoutError as error:
            raise DeadlineError(
                f"{command.argv[0]} did not end within {deadline:g} s",
                left="it was told to end",
                hint="use a longer deadline",
            ) from error
        return answers.end({"code": end.exitcode, "signal": end.signal})

    async def _wait_exec(self, pid: int) -> _Exec:
        delay = 0.05
        while True:
            end = convert(await self._link.execute("guest-exec-status", {"pid": pid}, 30.0), _Exec)
            if end.exited:
                return end
            await asyncio.sleep(delay)
            delay = min(delay * 1.5, 1.0)

    async def _kill(self, pid: int) -> None:
        with contextlib.suppress(VmcoalError):
            await self._link.execute("guest-exec", {"path": "kill", "arg": [str(pid)]}, 5.0)

    async def poweroff(self, *, force: bool = False, deadline: float = 10.0) -> None:
        """See `Agent.poweroff`."""
        if force:
            self._lacks("powering off at once")
        # It answers only if it fails (qemu-ga-ref), so silence and a hang-up are success.
        with contextlib.suppress(DeadlineError, UnreachableError):
            await self._link.execute("guest-shutdown", {"mode": "powerdown"}, deadline)

    async def ping(self, *, deadline: float = 5.0) -> float:
        """See `Agent.ping`."""
        start = time.perf_counter()
        await self._link.execute("guest-ping", None, deadline)
        return time.perf_counter() - start

    async def wait_lost(self) -> VmcoalError:
        """See `Agent.wait_lost`; noticed at the next call only."""
        return await self._link.wait_lost()

    async def close(self) -> None:
        """See `Agent.close`."""
        await self._link.close()

    # -- what it cannot do

    def _lacks(self, what: str) -> NoReturn:
        raise RefusedError(f"{what} needs the vmcoal agent; the guest has only qemu-guest-agent", hint=HINT)

    async def park_far(self, *, keep: int = 0, deadline: float = 30.0) -> tuple[GuestCpu, ...]:
        """Refused."""
        self._lacks("parking CPUs")

    async def room(self, where: int | MemorySpan, *, deadline: float = 10.0) -> Room:
        """Refused."""
        self._lacks("checking for room")

    async def pressure(self, *, deadline: float = 10.0) -> Pressure:
        """Refused."""
        self._lacks("reading the guest's load")

    async def pci_fix_node(self, addresses: Sequence[str], node: int, *, deadline: float = 10.0) -> tuple[str, ...]:
        """Refused."""
        self._lacks("setting the node of a PCI device")

    async def pci_power_off(self, address: str, *, deadline: float = 15.0) -> None:
        """Refused."""
        self._lacks("switching off a slot")

    async def sysctl(self, name: str, value: str | None = None, *, deadline: float = 10.0) -> str:
        """Refused."""
        self._lacks("kernel settings")

    async def migrate(self, pid: int, source: Sequence[int], target: Sequence[int], *, deadline: float = 60.0) -> int:
        """Refused."""
        self._lacks("moving a process's memory")


def _model(block: _Block) -> MemoryBlock:
    state = "online" if block.online else "offline"
    return MemoryBlock(number=block.phys_index, state=state, removable=block.can_offline)


async def _all_input(stdin: asyncio.Queue[CommandInput]) -> bytes:
    data = b""
    while True:
        part = await stdin.get()
        data += part.data
        if len(data) > _STDIN_MAX:
            raise RefusedError(
                "more than 1 MiB of standard input needs the vmcoal agent; the guest has only qemu-guest-agent",
                hint=HINT,
            )
        if part.eof:
            return data


async def open_qga(path: Path) -> QgaAgent:
    """Connect to qemu-guest-agent's socket and get in step, within 2 s; raises `UnreachableError`, `DeadlineError`."""
    link = await open_link(path)
    agent = QgaAgent(link)
    try:
        async with asyncio.timeout(_SYNC):
            await link.sync()
        await agent.info(deadline=_SYNC * 2)
    except TimeoutError as error:
        await agent.close()
        raise DeadlineError("qemu-guest-agent does not answer") from error
    except BaseException:
        await agent.close()
        raise
    return agent
