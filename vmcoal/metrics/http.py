"""A Prometheus endpoint on asyncio: GET /metrics and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable

from vmcoal.errors import ConflictError, PrerequisiteError, UsageError, VmcoalError
from vmcoal.model.units import is_host, parse_port

_HEADER_LIMIT = 8192
_DEADLINE = 10.0


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; raises `UsageError`."""
    host, colon, port = address.rpartition(":")
    host, number = host.strip("[]") or "127.0.0.1", parse_port(port)
    if not colon or number is None or not is_host(host):
        raise UsageError(f"{address!r} is not an address", hint="write it as 127.0.0.1:9464")
    return host, number


def check_address(address: str) -> None:
    """Raise `UsageError` if ``address`` is none, `ConflictError` if it is taken, `PrerequisiteError` if this host does
    not have it or this user may not listen there."""
    host, port = parse_address(address)
    if not port:
        raise UsageError(f"{address} names no port to scrape", hint="write it as 127.0.0.1:9464")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise _refused(address, host, port, error) from error


def _refused(address: str, host: str, port: int, error: OSError) -> VmcoalError:
    """Return the error that says why nothing can listen on ``address``."""
    what = f"cannot serve metrics on {address}"
    here = "this host's addresses: ip -brief address; only from here: 127.0.0.1:9464"
    if isinstance(error, socket.gaierror) or (error.errno or 0) < 0:  # create_server passes on its number only
        return PrerequisiteError(f"{what}: {host!r} is no address and no name that can be resolved", hint=here)
    if error.errno == errno.EADDRINUSE:
        return ConflictError(
            f"{what}: it is taken", hint="choose another one: --metrics HOST:PORT; who has it: ss -ltnp"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return PrerequisiteError(f"{what}: {host} is no address of this host", hint=here)
    if error.errno == errno.EACCES:
        return PrerequisiteError(f"{what}: this user may not listen on port {port}", hint="choose a port above 1023")
    if error.errno == errno.EINVAL and host.startswith("fe80"):
        hint = f"say of which interface: [{host}%eth0]:{port}"
        return PrerequisiteError(f"{what}: a link-local address belongs to an interface", hint=hint)
    return PrerequisiteError(f"{what}: {os.strerror(error.errno) if error.errno else error}", hint=here)


async def serve_metrics(address: str, exposition: Callable[[], Awaitable[str]]) -> None:
    """Serve until cancelled; raises as `check_address`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_DEADLINE):
                request = await reader.readuntil(b"\r\n\r\n")
                if request.split(b"\r\n", 1)[0].split()[:2] == [b"GET", b"/metrics"]:
                    status, body = "200 OK", (await exposition()).encode()
                else:
                    status, body = "404 Not Found", b"GET /metrics\n"
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        writer.close()

    host, port = parse_address(address)
    try:
        server = await asyncio.start_server(serve, host, port, limit=_HEADER_LIMIT)
    except OSError as error:
        raise _refused(address, host, port, error) from error
    async with server:
        await server.serve_forever()
