"""Measuring a link: round trips of our own messages, and what the kernel saw on the same connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from vmcoal.model.link import LinkSample

MOST_PINGS = 10_000
_CONNECTIONS = 3
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# struct tcp_info of <linux/tcp.h>: eight bytes of flags, then u32 and u64 fields whose offsets never change; newer
# kernels append.
_RTT_OFFSET = 68
_MIN_RTT_OFFSET = 148
_LARGEST_TCP_INFO = 512
_UNKNOWN = 0xFFFFFFFF


def boot_id() -> str:
    """Return the id of this kernel's boot (proc(5), random/boot_id), or an empty text where there is none."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def same_boot(one: str, other: str) -> bool:
    """Return whether two boot ids are known and the same: both ends run on one kernel."""
    return bool(one) and one == other


def kernel_rtt(sock: socket.socket) -> float | None:
    """Return the smallest round trip in seconds that the kernel saw on a TCP socket, or ``None`` if it does not say.

    ``tcpi_min_rtt`` (a windowed minimum, Linux 4.6), else the smoothed ``tcpi_rtt``; TCP_INFO, tcp(7).
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LARGEST_TCP_INFO)
    except OSError:
        return None
    return parse_tcp_info(info)


def parse_tcp_info(info: bytes) -> float | None:
    """Return the smallest (else the smoothed) round trip in seconds from a ``struct tcp_info`` of any length."""
    for offset in (_MIN_RTT_OFFSET, _RTT_OFFSET):
        if len(info) >= offset + 4:
            (microseconds,) = struct.unpack_from("=I", info, offset)
            if microseconds not in (0, _UNKNOWN):
                return float(microseconds) / 1e6
    return None


async def connect_rtt(address: str, port: int, *, deadline: float) -> float | None:
    """Return the smallest round trip in seconds of a few connections made for it, or ``None`` if none was.

    ``tcpi_min_rtt`` of a connection that lives is the smallest of minutes (net.ipv4.tcp_min_rtt_wlen): it hides that a
    link has got worse. The kernels of both ends time a handshake without our software.
    """
    found = []
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(deadline):
            for _ in range(_CONNECTIONS):
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                with socket.socket(family, socket.SOCK_STREAM) as sock:
                    sock.setblocking(False)
                    await asyncio.get_running_loop().sock_connect(sock, (address, port))
                    found.append(kernel_rtt(sock))
    return min((seconds for seconds in found if seconds is not None), default=None)


async def sample_link(
    ping: Callable[[], Awaitable[float]], kernel: Callable[[], Awaitable[float | None]], count: int
) -> LinkSample:
    """Return ``count`` round trips made one after the other with ``ping``, after one that warms the path up."""
    await ping()
    pings = []
    for _ in range(max(1, min(count, MOST_PINGS))):
        pings.append(await ping())
        await asyncio.sleep(0)
    return LinkSample(tuple(pings), await kernel())
