"""Runs in a guest, as root: QEMU's `edu` device (docs/specs/edu of QEMU) computes, and copies memory by DMA.

    edu.py ADDRESS

Prints JSON: the `id`, whether it is ``alive``, what it makes of ``factorial`` 6, and how many bytes ``moved``
through it from one page of this process to another, unchanged.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import sys
import time
from pathlib import Path

PAGE, LENGTH = 4096, 2048  # QEMU 7.2 aborts on a DMA of the whole 4096 bytes of the device's buffer
BUFFER = 0x40000
ID, ALIVE, FACTORIAL, STATUS, SOURCE, TARGET, COUNT, COMMAND = 0, 4, 8, 0x20, 0x80, 0x88, 0x90, 0x98
RUN, FROM_DEVICE = 1, 2
DEADLINE = 60.0


def wait(ready):
    until = time.monotonic() + DEADLINE
    while not ready():
        if time.monotonic() > until:
            sys.exit("the device does not finish")
        time.sleep(0.02)


def physical(address):
    """Return the guest-physical address behind a resident page."""
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(address // PAGE * 8)
        (entry,) = struct.unpack("<Q", file.read(8))
    return (entry & ((1 << 55) - 1)) * PAGE


def main():
    folder = "/sys/bus/pci/devices/" + sys.argv[1]
    with Path(folder, "config").open("r+b", buffering=0) as config:
        config.seek(4)
        (command,) = struct.unpack("<H", config.read(2))
        config.seek(4)
        config.write(struct.pack("<H", command | 6))  # memory space, bus master
    file = os.open(folder + "/resource0", os.O_RDWR | os.O_SYNC)
    bar = mmap.mmap(file, 1 << 20)

    def word(offset, kind=ctypes.c_uint32):
        return kind.from_buffer(bar, offset)

    word(ALIVE).value = 0x12345678
    alive = word(ALIVE).value == ~0x12345678 & 0xFFFFFFFF
    word(FACTORIAL).value = 6
    wait(lambda: not word(STATUS).value & 1)
    memory = mmap.mmap(-1, 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = bytes(n * 13 + 5 & 0xFF for n in range(PAGE)) + bytes(PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    ctypes.CDLL(None).mlock(ctypes.c_void_p(start), 2 * PAGE)
    for source, target, how in (
        (physical(start), BUFFER, RUN),
        (BUFFER, physical(start + PAGE), RUN | FROM_DEVICE),
    ):
        for register, value in ((SOURCE, source), (TARGET, target), (COUNT, LENGTH), (COMMAND, how)):
            word(register, ctypes.c_uint64).value = value
        wait(lambda: not word(COMMAND, ctypes.c_uint64).value & RUN)
    same = memory[:LENGTH] == memory[PAGE : PAGE + LENGTH] and memory[PAGE + LENGTH :] == bytes(PAGE - LENGTH)
    found = {"id": word(ID).value, "alive": alive, "factorial": word(FACTORIAL).value, "moved": LENGTH * same}
    sys.stdout.write(json.dumps(found))


main()
