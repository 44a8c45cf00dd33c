"""What can be known of this host by looking: programs, kernel, memory, file systems, cgroups.

Everything goes through one `Host`, so that a check can be run against another host's facts in a test.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

_DEADLINE = 15.0
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


class Host:
    """This host. Methods look and change nothing, except `try_fuse`, which mounts and unmounts a folder of its own."""

    def kernel(self) -> str:
        """Return the kernel's release."""
        return platform.release()

    def machine(self) -> str:
        """Return the instruction set (``x86_64``)."""
        return platform.machine()

    def python(self) -> tuple[int, int]:
        """Return Python's version."""
        major, minor, *_ = platform.python_version_tuple()
        return int(major), int(minor)

    def is_root(self) -> bool:
        """Return whether this process is root."""
        return os.geteuid() == 0

    def which(self, program: str) -> str | None:
        """Return the path of a program, or ``None``."""
        return shutil.which(program)

    def output(self, *argv: str) -> str | None:
        """Return what a program prints on stdout, or ``None`` if it is missing, fails or hangs."""
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=_DEADLINE, check=True, errors="replace")
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout

    def version(self, program: str) -> tuple[int, ...] | None:
        """Return a program's version from its ``--version``, or ``None``."""
        match = _VERSION.search(self.output(program, "--version") or "")
        return tuple(int(part) for part in match.groups() if part) if match else None

    def read(self, path: str) -> str | None:
        """Return a small text file's content, or ``None``."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Return whether a file is there."""
        return Path(path).exists()

    def mounts_below(self, folder: Path) -> list[Path]:
        """Return the mount points below ``folder``."""
        points = (line.split()[4] for line in (self.read("/proc/self/mountinfo") or "").splitlines())
        return [Path(point) for point in points if point.startswith(f"{folder}/")]

    def answers(self, path: Path) -> bool:
        """Return whether somebody listens on the seqpacket socket ``path``."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(5.0)
            try:
                sock.connect(str(path))
            except OSError:
                return False
        return True

    def open_error(self, path: str) -> str | None:
        """Return why a device cannot be opened for reading and writing, or ``None`` if it can."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            return error.strerror or str(error)
        return None

    def writable(self, folder: Path) -> bool:
        """Return whether a file could be made in ``folder``, or in its nearest existing parent."""
        return os.access(_existing(folder), os.W_OK | os.X_OK)

    def free(self, folder: Path) -> int:
        """Return the bytes that a user can still write below ``folder`` or its nearest existing parent."""
        info = os.statvfs(_existing(folder))
        return info.f_bavail * info.f_frsize

    def file_system(self, folder: Path) -> str:
        """Return the type of the file system that ``folder`` is on, from /proc/self/mountinfo (proc(5))."""
        best, kind = "", "unknown"
        target = str(_existing(folder).resolve())
        for line in (self.read("/proc/self/mountinfo") or "").splitlines():
            head, _, tail = line.partition(" - ")
            point = head.split()[4]
            if (target == point or target.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
                best, kind = point, tail.split()[0]
        return kind

    def cgroup(self) -> Path | None:
        """Return the folder of this process's cgroup (version 2), or ``None`` where there is none."""
        mount = next(
            (
                line.split()[4]
                for line in (self.read("/proc/self/mountinfo") or "").splitlines()
                if line.partition(" - ")[2].startswith("cgroup2 ")
            ),
            None,
        )
        own = next(
            (line[3:] for line in (self.read("/proc/self/cgroup") or "").splitlines() if line.startswith("0::")), None
        )
        return Path(mount + own.rstrip("/")) if mount and own else None

    def memory_total(self) -> int:
        """Return the bytes of memory that this host has (MemTotal)."""
        match = re.search(r"^MemTotal:\s+(\d+) kB", self.read("/proc/meminfo") or "", re.MULTILINE)
        return int(match[1]) * 1024 if match else 0

    def memory_available(self) -> int:
        """Return the bytes that programs can still get without swapping (MemAvailable)."""
        match = re.search(r"^MemAvailable:\s+(\d+) kB", self.read("/proc/meminfo") or "", re.MULTILINE)
        return int(match[1]) * 1024 if match else 0

    def try_fuse(self) -> str | None:
        """Mount one MiB of nbdkit's memory with nbdfuse and look at it; return what went wrong, or ``None``."""
        with tempfile.TemporaryDirectory(prefix="vmcoal-doctor-") as folder:
            # "filename" as mount point makes the file itself the mount, as vmcoal uses it
            point = Path(folder, "mem")
            point.touch()
            argv = ["nbdfuse", str(point), "[", "nbdkit", "--exit-with-parent", "memory", "1M", "]"]
            log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below, after the process
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                for _ in range(100):
                    if point.stat().st_size == 1 << 20:
                        return None
                    try:
                        process.wait(0.05)
                    except subprocess.TimeoutExpired:
                        continue
                    log.seek(0)
                    said = log.read(4096).decode(errors="replace").strip().splitlines()
                    return said[-1] if said else f"nbdfuse ended with code {process.returncode}"
                return "the mount did not appear within 5 s"
            except OSError as error:
                return str(error)
            finally:
                _unmount(point, process)
                log.close()


def _unmount(point: Path, process: subprocess.Popen[bytes]) -> None:
    if os.path.ismount(point):
        subprocess.run(["fusermount3", "-u", "-z", str(point)], capture_output=True, timeout=_DEADLINE, check=False)
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _existing(folder: Path) -> Path:
    """Return ``folder`` or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
