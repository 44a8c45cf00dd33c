"""The kernel's swap to a local file, as a baseline: a memory cgroup with a limit, and a swap file. Needs root."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


def unavailable(folder: Path) -> str | None:
    """Return why there cannot be a swap file in ``folder`` and a limit here, or ``None``."""
    if os.geteuid():
        return "swap files and cgroups need root"
    if not (_V1 / "memory.limit_in_bytes").exists() and "memory" not in _controllers():
        return "this machine has no memory cgroups"
    kind = subprocess.run(["stat", "-fc", "%T", folder], capture_output=True, text=True, check=True).stdout.strip()
    if not kind.startswith(("ext", "xfs")):
        return f"{folder} is on {kind}, where a swap file does not work without a loop"
    return None


def _controllers() -> list[str]:
    try:
        return (_V2 / "cgroup.subtree_control").read_text().split()
    except OSError:
        return []


@contextlib.contextmanager
def swap_file(folder: Path, size: int) -> Iterator[Path]:
    """Make a file of ``size`` bytes in ``folder`` that the kernel swaps to."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="swap-") as file:
        subprocess.run(["dd", "if=/dev/zero", f"of={file.name}", "bs=1M", f"count={size >> 20}"], check=True, stderr=-3)
        subprocess.run(["mkswap", "-q", file.name], check=True, stderr=-3)
        subprocess.run(["swapon", "-p", "32767", file.name], check=True)
        try:
            yield Path(file.name)
        finally:
            subprocess.run(["swapoff", file.name], check=True)


class Group:
    """A memory cgroup; `prefix` puts a command into it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.prefix = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(folder / "cgroup.procs")]

    def limit(self, size: int) -> None:
        """Leave the group ``size`` bytes of memory; the rest is swapped."""
        new = self._folder / "memory.limit_in_bytes"
        (new if new.exists() else self._folder / "memory.max").write_text(str(size))


@contextlib.contextmanager
def group() -> Iterator[Group]:
    """Make a memory cgroup without a limit; its processes must have ended when it does."""
    root = _V1 if (_V1 / "memory.limit_in_bytes").exists() else _V2
    folder = root / f"vmcoal-bench-{os.getpid()}"
    folder.mkdir()
    try:
        yield Group(folder)
    finally:
        end = time.monotonic() + 10
        while (folder / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.05)
        folder.rmdir()
