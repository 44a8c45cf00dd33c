"""A control group for each lease's server, where this user may make one (cgroups(7)).

On cgroup v2 that is below this process's own group (a unit with ``Delegate=yes``, a user's session), on v1 below its
group of the memory controller. Where neither is writable the servers run without: nothing depends on it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

SLACK = 64 << 20
"""What a server may use besides the lent bytes."""

TASKS = 4096
"""Threads and processes of a server: a borrower's kernel on a CPU device may fork."""


def parent_group(name: str, *, proc: Path = Path("/proc/self"), root: Path | None = None) -> Path | None:
    """Return a new or existing folder for the groups of lender ``name``, or ``None`` where none can be made."""
    for mount, inside in _own_groups(proc):
        base = (root or Path("/")) / mount.lstrip("/") / inside.lstrip("/")
        folder = base / f"vmcoal-lend-{name}"
        try:
            folder.mkdir(exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            for controller in ("+memory", "+pids"):
                with contextlib.suppress(OSError):
                    (folder / "cgroup.subtree_control").write_text(controller)
            return folder
    return None


def lease_group(parent: Path, lease: str, size: int) -> Path | None:
    """Return the group of one lease's server, bounded to its bytes and some slack and to `TASKS`, or ``None`` if it
    cannot be made."""
    folder = parent / lease
    try:
        folder.mkdir(exist_ok=True)
    except OSError:
        return None
    for knob, most in (("memory.max", size + SLACK), ("memory.limit_in_bytes", size + SLACK), ("pids.max", TASKS)):
        if (folder / knob).exists():
            with contextlib.suppress(OSError):
                (folder / knob).write_text(str(most))
    return folder


def remove_group(folder: Path) -> None:
    """Remove an empty group. Idempotent; the kernel refuses while something runs in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _own_groups(proc: Path) -> list[tuple[str, str]]:
    """Return (mount point, path inside) of the unified hierarchy, if it has the controllers, else of v1's memory."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except OSError:
        return []
    groups: dict[str, str] = {}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    found: dict[str, tuple[str, str]] = {}
    for line in mounts:
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        top, point = fields[3], fields[4]
        if kind[0] == "cgroup2" and "" in groups:
            found["v2"] = (point, _inside(groups[""], top))
        elif kind[0] == "cgroup" and "memory" in kind[2].split(",") and "memory" in groups:
            found["v1"] = (point, _inside(groups["memory"], top))
    # With v1's memory controller in use, the unified hierarchy only names processes.
    return [found[key] for key in ("v1", "v2") if key in found]


def _inside(path: str, top: str) -> str:
    """Return a group's path below its mount, which shows the hierarchy from ``top`` on."""
    return path[len(top) :] if top != "/" and path.startswith(top) else path
