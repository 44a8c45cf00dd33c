"""Mounts and mappings as the kernel tells them: /proc/self/mountinfo and /proc/PID/maps (proc(5))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path

from vmcoal.backends import nbd
from vmcoal.errors import DeadlineError, ExecutionError

_MOUNTINFO = Path("/proc/self/mountinfo")


def _unescape(field: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field


def device_of(mount: Path) -> str | None:
    """Return ``major:minor`` of the uppermost mount on exactly ``mount``, or ``None`` if nothing is mounted there."""
    wanted, found = os.fsencode(mount), None
    for line in _MOUNTINFO.read_bytes().splitlines():
        fields = line.split(b" ")
        if len(fields) > 4 and _unescape(fields[4]) == wanted:
            found = fields[2].decode()
    return found


async def wait_mounted(mount: Path, *, failed: Callable[[], str | None], deadline: float) -> str:
    """Return ``major:minor`` of ``mount`` as soon as it is there; the kernel tells by ``EPOLLPRI`` on mountinfo.

    ``failed`` says why it will not come any more. Raises `ExecutionError` or `DeadlineError`.
    """
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()
    with contextlib.ExitStack() as undo:
        # mountinfo is always readable, so only its exceptional events are watched, through an epoll of its own
        file = os.open(_MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
        undo.callback(os.close, file)
        epoll = undo.enter_context(select.epoll())
        epoll.register(file, select.EPOLLPRI | select.EPOLLERR)

        def wake() -> None:
            epoll.poll(0)
            changed.set()

        loop.add_reader(epoll.fileno(), wake)
        undo.callback(loop.remove_reader, epoll.fileno())
        end = loop.time() + deadline
        while (device := device_of(mount)) is None:
            reason = failed()
            if reason:
                raise ExecutionError(
                    f"nothing was mounted on {mount}: {reason}", hint="check nbdkit and nbdfuse here: vmcoal doctor"
                )
            left = end - loop.time()
            if left <= 0:
                raise DeadlineError(f"nothing was mounted on {mount} within {deadline:g} s")
            changed.clear()
            # The end of the program behind the mount is no mount event: look for it at least twice a second.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), min(left, 0.5))
        return device


async def unmount(mount: Path, *, deadline: float) -> None:
    """Take every mount off ``mount``, lazily, so that a user that is left does not hold it. Idempotent."""
    while device_of(mount) is not None:
        code, _, err = await nbd.run(["fusermount3", "-u", "-z", str(mount)], deadline=deadline)
        if code and device_of(mount) is not None:
            raise ExecutionError(f"cannot unmount {mount}: {err}", left=f"the mount {mount}", hint=f"umount -l {mount}")


def maps_below(pid: int, folder: Path) -> bool:
    """Return whether process ``pid`` maps a file below ``folder``; a process that is gone maps nothing."""
    prefix = os.fsencode(folder) + b"/"
    try:
        maps = Path(f"/proc/{pid}/maps").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return any(prefix in line for line in maps.splitlines())


async def wait_unmapped(pid: int, folder: Path, *, deadline: float) -> None:
    """Return when process ``pid`` maps nothing below ``folder`` any more.

    QEMU frees memory some milliseconds after ``object-del``, from its RCU thread, and nothing tells; so this looks,
    less and less often. Raises `DeadlineError`.
    """
    loop = asyncio.get_running_loop()
    end, pause = loop.time() + deadline, 0.005
    while maps_below(pid, folder):
        if loop.time() + pause > end:
            raise DeadlineError(
                f"process {pid} still maps borrowed memory after {deadline:g} s",
                left=f"the mount {folder} and its lease",
                hint="the guest still uses it: detach again, or shut the VM down",
            )
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.25)
