"""One VM in the controller's hands: what the operations share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from vmcoal.backends.base import MemoryEngine, PagingEngine
from vmcoal.backends.local_copy import LocalCopies
from vmcoal.controller.journal import Journal
from vmcoal.controller.keeper import Keeper
from vmcoal.controller.loans import LoanBook
from vmcoal.controller.transaction import Undoing
from vmcoal.errors import ConflictError, DeadlineError, UnreachableError
from vmcoal.guest.channel import Agent
from vmcoal.holding.client import Holder
from vmcoal.host.pci import PciBus
from vmcoal.layout import VmFolders
from vmcoal.machine.seam import Launcher, Monitor
from vmcoal.metrics.controller import ControllerMetrics
from vmcoal.model.engine import EngineChoice
from vmcoal.model.guest import CpuName
from vmcoal.model.machine import MachineSpec

log = logging.getLogger(__name__)

QEMU = "qemu"
"""The holder's id of the QEMU process."""


def cpu_names(node: int, cores: Iterable[int]) -> list[CpuName]:
    """Return how the guest's agent is told of vCPU slots ``cores`` of far node ``node``: a node is a socket."""
    return [CpuName(socket=node, core=core) for core in cores]


@dataclass
class Vm:
    """The parts of one running VM. ``monitor`` and ``agent`` are ``None`` while they do not answer."""

    spec: MachineSpec
    folders: VmFolders
    journal: Journal
    book: LoanBook
    holder: Holder
    launcher: Launcher
    engine: MemoryEngine
    local: LocalCopies
    keeper: Keeper
    pci: PciBus
    metrics: ControllerMetrics
    monitor: Monitor | None = None
    agent: Agent | None = None
    engine_choice: EngineChoice | None = None
    state: str = "starting"
    granted: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Lease and epoch by the token of the request, for undoing it without asking again."""
    concerns: dict[str, str] = field(default_factory=dict)
    """What is wrong with the places of a region's pages, by region, for people."""
    undoing: Undoing = field(init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _brief: bool = False
    _operation: str | None = None

    def __post_init__(self) -> None:
        self.undoing = Undoing(self.journal)

    @property
    def operation(self) -> str | None:
        """What is under way, for people: an operation, or the undo of one that failed."""
        return self.undoing.text or self._operation

    @property
    def qmp(self) -> Monitor:
        """The monitor; raises `UnreachableError` while QEMU does not answer."""
        if self.monitor is None:
            raise UnreachableError(f"QEMU of {self.spec.name} does not answer", hint=f"vmcoal status {self.spec.name}")
        return self.monitor

    def pager(self, what: str) -> PagingEngine:
        """The page engine; raises `ConflictError` if this VM has another one, which offers no ``what``."""
        if not self.engine.traits.pages:
            raise ConflictError(
                f"{self.spec.name} runs with the memory engine {self.engine.traits.name}, which has no {what}",
                hint="the page engine has; a VM gets its engine when it boots: vmcoal doctor says which, and why",
            )
        return cast(PagingEngine, self.engine)

    async def qemu_pid(self) -> int | None:
        """Return QEMU's pid, or ``None`` if it does not run."""
        for child in await self.holder.list():
            if child.id == QEMU and child.state == "running":
                return child.pid
        return None

    @asynccontextmanager
    async def turn(
        self, operation: str, *, deadline: float | None = None, give_up: bool = False
    ) -> AsyncIterator[None]:
        """Let one operation change the VM at a time; another one is told which is under way, or waits for it if it is a
        brief one of the controller's own, or the undo of one that failed, which an operation that ends the VM has
        given up instead.

        Raises `ConflictError`, and `DeadlineError` if its turn has not come within ``deadline`` seconds.
        """
        if self._turn.locked() and not self._brief:
            raise ConflictError(
                f"{self.spec.name} is busy: {self.operation}",
                hint="wait for it, or interrupt the command that began it",
            )
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(deadline):
                    await stack.enter_async_context(self._turn)
                    self._operation = operation
                    stack.callback(self._over)
                    await (self.undoing.give_up() if give_up else self.undoing.over())
            except TimeoutError:
                raise DeadlineError(
                    f"{self.spec.name} is busy: {self.operation}",
                    left="nothing was begun",
                    hint=f"wait for it: vmcoal status {self.spec.name}; or give a longer --deadline",
                ) from None
            yield

    def _over(self) -> None:
        self._operation, self._brief = None, False

    @asynccontextmanager
    async def queued_turn(self, operation: str, *, brief: bool = False) -> AsyncIterator[None]:
        """Like `turn`, but wait for the operation under way: for what the controller begins by itself. For a ``brief``
        one the others wait, too."""
        async with self._turn:
            self._operation, self._brief = operation, brief
            try:
                await self.undoing.over()
                yield
            finally:
                self._over()
