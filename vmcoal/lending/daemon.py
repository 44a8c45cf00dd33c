"""The lender process: finds what an earlier one left, listens, and ends with nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import signal
import socket
from collections.abc import Callable

import msgspec

from vmcoal.control.server import ControlServer
from vmcoal.errors import ConflictError, PrerequisiteError, UnreachableError, VmcoalError
from vmcoal.fabric.identity import DEFAULT_PORT, borrower_store, load_identity
from vmcoal.fabric.probe import boot_id
from vmcoal.fabric.server import FabricServer
from vmcoal.holding.client import Holder
from vmcoal.layout import LenderFolders
from vmcoal.lending import cgroup
from vmcoal.lending.book import LeaseBook
from vmcoal.lending.capacity import check_capacity
from vmcoal.lending.control import Commands
from vmcoal.lending.desk import Desk
from vmcoal.lending.entry import Capacity, Entry, Limits
from vmcoal.lending.gpu_server import GpuServers, servable
from vmcoal.lending.journal import LenderJournal
from vmcoal.lending.listening import listen
from vmcoal.lending.memory_server import MemoryServers, resident
from vmcoal.lending.sessions import Sessions
from vmcoal.metrics.http import parse_address, serve_metrics
from vmcoal.metrics.lender import LenderMetrics
from vmcoal.model.gpu import GpuDevice, GpuLimits
from vmcoal.model.lease import LeaseEvent

log = logging.getLogger("vmcoal.lending")

STOP_DEADLINE = 30.0
"""How long SIGTERM waits for borrowers to give things back; a second one does not wait."""

_START = 60.0  # an emulated host is slow; one that fails ends at once


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator asked for; ``None`` stands for what was asked for last time.

    ``gpus`` which devices (`vmcoal.host.opencl.choose`), with ``gpu_limits``, which belong to them; ``listen``
    host and port (host ``""``: every address); ``data_ports`` first and last port of the leases' servers, or ``None``
    for any; ``metrics`` ``host:port`` or ``None``.
    """

    capacity: Capacity | None = None
    gpus: str | None = None
    gpu_limits: GpuLimits = GpuLimits()
    listen: tuple[str, int] | None = None
    data_ports: tuple[int, int] | None = None
    metrics: str | None = None


