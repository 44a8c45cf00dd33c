"""The FUSE memory engine: a lease's bytes as a file of nbdfuse that QEMU maps.

    QEMU ─mmap→ FUSE file ─nbdfuse→ Unix socket ─nbdkit (nbd plugin, retry, TLS-PSK)→ the lender's nbdkit

nbdfuse refuses TLS-PSK, hence the proxy; its retry filter makes a lost lender a stall and not an error, because an
error in a mapped page is SIGBUS, the end of QEMU. All processes run under the VM's holder, so nothing here must
outlive the controller: names are made from the lease, and every step finds what an earlier controller left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from functools import cached_property
from pathlib import Path

import msgspec

from vmcoal.backends import mounts, nbd, strays
from vmcoal.backends.base import EngineTraits, MemoryRegion, runtime_file
from vmcoal.errors import UNREADABLE, DeadlineError, ExecutionError, NotFoundError, PrerequisiteError, UnreachableError
from vmcoal.holding.client import ChildSpec, Holder
from vmcoal.layout import VmFolders
from vmcoal.model.engine import Feature
from vmcoal.model.lease import Lease, MemoryServer
from vmcoal.model.units import MIB

CONNECTIONS = 9
"""nbdfuse keeps one for itself and spreads faults over the others; libfuse runs at most ten threads."""

READ_AHEAD_KIB = 1024
"""Pages that one fault brings with it: more helps a sequential reader, a random one fetches what nobody wants."""

BACKGROUND = 64
"""Requests that may be under way in the background (write-back, read-ahead); FUSE's default of 12 leaves a link with a
long round trip idle."""

LARGEST_GRANULAR = 31 * 128 * MIB
"""QEMU empties a virtio-mem device in one piece, which nbdfuse makes one NBD request: libnbd refuses lengths of 4 GiB
and more with ERANGE (32 bits on the wire, NBD protocol, request message). This is the last whole guest memory block."""

FILE = "memory"


class _Link(msgspec.Struct):
    """Where a region's proxy connects to; kept beside it, because a new controller has to know."""

    address: str
    port: int
    export: str
    identity: str
    size: int


