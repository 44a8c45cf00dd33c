"""A controller (or lender) that answers from a script, over a real control socket.

    with FakeController(path, {"attach": [Progress(1, 2, "…"), Result(…)]}) as fake:
        …
    assert fake.calls == [Call("attach", {...})]

A script is a list of replies, or a function that gets the call and a `Conversation` and yields replies.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from vmcoal.control.wire import API, Call, Failure, Input, Reply, Result
from vmcoal.errors import UsageError, VmcoalError

_PATIENCE = 20.0


class Conversation:
    """One client: what it sent after its call, and whether it hung up."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb")
        self.inputs: list[Input] = []
        self.hung_up = threading.Event()

    def read_call(self) -> Call | None:
        line = self._file.readline()
        return msgspec.json.decode(line, type=Call) if line else None

    def read_input(self) -> Input | None:
        """Wait for the next input; ``None`` when the client hung up."""
        line = self._file.readline()
        if not line:
            self.hung_up.set()
            return None
        self.inputs.append(msgspec.json.decode(line, type=Input))
        return self.inputs[-1]

    def send(self, reply: Reply) -> None:
        self._sock.sendall(msgspec.json.encode(reply) + b"\n")

    def send_raw(self, data: bytes) -> None:
        self._sock.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._file.close()
        self._sock.close()


Script = Iterable[Reply] | Callable[[Call, Conversation], Iterable[Reply]]


class FakeController:
    """Serves scripts by method name; ``calls`` and ``conversations`` keep what came."""

    def __init__(self, path: Path, scripts: dict[str, Script]) -> None:
        self.path = path
        self.scripts = scripts
        self.calls: list[Call] = []
        self.conversations: list[Conversation] = []
        self.failures: list[BaseException] = []
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name=f"fake {path.name}", daemon=True)

    def __enter__(self) -> FakeController:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.send(b"x")
        for conversation in self.conversations:
            with contextlib.suppress(OSError):
                conversation._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(_PATIENCE)
        assert not self._thread.is_alive(), "the fake controller hangs"
        self._listener.close()
        self._stop.close()
        self._stopped.close()
        self.path.unlink()
        if self.failures and exc[0] is None:
            raise self.failures[0]

    def last(self, method: str) -> dict[str, Any]:
        """Return the params of the last call of ``method``."""
        return [call.params for call in self.calls if call.method == method][-1]

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener, self._stopped], [], [], _PATIENCE)
            if self._listener not in ready:
                return
            sock, _ = self._listener.accept()
            sock.settimeout(_PATIENCE)
            conversation = Conversation(sock)
            self.conversations.append(conversation)
            try:
                self._talk(conversation)
            except BrokenPipeError:
                conversation.hung_up.set()
            except OSError:
                pass
            except BaseException as error:
                self.failures.append(error)
            finally:
                conversation.close()

    def _talk(self, conversation: Conversation) -> None:
        call = conversation.read_call()
        if call is None:
            return
        assert call.api == API
        self.calls.append(call)
        script = self.scripts.get(call.method)
        if script is None:
            script = [failure(UsageError(f"the fake has no method {call.method!r}"))]
        for reply in script(call, conversation) if callable(script) else script:
            conversation.send(reply)


def failure(error: VmcoalError) -> Failure:
    """Return an error as the reply that carries it."""
    return Failure(error.to_wire())


def result(value: Any) -> Result:
    """Return a result as the wire carries it: plain data."""
    return Result(msgspec.to_builtins(value, str_keys=True))
