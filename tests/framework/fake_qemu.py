"""A QMP server in this process, to be scripted by a test or driven by a recorded transcript."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from vmcoal_qmp import Transcript

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


class Tape(Transcript):
    """Records one session in a form that does not change from run to run: the folder of the test becomes ``$DIR``,
    an answer carries the number of the request it belongs to, times and thread numbers are fixed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "qmp.log")
        self._folder = str(folder)
        self._lines: list[dict[str, Any]] = []
        self._numbers: dict[Any, int] = {}

    def record(self, direction: str, message: Mapping[str, Any]) -> None:
        super().record(direction, message)
        plain = json.loads(json.dumps(dict(message)).replace(self._folder, "$DIR"))
        if direction == "out":
            self._numbers[plain.pop("id", None)] = len(self._numbers)
        elif "event" in plain:
            plain["timestamp"] = {"seconds": 1700000000, "microseconds": 0}
        elif "QMP" not in plain:
            plain["id"] = self._numbers[plain.get("id")]
        self._lines.append({"dir": direction, "msg": _steady(plain)})

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        quits = any(line["msg"].get("execute") == "quit" for line in self._lines)
        lines = [*self._lines, {"dir": "end"}] if quits else self._lines
        path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: 1 if key == "thread-id" and isinstance(item, int) and item > 9 else _steady(item)
            for key, item in value.items()
        }
    return [_steady(item) for item in value] if isinstance(value, list) else value


def replay(tape: Path, folder: Path) -> Script:
    """Return a script that plays QEMU's side of ``tape``: each request must be the recorded one, and gets what was said
    after it, events included, in the recorded order."""
    lines = [json.loads(line) for line in tape.read_text().replace("$DIR", str(folder)).splitlines()]

    async def script(peer: Peer) -> None:
        ids: list[Any] = []
        for line in lines:
            if line["dir"] == "end":
                peer.hang_up()
                return
            message = line["msg"]
            if line["dir"] == "in":
                if "id" in message:
                    answered = ids[message["id"]]
                    message = {key: value for key, value in message.items() if key != "id"}
                    message |= {} if answered is None else {"id": answered}
                await peer.send(message)
                continue
            request = await peer.receive()
            assert request is not None, f"{tape.name}: the client left before {message}"
            ids.append(request.pop("id", None))
            assert request == message, f"{tape.name}: the recorded client said {message}, this one {request}"
        await peer.until_gone()

    return script