class Lender:
    """One lender; `run` is its life. ``limits`` bound the terms it grants."""

    def __init__(self, folders: LenderFolders, settings: Settings, *, limits: Limits | None = None) -> None:
        self._folders = folders
        self._settings = settings
        self._limits = limits or Limits()
        self._name = folders.state.name
        self._stopping = asyncio.Event()
        self._holder: Holder
        self._desk: Desk
        self._servers: MemoryServers
        self._gpus: GpuServers

    async def run(self, ready: Callable[[], None]) -> None:
        """Lend until stopped; ``ready`` is called when the control socket answers.

        Raises `PrerequisiteError`, `ConflictError` and `UsageError` if it cannot start. However it ends but by SIGKILL,
        no lease is left; a start that fails leaves an earlier lender's leases to the next one.
        """
        async with contextlib.AsyncExitStack() as stack:
            journal = LenderJournal(self._folders.journal)
            stack.callback(journal.close)
            entries = journal.load()
            capacity = await self._capacity(journal, entries)
            listener = self._listen(journal)
            stack.callback(listener.close)
            if self._settings.metrics:
                _bind(*parse_address(self._settings.metrics), option="--metrics").close()
            host, port = str(listener.getsockname()[0]), int(listener.getsockname()[1])

            metrics = LenderMetrics(self._name)
            store = borrower_store(self._folders.borrowers)
            store.load()  # a broken file is told now
            cgroups = cgroup.parent_group(self._name)
            if cgroups is not None:
                stack.callback(cgroup.remove_group, cgroups)
            await self._open_holder()
            stack.push_async_callback(self._close_holder)
            first, last = self._settings.data_ports or (0, -1)
            where = None if host == "::" else host
            ports = range(first, last + 1)
            self._servers = MemoryServers(self._holder, self._folders, host=where, ports=ports, cgroups=cgroups)
            self._gpus = GpuServers(self._holder, self._folders, host=where, ports=ports, cgroups=cgroups)
            book = LeaseBook(
                self._name,
                capacity,
                limits=self._limits,
                new_id=lambda: secrets.token_hex(4),
                record=self._record,
                cordoned=journal.get("cordoned") == "1",
            )
            self._desk = desk = Desk(book, journal, self._servers, self._gpus, metrics=metrics)
            sessions = Sessions(desk, store.by_key)
            desk.revoked = sessions.revoked
            await self._adopt(journal, entries)
            stack.push_async_callback(desk.close)

            server = await FabricServer.start(
                name=self._name,
                host_key=load_identity(self._folders.host_key),
                borrowers=store.by_key,
                handler=sessions.serve,
                sock=listener,
            )
            stack.push_async_callback(server.close)
            journal.set("listen", msgspec.json.encode((host, port)).decode())
            journal.set("capacity", msgspec.json.encode(capacity).decode())

            commands = Commands(
                desk,
                journal,
                sessions,
                server,
                store,
                metrics,
                metrics_address=self._settings.metrics,
                holder_pid=lambda: self._holder.pid,
                stop=self._stopping.set,
            )
            control = ControlServer(
                self._folders.control_socket,
                commands.methods(),
                what=f"lender {self._name}",
                look=f"vmcoal lend status --name {self._name}",
                log=f"see {self._folders.log}",
            )
            await control.start()
            stack.push_async_callback(control.close)

            tasks: list[asyncio.Task[None]] = []
            stack.push_async_callback(_end_tasks, tasks)
            tasks += [asyncio.create_task(desk.sweep_forever()), asyncio.create_task(self._keep_holder())]
            if self._settings.metrics:
                tasks.append(asyncio.create_task(serve_metrics(self._settings.metrics, commands.exposition)))
            self._on_signals(commands, sessions, stack)
            ready()
            log.info("lender %s lends %s on %s", self._name, capacity, ", ".join(commands.status().addresses))
            await self._until_stopped(tasks)

    # Start

    async def _capacity(self, journal: LenderJournal, entries: list[Entry]) -> Capacity:
        wanted = self._settings.capacity
        gpus, limits = self._settings.gpus, self._settings.gpu_limits
        if wanted is None:
            wanted = journal.read("capacity", Capacity) or Capacity(0, 0)
            if gpus is None:
                gpus, limits = journal.get("gpus"), journal.read("gpu_limits", GpuLimits) or limits
        # Devices come and go with drivers, so they are looked for at each start.
        gpus = gpus or "none"
        wanted = msgspec.structs.replace(wanted, gpus=tuple(map(limits.apply, await _devices(gpus))))
        journal.set("gpus", gpus)
        journal.set("gpu_limits", msgspec.json.encode(limits).decode())
        reserved = sum(resident(self._folders, entry) for entry in entries if entry.held)
        return check_capacity(wanted, reserved=reserved)

    def _listen(self, journal: LenderJournal) -> socket.socket:
        wanted = self._settings.listen or journal.read("listen", tuple[str, int]) or ("", DEFAULT_PORT)
        return _bind(*wanted, option="--listen")

    async def _open_holder(self) -> None:
        """Find the holder of an earlier lender, or start one."""
        try:
            self._holder = await Holder.connect(self._folders.holder_socket, deadline=_START)
        except UnreachableError:
            self._holder = await Holder.start(self._folders, name=f"lend-{self._name}", deadline=_START)

    async def _adopt(self, journal: LenderJournal, entries: list[Entry]) -> None:
        boot = boot_id()
        await self._desk.adopt(entries, same_boot=journal.get("boot_id") in (None, boot))
        journal.set("boot_id", boot)
        journal.prune({entry.lease.id for entry in self._desk.book.entries() if entry.held})
        await self._holder.watch(self._desk.server_ended)
        for entry in self._desk.book.live():
            log.info("found lease %s of %s/%s again", entry.lease.id, entry.lease.borrower, entry.lease.vm)

    # While it runs

    def _record(self, entry: Entry, event: LeaseEvent | None) -> None:
        self._desk.record(entry, event)

    async def _keep_holder(self) -> None:
        """Start another holder if the holder is lost, and every server again on its port with its bytes."""
        while True:
            await self._holder.wait_lost()
            log.error("the holder is lost, and every lease's server with it; starting another one")
            await self._holder.close()
            try:
                await self._open_holder()
                self._servers.holder = self._gpus.holder = self._holder
                await self._desk.revive_all()
                await self._holder.watch(self._desk.server_ended)
            except VmcoalError as error:
                log.error("no holder: %s", error)
                await asyncio.sleep(1.0)

    def _on_signals(self, commands: Commands, sessions: Sessions, stack: contextlib.AsyncExitStack) -> None:
        """SIGTERM and SIGINT ask for everything back; a second one takes it at once."""
        loop = asyncio.get_running_loop()
        drains: list[asyncio.Task[None]] = []

        async def drain(deadline: float) -> None:
            try:
                result = await commands.drain_to_stop(deadline, lambda *step: log.info("%s", step[2]))
                if result.taken:
                    log.warning("taken from borrowers that did not give back in time: %s", ", ".join(result.taken))
                await sessions.settle(1.0)
            except VmcoalError as error:
                log.error("%s: %s", error, error.left)
            finally:
                self._stopping.set()

        def on_signal() -> None:
            log.info("ending: leases are asked back" + (" no longer, they are taken" if drains else ""))
            drains.append(loop.create_task(drain(0.0 if drains else STOP_DEADLINE)))

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
            stack.callback(loop.remove_signal_handler, number)
        stack.push_async_callback(_end_tasks, drains)

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()
        finally:
            stopping.cancel()

    async def _close_holder(self) -> None:
        """End the holder if it holds nothing; what a failed lender leaves in it, the next one picks up."""
        held = any(entry.held for entry in self._desk.book.entries()) if hasattr(self, "_desk") else True
        try:
            if held:
                await self._holder.close()
            else:
                await self._holder.shutdown(grace=1.0)
        except VmcoalError as error:
            log.error("the holder did not end: %s", error)


