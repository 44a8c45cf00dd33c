"""The page engine: a lease's bytes as a tmpfs file whose faults vmcoal-pager answers from the lender.

    QEMU ─mmap→ tmpfs file ─userfaultfd (libvmcoal-qemu.so)→ vmcoal-pager ─NBD, TLS-PSK→ the lender's nbdkit

One pager serves every region of a VM. It and what it needs to begin again live under the VM's holder, which starts it
anew when it dies; nothing is lost by that (docs/internals/pager-protocol.md). Pages leave this host sealed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import time
from functools import cached_property
from pathlib import Path

from vmcoal.backends import mounts, nbd
from vmcoal.backends.base import EngineTraits, MemoryRegion, runtime_file
from vmcoal.backends.pager_client import PagerStats, RegionStats, compress, home, order, sample, stats, unstore
from vmcoal.backends.pager_view import activity_of, complaint, paged_region
from vmcoal.backends.probe import engine_facts, existing, library
from vmcoal.errors import (
    DeadlineError,
    NotFoundError,
    PrerequisiteError,
    RefusedError,
    UnreachableError,
    VmcoalError,
)
from vmcoal.holding.binaries import find_binary
from vmcoal.holding.client import ChildSpec, Holder, Restart
from vmcoal.layout import VmFolders, make_private, shm_home
from vmcoal.model.activity import PagingActivity
from vmcoal.model.engine import Feature
from vmcoal.model.lease import Lease, MemoryServer
from vmcoal.model.paging import PagedRegion
from vmcoal.model.units import format_size
from vmcoal.policy.engine import pager_obstacle

CHILD = "pager"
FILE = "memory"
PAGE = 4096
PLACES = 2
"""A region's pages can be in so many places."""

CACHE_MIN = 64 * PAGE
EXCLUDES = tuple(Feature)
"""Whatever else wants to fault, pin, map or drop the guest's pages."""

_RESTARTS = 1000
_POLL = 0.01


