"""Runs a command in a host of a lab with this process's own streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from concurrent.futures import CancelledError, wait

import click

from vmcoal.cli.terminal import raw_terminal, terminal_size
from vmcoal.errors import UsageError
from vmcoal.model.guest import CommandEnd, CommandInput, GuestCommand

_CHUNK = 64 << 10
_QUEUED = 4
_CONNECT = 60.0


def run_in_host(
    name: str, host: str, argv: tuple[str, ...], terminal: bool, stdin: bool, deadline: float | None
) -> None:
    """Run ``argv`` in ``host`` of lab ``name`` with this process's streams, and end this command with its exit code."""
    if terminal and not sys.stdin.isatty():
        raise UsageError("stdin is not a terminal", hint="leave -t away")
    rows, columns = terminal_size()
    env = {"TERM": os.environ.get("TERM", "dumb")} if terminal else {}
    command = GuestCommand(argv=argv, tty=terminal, rows=rows, columns=columns, env=env)
    with raw_terminal() if terminal else contextlib.nullcontext():
        end = asyncio.run(_run(name, host, command, stdin, deadline))
    raise click.exceptions.Exit(end.code if end.code is not None else 128 + (end.signal or 0))


async def _run(name: str, host: str, command: GuestCommand, stdin: bool, deadline: float | None) -> CommandEnd:
    from vmcoal.lab.lab import lab_host

    async with lab_host(name, host) as found:
        channel = await found.channel(deadline=_CONNECT)
        queue = _read_stdin() if stdin else None
        if queue is not None and command.tty:
            _send_sizes(queue)
        return await channel.stream(command, on_output=_pass_on, stdin=queue, deadline=deadline)


async def _pass_on(stream: int, data: bytes) -> None:
    file = sys.stdout if stream == 1 else sys.stderr
    file.buffer.write(data)
    file.flush()


def _read_stdin() -> asyncio.Queue[CommandInput]:
    """Return a queue that is filled from stdin, as fast as it is emptied.

    A thread reads, because an event loop can watch neither a file nor every terminal; nobody waits for it at the end.
    """
    queue: asyncio.Queue[CommandInput] = asyncio.Queue(_QUEUED)
    loop = asyncio.get_running_loop()

    def read() -> None:
        while True:
            try:
                data = os.read(sys.stdin.fileno(), _CHUNK)
            except OSError:
                data = b""
            given = queue.put(CommandInput(data=data, eof=not data))
            try:
                taken = asyncio.run_coroutine_threadsafe(given, loop)
                while not wait((taken,), timeout=1).done:
                    if loop.is_closed():  # before it heard of this
                        given.close()
                        return
                taken.result()
            except (RuntimeError, CancelledError):  # the command has ended, and the loop with it
                given.close()
                return
            if not data:
                return

    threading.Thread(target=read, name="stdin", daemon=True).start()
    return queue


def _send_sizes(queue: asyncio.Queue[CommandInput]) -> None:
    def resized() -> None:
        rows, columns = terminal_size()
        with contextlib.suppress(asyncio.QueueFull):
            queue.put_nowait(CommandInput(rows=rows, columns=columns))

    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, resized)
