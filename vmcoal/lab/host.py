"""Starts, finds and ends one host of the lab: QEMU as the main child of a holder of its own.

A host runs on without whoever started it. It ends with its QEMU, by `Host.kill`, or when its holder is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

import msgspec

from vmcoal.errors import (
    UNREADABLE,
    ConflictError,
    DeadlineError,
    ExecutionError,
    NotFoundError,
    UnreachableError,
)
from vmcoal.holding.client import ChildSpec, Holder, read_exits
from vmcoal.lab.channel import Channel, Done, open_channel
from vmcoal.lab.clock import tsc_khz
from vmcoal.lab.host_spec import FIRST_NETWORK_FD, SOCKETS, HostSpec, host_argv
from vmcoal.layout import LabHostFolders
from vmcoal.machine.launch import last_words, listen
from vmcoal.machine.qmp_errors import translated
from vmcoal.machine.unplug import Clock
from vmcoal.model.machine import Accel
from vmcoal_qmp import QmpClient, Transcript

QEMU = "qemu"
"""The holder's id of the host's QEMU process."""

_FIRST_FD = 20
_TAIL = 4096
_DYING = 3.0
_CHANNEL = 60.0
_SPEC_MAX = 1 << 20
_NOT_INHERITED = ("LISTEN_", "NOTIFY_", "WATCHDOG_")
_HINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"Cannot allocate memory|cannot set up guest memory"), "use fewer hosts, or less --memory for each"),
    (re.compile(r"KVM|kvm"), "KVM does not carry this host: vmcoal lab up --accel tcg"),
    (re.compile(r"is not a valid device model name"), "this QEMU lacks it: install qemu-system-x86, or leave it away"),
)


class Host:
    """A host of the lab that runs. Made by `start` and `connect`; `close` leaves it running.

    Every call raises `UnreachableError` where the host is gone, with how it ended.
    """

    def __init__(self, spec: HostSpec, folders: LabHostFolders, holder: Holder, pid: int) -> None:
        self.spec = spec
        self.folders = folders
        self.pid = pid
        """QEMU's process."""
        self._holder = holder
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._qmp: QmpClient | None = None
        self._transcript = Transcript(folders.qmp_log)

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @classmethod
    async def start(
        cls,
        spec: HostSpec,
        folders: LabHostFolders,
        *,
        network: Sequence[str] = (),
        fds: Mapping[int, int] | None = None,
        deadline: float,
    ) -> Self:
        """Start a host and return it once its QEMU runs; it boots then (`wait_ready`).

        ``network`` are arguments for QEMU; ``fds`` the descriptors that they name, from `FIRST_NETWORK_FD` on, as
        QEMU's number to this process's. Nothing is left on failure. Raises `ConflictError` where the host runs already,
        `PrerequisiteError` where QEMU or a file is missing, `ExecutionError` with QEMU's words where it ended at once,
        `DeadlineError`.
        """
        clock = Clock(deadline)
        assert all(number >= FIRST_NETWORK_FD for number in fds or ()), "these are the host's own"
        folders.make()
        if spec.accel is Accel.TCG:
            spec = msgspec.structs.replace(spec, tsc_khz=await asyncio.to_thread(tsc_khz))
        async with AsyncExitStack() as undo:
            try:
                holder = await Holder.start(folders, name=f"lab-{spec.name}", deadline=clock.left)
            except ConflictError as error:
                raise ConflictError(
                    "it runs already", host=spec.name, hint="vmcoal lab status, or end it: vmcoal lab down"
                ) from error
            undo.push_async_callback(holder.close)
            undo.push_async_callback(holder.shutdown, grace=0)
            listeners = {name: listen(folders.socket(name), undo, look="vmcoal lab status") for name in SOCKETS}
            numbers = {name: _FIRST_FD + index for index, name in enumerate(SOCKETS)}
            undo.callback(folders.spec.unlink, missing_ok=True)
            folders.spec.write_bytes(msgspec.json.encode(spec))
            folders.qemu_log.unlink(missing_ok=True)
            argv = host_argv(spec, numbers, network)
            pid = await holder.spawn(
                ChildSpec(
                    id=QEMU,
                    argv=argv,
                    env={key: value for key, value in os.environ.items() if not key.startswith(_NOT_INHERITED)},
                    cwd=folders.state,
                    stdout=folders.console_log,
                    stderr=folders.qemu_log,
                    fds={numbers[name]: listeners[name].fileno() for name in SOCKETS} | dict(fds or {}),
                    main=True,
                )
            )
            for listener in listeners.values():
                listener.close()
            host = cls(spec, folders, holder, pid)
            undo.push_async_callback(host._hang_up)  # the holder is still needed to end it
            await host._first_contact(clock)
            undo.pop_all()
        return host

    @classmethod
    async def connect(cls, folders: LabHostFolders, *, deadline: float) -> Self:
        """Return the running host with these folders; raises `UnreachableError` where it does not run."""
        host = folders.runtime.name
        try:
            raw = folders.spec.read_bytes()
            spec = msgspec.json.decode(raw, type=HostSpec) if len(raw) <= _SPEC_MAX else None
        except (OSError, *UNREADABLE):
            spec = None
        if spec is None:
            raise NotFoundError(f"the lab has no host {host}", hint="see: vmcoal lab status")
        try:
            holder = await Holder.connect(folders.holder_socket, deadline=deadline)
        except UnreachableError as error:
            raise UnreachableError(
                f"the lab's host {host} does not run{_how_it_ended(folders)}",
                host=host,
                hint="vmcoal lab down, then vmcoal lab up",
            ) from error
        with contextlib.suppress(UnreachableError):
            for child in await holder.list():
                if child.id == QEMU and child.live:
                    return cls(spec, folders, holder, child.pid)
        await holder.close()
        raise UnreachableError(f"the lab's host {host} is ending", host=host, hint="vmcoal lab status")

    async def wait_ready(self, deadline: float) -> None:
        """Wait until the host has booted: its kernel, modules and control channel are there.

        Raises `DeadlineError` and, where its QEMU ended meanwhile, `ExecutionError`, with the console's last lines.
        """
        clock = Clock(deadline)
        opening = asyncio.create_task(self._open(clock.left))
        ending = asyncio.create_task(self._holder.wait(QEMU, clock.left + 1.0))
        try:
            await asyncio.wait({opening, ending}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done() and opening.exception() is None:
                channel = opening.result()
                await channel.run(["/usr/libexec/vmcoal/ready"], deadline=max(clock.left, 1.0))
                return
            if opening.done() and isinstance(opening.exception(), UnreachableError):
                await asyncio.wait({ending}, timeout=_DYING)  # it hung up, so it is ending
            if ending.done():
                raise ExecutionError(
                    f"the host ended while it booted{_how_it_ended(self.folders)}",
                    host=self.name,
                    hint=f"read {self.folders.console_log}",
                    console=_tail(self.folders.console_log),
                )
            opening.result()
        except DeadlineError as error:
            raise DeadlineError(
                f"the host did not boot within {deadline:g} s",
                host=self.name,
                hint=f"this machine may be overloaded; its console: {self.folders.console_log}",
                console=_tail(self.folders.console_log),
            ) from error
        finally:
            for task in (opening, ending):
                task.cancel()
            await asyncio.gather(opening, ending, return_exceptions=True)

    async def channel(self, *, deadline: float = 10.0) -> Channel:
        """Return this client's control channel, which `close` closes; `exec`, `run`, `push` and `pull` use it too."""
        return await self._open(deadline)

    async def exec(self, argv: Sequence[str], *, stdin: bytes = b"", deadline: float | None) -> Done:
        """See `Channel.exec`."""
        return await (await self._open(_CHANNEL)).exec(argv, stdin=stdin, deadline=deadline)

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", deadline: float | None) -> Done:
        """See `Channel.run`."""
        return await (await self._open(_CHANNEL)).run(argv, stdin=stdin, deadline=deadline)

    async def push(self, path: str, data: bytes, *, mode: int = 0o644, deadline: float = 60.0) -> None:
        """See `Channel.push`."""
        await (await self._open(_CHANNEL)).push(path, data, mode=mode, deadline=deadline)

    async def pull(self, path: str, *, deadline: float = 60.0) -> bytes:
        """See `Channel.pull`."""
        return await (await self._open(_CHANNEL)).pull(path, deadline=deadline)

    async def qmp(self, *, deadline: float = 10.0) -> QmpClient:
        """Return the monitor of the host's QEMU, which `close` closes; one client at a time can have it."""
        if self._qmp is None or self._qmp.disconnected.done():
            with translated(f"answer the monitor of {self.name}", look=f"vmcoal lab logs {self.name} qemu"):
                self._qmp = await QmpClient.connect(
                    self.folders.socket("qmp"), transcript=self._transcript, deadline=deadline
                )
        return self._qmp

    async def signal(self, number: signal.Signals) -> None:
        """Send a signal to the host's QEMU: SIGSTOP makes it a host that hangs, SIGCONT ends that."""
        await self._holder.signal(QEMU, number)

    async def kill(self, *, grace: float = 0.0) -> None:
        """End the host at once, as if its power was cut, and remove what it ran with; what it had is lost. Idempotent.

        With ``grace`` QEMU gets so many seconds to end by SIGTERM. Its logs stay.
        """
        await self._hang_up()
        with contextlib.suppress(UnreachableError):
            await self._holder.shutdown(grace=grace)
        await self._holder.close()
        remove_sockets(self.folders)

    async def close(self) -> None:
        """Hang up; the host runs on. Idempotent."""
        await self._hang_up()
        await self._holder.close()

    async def _hang_up(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        qmp, self._qmp = self._qmp, None
        if qmp is not None:
            await qmp.close()
        self._transcript.close()

    async def _open(self, deadline: float) -> Channel:
        async with self._opening:
            if self._channel is None:
                self._channel = await open_channel(self.folders, deadline=deadline)
            return self._channel

    async def _first_contact(self, clock: Clock) -> None:
        """Ask the monitor whether the host runs, unless QEMU ends first."""
        asking = asyncio.create_task(self.qmp(deadline=clock.left))
        ending = asyncio.create_task(self._holder.wait(QEMU, clock.left + 1.0))
        try:
            await asyncio.wait({asking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done() and asking.exception() is None:
                await asking.result().close()
                self._qmp = None
                return
            await asyncio.wait({ending}, timeout=_DYING)
            if ending.done():
                words = _tail(self.folders.qemu_log).strip()
                line, _ = last_words(words)
                raise ExecutionError(
                    f"QEMU of the host ended at once: {line}",
                    host=self.name,
                    hint=next((hint for pattern, hint in _HINTS if pattern.search(line)), None),
                    stderr=words,
                )
            asking.result()
        finally:
            for task in (asking, ending):
                task.cancel()
            await asyncio.gather(asking, ending, return_exceptions=True)


def remove_sockets(folders: LabHostFolders) -> None:
    """Remove the runtime files of a host that does not run, and what says that it exists. Its logs stay."""
    folders.spec.unlink(missing_ok=True)
    for path in (*folders.runtime.glob("*.sock"), *folders.runtime.glob("*.lock")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folders.runtime.rmdir()


def _how_it_ended(folders: LabHostFolders) -> str:
    """Return how its last QEMU ended, as the rest of a sentence; nothing where the holder was killed with it."""
    ends = [record for record in read_exits(folders.exits) if record.id == QEMU]
    if not ends:
        return ""
    line, _ = last_words(_tail(folders.qemu_log))
    return f"; QEMU ended with {'signal' if ends[-1].state == 'signaled' else 'exit code'} {ends[-1].code}: {line}"


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return file.read(_TAIL).decode("utf-8", "replace")
    return ""