class PagerEngine:
    """Implements `vmcoal.backends.base.MemoryEngine` for one VM.

    At most ``cache`` bytes of borrowed memory are on this host; ``request_deadline`` seconds without an answer end a
    connection to a lender; ``lanes`` threads serve faults. QEMU must be started with `environment`.
    """

    def __init__(
        self,
        holder: Holder,
        folders: VmFolders,
        *,
        cache: int | None = None,
        lanes: int = 2,
        request_deadline: float = 3.0,
    ) -> None:
        self._holder = holder
        self._folders = folders
        self._cache = default_cache() if cache is None else cache
        self._lanes = lanes
        self._request_deadline = request_deadline

    @cached_property
    def traits(self) -> EngineTraits:
        """What the engine needs and excludes; the first look asks the kernel for a userfaultfd."""
        obstacle = pager_obstacle(engine_facts())
        return EngineTraits(
            name="pager",
            summary="the bytes are sealed on the lender and are fetched page by page by userfaultfd and NBD",
            pages=True,
            excludes=EXCLUDES,
            missing=obstacle.reason if obstacle else None,
            remedy=obstacle.remedy if obstacle else None,
        )

    def environment(self) -> dict[str, str]:
        """Return the variables that QEMU needs from its start on; raises `PrerequisiteError` if a part is missing."""
        return {
            "LD_PRELOAD": str(library()),
            "VMCOAL_PAGER": str(self.socket),
            "VMCOAL_PAGER_FILES": str(self._home),
        }

    @property
    def socket(self) -> Path:
        """The pager's control socket."""
        return self._folders.pager_socket

    def plan(self, lease: str, size: int) -> tuple[MemoryRegion, list[list[str]]]:
        """Return the region and the command line of the pager."""
        return self._region(nbd.check_lease(lease), size), [self._argv("vmcoal-pager")]

    async def prepare(self, lease: Lease, server: MemoryServer, address: str, *, deadline: float) -> MemoryRegion:
        """Make the lease's bytes a file of full size that QEMU can map.

        Raises `PrerequisiteError`, `RefusedError` (key, export or size are not what was granted), `UnreachableError`,
        `DeadlineError` or `ExecutionError`; nothing is left behind then.
        """
        if self.traits.missing:
            raise PrerequisiteError(f"memory cannot be paged here: {self.traits.missing}", hint=self.traits.remedy)
        name = nbd.check_lease(lease.id, lease.lender)
        nbd.check_server(server, address, lease.lender)
        end = time.monotonic() + deadline
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._clear, name)
            await self._clear(name)
            nbd.write_psk(self._psk(name), server.psk_identity, server.psk)
            await self._check(name, 0, lease, server, address, _left(end))
            await self._start(_left(end))
            await self._add(name, lease.amount, _left(end))
            await self._store(name, 0, server, address, _left(end))
            await self._linked(name, 0, lease.lender, end)
            undo.pop_all()
        return self._region(name, lease.amount)

    async def relink(self, lease: Lease, server: MemoryServer, address: str, *, deadline: float) -> None:
        """Point the region at its server's new address; pages that waited for it go on.

        Raises `NotFoundError` without such a region, and what `prepare` raises of the server.
        """
        await self.store(lease.id, 0, lease, server, address, deadline=deadline)

    async def store(
        self, region: str, number: int, lease: Lease, server: MemoryServer, address: str, *, deadline: float
    ) -> None:
        """Have the pages of ``region`` in the bytes of ``lease`` as well, or again; returns when it is connected, and
        the pages that exist are copied meanwhile.

        Raises `NotFoundError` without such a region, and what `prepare` raises of the server.
        """
        nbd.check_lease(region, lease.lender)
        nbd.check_server(server, address, lease.lender)
        end = time.monotonic() + deadline
        if await self._stats_of(region, deadline) is None:
            raise NotFoundError(f"there is no region {region}")
        nbd.write_psk(self._psk(region, number), server.psk_identity, server.psk)
        await self._check(region, number, lease, server, address, _left(end))
        await self._store(region, number, server, address, _left(end))
        await self._linked(region, number, lease.lender, end)

    async def unstore(self, region: str, number: int, *, gone: bool = False, deadline: float = 5.0) -> None:
        """Use place ``number`` no longer; idempotent. Raises `ConflictError` while it alone has pages and is not
        ``gone``."""
        with contextlib.suppress(NotFoundError):
            await unstore(self.socket, region, number, gone=gone, deadline=deadline)
        nbd.remove_file(self._psk(region, number))

    async def home(self, region: str, on: bool, *, deadline: float = 5.0) -> None:
        """Pull every page of a region here and keep it, hottest first; or let pages leave again."""
        await home(self.socket, region, on, deadline=deadline)

    async def set_compression(self, region: str, on: bool, *, deadline: float = 5.0) -> None:
        """Compress what leaves of a region from now on, or not."""
        await compress(self.socket, region, on, deadline=deadline)

    async def region(self, region: str, *, deadline: float = 5.0) -> PagedRegion | None:
        """Return what the pager says of a region, or ``None`` if it has none."""
        found = await self._stats_of(region, deadline)
        return None if found is None else paged_region(found)

    async def remove(self, lease: str, *, mapped_by: int | None, deadline: float) -> None:
        """End a region after QEMU (pid ``mapped_by``) let go of it; what was not written back is dropped. Idempotent.

        Raises `DeadlineError` while it is still mapped, `ExecutionError` if the pager keeps it.
        """
        nbd.check_lease(lease)
        end = time.monotonic() + deadline
        if mapped_by is not None:
            await mounts.wait_unmapped(mapped_by, self._folder(lease), deadline=deadline)
        await self._clear(lease, max(5.0, end - time.monotonic()))

    def leftovers(self) -> list[str]:
        """Return the regions that there are files of, whether or not a pager has them."""
        return sorted(path.name for path in self._home.iterdir()) if self._home.is_dir() else []

    async def health(self, lease: str) -> str | None:
        """Return what is wrong with the region of ``lease``, or ``None``."""
        if not await self._runs():
            return "the pager ended: its memory waits"
        try:
            region = await self._stats_of(lease, 5.0)
        except VmcoalError as error:
            return f"the pager does not answer: {error.message}"
        if region is None:
            return "the pager does not know it, and what needs its pages waits: pager.log says why"
        return complaint(region)

    async def stats(self, *, deadline: float = 5.0) -> PagerStats:
        """Return the pager's counters; raises `UnreachableError` or `DeadlineError`."""
        return await stats(self.socket, deadline=deadline)

    @property
    def cache(self) -> int:
        """How many bytes of borrowed memory may be on this host, all regions together."""
        return self._cache

    async def activity(self, *, deadline: float = 5.0) -> PagingActivity:
        """Return what the pager counts; raises `UnreachableError` or `DeadlineError`."""
        seen = await self.stats(deadline=deadline)
        return activity_of(seen, {name: paged_region(region) for name, region in seen.regions.items()})

    async def sample(self, region: str, number: int, count: int, *, deadline: float = 15.0) -> tuple[float, float, int]:
        """Read random pages of a region from a place, one at a time; return p50 and p99 in seconds, and how many."""
        seen = await sample(self.socket, region, number, count, deadline=deadline)
        return seen.p50 * 1e-6, seen.p99 * 1e-6, seen.pages

    async def set_cache(self, size: int, *, deadline: float = 5.0) -> None:
        """Change `cache`, also for a pager that is started later; raises `RefusedError` where that is too few."""
        pages = size // PAGE
        if pages < CACHE_MIN // PAGE:
            raise RefusedError(
                f"the cache has to have at least {format_size(CACHE_MIN)}",
                hint=f"give {format_size(CACHE_MIN)} or more",
            )
        if await self._runs():
            await order(self.socket, "cache", ("size", pages * PAGE), deadline=deadline)
        self._cache = pages * PAGE

    # Steps

    async def _check(
        self, name: str, number: int, lease: Lease, server: MemoryServer, address: str, deadline: float
    ) -> None:
        argv = nbd.info_argv(address, server.port, server.export, server.psk_identity, self._psk(name, number))
        await nbd.check_export(argv, lease.amount, host=lease.lender, deadline=deadline)

    async def _runs(self) -> bool:
        try:
            return any(child.id == CHILD and child.live for child in await self._holder.list())
        except UnreachableError:
            return False  # a holder that is gone took its children with it

    async def _start(self, deadline: float) -> None:
        """Start the pager unless it runs. Its listening socket is made here and stays the child's through restarts, so
        that there is no moment at which it does not listen."""
        if not await self._runs():
            await self._end_pager()
            log = self._folders.pager_log
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(str(self.socket))
                self.socket.chmod(0o600)
                listener.listen(32)
                await self._holder.spawn(
                    ChildSpec(
                        id=CHILD,
                        argv=self._argv(str(find_binary("vmcoal-pager"))),
                        env=nbd.child_env(),
                        fds={3: listener.fileno()},
                        stdout=log,
                        stderr=log,
                        log_limit=256 * 1024,
                        restart=Restart.ON_FAILURE,
                        restart_max=_RESTARTS,
                    )
                )
        await order(self.socket, "hello", ("version", 1), deadline=deadline)

    async def _add(self, name: str, size: int, deadline: float) -> None:
        make_private(shm_home())
        make_private(self._home)
        make_private(self._folder(name))
        descriptor = os.open(self._folder(name) / FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, size)
            await order(self.socket, "add", ("id", name), ("size", size), fds=(descriptor,), deadline=deadline)
        finally:
            os.close(descriptor)

    async def _store(self, name: str, number: int, server: MemoryServer, address: str, deadline: float) -> None:
        await order(
            self.socket,
            "store",
            ("id", name),
            ("number", number),
            ("address", address),
            ("port", server.port),
            ("export", server.export),
            ("identity", server.psk_identity),
            ("psk-file", str(self._psk(name, number))),
            deadline=deadline,
        )

    async def _linked(self, name: str, number: int, host: str | None, end: float) -> None:
        """Wait until the pager is connected. Nothing tells, so this looks."""
        while True:
            region = await self._stats_of(name, _left(end))
            store = region.stores.get(number) if region else None
            if store and store.links:
                return
            if store and store.refused:
                raise RefusedError(store.why, host=host)
            if time.monotonic() + _POLL > end:
                why = store.why if store else "it is not there"
                raise UnreachableError(f"the pager cannot reach the memory server: {why}", host=host)
            await asyncio.sleep(_POLL)

    async def _clear(self, lease: str, deadline: float = 10.0) -> None:
        """Take away whatever there is of a region; with the last one the pager goes."""
        if await self._runs():
            # Nobody listens when the holder just ended the pager, as it does when QEMU ends.
            with contextlib.suppress(NotFoundError, UnreachableError):
                await order(self.socket, "remove", ("id", lease), deadline=deadline)
        shutil.rmtree(self._folder(lease), ignore_errors=True)
        for number in range(PLACES):
            nbd.remove_file(self._psk(lease, number))
        left = list(self._home.iterdir()) if self._home.is_dir() else []
        if not left:
            await self._end_pager()
            with contextlib.suppress(OSError):
                self._home.rmdir()

    async def _end_pager(self) -> None:
        # A holder that is gone took its children with it.
        with contextlib.suppress(NotFoundError, UnreachableError):
            await self._holder.stop(CHILD, grace=1.0)
            await self._holder.forget(CHILD)
        with contextlib.suppress(UnreachableError):
            for name in await self._holder.names():
                if name.startswith("pager."):
                    await self._holder.drop(name)
        nbd.remove_file(self.socket)
        for suffix in ("log", "log.1"):
            nbd.remove_file(self._folders.state / f"pager.{suffix}")

    # Small things

    @property
    def _home(self) -> Path:
        return self._folders.pages

    def _folder(self, lease: str) -> Path:
        return self._home / lease

    def _psk(self, region: str, number: int = 0) -> Path:
        return runtime_file(self._folders.runtime, region, "psk" if number == 0 else f"psk{number + 1}")

    def _region(self, lease: str, size: int) -> MemoryRegion:
        path = self._folder(lease) / FILE
        return MemoryRegion(
            lease=lease,
            size=size,
            backend="memory-backend-file",
            props={"mem-path": str(path), "size": size, "share": True, "prealloc": False},
            children=(CHILD,),
        )

    def _argv(self, program: str) -> list[str]:
        return [
            program,
            "--holder",
            str(self._folders.holder_socket),
            "--listen-fd",
            "3",
            "--cache",
            str(self._cache // PAGE * PAGE),
            "--lanes",
            str(self._lanes),
            "--deadline-ms",
            str(round(self._request_deadline * 1000)),
        ]

    async def _stats_of(self, lease: str, deadline: float) -> RegionStats | None:
        if not await self._runs():
            return None
        return (await self.stats(deadline=deadline)).regions.get(lease)


def default_cache() -> int:
    """Return how many bytes of borrowed memory may be on this host unless told otherwise: a sixteenth of its memory,
    and no more than half of what its tmpfs holds, where they are."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    space = os.statvfs(existing(shm_home()))
    room = space.f_blocks * space.f_frsize
    return min(1 << 30, max(64 << 20, total // 16), max(room // 2, CACHE_MIN)) // 4096 * 4096


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise DeadlineError("preparing the memory took too long")
    return left
