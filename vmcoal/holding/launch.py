"""How a holder's process begins and ends, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from vmcoal.errors import ConflictError, ExecutionError
from vmcoal.holding.wire import encode

_TAKEN = 3
_LAUNCH = 30.0


async def launch(binary: Path, arguments: Sequence[str | Path]) -> None:
    """Run the holder's starting half, which ends when the holder listens or has failed."""
    process = await asyncio.create_subprocess_exec(
        binary,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, stderr = await process.communicate()
    finally:
        # Before it listens the holder ends when its starting half is gone.
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        message = stderr.decode(errors="replace").strip().removeprefix("vmcoal-holder: ")
        kind = ConflictError if process.returncode == _TAKEN else ExecutionError
        raise kind(f"the holder did not start: {message}", argv=[str(binary), *map(str, arguments)])


async def launched(task: asyncio.Future[None]) -> bool:
    """Return whether a launch that is no longer wanted succeeded. It takes milliseconds, so it is not cut short: only
    its end tells whether there is a holder to end."""
    _, late = await asyncio.wait({task}, timeout=_LAUNCH)
    if late:
        task.cancel()
        await asyncio.wait({task})
    return not task.cancelled() and task.exception() is None


def end_holder(path: Path) -> None:
    """Tell the holder to end, without waiting for it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        sock.connect(os.fspath(path))
        sock.send(encode("shutdown", ("grace-ms", 0)))


@contextlib.asynccontextmanager
async def end_of_process(pid: int) -> AsyncIterator[None]:
    """At the end of the context, wait until the process that had ``pid`` at its beginning has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        yield
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