class FuseEngine:
    """Implements `vmcoal.backends.base.MemoryEngine` for one VM. ``folders`` are the VM's, ``holder`` its holder."""

    def __init__(self, holder: Holder, folders: VmFolders, *, connections: int = CONNECTIONS) -> None:
        self._holder = holder
        self._folders = folders
        self._connections = connections

    @cached_property
    def traits(self) -> EngineTraits:
        """What the engine needs and excludes; the first look runs nbdkit (about 20 ms)."""
        return EngineTraits(
            name="fuse",
            summary="the bytes are on the lender and are fetched page by page through FUSE and NBD",
            largest_granular=LARGEST_GRANULAR,
            excludes=(Feature.VFIO, Feature.LOCKED_MEMORY),
            missing=nbd.missing_client(),
            remedy=nbd.REMEDY,
        )

    def plan(self, lease: str, size: int) -> tuple[MemoryRegion, list[list[str]]]:
        """Return the region and the command lines of its processes, with placeholders for what the lender will say."""
        region = self._region(nbd.check_lease(lease), size)
        proxy = nbd.proxy_argv("<lender>", 0, "<export>", lease, self._file(lease, "psk"))
        return region, [proxy, self._fuse_argv(lease)]

    async def prepare(self, lease: Lease, server: MemoryServer, address: str, *, deadline: float) -> MemoryRegion:
        """Make the lease's bytes a file of full size that QEMU can map.

        Raises `PrerequisiteError`, `RefusedError` (key, export or size are not what was granted), `UnreachableError`,
        `DeadlineError` or `ExecutionError`; nothing is left behind then.
        """
        if self.traits.missing:
            raise PrerequisiteError(
                f"borrowed memory cannot be mapped here: {self.traits.missing}", hint=self.traits.remedy
            )
        name = nbd.check_lease(lease.id, lease.lender)
        nbd.check_server(server, address, lease.lender)
        end = time.monotonic() + deadline
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self._clear, name)
            if self._file(name, "link").exists():  # written first, removed last: an earlier controller was here
                await self._clear(name)
            link = _Link(address, server.port, server.export, server.psk_identity, lease.amount)
            self._write_link(name, link)
            nbd.write_psk(self._file(name, "psk"), server.psk_identity, server.psk)
            await self._open(name, link, lease.lender, end)
            undo.pop_all()
        return self._region(name, lease.amount)

    async def relink(self, lease: Lease, server: MemoryServer, address: str, *, deadline: float) -> None:
        """Check that a region's server is back where it was; its proxy reconnects by itself.

        Raises `NotFoundError` without such a region, `ExecutionError` if the server moved to another address or port:
        nbdfuse cannot be given another connection while its file is mapped.
        """
        name = nbd.check_lease(lease.id, lease.lender)
        nbd.check_server(server, address, lease.lender)
        link = self._read_link(name)
        if link is None:
            raise NotFoundError(f"there is no region of lease {name}")
        if (link.address, link.port, link.export) != (address, server.port, server.export):
            raise ExecutionError(
                f"the memory server of lease {name} moved from {link.address}:{link.port} to {address}:{server.port}, "
                "and the fuse engine cannot follow it",
                host=lease.lender,
                left=f"memory of lease {name} that waits for {link.address}:{link.port}",
                hint="let the lender have its old address again, or shut the VM down",
            )
        await self._check(name, link, lease.lender, deadline)

    async def remove(self, lease: str, *, mapped_by: int | None, deadline: float) -> None:
        """End a region after QEMU (pid ``mapped_by``) let go of it; what was not written back is dropped. Idempotent.

        Raises `DeadlineError` while it is still mapped, `ExecutionError` if the mount stays.
        """
        nbd.check_lease(lease)
        end = time.monotonic() + deadline
        if mapped_by is not None:
            await mounts.wait_unmapped(mapped_by, self._folders.mount(lease), deadline=deadline)
        await self._clear(lease, max(5.0, end - time.monotonic()))

    async def health(self, lease: str) -> str | None:
        """Return what is wrong with the region of ``lease``, or ``None``."""
        children = {child.id: child for child in await self._holder.list()}
        for child, what in ((f"{lease}.proxy", "the proxy"), (f"{lease}.fuse", "the FUSE server")):
            status = children.get(child)
            if status is None or not status.live:
                return f"{what} of lease {lease} ended: its memory is lost"
        if mounts.device_of(self._folders.mount(lease)) is None:
            return f"lease {lease} is not mounted any more: its memory is lost"
        return None

    # Steps

    async def _open(self, lease: str, link: _Link, host: str, end: float) -> None:
        """Start what shows the bytes, and at once ask the server for them apart: its refusal says more than a proxy
        that tries for ever."""

        async def show() -> None:
            await self._start_proxy(lease, link)
            await self._mount(lease, link.size, end)

        checking = asyncio.create_task(self._check(lease, link, host, _left(end)))
        showing = asyncio.create_task(show())
        try:
            await asyncio.wait({checking, showing}, return_when=asyncio.FIRST_EXCEPTION)
            if showing.done():
                await checking
            elif checking.done():
                checking.result()
            await showing
        finally:
            for task in (checking, showing):
                task.cancel()
            await asyncio.gather(checking, showing, return_exceptions=True)

    async def _check(self, lease: str, link: _Link, host: str, deadline: float) -> None:
        argv = nbd.info_argv(link.address, link.port, link.export, link.identity, self._file(lease, "psk"))
        await nbd.check_export(argv, link.size, host=host, deadline=deadline)

    async def _start_proxy(self, lease: str, link: _Link) -> None:
        path = self._file(lease, "nb")
        # The socket is made here and handed over, so that there is no moment at which it does not listen.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(64)
            await self._spawn(
                f"{lease}.proxy",
                nbd.proxy_argv(link.address, link.port, link.export, link.identity, self._file(lease, "psk")),
                {3: listener.fileno()},
            )

    async def _mount(self, lease: str, size: int, end: float) -> None:
        mount = self._folders.mount(lease)
        mount.mkdir(mode=0o700, exist_ok=True)
        await self._spawn(f"{lease}.fuse", self._fuse_argv(lease), {})
        ended = asyncio.ensure_future(self._holder.wait(f"{lease}.fuse", _left(end)))
        try:
            device = await mounts.wait_mounted(
                mount, failed=lambda: self._tail(lease) if ended.done() else None, deadline=_left(end)
            )
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)
        # The mount is there before nbdfuse serves it: the first stat waits for that. Mapping earlier would be SIGBUS.
        try:
            seen = await asyncio.wait_for(asyncio.to_thread(os.stat, mount / FILE), _left(end))
        except OSError as error:
            raise ExecutionError(f"the FUSE file of lease {lease} cannot be used: {error.strerror}") from error
        except TimeoutError as error:
            raise DeadlineError(f"the FUSE file of lease {lease} did not answer in time") from error
        if seen.st_size != size:
            raise ExecutionError(f"the FUSE file of lease {lease} has {seen.st_size} bytes instead of {size}")
        _tune(device)

    async def _spawn(self, child: str, argv: list[str], fds: dict[int, int]) -> None:
        log = self._folders.state / f"{child}.log"
        await self._holder.spawn(
            ChildSpec(
                id=child, argv=argv, env=nbd.child_env(len(fds)), fds=fds, stdout=log, stderr=log, log_limit=256 * 1024
            )
        )

    async def _clear(self, lease: str, deadline: float = 10.0) -> None:
        """Take away whatever there is of a region, in an order that never blocks.

        nbdfuse is killed first: that aborts its FUSE connection, so every fault and write-back in flight ends, even if
        the lender is gone, and nothing is written back that the lender would throw away.
        """
        mount = self._folders.mount(lease)
        await self._end_child(f"{lease}.fuse", str(mount / FILE), deadline)
        await mounts.unmount(mount, deadline=deadline)
        await self._end_child(f"{lease}.proxy", f"tls-psk={self._file(lease, 'psk')}", deadline)
        for suffix in ("nb", "psk"):
            nbd.remove_file(self._file(lease, suffix))
        for child in (f"{lease}.fuse", f"{lease}.proxy"):
            for suffix in ("log", "log.1"):
                nbd.remove_file(self._folders.state / f"{child}.{suffix}")
        with contextlib.suppress(FileNotFoundError):
            mount.rmdir()
        nbd.remove_file(self._file(lease, "link"))

    async def _end_child(self, child: str, argument: str, deadline: float) -> None:
        try:
            async with asyncio.timeout(deadline):
                try:
                    await self._holder.stop(child, grace=0)
                    await self._holder.forget(child)
                except (NotFoundError, UnreachableError):  # it never was, or its holder is gone
                    await strays.end(argument, deadline=deadline)
        except TimeoutError as error:
            raise DeadlineError(f"{child} did not end within {deadline:g} s", left=f"the process {child}") from error

    # Small things

    def _region(self, lease: str, size: int) -> MemoryRegion:
        path = self._folders.mount(lease) / FILE
        return MemoryRegion(
            lease=lease,
            size=size,
            backend="memory-backend-file",
            props={"mem-path": str(path), "size": size, "share": True, "prealloc": False},
            children=(f"{lease}.proxy", f"{lease}.fuse"),
        )

    def _fuse_argv(self, lease: str) -> list[str]:
        return nbd.fuse_argv(self._folders.mount(lease) / FILE, self._file(lease, "nb"), connections=self._connections)

    def _file(self, lease: str, suffix: str) -> Path:
        return runtime_file(self._folders.runtime, lease, suffix)

    def _write_link(self, lease: str, link: _Link) -> None:
        self._file(lease, "link").write_bytes(msgspec.json.encode(link))

    def _read_link(self, lease: str) -> _Link | None:
        try:
            return msgspec.json.decode(self._file(lease, "link").read_bytes(), type=_Link)
        except (FileNotFoundError, *UNREADABLE):
            return None

    def _tail(self, lease: str) -> str:
        # A proxy that ended is why nbdfuse finds nobody.
        for child, what in ((f"{lease}.proxy", "its proxy (nbdkit) said"), (f"{lease}.fuse", "nbdfuse said")):
            with contextlib.suppress(OSError):
                text = (self._folders.state / f"{child}.log").read_text(errors="replace").strip()
                if text:
                    return f"{what}: {text.splitlines()[-1]}"
        return "nbdfuse ended and said nothing"


def _tune(device: str) -> None:
    """Let the kernel use more than FUSE's careful defaults, where it may (root): read-ahead, dirty pages beyond the 1 %
    that throttle a writer, and as many requests in the background as there are connections to spread them over. Without
    it everything works, sequential access at about half the speed."""
    bdi = Path("/sys/class/bdi") / device
    connection = Path("/sys/fs/fuse/connections") / device.partition(":")[2]
    knobs = (
        (bdi / "read_ahead_kb", READ_AHEAD_KIB),
        (bdi / "max_ratio", 100),
        (bdi / "strict_limit", 0),
        (connection / "max_background", BACKGROUND),
        (connection / "congestion_threshold", BACKGROUND * 3 // 4),
    )
    for knob, value in knobs:
        with contextlib.suppress(OSError):
            knob.write_text(str(value))


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise DeadlineError("the time for preparing borrowed memory is over")
    return left
