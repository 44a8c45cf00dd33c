"""Finds what outlived a test: processes, mounts, network namespaces, lent memory."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

_SETTLE = 5.0


@dataclass(frozen=True)
class Surroundings:
    """What was there before a test; `survivors` compares."""

    home: Path
    shm: Path
    namespaces: frozenset[str]

    @classmethod
    def look(cls, home: Path, shm: Path) -> Surroundings:
        """Remember what is there now. Processes are told by the variable VMCOAL_TEST, which is ``home``'s name; ``shm``
        is where the test's lenders keep lent bytes."""
        return cls(home, shm, _namespaces())

    def survivors(self) -> list[str]:
        """Return a line for each thing that survived; processes that are just ending are given a moment, then ended."""
        running = _processes(self.home.name)
        ends = time.monotonic() + _SETTLE
        while running and time.monotonic() < ends:
            _wait_for_exit(next(iter(running)), ends)
            running = _processes(self.home.name)
        found = [f"process {pid}: {command}" for pid, command in running.items()]
        for pid in running:
            _kill(pid)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in mounts:
            if mount.startswith(f"{self.home}/"):
                found.append(f"mount {mount}")
                os.system(f"umount -l {mount}")
        found += [f"network namespace {name}" for name in _namespaces() - self.namespaces]
        found += [f"lent bytes {name}" for name in _names(self.shm)]
        found += [f"socket {path}" for path in (self.home / "r").rglob("*") if path.is_socket()]
        return found


def _names(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _namespaces() -> frozenset[str]:
    """Return the namespaces that this run made (framework.delay_link): others may run tests beside us."""
    mark = f"vc{os.getpid() % 100_000}n"
    return frozenset(name for name in _names(Path("/run/netns")) if name.startswith(mark))


def _processes(mark: str) -> dict[int, str]:
    found: dict[int, str] = {}
    needle = f"VMCOAL_TEST={mark}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            if needle in (folder / "environ").read_bytes().split(b"\0"):
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if state != "Z":
                    found[int(folder.name)] = (
                        (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
                    )
        except OSError:
            continue
    return found


def _wait_for_exit(pid: int, ends: float) -> None:
    import select

    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        select.select([descriptor], [], [], max(0.0, ends - time.monotonic()))
    finally:
        os.close(descriptor)


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, 9)
