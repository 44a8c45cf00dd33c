"""A Prometheus endpoint on asyncio: GET /metrics and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable

from vmcoal.errors import ConflictError, PrerequisiteError, UsageError

_HEADER_LIMIT = 8192
_DEADLINE = 10.0


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; raises `UsageError`."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{address!r} is not an address", hint="write it as 127.0.0.1:9464")
    return host.strip("[]") or "127.0.0.1", int(port)


def check_address(address: str) -> None:
    """Raise `ConflictError` if ``address`` is taken, `PrerequisiteError` if it cannot be had."""
    host, port = parse_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"{address} is taken", hint="choose another one: --metrics HOST:PORT; who has it: ss -ltnp"
            ) from error
        raise PrerequisiteError(
            f"cannot listen on {address} for metrics: {error.strerror}", hint="list the addresses: ip -brief address"
        ) from error


async def serve_metrics(address: str, exposition: Callable[[], Awaitable[str]]) -> None:
    """Serve until cancelled; raises `PrerequisiteError` if the address cannot be had."""

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
        raise PrerequisiteError(
            f"cannot listen on {address} for metrics: {error.strerror}", hint="choose another --metrics address"
        ) from error
    async with server:
        await server.serve_forever()
