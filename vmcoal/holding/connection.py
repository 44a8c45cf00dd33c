"""One connection to the holder: requests answered in order, events in between."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from vmcoal.errors import UnreachableError
from vmcoal.holding.wire import FDS_MAX, PACKET_MAX, Packet, decode
from vmcoal.layout import check_listener

_FD_SPACE = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)


def _receive(sock: socket.socket) -> tuple[bytes, tuple[int, ...]]:
    data, control, _, _ = sock.recvmsg(PACKET_MAX, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, tuple(fds)


def _close_all(fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)


class Connection:
    """A connection. Answers come in the order of the requests, so any number of requests may be under way.

    ``on_event`` gets each event packet, ``on_lost`` is called once when the connection ended for any reason but
    `close`.
    """

    def __init__(
        self, sock: socket.socket, on_event: Callable[[Packet], None], on_lost: Callable[[UnreachableError], None]
    ) -> None:
        self._sock = sock
        self._on_event = on_event
        self._on_lost = on_lost
        self._pending: deque[asyncio.Future[Packet]] = deque()
        self._sending = asyncio.Lock()
        self._room = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._error: UnreachableError | None = None
        self._loop.add_reader(sock, self._readable)

    @classmethod
    def open(
        cls, path: Path, on_event: Callable[[Packet], None], on_lost: Callable[[UnreachableError], None]
    ) -> Connection:
        """Connect; raises `UnreachableError`, `PrerequisiteError` if another user listens there."""
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            sock.setblocking(False)
            try:
                # A Unix socket connects at once or not at all; a full backlog is EAGAIN.
                sock.connect(os.fspath(path))
            except OSError as error:
                raise UnreachableError(f"no holder answers at {path}: {error.strerror}") from error
            check_listener(sock, path)
            connection = cls(sock, on_event, on_lost)
            stack.pop_all()
        return connection

    @property
    def peer_pid(self) -> int:
        """The holder's pid as this process sees it."""
        credentials = array.array("i")
        credentials.frombytes(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return credentials[0]

    async def request(self, packet: bytes, fds: Sequence[int] = ()) -> Packet:
        """Send one request and return its answer, whose descriptors are the caller's.

        Raises `UnreachableError` where the connection is or gets lost. Cancelling it drops the answer, nothing else.
        """
        async with self._sending:
            await self._send(packet, fds)
            answer: asyncio.Future[Packet] = self._loop.create_future()
            self._pending.append(answer)
        try:
            return await answer
        except asyncio.CancelledError:
            # The answer may have come in the same turn of the loop as the cancellation.
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                _close_all(answer.result().fds)
            raise

    def close(self) -> None:
        """Hang up; requests under way fail. Idempotent."""
        self._end(UnreachableError("the connection to the holder was closed"))

    async def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while True:
            if self._error is not None:
                raise self._error
            try:
                self._sock.sendmsg([packet], control, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await self._writable()
            except ConnectionError as error:
                self._lose(f"the holder hung up: {error.strerror}")
            else:
                return

    async def _writable(self) -> None:
        room = asyncio.Event()
        self._room = room
        self._loop.add_writer(self._sock, room.set)
        try:
            await room.wait()
        finally:
            if self._error is None:
                self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data, fds = _receive(self._sock)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(f"the connection to the holder broke: {error.strerror}")
            return
        if not data:
            self._lose("the holder ended or hung up")
            return
        try:
            packet = decode(data, fds)
            if packet.head == "event":
                self._on_event(packet)
                return
        except UnreachableError as error:
            _close_all(fds)
            self._lose(error.message)
            return
        if not self._pending:
            _close_all(fds)
            self._lose("the holder answered what was not asked")
            return
        answer = self._pending.popleft()
        if answer.done():
            _close_all(fds)
        else:
            answer.set_result(packet)

    def _lose(self, message: str) -> None:
        error = UnreachableError(message)
        if self._end(error):
            self._on_lost(error)

    def _end(self, error: UnreachableError) -> bool:
        if self._error is not None:
            return False
        self._error = error
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        self._room.set()
        for answer in self._pending:
            if not answer.done():
                answer.set_exception(error)
        self._pending.clear()
        return True
