"""One QMP connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, Runstate, StateError
from qemu.qmp import QMPError as LibraryError
from qemu.qmp.message import Message

from vmcoal_qmp.errors import QmpCommandError, QmpDisconnectedError, QmpError, QmpProtocolError, QmpTimeoutError
from vmcoal_qmp.events import Event, EventHub, EventStream
from vmcoal_qmp.transcript import Transcript
from vmcoal_qmp.types import Version, convert

_CLOSE_DEADLINE = 5.0
_UNANSWERED_LIMIT = 256


class _Quiet(logging.LoggerAdapter[logging.Logger]):
    """Everything at debug level: what goes wrong reaches the caller as an exception and needs no second voice."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        super().log(logging.DEBUG, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs


class _Wire(QMPClient):
    """The library's client, with a transcript, and with events handed on instead of collected.

    The library's own listener keeps every event for ever; a filter that takes none is its documented way out.
    """

    def __init__(self, transcript: Transcript | None, publish: Callable[[Event], None]) -> None:
        super().__init__()
        self.logger = _Quiet(logging.getLogger("vmcoal_qmp.wire"))  # type: ignore[assignment]
        self._transcript = transcript
        self._publish = publish
        self.unanswered = 0
        self.events.event_filter = self._hand_on

    def _hand_on(self, message: Message) -> bool:
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # an event of no known shape concerns nobody
            self._publish(Event.from_message(dict(message)))
        return False

    def _cb_outbound(self, msg: Message) -> Message:
        if self._transcript is not None:
            self._transcript.record("out", msg)
        self.unanswered += 1
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        if self._transcript is not None:
            self._transcript.record("in", msg)
        if "return" in msg or "error" in msg:
            self.unanswered -= 1
        return msg


class QmpClient:
    """One QMP connection, from `connect` to `close` or until QEMU ends it.

    Commands may be issued at once by several tasks; QEMU answers them in order. It satisfies `vmcoal.machine.seam`'s
    ``Monitor``.
    """

    def __init__(self, sock: socket.socket, transcript: Transcript | None) -> None:
        """Not for callers: use `connect`."""
        self._hub = EventHub()
        self._wire = _Wire(transcript, self._hub.publish)
        self._sock = sock
        self._closing = False
        self._lost: asyncio.Future[QmpDisconnectedError] = asyncio.get_running_loop().create_future()
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def version(self) -> Version:
        """QEMU's version, as its greeting told it."""
        greeting = self._wire.greeting
        if greeting is None:
            raise QmpProtocolError("connect", "there was no greeting")
        return convert("connect", greeting.QMP.version, Version)

    @classmethod
    async def connect(
        cls,
        address: str | os.PathLike[str] | socket.socket,
        *,
        transcript: Transcript | None = None,
        deadline: float = 10.0,
    ) -> QmpClient:
        """Connect to a monitor's Unix socket (or take over a connected socket) and negotiate capabilities.

        Raises `QmpDisconnectedError` where nothing listens or QEMU hangs up, `QmpTimeoutError` where nothing greets
        within ``deadline`` seconds (a monitor serves one client at a time: another one may hold it),
        `QmpProtocolError` where what answers is not QMP.
        """
        sock = address if isinstance(address, socket.socket) else socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            client = cls(sock, transcript)
            async with asyncio.timeout(deadline) as limit:
                if not isinstance(address, socket.socket):
                    await asyncio.get_running_loop().sock_connect(sock, os.fspath(address))
                await client._wire.connect(sock)
        except BaseException as error:
            sock.close()
            if isinstance(error, TimeoutError) and limit.expired():
                raise QmpTimeoutError("connect", deadline) from None
            cause = error.exc if isinstance(error, ConnectError) else error
            if isinstance(cause, EOFError):
                raise QmpDisconnectedError(None, "QEMU hung up before its greeting") from error
            if isinstance(cause, OSError):
                raise QmpDisconnectedError(None, f"cannot connect: {cause.strerror or cause}") from error
            if isinstance(error, LibraryError):
                raise QmpProtocolError("connect", str(cause)) from error
            raise
        client._supervisor = asyncio.create_task(client._supervise(), name="qmp-supervisor")
        return client

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, deadline: float = 30.0) -> Any:
        """Run one command and return its ``return`` value as plain data.

        Raises `QmpCommandError` when QEMU refuses it, `QmpTimeoutError` when there is no answer within ``deadline``
        seconds, `QmpDisconnectedError` when the connection is or gets lost, `QmpProtocolError` for an answer that is
        none, and `TypeError` or `ValueError` for arguments that are not JSON: nothing was sent then.

        After a time-out or a cancellation QEMU may still carry the command out; its late answer is dropped and the
        connection stays usable. A QEMU that owes 256 answers is sent nothing more until it answers:
        `QmpTimeoutError` at once.
        """
        message = {"execute": command} if arguments is None else {"execute": command, "arguments": arguments}
        # What QEMU cannot parse would cost the connection: refuse it here.
        json.dumps(message, allow_nan=False, ensure_ascii=False).encode()
        if self._lost.done():
            raise self._disconnected_during(command)
        if self._wire.unanswered >= _UNANSWERED_LIMIT:
            raise QmpTimeoutError(command, deadline)
        task = asyncio.ensure_future(self._wire.execute_msg(Message(message)))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await asyncio.wait((task, self._lost), timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        except ExecuteError as error:
            raise QmpCommandError(command, arguments, error.error_class, str(error)) from None
        except (ExecInterruptedError, StateError) as error:
            await asyncio.wait((self._lost,), timeout=_CLOSE_DEADLINE)
            raise self._disconnected_during(command) from error
        except LibraryError as error:
            raise QmpProtocolError(command, str(error)) from error
        finally:
            task.cancel()
        if self._lost.done():
            raise self._disconnected_during(command)
        raise QmpTimeoutError(command, deadline)

    def events(
        self, *names: str, match: Callable[[Event], bool] | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        """Subscribe to events called ``names`` (all, if none is given) that ``match`` accepts, from the moment the
        context is entered until it is left. See `EventStream` for what happens on overflow and disconnection."""
        return self._hub.subscribe(*names, match=match)

    @property
    def disconnected(self) -> asyncio.Future[QmpDisconnectedError]:
        """A future that is done when the connection has ended, from either side; its result says how. It never raises,
        and cancelling it (or a task that awaits it) leaves the connection alone."""
        return asyncio.shield(self._lost)

    async def close(self) -> None:
        """End the connection; idempotent, never raises. Commands still waiting raise `QmpDisconnectedError`."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._supervisor is not None:
            await asyncio.wait((self._supervisor,), timeout=_CLOSE_DEADLINE)

    async def __aenter__(self) -> QmpClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _disconnected_during(self, command: str) -> QmpDisconnectedError:
        reason = self._lost.result().reason if self._lost.done() else "the connection is being closed"
        return QmpDisconnectedError(command, reason)

    async def _supervise(self) -> None:
        """Wait for the end of the connection, reap the library's tasks, and tell everybody."""
        error: QmpError
        reason = "QEMU closed the connection"
        try:
            while self._wire.runstate is Runstate.RUNNING:
                await self._wire.runstate_changed()
            await self._wire.disconnect()
        except EOFError:
            pass
        except Exception as failure:  # whatever ended it, the connection is over
            reason = f"the connection broke: {failure or type(failure).__name__}"
        finally:
            if self._closing:
                reason = "the connection was closed on this side"
            error = QmpDisconnectedError(None, reason)
            if not self._lost.done():
                self._lost.set_result(error)
            self._hub.end(None if self._closing else error)
