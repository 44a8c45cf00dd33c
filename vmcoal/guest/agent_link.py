"""The wire to the vmcoal agent: bounded frames, one session, requests and answers (docs/internals/agent-protocol.md).

The guest is not trusted: a frame is at most `MAX_FRAME` bytes, what nobody asked for is dropped, and a guest that sends
more of it than `Budget` allows is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from vmcoal.errors import DeadlineError, RefusedError, UnreachableError, VmcoalError

PROTOCOL = 1
MAX_FRAME = 256 * 1024
MAX_EVENTS = 65536
_READ = 64 * 1024
_UNSENT_MAX = 1 << 20
_EMPTY = 16  # handling a line costs time, however short it is
_USELESS = 256
_INSTALL = "install the agent in the guest (guest-agent/README.md), or boot an image that has it"

Event = dict[str, Any]
OnEvent = Callable[[Event], bool]


def guest_words(text: object, limit: int = 300) -> str:
    """Return what the guest said as one printable line of at most ``limit`` characters, safe for a terminal."""
    words = "".join(char if char.isprintable() else " " for char in str(text)[: limit * 4])
    return " ".join(words.split())[:limit]


class FrameReader:
    """Cuts a byte stream into lines of at most ``limit`` bytes; longer ones are dropped up to their newline.

    ``dropped`` counts the bytes of dropped lines so far, an empty one as `_EMPTY`.
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._dropping = False
        self.dropped = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take ``data`` and yield the lines that it completes, empty ones left out."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            if self._take(part):
                line = bytes(self._buffer).strip()
                if line:
                    yield line
                else:
                    self.dropped += _EMPTY
            self._buffer.clear()
            self._dropping = False
        self._take(rest)

    def _take(self, part: bytes) -> bool:
        if not self._dropping and len(self._buffer) + len(part) <= self._limit:
            self._buffer += part
            return True
        self.dropped += len(self._buffer) + len(part)
        self._buffer.clear()
        self._dropping = True
        return False


class Budget:
    """How many useless bytes a guest may send: ``size`` at once, refilled by ``rate`` bytes a second."""

    def __init__(self, size: int = 4 << 20, rate: int = 256 << 10) -> None:
        self._size = size
        self._rate = rate
        self._left = float(size)
        self._at = time.monotonic()

    def spend(self, count: int) -> bool:
        """Take ``count`` bytes off; return whether that was allowed."""
        now = time.monotonic()
        self._left = min(self._size, self._left + (now - self._at) * self._rate) - count
        self._at = now
        return self._left >= 0


class _Pending:
    """A request that waits for its answer."""

    def __init__(self, future: asyncio.Future[Any], on_event: OnEvent | None, events: float) -> None:
        self.future = future
        self.on_event = on_event
        self.events = events


