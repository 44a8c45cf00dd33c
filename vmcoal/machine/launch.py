"""Starts, finds and ends QEMU as the main child of a VM's holder (the `seam.Launcher` of today).

QEMU is handed listening sockets instead of paths, so a client can connect before QEMU has come up and there is no
moment to wait for. What QEMU writes to stderr and, as the serial console, to stdout is drained into bounded logs by the
holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    ExecutionError,
    NotFoundError,
    PrerequisiteError,
    UnreachableError,
    VmcoalError,
)
from vmcoal.holding.client import ChildSpec, ChildState, ExitStatus, Holder, read_exits
from vmcoal.layout import VmFolders
from vmcoal.machine.argv import CHANNELS, qemu_argv
from vmcoal.machine.qmp_errors import translated
from vmcoal.machine.unplug import Clock
from vmcoal.model.machine import DiskBoot, MachineSpec
from vmcoal_qmp import QmpClient, QmpTimeoutError, Transcript

QEMU = "qemu"
"""The holder's id of the QEMU process."""

_FIRST_FD = 20
_TAIL = 4096
_DYING = 3.0
_NOT_INHERITED = ("LISTEN_", "NOTIFY_", "WATCHDOG_")  # of the service that runs the controller, not of QEMU
_STAMP = re.compile(r"^(?:\d{4}-\d\d-\d\dT\S+Z )?(?:\S*qemu-system\S*: )?")
_HINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"host forwarding rule"), "the port is taken: choose another one with --ssh-port"),
    (re.compile(r'Failed to get "\w+" lock'), "another QEMU uses that disk: end it, or boot from a copy"),
    (re.compile(r"Cannot allocate memory|cannot set up guest memory"), "use less --memory"),
    (re.compile(r"KVM|kvm|MSR"), "KVM does not carry this machine: boot with --accel tcg, and see: vmcoal doctor"),
    (re.compile(r"could not configure /dev/net/tun|bridge helper"), "check the device of --net and its permissions"),
    (re.compile(r"display|vnc|spice|gtk", re.IGNORECASE), "check --display: this QEMU may lack it, or it is in use"),
)


def socket_path(folders: VmFolders, channel: str) -> Path:
    """Return the socket of ``channel``, one of `argv.CHANNELS`."""
    return {
        "qmp": folders.qmp_socket,
        "agent": folders.agent_socket,
        "qga": folders.qga_socket,
        "console": folders.console_socket,
    }[channel]


