"""The control socket: one call for each connection, progress while it runs, a hang-up cancels it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from vmcoal.control.wire import (
    ALIVE_INTERVAL,
    API,
    MAX_LINE,
    Alive,
    Call,
    Failure,
    Input,
    Output,
    Progress,
    Reply,
    Result,
)
from vmcoal.errors import (
    UNREADABLE,
    ConflictError,
    InternalError,
    PrerequisiteError,
    UnreachableError,
    UsageError,
    VmcoalError,
)
from vmcoal.model.guest import CommandInput

log = logging.getLogger(__name__)

_CALL_DEADLINE = 10.0
_SEND_DEADLINE = 30.0
_CLOSE_DEADLINE = 60.0


class Client:
    """The peer of one call: progress and output go to it, input comes from it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._encoder = msgspec.json.Encoder()
        self.inputs: asyncio.Queue[CommandInput] = asyncio.Queue(maxsize=64)
        """What the client sends while its call runs."""

    def report(
        self, step: int, steps: int, text: str, fraction: float | None = None, detail: str | None = None
    ) -> None:
        """Send progress; dropped if the client does not read."""
        self._write_if_read(Progress(step, steps, text, fraction, detail))

    async def keep_alive(self) -> None:
        """Say again and again that the call runs, until cancelled."""
        while True:
            self._write_if_read(Alive())
            await asyncio.sleep(ALIVE_INTERVAL)

    async def output(self, stream: int, data: bytes) -> None:
        """Send output of a command, waiting for a slow client."""
        self._write(Output(stream, data))
        await self._drain()

    async def finish(self, reply: Result | Failure) -> None:
        """Send the last reply."""
        self._write(reply)
        await self._drain()

    async def read_call(self) -> Call:
        """Return the call; raises `UsageError` if it is none."""
        line = await self._reader.readline()
        return msgspec.json.decode(line, type=Call)

    async def pump(self) -> None:
        """Read inputs until the client hangs up."""
        decoder = msgspec.json.Decoder(Input)
        with contextlib.suppress(ValueError, ConnectionError, *UNREADABLE):
            while line := await self._reader.readline():
                item = decoder.decode(line)
                await self.inputs.put(CommandInput(data=item.data, eof=item.eof, rows=item.rows, columns=item.columns))

    def _write_if_read(self, reply: Reply) -> None:
        if self._writer.transport.get_write_buffer_size() < MAX_LINE:
            self._write(reply)

    def _write(self, reply: Reply) -> None:
        self._writer.write(self._encoder.encode(reply) + b"\n")

    async def _drain(self) -> None:
        async with asyncio.timeout(_SEND_DEADLINE):
            await self._writer.drain()


Handler = Callable[[dict[str, Any], Client], Awaitable[Any]]


class ControlServer:
    """Serves methods on a Unix socket of mode 0600 to the same user and root.

    ``what`` names the daemon for people; ``look`` is the command that shows how it is, ``log`` says where its log is.
    """

    def __init__(self, path: Path, methods: dict[str, Handler], *, what: str, look: str, log: str) -> None:
        self._path = path
        self._methods = methods
        self._what = what
        self._look = look
        self._log = log
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._work: set[asyncio.Future[Any]] = set()

    async def start(self) -> None:
        """Listen. A socket that nobody answers is replaced; raises `ConflictError` if somebody does."""
        if self._path.exists():
            try:
                _, writer = await asyncio.wait_for(asyncio.open_unix_connection(self._path), 2.0)
            except (OSError, TimeoutError):
                self._path.unlink(missing_ok=True)
            else:
                writer.close()
                raise ConflictError(f"{self._what} runs already", hint=self._look)
        try:
            mask = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(self._serve, self._path, limit=MAX_LINE)
            finally:
                os.umask(mask)
        except OSError as error:
            raise PrerequisiteError(f"cannot listen on {self._path}: {error.strerror}") from error

    async def close(self) -> None:
        """Stop listening and cancel what is under way; its operations are undone and its callers told first."""
        if self._server is not None:
            self._server.close()
        for work in list(self._work):
            work.cancel()
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=_CLOSE_DEADLINE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        try:
            if _peer_uid(writer) not in (0, os.geteuid()):
                return
            await self._answer(Client(reader, writer))
        except (ConnectionError, TimeoutError):
            log.debug("a client went away")
        except asyncio.CancelledError:
            log.debug("a call was cancelled")
        finally:
            self._calls.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, client: Client) -> None:
        try:
            async with asyncio.timeout(_CALL_DEADLINE):
                call = await client.read_call()
            if call.api != API:
                raise PrerequisiteError(
                    f"{self._what} speaks API {API}, the command {call.api}", hint="restart it with the same vmcoal"
                )
            handler = self._methods.get(call.method)
            if handler is None:
                raise UsageError(f"{self._what} has no method {call.method!r}")
        except (ValueError, *UNREADABLE) as error:
            await client.finish(Failure(UsageError(f"not a call: {error}").to_wire()))
            return
        except VmcoalError as error:
            await client.finish(Failure(error.to_wire()))
            return
        await client.finish(await self._run(handler, call, client))

    async def _run(self, handler: Handler, call: Call, client: Client) -> Result | Failure:
        work = asyncio.ensure_future(handler(call.params, client))
        self._work.add(work)
        work.add_done_callback(self._work.discard)
        pump = asyncio.create_task(client.pump())
        alive = asyncio.create_task(client.keep_alive())
        try:
            await asyncio.wait({work, pump}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                log.info("%s: the client hung up, cancelling", call.method)
                work.cancel()
            return Result(await work)
        except VmcoalError as error:
            return Failure(error.to_wire())
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            return Failure(UsageError(f"{call.method}: {error}").to_wire())
        except asyncio.CancelledError:
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            return Failure(UnreachableError(f"{call.method} was cancelled", hint=self._look).to_wire())
        except Exception as error:
            log.exception("%s failed", call.method)
            return Failure(InternalError(f"{call.method} failed: {error!r}", hint=self._log).to_wire())
        finally:
            pump.cancel()
            alive.cancel()
            await asyncio.gather(pump, alive, return_exceptions=True)


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    sock: socket.socket = writer.get_extra_info("socket")
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)
