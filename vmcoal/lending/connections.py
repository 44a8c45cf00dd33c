"""Who is connected to a memory server, as the kernel tells: a data connection outlives the session that made it.

The kernel ends a connection whose peer is gone within `LOST` seconds, so one that is established is a sign of life.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from pathlib import Path

LOST = 25
"""Seconds after which a connection to a host that vanished is over, whether something was under way on it or not."""

_IDLE, _INTERVAL, _PROBES = 10, 5, 3
_ESTABLISHED = "01"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


def notice_loss(listener: socket.socket) -> None:
    """Have the kernel look after the connections that ``listener`` accepts, also in the program it is handed to:
    accepted sockets inherit these options (tcp(7), socket(7))."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST * 1000)


def peers_of(port: int, tables: tuple[Path, ...] = _TABLES) -> set[str]:
    """Return the IP addresses that have an established connection to local TCP ``port`` (proc(5), /proc/net/tcp)."""
    found = set()
    for table in tables:
        try:
            rows = table.read_text().splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == _ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(_address(fields[2].rpartition(":")[0]))
    return found


def plain(address: str) -> str:
    """Return an IP address in one form: no zone, and IPv4 as such where it is mapped into IPv6."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = parsed.ipv4_mapped if parsed.version == 6 else None
    return str(mapped or parsed)


def _address(text: str) -> str:
    # Each 32-bit word is printed as a number of this host's byte order.
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    order = "<" if sys.byteorder == "little" else ">"
    return plain(str(ipaddress.ip_address(struct.pack(f"{order}{len(words)}I", *words))))