class Link:
    """One connection to the agent's socket. Made by `open_link`; `hello` begins the session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._session = secrets.token_hex(8)
        self._hello: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._pending: dict[int, _Pending] = {}
        self._next = 1
        self._budget = Budget()
        self._lost: asyncio.Future[VmcoalError] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._read())

    # -- session

    async def hello(self, *, wait: float, wake: asyncio.Event | None = None) -> Event | None:
        """Say hello (again) and return the agent's, or ``None`` if it said nothing within ``wait`` seconds.

        ``wake`` ends the wait early and is cleared. Saying hello again is harmless: the session stays the same. Raises
        `UnreachableError` when the socket closes and `RefusedError` when the agent speaks no common version.
        """
        hello = {"hello": {"versions": [PROTOCOL], "session": self._session}}
        self._write(b"\n" + msgspec.json.encode(hello) + b"\n")
        waker = asyncio.create_task(wake.wait()) if wake else None
        waits: list[asyncio.Future[Any]] = [self._hello, self._lost, *([waker] if waker else [])]
        try:
            await asyncio.wait(waits, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if waker:
                waker.cancel()
        if self._hello.done():
            answer = self._hello.result()
            if answer.get("version") != PROTOCOL:
                raise RefusedError(
                    f"the agent in the guest speaks versions {guest_words(answer.get('versions'), 40)} of the protocol,"
                    f" this vmcoal speaks {PROTOCOL}",
                    hint="install the agent that comes with this vmcoal in the guest (guest-agent/README.md)",
                )
            return answer
        if self._lost.done():
            raise self._lost.result()
        if wake:
            wake.clear()
        return None

    async def wait_lost(self) -> VmcoalError:
        """Wait until the connection is gone and return why."""
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        """Close the connection; what waits for an answer fails."""
        self._lose(UnreachableError("the connection to the guest's agent was closed"))
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    # -- requests

    def begin(
        self, call: str, args: Event, on_event: OnEvent | None = None, *, endless: bool = False
    ) -> tuple[int, asyncio.Future[Any]]:
        """Send a request; its id and the future of its answer. The caller must `forget` it if it stops waiting.

        ``on_event`` gets the request's events and returns whether they made sense; it must not block. Unless
        ``endless``, more than `MAX_EVENTS` of them make no sense.
        """
        rid, self._next = self._next, self._next + 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._write(msgspec.json.encode({"id": rid, "call": call, "args": args}) + b"\n")
        self._pending[rid] = _Pending(future, on_event, math.inf if endless else MAX_EVENTS)
        return rid, future

    def notify(self, call: str, args: Event) -> None:
        """Send a request that wants no answer; does nothing on a lost connection."""
        if not self._lost.done():
            self._write(msgspec.json.encode({"call": call, "args": args}) + b"\n")

    def forget(self, rid: int) -> None:
        """Stop waiting for a request."""
        pending = self._pending.pop(rid, None)
        if pending:
            pending.future.cancel()

    async def call(
        self, call: str, args: Event, *, deadline: float | None, on_event: OnEvent | None = None, cancel: bool = False
    ) -> Event:
        """Send a request and return its answer.

        ``deadline`` in seconds; ``cancel``: tell the agent when nobody waits any more. Raises `DeadlineError`,
        `UnreachableError`, and `AgentError` for what the agent answered.
        """
        rid, future = self.begin(call, args, on_event)
        try:
            async with asyncio.timeout(deadline):
                answer: Event = await future
        except TimeoutError as error:
            raise DeadlineError(
                f"the guest's agent did not answer to {call} within {deadline:g} s",
                hint="the guest may hang or be overloaded: look at `vmcoal console`",
            ) from error
        finally:
            if cancel and not (future.done() and not future.cancelled()):
                self.notify("cancel", {"id": rid})
            self.forget(rid)
        return answer

    # -- inside

    def _write(self, data: bytes) -> None:
        if self._lost.done():
            raise self._lost.result()
        if self._writer.transport.get_write_buffer_size() > _UNSENT_MAX:
            self._lose(UnreachableError("the guest's agent has stopped reading", hint=_INSTALL))
            raise self._lost.result()
        self._writer.write(data)

    def _lose(self, error: VmcoalError) -> None:
        """End the connection; every waiting request fails with ``error``."""
        if self._lost.done():
            return
        self._lost.set_result(error)
        self._writer.transport.abort()
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)
                pending.future.exception()  # an abandoned one must not be reported as never retrieved
        self._pending.clear()

    async def _read(self) -> None:
        frames = FrameReader()
        dropped = 0
        reason = "the guest's agent hung up"
        try:
            while data := await self._reader.read(_READ):
                for line in frames.feed(data):
                    if not self._take(line) and not self._budget.spend(max(len(line), _USELESS)):
                        raise UnreachableError(
                            "the guest floods the agent channel", hint="restart the agent in the guest"
                        )
                if not self._budget.spend(frames.dropped - dropped):
                    raise UnreachableError("the guest floods the agent channel", hint="restart the agent in the guest")
                dropped = frames.dropped
        except UnreachableError as error:
            self._lose(error)
        except OSError as error:
            reason = f"the connection to the guest's agent broke: {error.strerror}"
        finally:
            self._lose(UnreachableError(reason, hint="is the VM still running? see `vmcoal status`"))

    def _take(self, line: bytes) -> bool:
        """Handle one frame; return whether it was of use."""
        try:
            frame = msgspec.json.decode(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(frame, dict):
            return False
        if "hello" in frame:
            hello = frame["hello"]
            if not isinstance(hello, dict) or hello.get("session") != self._session:
                return False
            if not self._hello.done():
                self._hello.set_result(hello)
                return True
            return False
        rid = frame.get("id")
        pending = self._pending.get(rid) if type(rid) is int and self._hello.done() else None
        if pending is None or pending.future.done():
            return False
        if "event" in frame:
            pending.events -= 1
            return pending.events >= 0 and bool(pending.on_event and pending.on_event(frame))
        if isinstance(frame.get("ok"), dict):
            pending.future.set_result(frame["ok"])
            return True
        error = frame.get("error")
        if not isinstance(error, dict):
            return False
        failure = to_error(error)
        pending.future.set_exception(failure)
        if isinstance(failure, UnreachableError):
            self._lose(failure)
        return True


class AgentError(Exception):
    """What the agent answered: ``code`` (an errno name, ``unsupported``, …) and the ``items`` done before it.

    Stays inside `vmcoal.guest`, where `VmcoalAgent` makes one of vmcoal's own errors of it.
    """

    def __init__(self, code: str, message: str, items: list[Any]) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.items = items


def to_error(error: Event) -> AgentError | UnreachableError:
    """Return the error that an answer stands for."""
    code, message = guest_words(error.get("code"), 40), guest_words(error.get("message"))
    if code == "no_session":
        return UnreachableError("the guest's agent was restarted", hint="try again; the controller connects anew")
    items = error.get("items")
    return AgentError(code, message, items if isinstance(items, list) else [])


async def open_link(path: Path) -> Link:
    """Connect to the host end of the agent's port; raises `UnreachableError`."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=_READ)
    except OSError as error:
        raise UnreachableError(
            f"cannot connect to {path}: {error.strerror}", hint="is the VM running? see `vmcoal status`"
        ) from error
    return Link(reader, writer)
