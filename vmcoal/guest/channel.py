"""The agent channel: what the guest can be asked, whichever agent answers.

`wait_agent` finds the agent of a guest that boots, `connect_agent` of one that runs. vmcoal's own agent is preferred;
where only qemu-guest-agent answers, the basic calls go through it and the others are refused with what is missing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

from vmcoal.errors import UnreachableError, VmcoalError
from vmcoal.guest.agent_link import Link, open_link
from vmcoal.guest.agent_qga import QgaAgent, open_qga
from vmcoal.guest.agent_vmcoal import OnOutput, Progress, VmcoalAgent
from vmcoal.layout import VmFolders
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

__all__ = ["Agent", "OnOutput", "Progress", "QgaAgent", "VmcoalAgent", "connect_agent", "wait_agent"]

_FIRST_HELLO = 0.25
_HELLO_EVERY = 2.0
_RECONNECT = 0.25


class Agent(Protocol):
    """A guest that answers. Every deadline is in seconds.

    Every call raises `DeadlineError` when it is over, `UnreachableError` when the agent is gone, and `RefusedError`
    with the guest's own words when it says no. Where a call did part of its work, ``left`` says how much, and
    ``details`` has ``done`` (numbers) and ``failed`` (what → why). Cancelling a call ends it in the guest too.
    """

    @property
    def kind(self) -> str:
        """``vmcoal`` or ``qemu-guest-agent``."""

    @property
    def version(self) -> str:
        """The agent's version."""

    @property
    def limits(self) -> tuple[str, ...]:
        """What this agent does worse than vmcoal's, as notes for people."""

    async def info(self, *, deadline: float = 10.0) -> GuestInfo:
        """Return which system the guest is."""

    async def topology(self, *, deadline: float = 10.0) -> GuestTopology:
        """Return the CPUs, nodes and memory blocks of the guest."""

    async def cpu_set(
        self, cpus: Sequence[CpuName], online: bool, *, deadline: float = 30.0, progress: Progress | None = None
    ) -> tuple[GuestCpu, ...]:
        """Bring CPUs online or offline, waiting for those the guest has not seen yet; return them as they are then.

        ``progress`` is called with done, total and a note. Raises `DeadlineError` also for CPUs that never appeared.
        """

    async def park_far(self, *, keep: int = 0, deadline: float = 30.0) -> tuple[GuestCpu, ...]:
        """Take the CPUs of every socket above ``keep`` offline and return them."""

    async def memory_set(
        self, where: int | MemorySpan, online: bool, *, deadline: float = 60.0, progress: Progress | None = None
    ) -> tuple[MemoryBlock, ...]:
        """Bring the blocks of a node (its number) or of a physical range online as movable, or offline.

        Going online waits until the blocks have appeared; going offline moves what is in them elsewhere, and busy
        blocks are tried until the deadline. Returns the blocks as they are then.
        """

    async def room(self, where: int | MemorySpan, *, deadline: float = 10.0) -> Room:
        """Return whether what is in use on a node or range fits into the memory that stays."""

    async def pressure(self, *, deadline: float = 10.0) -> Pressure:
        """Return the guest's load, pressure and free memory."""

    async def pci_fix_node(self, addresses: Sequence[str], node: int, *, deadline: float = 10.0) -> tuple[str, ...]:
        """Tell the guest the NUMA node of PCI devices and of all behind them; return the addresses of all.

        The node must be online. Taints the guest's kernel as "firmware workaround".
        """

    async def pci_power_off(self, address: str, *, deadline: float = 15.0) -> None:
        """Switch off the hotplug slot that holds the PCI device ``address`` (``0000:21:00.0``)."""

    async def sysctl(self, name: str, value: str | None = None, *, deadline: float = 10.0) -> str:
        """Return a kernel setting, after writing ``value`` if given. Only those that the agent's list allows."""

    async def migrate(self, pid: int, source: Sequence[int], target: Sequence[int], *, deadline: float = 60.0) -> int:
        """Move a process's pages from nodes to nodes; return how many could not be moved."""

    async def exec(
        self,
        command: GuestCommand,
        *,
        on_output: OnOutput,
        stdin: asyncio.Queue[CommandInput] | None = None,
        deadline: float | None = None,
    ) -> CommandEnd:
        """Run a command; return how it ended, once ``on_output`` has taken all its output.

        ``on_output(stream, data)`` gets stdout as 1 and stderr as 2; while it waits, the command is held up. Without
        ``stdin`` the command reads an empty one. Cancelling, a deadline or a lost channel ends the command. Raises
        `UsageError` for what no system can run.
        """

    async def poweroff(self, *, force: bool = False, deadline: float = 10.0) -> None:
        """Ask the guest's init to power off, or with ``force`` sync and power off at once; does not wait for it."""

    async def ping(self, *, deadline: float = 5.0) -> float:
        """Return the seconds of one round trip to the agent."""

    async def wait_lost(self) -> VmcoalError:
        """Wait until the channel is lost and return why."""

    async def close(self) -> None:
        """Close the channel; commands that run through it are ended."""


