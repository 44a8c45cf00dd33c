"""Lenders' servers, the page engine, and a small program in QEMU's place that maps a region."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from framework.lent import entry, lend, memory_servers, pager_engine, region_file
from framework.paged import PagedGuest
from vmcoal.backends.pager import CHILD, PagerEngine
from vmcoal.layout import vm_folders
from vmcoal.lending.entry import Entry
from vmcoal.lending.memory_server import MemoryServers
from vmcoal.model.units import MIB

SIZE = 32 * MIB


def write(path: Path, content: bytes) -> None:
    """Write over a file in place."""
    with path.open("r+b") as file:
        file.write(content)


class Scene:
    """One or two lenders' servers, the engine, and a guest that maps the region."""

    def __init__(self, *, replicas: int = 1, cache: int = SIZE // 4, request_deadline: float = 1.0) -> None:
        self._replicas = replicas
        self._cache = cache
        self._request_deadline = request_deadline
        self._stack = AsyncExitStack()
        self.entries: list[Entry] = []
        self.port = 0  # of the first lender's server
        self.servers: MemoryServers
        self.engine: PagerEngine
        self.guest: PagedGuest

    async def __aenter__(self) -> Scene:
        async with AsyncExitStack() as stack:
            self.servers = await stack.enter_async_context(memory_servers())
            self.engine = await stack.enter_async_context(
                pager_engine(self._cache, request_deadline=self._request_deadline)
            )
            one, server = await lend(self.servers, entry(SIZE))
            stack.push_async_callback(self.servers.stop, one)
            self.entries.append(one)
            self._region, self.port = one.lease.id, server.port
            region = await self.engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
            stack.push_async_callback(self.engine.remove, self.lease, mapped_by=None, deadline=10)
            if self._replicas == 2:
                other, second = await lend(self.servers, entry(SIZE))
                stack.push_async_callback(self.servers.stop, other)
                self.entries.append(other)
                await self.engine.store(self.lease, 1, other.lease, second, "127.0.0.1", deadline=10)
            self.guest = await stack.enter_async_context(PagedGuest(region_file(region), self.engine.environment()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *reason: object) -> None:
        log = vm_folders("dev").state / "pager.log"
        said = log.read_text() if log.exists() else ""
        await self._stack.aclose()
        # A sanitized build says what it found there, and the holder would start it anew.
        assert "Sanitizer" not in said, said
        assert "runtime error" not in said, said

    @property
    def lease(self) -> str:
        """The region, which is named for the first lease, also after another one took its place."""
        return self._region

    async def child(self, number: int) -> int:
        wanted = f"serve-{self.entries[number].lease.id}"
        return next(child.pid or 0 for child in await self.servers.holder.list() if child.id == wanted)

    @asynccontextmanager
    async def stopped(self, number: int) -> AsyncIterator[Path]:
        """Give the file of a lender whose server does nothing meanwhile: what the pager writes is not lost between
        the reading and the writing of its bytes."""
        server = await self.child(number)
        os.kill(server, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60):
                while not all(
                    (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"
                    for task in Path(f"/proc/{server}/task").iterdir()
                ):
                    await asyncio.sleep(0.01)
            yield self.servers.file(self.entries[number])
        finally:
            os.kill(server, signal.SIGCONT)

    async def spoil(self, number: int, change: Callable[[bytes], bytes]) -> Callable[[], Awaitable[None]]:
        """Change a lender's bytes; returns what undoes that, but for the pages that were written since."""
        async with self.stopped(number) as path:
            honest = path.read_bytes()
            spoiled = change(honest)
            write(path, spoiled)

        async def undo() -> None:
            async with self.stopped(number) as path:
                now = path.read_bytes()
                pages = (slice(at, at + 4096) for at in range(0, len(now), 4096))
                write(path, b"".join((honest if now[page] == spoiled[page] else now)[page] for page in pages))

        return undo

    async def counter(self, name: str) -> int:
        return (await self.engine.stats()).counters[name]

    async def until(self, number: int, **wanted: int) -> None:
        """Wait until a store's state is as wanted."""
        async with asyncio.timeout(90):
            while True:
                store = (await self.engine.stats()).regions[self.lease].stores[number]
                if all(getattr(store, key) == value for key, value in wanted.items()):
                    return
                await asyncio.sleep(0.02)

    async def pager(self) -> int:
        return next(child.pid or 0 for child in await self.engine._holder.list() if child.id == CHILD)
