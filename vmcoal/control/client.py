"""The client's end of a control socket: one blocking call on one connection (`vmcoal.controller.api`).

It uses neither asyncio nor threads, so that a short command does not pay for them, and serves controllers and lenders
alike. `KeyboardInterrupt` during a call hangs up the sending half, which cancels the call, and waits for what the
other side says of its undo.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vmcoal.control.silence import Silence
from vmcoal.control.wire import MAX_LINE, Alive, Call, Failure, Input, Output, Progress, Reply, Result
from vmcoal.errors import (
    UNREADABLE,
    DeadlineError,
    InternalError,
    PrerequisiteError,
    UnreachableError,
    UsageError,
    VmcoalError,
)
from vmcoal.layout import check_listener

T = TypeVar("T")

_CHUNK = 32 * 1024
_UNDO_PATIENCE = 60.0
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


class NotListeningError(UnreachableError):
    """Nobody listens on the control socket: the process behind it does not run."""


class CancelledByUserError(KeyboardInterrupt):
    """Ctrl-C ended a call; ``error`` is what the other side said of it, or ``None`` where it said nothing."""

    def __init__(self, error: VmcoalError | None) -> None:
        super().__init__()
        self.error = error


def call(
    path: Path,
    method: str,
    params: msgspec.Struct | None = None,
    *,
    result: type[T],
    peer: str,
    on_progress: Callable[[Progress], None] | None = None,
    on_output: Callable[[Output], None] | None = None,
    on_cancel: Callable[[], None] | None = None,
    stdin: int | None = None,
    terminal_size: Callable[[], tuple[int, int]] | None = None,
    deadline: float | None = None,
) -> T:
    """Call ``method`` on the control socket ``path`` and return its result as ``result``.

    ``peer`` names the other side in errors (``"the controller of VM web"``). ``on_progress`` and ``on_output`` are
    called as replies come; ``on_cancel`` when Ctrl-C cancelled the call and its undo is awaited. ``stdin`` is a
    descriptor whose bytes are sent as `Input`, and ``terminal_size`` (rows, columns) is asked and sent after each
    SIGWINCH. ``deadline`` in seconds bounds the whole call; without one the other side's own deadlines hold, as long as
    it gives signs of life.

    Raises the error that the other side sent; `NotListeningError`; `UnreachableError` if it breaks off, is stopped or
    gives no sign of life; `DeadlineError`; `CancelledByUserError`.
    """
    with connect(path, peer) as sock, contextlib.ExitStack() as stack:
        session = _Session(sock, peer, None if deadline is None else time.monotonic() + deadline)
        session.queue(Call(method, {} if params is None else msgspec.to_builtins(params)))
        wake = stack.enter_context(_window_changes()) if terminal_size else None
        try:
            value = session.run(on_progress, on_output, stdin, wake, terminal_size)
        except KeyboardInterrupt:
            if on_cancel:
                on_cancel()
            raise CancelledByUserError(session.cancel()) from None
    try:
        return msgspec.convert(value, result, str_keys=True)
    except msgspec.ValidationError as error:
        raise InternalError(f"{peer} answered {method} with something else: {error}") from error


def connect(path: Path, peer: str, *, deadline: float = 5.0) -> socket.socket:
    """Return a connection to the Unix stream socket ``path``; raises `NotListeningError`, `UnreachableError`,
    `PrerequisiteError` if another user listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(deadline)
        sock.connect(os.fspath(path))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        sock.close()
        raise NotListeningError(f"{peer} does not run", socket=str(path)) from error
    except OSError as error:
        sock.close()
        reason = "it does not answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise UnreachableError(f"cannot reach {peer} at {path}: {reason}") from error
    try:
        check_listener(sock, path)
    except PrerequisiteError:
        sock.close()
        raise
    return sock