class HolderLauncher:
    """Starts, finds and ends the QEMU of one VM under ``holder``, with its files in ``folders``.

    ``environment`` is added to what QEMU inherits: a memory engine may need to be there from the start.
    """

    def __init__(self, holder: Holder, folders: VmFolders, environment: Mapping[str, str] | None = None) -> None:
        self._holder = holder
        self._folders = folders
        self._environment = dict(environment or {})
        self._transcript = Transcript(folders.qmp_log)
        self._pid: int | None = None
        self._log_start = 0

    async def launch(self, spec: MachineSpec, *, deadline: float) -> QmpClient:
        """Start QEMU and return its monitor.

        Nothing is left on failure, but the holder ends with QEMU, its main child. Raises `ConflictError` where somebody
        serves the VM's sockets, `PrerequisiteError` where QEMU or a file is missing, `ExecutionError` with QEMU's exit
        code and stderr where it ended, `DeadlineError` where it does not answer.
        """
        clock = Clock(deadline)
        self._folders.make()
        copy_uefi_variables(spec, self._folders)
        self._log_start = _size(self._folders.qemu_log)
        async with AsyncExitStack() as undo:
            listeners = {
                channel: listen(socket_path(self._folders, channel), undo, look="vmcoal status") for channel in CHANNELS
            }
            numbers = {channel: _FIRST_FD + index for index, channel in enumerate(CHANNELS)}
            argv = qemu_argv(spec, self._folders, numbers)
            self._pid = await self._holder.spawn(
                ChildSpec(
                    id=QEMU,
                    argv=argv,
                    env={key: value for key, value in os.environ.items() if not key.startswith(_NOT_INHERITED)}
                    | self._environment,
                    cwd=self._folders.state,
                    stdout=self._folders.console_log,
                    stderr=self._folders.qemu_log,
                    fds={numbers[channel]: listeners[channel].fileno() for channel in CHANNELS},
                    main=True,
                )
            )
            undo.push_async_callback(self.kill, grace=1.0)
            for listener in listeners.values():
                listener.close()
            client = await self._first_contact(spec, argv, clock)
            undo.pop_all()
        return client

    async def adopt(self, spec: MachineSpec, *, deadline: float) -> QmpClient | None:
        """Find the running QEMU of ``spec`` and return its monitor, or ``None`` if it does not run.

        Raises `DeadlineError` where it runs and does not answer: it hangs, or another controller holds its monitor.
        """
        for child in await self._holder.list():
            if child.id == QEMU and child.live:
                self._pid = child.pid
                with translated(f"answer the monitor of {spec.name}", left=f"QEMU runs, pid {child.pid}"):
                    return await self._connect(deadline)
        return None

    async def exit_status(self) -> dict[str, Any] | None:
        """Return how QEMU ended (``state``, ``code``, ``signal``, ``stderr`` tail), or ``None`` while it runs;
        ``with_holder`` where it was killed with its holder, which wrote nothing down.

        ``None`` too where it never ran. Works without the holder, which ends with QEMU.
        """
        try:
            for child in await self._holder.list():
                if child.id == QEMU:
                    status = child.exit_status()
                    return None if status is None else self._told(status.state, status.code, status.signal)
        except UnreachableError:
            pass
        records = [record for record in read_exits(self._folders.exits) if record.id == QEMU]
        if self._pid is None:
            records = records[-1:]
        for record in reversed(records):
            if self._pid in (None, record.pid):
                signaled = record.state is ChildState.SIGNALED
                return self._told(record.state, 0 if signaled else record.code, record.code if signaled else 0)
        if self._pid is None:
            return None
        # Its holder was killed and took it along, too fast to write it down.
        return {**self._told(ChildState.SIGNALED, 0, 9), "with_holder": True}

    async def kill(self, *, grace: float) -> None:
        """End QEMU: SIGTERM, and SIGKILL after ``grace`` seconds. Its sockets are removed. Idempotent."""
        with contextlib.suppress(NotFoundError, UnreachableError):
            await self._holder.stop(QEMU, grace=grace)
        self._transcript.close()
        for channel in CHANNELS:
            socket_path(self._folders, channel).unlink(missing_ok=True)

    async def _connect(self, deadline: float) -> QmpClient:
        return await QmpClient.connect(self._folders.qmp_socket, transcript=self._transcript, deadline=deadline)

    async def _first_contact(self, spec: MachineSpec, argv: list[str], clock: Clock) -> QmpClient:
        """Connect, unless QEMU ends first: the holder's copy of the socket would let a client wait for ever."""
        connecting = asyncio.create_task(self._connect(clock.left))
        ending = asyncio.create_task(self._holder.wait(QEMU, clock.left + 1.0))
        try:
            await asyncio.wait({connecting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                error = connecting.exception()
                if error is None:
                    return connecting.result()
                if isinstance(error, QmpTimeoutError):
                    raise DeadlineError(
                        f"QEMU of {spec.name} did not answer within {clock.deadline:g} s",
                        hint="the host may be overloaded; try again",
                        stderr=self._stderr(),
                    ) from error
                await asyncio.wait({ending}, timeout=_DYING)  # it hung up, so it is ending
            if ending.done():
                raise await self._failure(spec, argv, ending)
            with translated(f"start the machine {spec.name}"):
                return connecting.result()
        finally:
            for task in (connecting, ending):
                task.cancel()
            await asyncio.gather(connecting, ending, return_exceptions=True)

    async def _failure(self, spec: MachineSpec, argv: list[str], ending: asyncio.Task[ExitStatus]) -> ExecutionError:
        try:
            ended = await ending
        except VmcoalError:
            status = await self.exit_status() or {}
        else:
            status = self._told(ended.state, ended.code, ended.signal)
        stderr = str(status.get("stderr", ""))
        reason, hint = last_words(stderr)
        how = f"signal {status['signal']}" if status.get("signal") else f"exit code {status.get('code')}"
        text = f"QEMU of {spec.name} ended with {how}: {reason}"
        look = f"see {self._folders.qemu_log}, or: vmcoal logs {spec.name} qemu"
        return ExecutionError(text, hint=hint or look, argv=argv, **status)

    def _told(self, state: ChildState, code: int, signal: int) -> dict[str, Any]:
        return {"state": str(state), "code": code, "signal": signal, "stderr": self._stderr()}

    def _stderr(self) -> str:
        """The tail of what QEMU wrote to stderr since it was started."""
        with contextlib.suppress(OSError), self._folders.qemu_log.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = self._log_start if size >= self._log_start else 0  # else the log was begun anew
            file.seek(max(start, size - _TAIL))
            return file.read(_TAIL).decode("utf-8", "replace")
        return ""


def last_words(stderr: str) -> tuple[str, str | None]:
    """Return why QEMU ended, as one line, and the next step where one is known.

    Warnings are no reason: under KVM, QEMU warns of each machine with more vCPU slots than the host has CPUs.
    """
    lines = [line for line in stderr.strip().splitlines() if "warning: " not in line]
    reason = _STAMP.sub("", lines[-1])[:300] if lines else "it said nothing"
    text = "\n".join(lines)
    return reason, next((hint for pattern, hint in _HINTS if pattern.search(text)), None)


def listen(path: Path, undo: AsyncExitStack, *, look: str) -> socket.socket:
    """Listen on Unix socket ``path``, in place of a stale one; ``undo`` closes and removes it. ``look`` is the command
    that shows who listens there already.

    Raises `ConflictError` where somebody listens there, `PrerequisiteError` where it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    undo.callback(listener.close)
    try:
        if _answers(path):
            raise ConflictError(f"something serves {path} already", hint=f"does it run already? see: {look}")
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        undo.callback(path.unlink, missing_ok=True)
        path.chmod(0o600)
        listener.listen(4)
    except OSError as error:
        raise PrerequisiteError(
            f"cannot make socket {path}: {error.strerror or error}", hint="check the runtime folder (XDG_RUNTIME_DIR)"
        ) from error
    return listener


def copy_uefi_variables(spec: MachineSpec, folders: VmFolders) -> None:
    """Give a UEFI machine its own variable store, once; raises `PrerequisiteError`."""
    boot = spec.boot
    if not isinstance(boot, DiskBoot) or boot.uefi_vars is None or folders.uefi_vars.exists():
        return
    draft = folders.uefi_vars.with_suffix(".new")
    try:
        shutil.copyfile(boot.uefi_vars, draft)
        draft.chmod(0o600)
        draft.replace(folders.uefi_vars)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise PrerequisiteError(
            f"cannot copy the UEFI variables {boot.uefi_vars}: {error.strerror}",
            hint="check that the firmware is installed (apt install ovmf) and the state folder has room",
        ) from error


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        code = client.connect_ex(os.fspath(path))
    # EAGAIN: somebody listens, with as many clients waiting as may
    return code in (0, errno.EAGAIN, errno.EINPROGRESS)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
