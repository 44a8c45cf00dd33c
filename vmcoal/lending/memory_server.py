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
from vmcoal.host.facts import Host
from vmcoal.layout import LenderFolders, make_private, shm_home
from vmcoal.lending import cgroup, connections
from vmcoal.lending.entry import Entry
from vmcoal.lending.lease_servers import LeaseServers
from vmcoal.lending.listening import listen_on
from vmcoal.model.lease import MemoryServer
from vmcoal.model.units import format_size
from vmcoal.together import together

THREADS = 1
"""Requests of one connection that nbdkit works on at once: the borrower's proxy has several connections, and one
request under way on each, so more would only pass it from thread to thread."""

_START = 60.0


class MemoryServers(LeaseServers[MemoryServer]):
    """Starts, finds and ends the memory servers of one lender: a file and an nbdkit for each lease."""

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

    async def runs(self, lease: str) -> bool:
        """Return whether the holder keeps the server of ``lease`` alive."""
        return _child(lease) in await self._live()

    async def stop(self, entry: Entry) -> None:
        """End a lease's server and give its bytes back. Idempotent; raises `DeadlineError` if it does not end."""
        await self._end_child(entry)
        nbd.remove_file(self.file(entry))
        self._remove(entry.lease.id, _child(entry.lease.id))

    async def sweep(self, entries: list[Entry]) -> list[str]:
        """End servers that belong to none of ``entries``; return their ids.

        Bytes are removed by `stop` alone: every file's lease is in the journal before the file is made, and another
        lender of this user may have files beside them.
        """
        leases = await self._end_others(_PREFIX, entries)
        for lease in leases:
            self._remove(lease, _child(lease))
        return [_child(lease) for lease in leases]

    def file(self, entry: Entry) -> Path:
        """Return the tmpfs file of a lease's bytes."""
        return self._folders.memory(entry.lease.id, entry.generation)

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
            await nbd.reserve(descriptor, lease.amount)
        return lease.amount

    @contextlib.contextmanager
    def _opened(self, entry: Entry, flags: int = 0) -> Iterator[int]:
        lease, file = entry.lease, self.file(entry)
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
            try:
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ExecutionError(
                f"{format_size(lease.amount)} cannot be reserved in {file.parent}: {error.strerror}",
                host=lease.lender,
                hint="lend less, or make the tmpfs larger: mount -o remount,size=… /dev/shm",
            ) from error

    async def _serve(self, entry: Entry, port: int) -> int:
        lease = entry.lease.id
        with listen_on(self._host, port, self._ports) as listener:
            connections.notice_loss(listener)
            port = int(listener.getsockname()[1])
            spec = nbd.server_spec(
                _child(lease),
                nbd.server_argv(self.file(entry), self._export(entry), self._psk_file(lease), threads=THREADS),
                listener,
                self._log(_child(lease)),
                cgroup=self._cgroups and cgroup.lease_group(self._cgroups, lease, entry.lease.amount),
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
            stderr=self._tail(_child(lease)),
            hint="see what nbdkit said",
        )

    async def _end_child(self, entry: Entry) -> None:
        """End a lease's server, also one that outlived its holder. The export's name is unique."""
        try:
            await self._end(_child(entry.lease.id))
        except NotFoundError:
            await strays.end(f"exportname={self._export(entry)}", deadline=_START)

    # Small things

    def _describe(self, entry: Entry, port: int, psk: str) -> MemoryServer:
        return MemoryServer(port=port, export=self._export(entry), psk_identity=entry.lease.id, psk=psk)

    def _export(self, entry: Entry) -> str:
        return nbd.export_name(entry.lease.id, entry.lease.epoch, entry.generation)


_PREFIX = "serve-"


def resident(folders: LenderFolders, entry: Entry) -> int:
    """Return the bytes of a lease that are really in memory; 0 if there are none."""
    try:
        return folders.memory(entry.lease.id, entry.generation).stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _child(lease: str) -> str:
    return f"{_PREFIX}{lease}"


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