async def _devices(wanted: str) -> tuple[GpuDevice, ...]:
    """Return the devices to lend; raises `PrerequisiteError` where this host cannot."""
    if wanted == "none":
        return ()
    from vmcoal.host.cuda import find_devices
    from vmcoal.host.opencl import choose

    return tuple(choose(servable(await find_devices()), wanted))


def _bind(host: str, port: int, *, option: str) -> socket.socket:
    """Return a listening socket; raises `ConflictError` or `PrerequisiteError` with what to do."""
    where = f"{host or 'every address'} port {port}"
    try:
        return listen(host or None, port)
    except socket.gaierror as error:
        raise PrerequisiteError(f"{host} is no address of this host", hint="list them: ip -brief address") from error
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise ConflictError(
                    f"{where} is taken", hint=f"choose another one: {option} ADDR:PORT; who has it: ss -ltnp"
                ) from error
            case errno.EADDRNOTAVAIL:
                raise PrerequisiteError(
                    f"{host} is no address of this host", hint="list them: ip -brief address"
                ) from error
            case errno.EACCES:
                raise PrerequisiteError(f"{where} may not be used", hint="choose a port of 1024 or higher") from error
        raise PrerequisiteError(f"cannot listen on {where}: {error.strerror}", hint="ip -brief address") from error


async def _end_tasks(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