async def connect_agent(folders: VmFolders, *, deadline: float) -> Agent:
    """Return the agent of a guest that runs; as `wait_agent`, with little patience for vmcoal's own agent."""
    return await wait_agent(folders, deadline=deadline, prefer=1.0)


async def wait_agent(
    folders: VmFolders, *, deadline: float, vserport: asyncio.Event | None = None, prefer: float = 10.0
) -> Agent:
    """Return the agent of a guest that boots, within ``deadline`` seconds.

    ``vserport``: set by the caller on every VSERPORT_CHANGE event of QEMU; spares the wait for the next hello.
    ``prefer``: seconds that vmcoal's agent gets after qemu-guest-agent has answered. Raises `UnreachableError` if no
    agent answers, `RefusedError` if vmcoal's agent speaks no common protocol version.
    """
    until = time.monotonic() + deadline
    ours = asyncio.create_task(_find_ours(folders, vserport))
    theirs = asyncio.create_task(_find_qga(folders))
    chosen: asyncio.Task[VmcoalAgent] | asyncio.Task[QgaAgent] | None = None
    try:
        await asyncio.wait([ours, theirs], timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        if theirs.done() and not ours.done():
            await asyncio.wait([ours], timeout=min(prefer, max(0.0, until - time.monotonic())))
        chosen = ours if ours.done() else theirs if theirs.done() else None
        if chosen is None:
            raise UnreachableError(
                f"no agent answers in the guest within {deadline:g} s",
                hint="it may still boot, or have no agent: see `vmcoal console`; guest-agent/README.md installs one",
            )
        return chosen.result()
    finally:
        for task in (ours, theirs):
            if task is not chosen:
                task.cancel()
                (found,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(found, (VmcoalAgent, QgaAgent)):
                    await found.close()


async def _find_ours(folders: VmFolders, vserport: asyncio.Event | None) -> VmcoalAgent:
    """Say hello until vmcoal's agent answers; fails only if it speaks no common version.

    A hello waits in QEMU until the guest opens its port, so one is mostly enough; those before a reset are lost.
    """
    while True:
        link: Link | None = None
        try:
            link = await open_link(folders.agent_socket)
            wait = _FIRST_HELLO
            while (hello := await link.hello(wait=wait, wake=vserport)) is None:
                wait = min(wait * 2, _HELLO_EVERY)
            agent = VmcoalAgent(link, hello)
            link = None
            return agent
        except UnreachableError:
            await asyncio.sleep(_RECONNECT)
        finally:
            if link is not None:
                await link.close()


async def _find_qga(folders: VmFolders) -> QgaAgent:
    """Say hello until qemu-guest-agent answers."""
    while True:
        try:
            return await open_qga(folders.qga_socket)
        except VmcoalError:
            await asyncio.sleep(_RECONNECT)
