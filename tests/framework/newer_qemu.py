"""A QEMU that is newer than the distribution's: VMCOAL_NEWER_QEMU, the one on PATH, or Debian's of trixie-backports,
unpacked into the cache with its own C library."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from framework.qemu import qemu_version
from vmcoal.errors import VmcoalError
from vmcoal.guest.debian_disk import sources
from vmcoal.guest.packages import Apt, inside, members
from vmcoal.layout import cache_home

SUITE = "trixie"
_NEWER = ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_WRAPPER = f"""#!/bin/sh
root={{root}}
export QEMU_MODULE_DIR=$root/{_LIBRARIES}/qemu
exec $root/usr/lib64/ld-linux-x86-64.so.2 --library-path $root/{_LIBRARIES}:$root/{_LIBRARIES}/pulseaudio \\
  $root/usr/bin/qemu-system-x86_64 -L $root/usr/share/qemu -L $root/usr/share/seabios "$@"
"""


def newer_qemu(least: tuple[int, int]) -> str:
    """Return a QEMU of version ``least`` or newer; skips the test, with what would help, where none can be had."""
    for binary in filter(None, (os.environ.get("VMCOAL_NEWER_QEMU"), shutil.which("qemu-system-x86_64"))):
        if tuple(map(int, qemu_version(binary).split("."))) >= least:
            return binary
    folder = cache_home() / "newer-qemu"
    wrapper = folder / "qemu-system-x86_64"
    try:
        if not wrapper.exists():
            _unpack(folder)
            wrapper.write_text(_WRAPPER.format(root=folder / "root"))
            wrapper.chmod(0o755)
        if tuple(map(int, qemu_version(str(wrapper)).split("."))) >= least:
            return str(wrapper)
    except (VmcoalError, OSError) as error:
        why = str(error)
    else:
        why = f"{SUITE}-backports has {qemu_version(str(wrapper))}"
    wanted = ".".join(map(str, least))
    pytest.skip(f"no QEMU {wanted} or newer: {why}; name one with VMCOAL_NEWER_QEMU=PROGRAM")


def _unpack(folder: Path) -> None:
    apt = Apt(folder / "apt", folder / "packages")
    lines = sources(SUITE, apt.mirrors())
    backports = lines[0].replace(f" {SUITE} ", f" {SUITE}-backports ")
    apt = Apt(folder / "apt", folder / "packages", sources=[*lines, backports])
    files = apt.fetch(apt.resolve([f"{name}/{SUITE}-backports" for name in _NEWER]))
    root = folder / "root"
    shutil.rmtree(root, ignore_errors=True)
    for deb in files.values():
        for info, reader in members(deb):
            place = inside(info.name)
            if place is None or not place.parts or place.parts[0] != "usr":
                continue
            path = root / place
            path.parent.mkdir(parents=True, exist_ok=True)
            if info.issym() and not path.is_symlink():
                path.symlink_to(info.linkname)
            elif reader is not None:
                with path.open("wb") as file:
                    shutil.copyfileobj(reader, file)
                path.chmod(stat.S_IMODE(info.mode))
    for scratch in ("packages", "apt"):
        shutil.rmtree(folder / scratch, ignore_errors=True)
