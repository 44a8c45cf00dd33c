"""The way into a lab host that does not use its network: commands and files over virtio-serial.

A host has `vmcoal.lab.host_spec.CHANNELS` ports with an agent each (guest-agent/vmcoal_agent.py). A client takes the
first port that is free, by a lock on a file beside its socket, and keeps it until it closes; through one port any
number of commands run at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from vmcoal.errors import ConflictError, DeadlineError, ExecutionError, UnreachableError, VmcoalError
from vmcoal.guest.agent_link import Link, open_link
from vmcoal.guest.agent_vmcoal import VmcoalAgent
from vmcoal.lab.host_spec import CHANNELS
from vmcoal.layout import LabHostFolders
from vmcoal.model.guest import CommandEnd, CommandInput, GuestCommand

OnOutput = Callable[[int, bytes], Awaitable[None]]

_OUTPUT_MAX = 64 << 20
_INPUT_CHUNK = 128 << 10
_TAIL = 2000
_FIRST_HELLO = 0.25
_HELLO_EVERY = 2.0
_AGAIN = 0.2
_WRITE = 'umask 077; cat >"$0.part" && chmod "$1" "$0.part" && mv -f "$0.part" "$0"'


@dataclass(frozen=True)
class Done:
    """How a command in a host ended, and what it wrote: exit ``code``, or the ``signal`` that ended it."""

    code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """What it wrote to stdout, as text without the last line's end."""
        return self.stdout.decode(errors="replace").rstrip("\n")


class Channel:
    """One client's way into one host; made by `open_channel`."""

    def __init__(self, host: str, agent: VmcoalAgent, lock: int) -> None:
        self._host = host
        self._agent = agent
        self._lock = lock

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        deadline: float | None,
    ) -> Done:
        """Run a program as root and return how it ended, whatever its exit code.

        Raises `DeadlineError` after ``deadline`` seconds, `RefusedError` where it cannot be started, `UnreachableError`
        where the host is gone, and `ExecutionError` for more than 64 MiB of output. The program does not outlive it.
        """
        parts: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}

        async def take(stream: int, data: bytes) -> None:
            parts[stream] += data
            if sum(map(len, parts.values())) > _OUTPUT_MAX:
                raise ExecutionError(f"{argv[0]} wrote more than {_OUTPUT_MAX >> 20} MiB", host=self._host)

        queue: asyncio.Queue[CommandInput] = asyncio.Queue()
        for start in range(0, len(stdin), _INPUT_CHUNK):
            queue.put_nowait(CommandInput(data=stdin[start : start + _INPUT_CHUNK]))
        queue.put_nowait(CommandInput(eof=True))
        command = GuestCommand(argv=tuple(argv), env=dict(env or {}), cwd=cwd)
        end = await self.stream(command, on_output=take, stdin=queue if stdin else None, deadline=deadline)
        return Done(end.code, end.signal, bytes(parts[1]), bytes(parts[2]))

    async def stream(
        self,
        command: GuestCommand,
        *,
        on_output: OnOutput,
        stdin: asyncio.Queue[CommandInput] | None = None,
        deadline: float | None = None,
    ) -> CommandEnd:
        """Run a command with streams, or a terminal, of the caller's (`vmcoal.guest.channel.Agent.exec`)."""
        try:
            return await self._agent.exec(command, on_output=on_output, stdin=stdin, deadline=deadline)
        except VmcoalError as error:
            error.host = error.host or self._host
            raise

    async def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        deadline: float | None,
    ) -> Done:
        """As `exec`, and raise `ExecutionError`, with the tail of its stderr, where the exit code is not 0."""
        done = await self.exec(argv, stdin=stdin, env=env, cwd=cwd, deadline=deadline)
        if done.code != 0:
            how = f"exit code {done.code}" if done.code is not None else f"signal {done.signal}"
            tail = done.stderr.decode(errors="replace").strip()[-_TAIL:]
            lines = tail.splitlines()
            said = next((line for line in lines if "error: " in line), lines[-1] if lines else "")
            words = f": {said.strip()}" if said else ""
            raise ExecutionError(
                f"{shlex.join(argv)[:200]} ended with {how}{words}",
                host=self._host,
                code=done.code,
                stdout=done.stdout.decode(errors="replace")[-_TAIL:],
                stderr=tail,
            )
        return done

    async def push(self, path: str, data: bytes, *, mode: int = 0o644, deadline: float = 60.0) -> None:
        """Write a file in the host; readers see the old one or all of the new one."""
        await self.run(["/bin/sh", "-c", _WRITE, path, f"{mode:o}"], stdin=data, deadline=deadline)

    async def pull(self, path: str, *, deadline: float = 60.0) -> bytes:
        """Return a file of the host; raises `ExecutionError` where it cannot be read or is larger than 64 MiB."""
        return (await self.run(["cat", "--", path], deadline=deadline)).stdout

    async def wait_lost(self) -> VmcoalError:
        """Wait until the host is gone and return why."""
        return await self._agent.wait_lost()

    async def close(self) -> None:
        """Give the port back; commands that run through it are ended. Idempotent."""
        await self._agent.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


async def open_channel(folders: LabHostFolders, *, deadline: float) -> Channel:
    """Return a way into the host, once one of its agents answers.

    Raises `UnreachableError` where nothing listens any more, `DeadlineError` where no agent answers within ``deadline``
    seconds (the host boots or hangs), `ConflictError` where every port stays taken for so long.
    """
    host, until = folders.runtime.name, time.monotonic() + deadline
    number, lock = await _take_port(folders, until)
    async with contextlib.AsyncExitStack() as undo:
        undo.callback(os.close, lock)
        link = await open_link(folders.socket(f"agent{number}"))
        undo.push_async_callback(link.close)
        hello = await _hello(link, host, deadline, until)
        undo.pop_all()
    return Channel(host, VmcoalAgent(link, hello), lock)


async def _take_port(folders: LabHostFolders, until: float) -> tuple[int, int]:
    """Return the number of a free port and the descriptor of its lock."""
    while True:
        for number in range(CHANNELS):
            try:
                lock = os.open(folders.socket(f"agent{number}").with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            except OSError as error:
                raise UnreachableError(
                    f"the lab has no running host {folders.runtime.name}", hint="see: vmcoal lab status"
                ) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
            else:
                return number, lock
        if time.monotonic() > until:
            raise ConflictError(
                f"{CHANNELS} clients work in this host, as many as can",
                host=folders.runtime.name,
                hint="end one of them",
            )
        await asyncio.sleep(_AGAIN)


async def _hello(link: Link, host: str, deadline: float, until: float) -> dict[str, object]:
    """Say hello until the agent answers. A hello waits in QEMU until the port is opened; those before a reset are
    lost."""
    wait = _FIRST_HELLO
    while (left := until - time.monotonic()) > 0:
        hello = await link.hello(wait=min(wait, left))
        if hello is not None:
            return hello
        wait = min(wait * 2, _HELLO_EVERY)
    raise DeadlineError(
        f"the host did not answer within {deadline:g} s", host=host, hint=f"see how far it came: vmcoal lab logs {host}"
    )
