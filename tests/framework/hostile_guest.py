"""A scripted peer on the host end of an agent's socket, for guests that lie, flood, stall or hang up."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any


class Peer:
    """One connection of the host: what it said, and what to answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def frame(self) -> dict[str, Any]:
        """Return the next frame of the host."""
        while True:
            line = await self.reader.readline()
            if not line:
                raise ConnectionResetError("the host hung up")
            line = line.strip(b"\xff\n")
            if line:
                frame: dict[str, Any] = json.loads(line)
                return frame

    async def send(self, *frames: dict[str, Any] | bytes) -> None:
        for frame in frames:
            self.writer.write(frame if isinstance(frame, bytes) else json.dumps(frame).encode() + b"\n")
        await self.writer.drain()

    async def greet(self, **fields: Any) -> str:
        """Answer the hello as the agent does; return the session."""
        session = str((await self.frame())["hello"]["session"])
        await self.send({"hello": {"version": 1, "session": session, "agent": "6.6.6", "calls": [], **fields}})
        return session

    async def request(self) -> dict[str, Any]:
        """Return the next call, hellos left out."""
        while "call" not in (frame := await self.frame()):
            pass
        return frame


Script = Callable[[Peer], Awaitable[None]]


@contextlib.asynccontextmanager
async def guest_on(path: Path, script: Script) -> AsyncIterator[list[BaseException]]:
    """Serve ``script`` on ``path``, once for each connection; the list gets what a script raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tasks: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(Peer(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, json.JSONDecodeError):
            pass
        except Exception as error:
            failures.append(error)
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield failures
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not failures
