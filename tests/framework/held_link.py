"""A TCP link to a lender that can hold what was sent on it, and deliver it later than what was sent afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import random
from types import TracebackType
from typing import Self


class HeldLink:
    """Forwards connections to ``target`` on 127.0.0.1.

    `hold` keeps back what clients send on the connections that there are, as a network or a server does that got stuck;
    connections made later are not held. With ``cut``, every connection ends after about so many bytes from the target,
    at any place of a message.
    """

    def __init__(self, target: int, *, cut: int = 0) -> None:
        self._target = target
        self._cut = cut
        self._chance = random.Random(5)
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self) -> asyncio.Event:
        """Deliver nothing more of what comes on the connections that there are, until the returned event is set."""
        held, self._open = self._open, asyncio.Event()
        self._open.set()
        held.clear()
        return held

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._join(reader, writer, self._open))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        there, out = await asyncio.open_connection("127.0.0.1", self._target)
        left = self._chance.randrange(self._cut // 2, self._cut * 2) if self._cut else None
        try:
            await asyncio.gather(_forward(reader, out, gate), _forward(there, writer, None, left))
        finally:
            for end in (out, writer):
                end.close()


async def _forward(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event | None, left: int | None = None
) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(1 << 16):
            if gate:
                await gate.wait()
            target.write(data if left is None else data[:left])
            await target.drain()
            if left is not None and (left := left - len(data)) <= 0:
                target.close()
                return
    with contextlib.suppress(OSError):
        target.write_eof()
