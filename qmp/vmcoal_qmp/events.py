"""Events as they come, and the streams that hand them to whoever waits for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from vmcoal_qmp.errors import QmpDisconnectedError, QmpError, QmpTimeoutError

STREAM_LIMIT = 1024


class Event(msgspec.Struct, frozen=True):
    """One event. ``timestamp`` in seconds of the host's clock when QEMU raised it, or -1 where QEMU had no clock."""

    name: str
    data: dict[str, Any] = {}
    timestamp: float = -1.0

    @staticmethod
    def from_message(message: dict[str, Any]) -> Event:
        """Build an event from its wire form (QMP specification, "Asynchronous events")."""
        stamp = message.get("timestamp") or {}
        seconds, micros = stamp.get("seconds", -1), stamp.get("microseconds", -1)
        when = seconds + micros / 1e6 if seconds >= 0 and micros >= 0 else -1.0
        return Event(message["event"], message.get("data") or {}, when)


class EventStream:
    """The events of one subscription, in order.

    It buffers at most ``limit`` events. When more arrive than are read, the *oldest* are dropped and counted in
    `dropped`: the event that ends a wait comes last, so a flood from the guest cannot hide it.

    When the connection ends, what is buffered is still delivered; then iteration stops if this side closed it, and
    raises `QmpDisconnectedError` otherwise. `wait_for` raises `QmpDisconnectedError` in both cases.
    """

    def __init__(self, *names: str, match: Callable[[Event], bool] | None = None, limit: int = STREAM_LIMIT) -> None:
        self.names = names
        self.dropped = 0
        self._match = match
        self._buffer: deque[Event] = deque(maxlen=limit)
        self._wake = asyncio.Event()
        self._over = False
        self._error: Exception | None = None

    def feed(self, event: Event) -> None:
        """Take ``event`` if the subscription asks for it. An exception of ``match`` ends this stream only."""
        if self._over or (self.names and event.name not in self.names):
            return
        try:
            if self._match is not None and not self._match(event):
                return
        except Exception as error:
            self.end(error)
            return
        if len(self._buffer) == self._buffer.maxlen:
            self.dropped += 1
        self._buffer.append(event)
        self._wake.set()

    def end(self, error: Exception | None) -> None:
        """No more events will come: because of ``error``, or (``None``) because this side closed."""
        if not self._over:
            self._over = True
            self._error = error
            self._wake.set()

    async def _next(self) -> Event:
        while not self._buffer:
            if self._over:
                if self._error is None:
                    raise StopAsyncIteration
                raise self._error
            self._wake.clear()
            await self._wake.wait()
        return self._buffer.popleft()

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        return await self._next()

    async def wait_for(self, predicate: Callable[[Event], bool] | None = None, *, deadline: float) -> Event:
        """Return the next event that ``predicate`` accepts (``None``: any), dropping those before it.

        Raises `QmpTimeoutError` after ``deadline`` seconds and `QmpDisconnectedError` when the connection ends.
        """
        try:
            async with asyncio.timeout(deadline) as limit:
                while True:
                    event = await self._next()
                    if predicate is None or predicate(event):
                        return event
        except StopAsyncIteration:
            raise QmpDisconnectedError(None, "the connection was closed while waiting for an event") from None
        except TimeoutError:
            if not limit.expired():
                raise
            raise QmpTimeoutError(None, deadline, self.names) from None


class EventHub:
    """Hands every event to all subscriptions. Used by `QmpClient`, and by stand-ins for it."""

    def __init__(self) -> None:
        self._streams: list[EventStream] = []
        self._ended = False
        self._error: QmpError | None = None

    @asynccontextmanager
    async def subscribe(self, *names: str, match: Callable[[Event], bool] | None = None) -> AsyncIterator[EventStream]:
        """Subscribe from now until the context ends to events called ``names`` (all, if none is given) that ``match``
        accepts."""
        stream = EventStream(*names, match=match)
        if self._ended:
            stream.end(self._error)
        self._streams.append(stream)
        try:
            yield stream
        finally:
            self._streams.remove(stream)

    def publish(self, event: Event) -> None:
        """Hand ``event`` to every subscription."""
        for stream in self._streams:
            stream.feed(event)

    def end(self, error: QmpError | None) -> None:
        """End every subscription, and those still to come."""
        self._ended = True
        self._error = error
        for stream in self._streams:
            stream.end(error)
