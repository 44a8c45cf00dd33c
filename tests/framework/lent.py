"""A holder, and memory lent and borrowed through it, without a daemon, a session or a guest."""

from __future__ import annotations

import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from vmcoal.backends.fuse import FuseEngine
from vmcoal.backends.pager import PagerEngine
from vmcoal.errors import UnreachableError
from vmcoal.holding.client import Holder
from vmcoal.layout import Folders, lender_folders, vm_folders
from vmcoal.lending.entry import Entry
from vmcoal.lending.memory_server import MemoryServers
from vmcoal.model.lease import Lease, LeaseState, MemoryServer, ResourceKind

_epochs = itertools.count(1)


@contextlib.asynccontextmanager
async def holder_for(folders: Folders, name: str) -> AsyncIterator[Holder]:
    """Start a holder in ``folders``; it is gone afterwards."""
    folders.make()
    holder = await Holder.start(folders, name=name, deadline=10)
    try:
        yield holder
    finally:
        with contextlib.suppress(UnreachableError):  # a test ended it
            await holder.shutdown(grace=0)
        await holder.close()


@contextlib.asynccontextmanager
async def memory_servers(host: str = "127.0.0.1") -> AsyncIterator[MemoryServers]:
    """The servers of lender ``den`` under a holder of their own."""
    folders = lender_folders("den")
    async with holder_for(folders, "den") as holder:
        yield MemoryServers(holder, folders, host=host)


@contextlib.asynccontextmanager
async def fuse_engine() -> AsyncIterator[FuseEngine]:
    """The engine of VM ``dev`` under a holder of its own."""
    folders = vm_folders("dev")
    async with holder_for(folders, "dev") as holder:
        yield FuseEngine(holder, folders)


@contextlib.asynccontextmanager
async def pager_engine(cache: int, *, lanes: int = 2, request_deadline: float = 3.0) -> AsyncIterator[PagerEngine]:
    """The page engine of VM ``dev`` under a holder of its own."""
    folders = vm_folders("dev")
    async with holder_for(folders, "dev") as holder:
        yield PagerEngine(holder, folders, cache=cache, lanes=lanes, request_deadline=request_deadline)


def entry(size: int, committed: int | None = None) -> Entry:
    """Return a requested memory lease of ``size`` bytes."""
    lease = Lease(
        id=f"m{secrets.token_hex(4)}",
        kind=ResourceKind.MEMORY,
        amount=size,
        committed=size if committed is None else committed,
        state=LeaseState.REQUESTED,
        epoch=next(_epochs),
        lender="den",
        borrower="ann",
        vm="dev",
    )
    return Entry(lease=lease, token=lease.id, generation=secrets.token_hex(8), heard=0, since=0)


async def lend(servers: MemoryServers, asked: Entry) -> tuple[Entry, MemoryServer]:
    """Start the server of a lease and return its entry, which knows the port."""
    server = await servers.start(asked)
    return msgspec.structs.replace(asked, port=server.port), server


def region_file(region: object) -> Path:
    """Return the file that QEMU would map."""
    props: dict[str, object] = region.props  # type: ignore[attr-defined]
    return Path(str(props["mem-path"]))
