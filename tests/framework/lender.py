"""A whole lender: in this process, or as one of its own that can be killed; and a borrower of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from vmcoal.control.client import call
from vmcoal.control.wire import Progress
from vmcoal.fabric.identity import (
    BorrowerRecord,
    Identity,
    LenderRecord,
    borrower_identity,
    borrower_store,
    load_identity,
)
from vmcoal.fabric.messages import Granted
from vmcoal.fabric.session import LenderSession
from vmcoal.holding.client import Holder
from vmcoal.layout import LenderFolders, lender_folders
from vmcoal.lending.api import DrainRequest, LenderStatus, ReclaimResult
from vmcoal.lending.daemon import Lender, Settings
from vmcoal.lending.entry import Capacity, Limits
from vmcoal.model.lease import LeaseTerms, ResourceKind
from vmcoal.model.units import MIB

T = TypeVar("T")

QUICK = Limits(ttl_min=0.5, grace_min=1.0, heartbeat=0.1, resume=0.3)
"""Terms that end within a test's patience; a borrower asks for ttl and grace 0 to get them."""


@dataclass
class Lending:
    """A lender that runs: ``end`` waits for its end, ``cancel`` ends one of this process as a defect would."""

    folders: LenderFolders
    end: Callable[[], Awaitable[int | None]]
    pid: int = 0
    cancel: Callable[[], object] = lambda: None

    @property
    def name(self) -> str:
        return self.folders.state.name

    async def ask(
        self,
        method: str,
        params: msgspec.Struct | None = None,
        result: type[T] | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> T:
        """Call a method on the control socket."""
        wanted: Any = Any if result is None else result
        answer: T = await asyncio.to_thread(
            call,
            self.folders.control_socket,
            method,
            params,
            result=wanted,
            peer="the lender",
            on_progress=on_progress,
            deadline=30.0,
        )
        return answer

    async def status(self) -> LenderStatus:
        """Return its status."""
        return await self.ask("status", result=LenderStatus)

    async def stop(self, deadline: float = 0.0) -> ReclaimResult:
        """Stop it and wait for its end."""
        result = await self.ask("stop", DrainRequest(deadline=deadline), ReclaimResult)
        await self.end()
        return result

    async def record(
        self, *grants: ResourceKind, borrower: str = "ann", identity: Identity | None = None
    ) -> LenderRecord:
        """Pair a borrower with it, without the code; return what the borrower knows of it."""
        grants = grants or (ResourceKind.MEMORY, ResourceKind.CPU)
        public = (identity or borrower_identity()).public
        store = borrower_store(self.folders.borrowers)
        store.add(BorrowerRecord(name=borrower, public_key=public, grants=grants, paired_at=1.0))
        host, _, port = (await self.status()).addresses[0].rpartition(":")
        key = load_identity(self.folders.host_key).public
        return LenderRecord(name=self.name, host=host, port=int(port), host_key=key, grants=grants)


@contextlib.asynccontextmanager
async def lending(
    memory: int = 64 * MIB, cpus: int = 2, *, limits: Limits | None = None, **settings: Any
) -> AsyncIterator[Lending]:
    """Run lender ``den`` in this process; it is stopped afterwards."""
    folders = lender_folders("den")
    folders.make()
    settings = {"capacity": Capacity(cpus, memory), "listen": ("127.0.0.1", 0), **settings}
    lender, ready = Lender(folders, Settings(**settings), limits=limits), asyncio.Event()
    running = asyncio.create_task(lender.run(ready.set))
    began = asyncio.create_task(ready.wait())
    await asyncio.wait((running, began), return_when=asyncio.FIRST_COMPLETED)
    began.cancel()
    if running.done():
        await running
    handle = Lending(folders, lambda: asyncio.wait_for(asyncio.shield(running), 20), cancel=running.cancel)
    try:
        yield handle
    finally:
        if not running.done():
            await handle.stop()


async def start_lender(*arguments: str, name: str = "den") -> Lending:
    """Start ``python -m vmcoal.lending`` and return it when it is ready; raises `ChildProcessError` with its stderr."""
    ready, theirs = os.pipe()
    argv = [sys.executable, "-P", "-m", "vmcoal.lending", name, *arguments, "--ready-fd", str(theirs)]
    folders = lender_folders(name)
    folders.make()
    with folders.log.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *argv, pass_fds=(theirs,), stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
        )
    os.close(theirs)
    with os.fdopen(ready, "rb") as pipe:
        said = await asyncio.wait_for(asyncio.to_thread(pipe.read, 1), 30)
    if not said:
        code = await process.wait()
        raise ChildProcessError(code, folders.log.read_text())
    return Lending(folders, lambda: asyncio.wait_for(process.wait(), 40), process.pid)


async def kill(lender: Lending) -> None:
    """SIGKILL a lender of its own process."""
    os.kill(lender.pid, signal.SIGKILL)
    await lender.end()


@contextlib.asynccontextmanager
async def session(
    record: LenderRecord, vm: str = "dev", identity: Identity | None = None
) -> AsyncIterator[LenderSession]:
    """A borrower's session."""
    opened = await LenderSession.connect(record, identity or borrower_identity(), vm)
    try:
        yield opened
    finally:
        await opened.close()


async def borrow(
    opened: LenderSession,
    amount: int = 4 * MIB,
    *,
    kind: ResourceKind = ResourceKind.MEMORY,
    committed: int | None = None,
    token: str | None = None,
    ttl: float = 0.0,
    grace: float = 0.0,
    plug: bool = True,
) -> Granted:
    """Get a lease, and report it plugged."""
    terms = LeaseTerms(ttl=ttl, grace=grace)
    granted = await opened.request(kind, amount, committed=committed, token=token or os.urandom(8).hex(), terms=terms)
    for event in ("attach", "plugged") if plug else ():
        await opened.report(granted.lease.id, granted.lease.epoch, event)
    return granted


async def until(look: Callable[[], Any], what: str, deadline: float = 60.0) -> None:
    """Wait until ``look`` is true: for ends that nothing announces to a borrower."""
    ends = time.monotonic() + deadline
    while not (await seen if asyncio.iscoroutine(seen := look()) else seen):
        assert time.monotonic() < ends, f"{what} did not happen within {deadline:g} s"
        await asyncio.sleep(0.02)


async def lender_holder(folders: LenderFolders) -> Holder:
    """Return a connection to the lender's holder, to look or to do harm."""
    return await Holder.connect(folders.holder_socket, deadline=5)
