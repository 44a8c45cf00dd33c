"""A small Linux in a QEMU of `framework.qemu`: the default image's kernel and programs, with an init of its own that
only gets out of the way. The console says QMP-READY, QMP-RNG when there is a virtio-rng,
QMP-GRAINS when virtio-mem has its driver."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from framework.qemu import BareQemu, running_qemu, topology
from vmcoal.guest.images import ensure_default_image
from vmcoal_qmp import Transcript

WILLING = "memhp_default_state=online_movable"
"""Kernel argument: far memory can leave again."""

UNWILLING = "memhp_default_state=online_kernel qmp.pin"
"""Kernel argument: the kernel keeps data of its own in node 2 as soon as that has memory; the console says
QMP-PINNED."""

_BOOT_DEADLINE = 120.0
_ARGUMENTS = "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check cryptomgr.notests rdinit=/qmp-init"
_INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
exec >/dev/console 2>&1
modprobe virtio_pci
modprobe virtio_mem
(until grep -q 0x1044 /sys/bus/pci/devices/*/device; do sleep 0.1; done; echo QMP-RNG) &
(until ls /sys/bus/virtio/drivers/virtio_mem/virtio* >/dev/null 2>&1; do sleep 0.1; done; echo QMP-GRAINS) &
echo QMP-READY
if grep -q qmp.pin /proc/cmdline; then
    until grep -q online /sys/devices/system/node/node2/memory*/state 2>/dev/null; do sleep 0.1; done
    cd /tmp && numactl --membind=2 mkdir $(seq 20000)
    echo QMP-PINNED
fi
while :; do sleep 1000; done
"""


class Console:
    """What the guest writes to its serial console, read as it comes so that the guest never waits."""

    def __init__(self, fd: int) -> None:
        self.text = b""
        self._fd = fd
        self._news = asyncio.Event()
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._read)

    async def until(self, word: str, *, deadline: float = _BOOT_DEADLINE) -> None:
        """Wait until the guest has written ``word``."""
        try:
            async with asyncio.timeout(deadline):
                while word.encode() not in self.text:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(
                f"the guest did not say {word}: {self.text[-2000:].decode(errors='replace')}"
            ) from None

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        data = os.read(self._fd, 1 << 16)
        if data:
            self.text += data
            self._news.set()
        else:
            asyncio.get_running_loop().remove_reader(self._fd)


@asynccontextmanager
async def running_linux(
    binary: str, folder: Path, mood: str, *, transcript: Transcript | None = None
) -> AsyncIterator[tuple[BareQemu, Console]]:
    """Run Linux in the far-node machine, stopped before its first instruction; ``cont`` boots it."""
    image = ensure_default_image()
    folder.mkdir(parents=True, exist_ok=True)
    initrd = folder / "initrd"
    initrd.write_bytes(image.initrd.read_bytes() + _archive("qmp-init", _INIT.encode()))
    ours, theirs = os.pipe()
    console = Console(ours)
    try:
        argv = [
            *topology(),
            *("-kernel", str(image.kernel), "-initrd", str(initrd), "-append", f"{_ARGUMENTS} {mood}"),
            *("-chardev", f"file,id=console,path=/dev/fd/{theirs}", "-serial", "chardev:console"),
        ]
        async with running_qemu(binary, folder, argv, transcript=transcript, fds=[theirs]) as qemu:
            os.close(theirs)
            theirs = -1
            yield qemu, console
    finally:
        console.close()
        if theirs >= 0:
            os.close(theirs)


def _archive(name: str, data: bytes) -> bytes:
    """Return a cpio archive (newc, see the kernel's buffer-format.rst) of one executable file."""
    out = b""
    for inode, (path, mode, body) in enumerate(((name, 0o100755, data), ("TRAILER!!!", 0, b"")), 1):
        fields = (inode, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(path) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % value for value in fields) + path.encode() + b"\0"
        out += header + b"\0" * (-len(header) % 4) + body + b"\0" * (-len(body) % 4)
    return out
