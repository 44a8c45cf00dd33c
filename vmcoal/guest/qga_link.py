"""The wire to qemu-guest-agent: one command at a time, and both sides in step again after one that was given up.

Protocol: https://www.qemu.org/docs/master/interop/qemu-ga-ref.html. What the commands do is `vmcoal.guest.agent_qga`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from pathlib import Path
from typing import Any

import msgspec

from vmcoal.errors import DeadlineError, RefusedError, UnreachableError, VmcoalError
from vmcoal.guest.agent_link import guest_words

LINE_MAX = 24 << 20  # guest-exec hands over up to 16 MiB of output at once, in base64
UNSENT_MAX = 4 << 20
HINT = "install vmcoal's agent in the guest (guest-agent/README.md)"


class QgaLink:
    """A connection to qemu-guest-agent's port; made by `open_link`, in step after `sync`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._lock = asyncio.Lock()
        self._in_step = False
        self._lost: asyncio.Future[VmcoalError] = asyncio.get_running_loop().create_future()

    async def sync(self) -> None:
        """Bring both sides in step (guest-sync-delimited): what was answered before the 0xFF is dropped."""
        number = secrets.randbits(31)
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        self._send(b"\xff" + msgspec.json.encode(request) + b"\n")
        while True:
            await self._until(b"\xff")
            if (await self._line()).get("return") == number:
                self._in_step = True
                return

    def _send(self, data: bytes) -> None:
        if self._writer.transport.get_write_buffer_size() > UNSENT_MAX:
            raise self._lose("qemu-guest-agent has stopped reading")
        self._writer.write(data)

    async def _until(self, separator: bytes) -> bytes:
        try:
            return await self._reader.readuntil(separator)
        except asyncio.LimitOverrunError as error:
            raise self._lose("the guest floods the channel of qemu-guest-agent") from error
        except (asyncio.IncompleteReadError, OSError) as error:
            raise self._lose("qemu-guest-agent hung up") from error

    async def _line(self) -> dict[str, Any]:
        line = await self._until(b"\n")
        try:
            answer = msgspec.json.decode(line.strip(b"\xff\r\n \0"))
        except (ValueError, RecursionError):
            return {}
        return answer if isinstance(answer, dict) else {}

    def _lose(self, reason: str) -> UnreachableError:
        error = UnreachableError(reason, hint="see `vmcoal console`")
        if not self._lost.done():
            self._lost.set_result(error)
            self._writer.transport.abort()
        return error

    async def execute(self, command: str, arguments: dict[str, Any] | None, deadline: float) -> Any:
        """Return what ``command`` returns; raises `RefusedError` if it fails, `DeadlineError` after ``deadline``
        seconds, `UnreachableError` once the connection is lost."""
        request: dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        try:
            async with asyncio.timeout(deadline), self._lock:
                if self._lost.done():
                    raise self._lost.result()
                if not self._in_step:
                    await self.sync()
                self._in_step = False
                self._send(msgspec.json.encode(request) + b"\n")
                answer = await self._line()
                self._in_step = True
        except TimeoutError as error:
            raise DeadlineError(
                f"qemu-guest-agent did not answer to {command} within {deadline:g} s",
                hint="the guest may hang or be overloaded: look at `vmcoal console`",
            ) from error
        if "error" in answer:
            error_ = answer["error"] if isinstance(answer["error"], dict) else {}
            raise RefusedError(
                f"qemu-guest-agent refuses {command}: {guest_words(error_.get('desc'))}",
                hint=HINT if error_.get("class") == "CommandNotFound" else None,
            )
        return answer.get("return")

    async def wait_lost(self) -> VmcoalError:
        """Wait until the connection is lost, which is noticed at the next command only; return why."""
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        """Hang up. Idempotent."""
        self._lose("the connection to qemu-guest-agent was closed")
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def open_link(path: Path) -> QgaLink:
    """Connect to qemu-guest-agent's socket; raises `UnreachableError`."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=LINE_MAX)
    except OSError as error:
        raise UnreachableError(
            f"cannot connect to {path}: {error.strerror}", hint="is the VM running? see `vmcoal status`"
        ) from error
    return QgaLink(reader, writer)