class _Session:
    """One connection while a call runs: bytes to send, bytes received, and whom to hand replies to."""

    def __init__(self, sock: socket.socket, peer: str, ends: float | None) -> None:
        self.sock = sock
        self.peer = peer
        self.ends = ends
        self.outgoing = bytearray()
        self.incoming = bytearray()
        self.silence = Silence(sock, peer)
        sock.setblocking(False)

    def queue(self, message: msgspec.Struct) -> None:
        try:
            self.outgoing += _encoder.encode(message) + b"\n"
        except UnicodeEncodeError as error:
            raise UsageError(f"an argument is not UTF-8: {error.object!r}", hint="give it in another way") from error

    def run(
        self,
        on_progress: Callable[[Progress], None] | None,
        on_output: Callable[[Output], None] | None,
        stdin: int | None,
        wake: int | None,
        terminal_size: Callable[[], tuple[int, int]] | None,
    ) -> Any:
        while True:
            poller = select.poll()
            poller.register(self.sock, select.POLLIN | (select.POLLOUT if self.outgoing else 0))
            if wake is not None:
                poller.register(wake, select.POLLIN)
            if stdin is not None and not self.outgoing:
                poller.register(stdin, select.POLLIN)
            began = time.monotonic()
            ready = dict(poller.poll(self._patience()))
            now = time.monotonic()
            if not ready.get(self.sock.fileno(), 0) & ~select.POLLOUT:
                self.silence.lasted(now - began)
            if self.ends is not None and now >= self.ends:
                raise self.silence.stopped() or DeadlineError(
                    f"{self.peer} did not finish in time",
                    hint="if it hangs, see its log and end it: what it holds outlives it, and another one goes on",
                )
            if wake is not None and wake in ready and terminal_size:
                os.read(wake, 64)
                rows, columns = terminal_size()
                self.queue(Input(rows=rows, columns=columns))
            if stdin is not None and stdin in ready:
                data = os.read(stdin, _CHUNK)
                self.queue(Input(data=data, eof=not data))
                if not data:
                    stdin = None
            self._send()
            if self.sock.fileno() not in ready or not ready[self.sock.fileno()] & ~select.POLLOUT:
                continue
            self.silence.broken()
            for reply in self._replies():
                if isinstance(reply, Alive):
                    continue
                if isinstance(reply, Result):
                    return reply.value
                if isinstance(reply, Failure):
                    raise VmcoalError.from_wire(reply.error)
                if isinstance(reply, Progress):
                    if on_progress:
                        on_progress(reply)
                elif on_output:
                    on_output(reply)

    def cancel(self) -> VmcoalError | None:
        """Hang up the sending half and return what the other side says; a second Ctrl-C ends the waiting."""
        self.ends = time.monotonic() + _UNDO_PATIENCE
        self.outgoing.clear()
        try:
            self.sock.shutdown(socket.SHUT_WR)
            self.run(None, None, None, None, None)
        except VmcoalError as error:
            return None if isinstance(error, UnreachableError | DeadlineError) and not error.left else error
        except OSError:
            return None
        return None

    def _patience(self) -> float:
        """Return for how many milliseconds nothing need be looked at."""
        ends = self.silence.LOOK if self.ends is None else self.ends - time.monotonic()
        return max(0.0, min(self.silence.LOOK, ends)) * 1000

    def _send(self) -> None:
        if not self.outgoing:
            return
        try:
            sent = self.sock.send(self.outgoing)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            sent = len(self.outgoing)  # what it had to say before it closed may still be readable
        del self.outgoing[:sent]

    def _replies(self) -> Iterator[Reply]:
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            raise UnreachableError(
                f"{self.peer} ended in the middle of the call",
                left="what was under way is finished or undone when it runs again",
            )
        self.incoming += data
        while (end := self.incoming.find(b"\n")) >= 0:
            line = bytes(self.incoming[:end])
            del self.incoming[: end + 1]
            try:
                yield _decoder.decode(line)
            except UNREADABLE as error:
                raise InternalError(f"{self.peer} sent a line that is not understood: {error}") from error
        if len(self.incoming) > MAX_LINE:
            raise InternalError(f"{self.peer} sent a line of more than {MAX_LINE} bytes")


@contextlib.contextmanager
def _window_changes() -> Iterator[int]:
    """Give a descriptor that becomes readable when the terminal's size changed."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def note(_number: int, _frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"w")

    before = signal.signal(signal.SIGWINCH, note)
    try:
        yield reader
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(reader)
        os.close(writer)
