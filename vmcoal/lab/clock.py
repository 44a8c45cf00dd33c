"""How fast this machine's time stamp counter runs, which is also the counter of the hosts that QEMU emulates.

A kernel that boots measures it against another clock. On a machine as busy as one that emulates several hosts the
measurement can be wrong by a factor, and then time in the host runs so much too fast and every deadline in it is too
short. So the hosts are told (``tsc_early_khz=``, Documentation/admin-guide/kernel-parameters.txt in Linux).
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable

_RDTSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl $32,%rdx; or %rdx,%rax; ret
_APART = 0.05
_TRIES = 100
_AGREE = 0.001


def tsc_khz() -> int:
    """Return the frequency in kHz, or 0 where it cannot be measured here. Takes a tenth of a second; blocks."""
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a system that lets no page be writable and run
        return 0
    page.write(_RDTSC)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    first = _look(read)
    time.sleep(_APART)
    second = _look(read)
    time.sleep(_APART)
    third = _look(read)
    once, again = _rate(first, second), _rate(second, third)
    return round(_rate(first, third)) if abs(once - again) < _AGREE * once else 0


def _look(read: Callable[[], int]) -> tuple[int, int]:
    """Return a time in ns and the counter then, of the try that took least."""
    tries = []
    for _ in range(_TRIES):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        counter = read()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        tries.append((after - before, (before + after) // 2, counter))
    return min(tries)[1:]


def _rate(first: tuple[int, int], second: tuple[int, int]) -> float:
    return (second[1] - first[1]) * 1e6 / (second[0] - first[0])
