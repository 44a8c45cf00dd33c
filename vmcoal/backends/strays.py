"""Processes that outlived their holder.

A holder that is killed takes its children with it (PR_SET_PDEATHSIG is SIGKILL), but nbdkit sets that signal to SIGTERM
for itself, and then waits for its clients to leave while it accepts no other. So whoever starts a program again, or
takes its files away, looks for an old one by an argument that only it has.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path

from vmcoal.errors import DeadlineError

log = logging.getLogger("vmcoal.backends")


async def end(argument: str, *, deadline: float) -> None:
    """SIGKILL the processes of this user that were started with exactly this argument, and wait for their end.

    Raises `DeadlineError` if one outlives that.
    """
    for pid in await asyncio.to_thread(_processes_with, argument):
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if argument in _arguments(pid):  # the pid may have been given to another one
                log.warning("process %d outlived its holder: %s", pid, argument)
                signal.pidfd_send_signal(process, signal.SIGKILL)
                await _ended(process, pid, deadline)
        except ProcessLookupError:
            continue
        finally:
            os.close(process)


def _processes_with(argument: str) -> list[int]:
    own = os.geteuid()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and folder.stat().st_uid == own and argument in _arguments(int(folder.name)):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


async def _ended(process: int, pid: int, deadline: float) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process, ended.set)
    try:
        async with asyncio.timeout(deadline):
            await ended.wait()
    except TimeoutError as error:
        raise DeadlineError(f"process {pid} outlived its SIGKILL by {deadline:g} s", left=f"process {pid}") from error
    finally:
        loop.remove_reader(process)
