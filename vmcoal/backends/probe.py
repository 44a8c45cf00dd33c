"""What of this host decides between the memory engines, found by trying it (`vmcoal.model.engine.EngineFacts`)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import shutil
import stat
import struct
from pathlib import Path

from vmcoal.errors import PrerequisiteError
from vmcoal.holding.binaries import find_binary
from vmcoal.layout import shm_home
from vmcoal.model.engine import EngineFacts, FaultFacts

DEVICE = "/dev/userfaultfd"
LIBRARY = "libvmcoal-qemu.so"

# linux/userfaultfd.h
_UFFD_API = 0xAA
_USERFAULTFD_IOC_NEW = 0xAA00
_UFFDIO_API = 0xC018AA3F
_SYS_USERFAULTFD = 323  # x86-64
_PT_INTERP = 3


def engine_facts(qemu: str | None = None) -> EngineFacts:
    """Return what decides on this host; ``qemu`` names the program that would be started, ``None``: any."""
    folder = existing(shm_home())
    space = os.statvfs(folder)
    return EngineFacts(
        kernel=platform.release(),
        faults=fault_facts(),
        missing=_missing(),
        files=file_system(folder),
        room=space.f_bavail * space.f_frsize,
        qemu=None if qemu is None else preload_obstacle(qemu),
    )


def fault_facts() -> FaultFacts:
    """Ask the kernel for a userfaultfd that takes every fault, as the preload library does in QEMU, and close it."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        refused = error
    else:
        try:
            return _ask(fcntl.ioctl(device, _USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK), DEVICE)
        except OSError as error:
            refused = error
        finally:
            os.close(device)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor >= 0:
        return _ask(descriptor, "the system call userfaultfd")
    number = ctypes.get_errno()
    if number == errno.ENOSYS:
        return FaultFacts(by=None, refused=os.strerror(errno.ENOENT))
    return FaultFacts(by=None, refused=refused.strerror if refused.errno != errno.ENOENT else os.strerror(number))


def _ask(descriptor: int, by: str) -> FaultFacts:
    try:
        answer = fcntl.ioctl(descriptor, _UFFDIO_API, struct.pack("=QQQ", _UFFD_API, 0, 0))
        _, features, _ = struct.unpack("=QQQ", answer)
    except OSError as error:
        return FaultFacts(by=None, refused=error.strerror)
    finally:
        os.close(descriptor)
    return FaultFacts(by=by, features=features)


def library() -> Path:
    """Return the path of the preload library; raises `PrerequisiteError`."""
    path = find_binary("vmcoal-pager").parent / LIBRARY
    if not path.is_file():
        raise PrerequisiteError(f"{path} is missing", hint="install vmcoal from its wheel")
    return path


def preload_obstacle(qemu: str) -> str | None:
    """Return why the dynamic linker would not load a preload library into the program ``qemu`` (ld.so(8)), or ``None``,
    also where that cannot be known."""
    path = shutil.which(qemu)
    if path is None:
        return None
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - like the next two, of what the path leads to
        if mode & (stat.S_ISUID | stat.S_ISGID):
            return f"{path} is set-uid or set-gid, so it takes no preload library"
        if "security.capability" in os.listxattr(path):
            return f"{path} has file capabilities, so it takes no preload library"
        with open(path, "rb") as file:  # noqa: PTH123
            static = _is_static(file.read(4096))
    except OSError:
        return None
    return f"{path} is linked statically, so it takes no preload library" if static else None


def _is_static(head: bytes) -> bool:
    """Return whether an ELF file names no program interpreter (elf(5)); anything else, like a script, names one."""
    if head[:5] != b"\x7fELF\x02":
        return False
    (offset,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    if not size or offset + size * count > len(head):
        return False
    return all(struct.unpack_from("<I", head, offset + size * entry)[0] != _PT_INTERP for entry in range(count))


def file_system(folder: Path) -> str:
    """Return the type of the file system that ``folder`` is on (/proc/self/mountinfo, proc(5))."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        head, _, tail = line.partition(" - ")
        point = head.split()[4]
        if folder.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, tail.split()[0]
    return kind


def _missing() -> str | None:
    if shutil.which("nbdinfo") is None:
        return "nbdinfo is not installed"
    try:
        library()
    except PrerequisiteError as error:
        return error.message
    return None


def existing(folder: Path) -> Path:
    """Return ``folder``, or its nearest parent that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())
