"""Listening TCP sockets of a lender and its servers."""

from __future__ import annotations

import errno
import socket

from vmcoal.errors import ConflictError, PrerequisiteError


def listen(host: str | None, port: int) -> socket.socket:
    """Return a listening TCP socket on ``host`` (``None``: every address, IPv4 and IPv6); raises `OSError`."""
    if host is None and socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=64, dualstack_ipv6=True)
    info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(info[4][:2], family=info[0], backlog=64)


def listen_on(host: str | None, port: int, ports: range) -> socket.socket:
    """Return a listening socket on ``port``, or on a free one of the data ports ``ports`` if it is 0 (empty: any).

    Raises `ConflictError` where they are taken, `PrerequisiteError` where ``host`` is no address of this host.
    """
    candidates = [port] if port else list(ports) or [0]
    for candidate in candidates:
        try:
            return listen(host, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PrerequisiteError(
                    f"cannot listen on {host or 'any address'}: {error.strerror}",
                    hint="list the addresses: ip -brief address",
                ) from error
    raise ConflictError(
        f"port {port} is taken" if port else f"no data port of {ports.start}-{ports.stop - 1} is free",
        hint="end what listens there: ss -ltnp",
    )
