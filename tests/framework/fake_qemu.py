"""A QMP server in this process, to be scripted by a test or driven by a recorded transcript."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "fake"}, "capabilities": []}}


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._text = ""
        self.requests: list[dict[str, Any]] = []

    async def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self._writer.write(json.dumps(message).encode() + b"\r\n")
        await self._writer.drain()

    async def send_raw(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> dict[str, Any] | None:
        """Return the next request, or `None` when the client hung up. It ends where its braces close, as for QEMU."""
        while True:
            self._text = self._text.lstrip()
            try:
                request, end = json.JSONDecoder().raw_decode(self._text)
            except ValueError:
                more = await self._reader.read(1 << 16)
                if not more:
                    return None
                self._text += more.decode()
                continue
            self._text = self._text[end:]
            self.requests.append(request)
            return dict(request)

    async def answer(self, value: Any) -> dict[str, Any] | None:
        """Receive one request and return ``value`` to it."""
        request = await self.receive()
        if request is not None:
            await self.send({"return": value, "id": request.get("id")})
        return request

    async def handshake(self, greeting: dict[str, Any] = GREETING) -> None:
        await self.send(greeting)
        request = await self.receive()
        assert request is None or request["execute"] == "qmp_capabilities"
        await self.send({"return": {}})

    def hang_up(self) -> None:
        self._writer.close()

    async def until_gone(self) -> None:
        while await self.receive() is not None:
            pass


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def qmp_server(path: Path, script: Script) -> AsyncIterator[Path]:
    """Serve ``script`` on Unix socket ``path``, each connection by its own call; its failures fail the test."""
    sessions: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer))
        except ConnectionError:
            pass
        finally:
            writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sessions.add(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_unix_server(accepted, path)
    try:
        yield path
    finally:
        server.close()
        _done, late = await asyncio.wait(sessions, timeout=5) if sessions else (set(), set())
        for task in late:
            task.cancel()
        await asyncio.gather(*sessions)
