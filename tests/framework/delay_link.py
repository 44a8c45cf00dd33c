"""A network namespace behind a link with a delay: what netem gives, without netem in the kernel.

Two TUN devices, one here and one in a new namespace, joined by a thread that holds each packet back for half the round
trip. Real IP packets cross it, so the kernel's own round-trip times see the delay. Needs root.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


@dataclass
class DelayLink:
    """A namespace ``name`` whose host is ``there``; ``here`` is this end. ``rtt`` in seconds may be changed any time;
    ``cut`` drops every packet."""

    name: str
    here: str
    there: str
    rtt: float
    cut: bool = False

    def command(self, *argv: str) -> list[str]:
        """Return ``argv`` as run in the namespace."""
        return ["ip", "netns", "exec", self.name, *argv]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


def _tun_inside(namespace: str, name: str) -> int:
    """Open a TUN device in another namespace; the thread that does it must not go on in there."""
    libc = ctypes.CDLL(None, use_errno=True)
    result: list[int] = []

    def work() -> None:
        with Path(f"/run/netns/{namespace}").open() as handle:
            if libc.setns(handle.fileno(), _CLONE_NEWNET) == 0:
                result.append(_tun(name))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if not result:
        raise OSError(f"cannot enter namespace {namespace}")
    return result[0]


@contextlib.contextmanager
def delay_link(rtt: float, *, mtu: int = 1500) -> Iterator[DelayLink]:
    """Make a namespace at the end of a link of ``rtt`` seconds; gone afterwards. With a large ``mtu``, up to
    65000, the relay is not what bounds throughput."""
    number = next(_numbers)
    mark = os.getpid() % 100_000
    name, near, far = f"vc{mark}n{number}", f"vca{mark}n{number}"[:15], f"vcb{mark}n{number}"[:15]
    net = f"10.{200 + number % 50}.{mark % 250}"
    link = DelayLink(name, f"{net}.1", f"{net}.2", rtt)
    with contextlib.ExitStack() as stack:
        _ip("netns", "add", name)
        stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False, capture_output=True)
        here = _tun(near)
        stack.callback(os.close, here)
        there = _tun_inside(name, far)
        stack.callback(os.close, there)
        _ip("addr", "add", f"{link.here}/30", "dev", near)
        _ip("link", "set", near, "mtu", str(mtu), "up")
        _ip("-n", name, "addr", "add", f"{link.there}/30", "dev", far)
        _ip("-n", name, "link", "set", far, "mtu", str(mtu), "up")
        _ip("-n", name, "link", "set", "lo", "up")
        wake_read, wake_write = os.pipe()
        stack.callback(os.close, wake_read)
        stack.callback(os.close, wake_write)
        thread = threading.Thread(target=_relay, args=(link, here, there, wake_read), daemon=True)
        thread.start()

        def end() -> None:
            os.write(wake_write, b".")
            thread.join(5)

        stack.callback(end)
        yield link


def _relay(link: DelayLink, here: int, there: int, wake: int) -> None:
    waiting: list[tuple[float, int, int, bytes]] = []
    order = itertools.count()
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([here, there, wake], [], [], timeout)
        if wake in readable:
            return
        now = time.monotonic()
        for source in readable:
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = os.read(source, 65536)
                    if not link.cut:
                        heapq.heappush(
                            waiting, (now + link.rtt / 2, next(order), there if source == here else here, packet)
                        )
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, target, packet = heapq.heappop(waiting)
            with contextlib.suppress(OSError):
                os.write(target, packet)
