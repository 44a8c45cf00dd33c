"""The servers of memory leases: one tmpfs file and one nbdkit each, under the lender's holder.

The bytes are reserved when the lease is granted, so what is lent is really there. The listening socket is made here and
handed to nbdkit; the holder keeps it, so a killed nbdkit comes back on the same port with the same bytes, and a client
that retries loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from vmcoal.backends import nbd, strays
from vmcoal.errors import ExecutionError, NotFoundError, RefusedError
from vmcoal.holding.children import ChildSpec, Restart
from vmcoal.holding.client import Holder
from vmcoal.host.facts import Host
from vmcoal.layout import LenderFolders, make_private, shm_home
from vmcoal.lending import cgroup, connections
from vmcoal.lending.book import Entry
from vmcoal.lending.listening import listen_on
from vmcoal.model.lease import MemoryServer
from vmcoal.model.units import format_size
from vmcoal.together import together

THREADS = 1
"""Requests of one connection that nbdkit works on at once: the borrower's proxy has several connections, and one
request under way on each, so more would only pass it from thread to thread."""

_CHUNK = 256 << 20
_RESTARTS = 100
_START = 20.0
_GRACE = 1.0


class MemoryServers:
    """Starts, finds and ends the servers of one lender.

    ``holder`` may be replaced when it was lost; ``host`` is the address they listen on (``None``: all); ``ports`` the
    data ports to choose from (empty: any); ``cgroups`` the folder of their groups, or ``None``.
    """

    def __init__(
        self,
        holder: Holder,
        folders: LenderFolders,
        *,
        host: str | None,
        ports: range = range(0),
        cgroups: Path | None = None,
    ) -> None:
        self.holder = holder
        self._folders = folders
        self._host = host
        self._ports = ports
        self._cgroups = cgroups

    async def start(self, entry: Entry) -> MemoryServer:
        """Reserve the bytes of a requested lease and serve them.

        Raises `ExecutionError` if the bytes are not there or nbdkit does not start; nothing is left behind then.
        """
        lease = entry.lease.id
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self.stop, entry)
            psk = nbd.new_psk()
            nbd.write_psk(self._psk_file(lease), lease, psk)
            self._create(entry)
            # nbdkit starts meanwhile: nobody reads what it serves before the lease is granted.
            _, port = await together(self._fill(entry), self._serve(entry, 0))
            undo.pop_all()
        return self._describe(entry, port, psk)

    async def find(self, entry: Entry) -> MemoryServer:
        """Return the server of a granted lease, started again on its port if it does not run.

        Raises `NotFoundError` if the bytes or the key are gone, `ConflictError` if another program has the port.
        """
        lease = entry.lease.id
        psk = self._read_psk(lease)
        if psk is None or not self.file(entry).exists():
            raise NotFoundError(f"the bytes of lease {lease} are gone")
        if not await self.runs(lease):
            await self._end_child(entry)
            await self._serve(entry, entry.port)
        return self._describe(entry, entry.port, psk)

    def describe(self, entry: Entry) -> MemoryServer | None:
        """Return how to reach the server of a granted lease, or ``None`` if its key is gone."""
        psk = self._read_psk(entry.lease.id)
        return None if psk is None else self._describe(entry, entry.port, psk)

    async def runs(self, lease: str) -> bool:
        """Return whether the holder keeps the server of ``lease`` alive."""
        return any(child.id == _child(lease) and child.live for child in await self.holder.list())

    async def stop(self, entry: Entry) -> None:
        """End a lease's server and give its bytes back. Idempotent; raises `DeadlineError` if it does not end."""
        lease = entry.lease.id
        await self._end_child(entry)
        nbd.remove_file(self.file(entry))
        nbd.remove_file(self._psk_file(lease))
        for log in (self._log(lease), self._log(lease).with_suffix(".log.1")):
            nbd.remove_file(log)
        if self._cgroups is not None:
            cgroup.remove_group(self._cgroups / lease)

    async def sweep(self, entries: list[Entry]) -> list[str]:
        """End servers that belong to none of ``entries``; return their ids.

        Bytes are removed by `stop` alone: every file's lease is in the journal before the file is made, and another
        lender of this user may have files beside them.
        """
        leases = {entry.lease.id for entry in entries}
        found = []
        for child in await self.holder.list():
            lease = child.id.removeprefix(_PREFIX)
            if child.id.startswith(_PREFIX) and lease not in leases:
                await self.holder.stop(child.id, _GRACE)
                await self.holder.forget(child.id)
                nbd.remove_file(self._psk_file(lease))
                found.append(child.id)
        return found

    def file(self, entry: Entry) -> Path:
        """Return the tmpfs file of a lease's bytes."""
        return self._folders.memory(entry.lease.id, entry.generation)

    def in_use(self, entry: Entry) -> bool:
        """Return whether the lease's borrower is connected to its server."""
        return bool(entry.port and entry.peer and connections.plain(entry.peer) in connections.peers_of(entry.port))

    def resident(self, entry: Entry) -> int:
        """Return the bytes of a lease that are really in memory; 0 if there are none."""
        return resident(self._folders, entry)

    # Steps

    def _create(self, entry: Entry) -> None:
        lease = entry.lease
        make_private(shm_home())
        available = Host().memory_available()
        if lease.committed > available:
            raise RefusedError(
                f"only {format_size(available)} of memory are free here now, and {format_size(lease.committed)} were "
                "asked for",
                host=lease.lender,
                hint="ask for less, or another lender",
            )
        with self._opened(entry, os.O_CREAT | os.O_EXCL) as descriptor:
            os.ftruncate(descriptor, lease.amount)

    async def _fill(self, entry: Entry) -> int:
        """Reserve what the lease commits as a whole; returns how many bytes that is."""
        lease = entry.lease
        if lease.committed < lease.amount:
            return 0
        with self._opened(entry) as descriptor:
            await _allocate(descriptor, lease.amount)
        return lease.amount

    @contextlib.contextmanager
    def _opened(self, entry: Entry, flags: int = 0) -> Iterator[int]:
        lease, file = entry.lease, self.file(entry)
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        try:
            yield descriptor
        except OSError as error:
            raise ExecutionError(
                f"{format_size(lease.amount)} cannot be reserved in {file.parent}: {error.strerror}",
                host=lease.lender,
                hint="lend less, or make the tmpfs larger: mount -o remount,size=… /dev/shm",
            ) from error
        finally:
            os.close(descriptor)

    async def _serve(self, entry: Entry, port: int) -> int:
        lease, log = entry.lease.id, self._log(entry.lease.id)
        with listen_on(self._host, port, self._ports) as listener:
            connections.notice_loss(listener)
            port = int(listener.getsockname()[1])
            argv = nbd.server_argv(self.file(entry), self._export(entry), self._psk_file(lease), threads=THREADS)
            group = self._cgroups and cgroup.lease_group(self._cgroups, lease, entry.lease.amount)
            spec = ChildSpec(
                id=_child(lease),
                argv=argv,
                env=nbd.child_env(1),
                fds={3: listener.fileno()},
                stdout=log,
                stderr=log,
                log_limit=256 * 1024,
                restart=Restart.ON_FAILURE,
                restart_max=_RESTARTS,
                cgroup=group or None,
            )
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            unwatch = await self.holder.watch(
                lambda event: ended.set_result(None) if event.id == spec.id and not ended.done() else None
            )
            try:
                await self.holder.spawn(spec)
                await self._greeted(lease, listener, ended)
            except BaseException:
                await asyncio.shield(self._end_child(entry))
                raise
            finally:
                unwatch()
        return port

    async def _greeted(self, lease: str, listener: socket.socket, ended: asyncio.Future[None]) -> None:
        """Return when nbdkit greets on its socket: it has read its key, opened its file and joined its group."""
        greeting = asyncio.ensure_future(_read_greeting(listener))
        try:
            await asyncio.wait((greeting, ended), timeout=_START, return_when=asyncio.FIRST_COMPLETED)
            if greeting.done() and not ended.done() and greeting.result():
                return
        except OSError:
            pass
        finally:
            greeting.cancel()
            await asyncio.gather(greeting, return_exceptions=True)
        raise ExecutionError(
            f"the memory server of lease {lease} " + ("ended at its start" if ended.done() else "does not answer"),
            stderr=self._tail(lease),
            hint="see what nbdkit said",
        )

    async def _end_child(self, entry: Entry) -> None:
        """End a lease's server, also one that outlived its holder. The export's name is unique."""
        child = _child(entry.lease.id)
        try:
            await self.holder.stop(child, _GRACE)
            await self.holder.forget(child)
        except NotFoundError:
            await strays.end(f"exportname={self._export(entry)}", deadline=_START)

    # Small things

    def _describe(self, entry: Entry, port: int, psk: str) -> MemoryServer:
        return MemoryServer(port=port, export=self._export(entry), psk_identity=entry.lease.id, psk=psk)

    def _export(self, entry: Entry) -> str:
        return nbd.export_name(entry.lease.id, entry.lease.epoch, entry.generation)

    def _psk_file(self, lease: str) -> Path:
        return self._folders.runtime / f"{lease}.psk"

    def _read_psk(self, lease: str) -> str | None:
        try:
            return self._psk_file(lease).read_text().strip().partition(":")[2] or None
        except FileNotFoundError:
            return None

    def _log(self, lease: str) -> Path:
        return self._folders.state / f"{_child(lease)}.log"

    def _tail(self, lease: str) -> str:
        try:
            return self._log(lease).read_text(errors="replace")[-1000:].strip()
        except FileNotFoundError:
            return ""


_PREFIX = "serve-"


def resident(folders: LenderFolders, entry: Entry) -> int:
    """Return the bytes of a lease that are really in memory; 0 if there are none."""
    try:
        return folders.memory(entry.lease.id, entry.generation).stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _child(lease: str) -> str:
    return f"{_PREFIX}{lease}"


async def _allocate(descriptor: int, size: int) -> None:
    """Reserve every page of a file, a piece at a time so that it can be cancelled."""
    for start in range(0, size, _CHUNK):
        await asyncio.to_thread(os.posix_fallocate, descriptor, start, min(_CHUNK, size - start))


async def _read_greeting(listener: socket.socket) -> bool:
    """Connect to a listening socket and return whether an NBD server greets (NBD protocol, fixed newstyle)."""
    address = listener.getsockname()
    host = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(address[0], address[0])  # noqa: S104 - compared, not bound
    reader, writer = await asyncio.open_connection(host, address[1])
    try:
        return (await reader.readexactly(16)) == b"NBDMAGICIHAVEOPT"
    except asyncio.IncompleteReadError:
        return False
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
