"""The holder as its clients see it: `Holder` starts one, finds one, and asks it for everything it can do."""

from __future__ import annotations

import asyncio
import contextlib
import os
from builtins import list as List  # noqa: N812 - within `Holder`, list is a method
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    ExecutionError,
    NotFoundError,
    PrerequisiteError,
    RefusedError,
    UnreachableError,
    UsageError,
    VmcoalError,
)
from vmcoal.holding.binaries import find_binary
from vmcoal.holding.children import (
    ChildSpec,
    ChildState,
    ChildStatus,
    ExitEvent,
    ExitRecord,
    ExitStatus,
    Restart,
    read_exits,
)
from vmcoal.holding.connection import Connection
from vmcoal.holding.launch import end_holder, end_of_process, launch, launched
from vmcoal.holding.wire import Field, Packet, encode, encode_spawn, parse_child, parse_exit
from vmcoal.layout import Folders

__all__ = [
    "ChildSpec",
    "ChildState",
    "ChildStatus",
    "ExitEvent",
    "ExitRecord",
    "ExitStatus",
    "Holder",
    "Restart",
    "read_exits",
]

_ANSWER = 30.0
_DEATH = 30.0
_Errors = Mapping[str, type[VmcoalError]]
_ERRORS: _Errors = {
    "ENOENT": NotFoundError,
    "EEXIST": ConflictError,
    "EBUSY": ConflictError,
    "ESRCH": ConflictError,
    "ESHUTDOWN": ConflictError,
    "ENOSPC": RefusedError,
    "EPROTONOSUPPORT": RefusedError,
    "ENOSYS": RefusedError,
    "EINVAL": UsageError,
    "EBADF": UsageError,
    "E2BIG": UsageError,
}
_SPAWN_ERRORS: _Errors = {
    **_ERRORS,
    "ENOENT": PrerequisiteError,
    "EACCES": PrerequisiteError,
    "ENOEXEC": PrerequisiteError,
    "ENOTDIR": PrerequisiteError,
    "ELOOP": PrerequisiteError,
}


class Holder:
    """A connection to a running holder.

    Every method may raise `UnreachableError` (the holder ended or hung up; this object is then of no more use) and
    `DeadlineError` (it did not answer within 10 s). Methods may be called concurrently. Closing it leaves the holder
    and its children as they are.
    """

    def __init__(self) -> None:
        self._watchers: List[Callable[[ExitEvent], None]] = []
        self._lost = asyncio.Event()
        self._loss = UnreachableError("the connection to the holder was closed")
        self._ends: List[_End] = []
        self._events = False
        self._turning_on = asyncio.Lock()
        self._connection: Connection
        self._pid = 0
        self._name = ""

    @classmethod
    async def start(cls, folders: Folders, *, name: str, deadline: float) -> Self:
        """Start a holder that outlives this process, its session and its terminal, and connect to it.

        ``folders`` must exist; ``name`` is shown by ps. Raises `ConflictError` where a holder serves these folders,
        `PrerequisiteError` where the program is missing, `ExecutionError` where it fails, `DeadlineError`. A start that
        is cancelled or late leaves no holder behind.
        """
        binary = find_binary("vmcoal-holder")
        arguments = ("--detach", "--socket", folders.holder_socket, "--exits", folders.exits, "--name", name)
        task = asyncio.ensure_future(launch(binary, arguments))
        try:
            async with asyncio.timeout(deadline):
                await asyncio.shield(task)
                return await cls.connect(folders.holder_socket, deadline=deadline)
        except BaseException as error:
            if await launched(task):
                end_holder(folders.holder_socket)
            if isinstance(error, TimeoutError):
                raise DeadlineError(f"the holder did not start within {deadline:g} s") from None
            raise

    @classmethod
    async def connect(cls, socket: Path, *, deadline: float) -> Self:
        """Connect to the holder that listens at ``socket``.

        Raises `UnreachableError` where there is none, `RefusedError` where it is of another version, `DeadlineError`.
        """
        holder = cls()
        holder._connection = Connection.open(socket, holder._on_event, holder._on_lost)
        with contextlib.ExitStack() as stack:
            stack.callback(holder._connection.close)
            try:
                hello = await holder._ask("hello", ("version", 1), deadline=deadline)
            except RefusedError as error:
                error.hint = "end it with the version of vmcoal that started it"
                raise
            holder._pid = holder._connection.peer_pid
            holder._name = hello.get("name")
            stack.pop_all()
        return holder

    @property
    def pid(self) -> int:
        """The holder's process."""
        return self._pid

    @property
    def name(self) -> str:
        """The name it was started with."""
        return self._name

    async def spawn(self, spec: ChildSpec) -> int:
        """Run a program and return its pid once it is executing.

        Raises `PrerequisiteError` where the program, folder, log folder or cgroup is missing or forbidden,
        `ConflictError` where the id is known already or the holder is ending, `UsageError` where the spec makes no
        sense, `ExecutionError` for other failures. Nothing is left behind.
        """
        packet, fds = encode_spawn(spec)
        return int((await self._request(packet, fds, errors=_SPAWN_ERRORS)).get("pid"))

    async def list(self) -> List[ChildStatus]:
        """Return the children, ended ones too until they are forgotten."""
        return [parse_child(text) for text in (await self._ask("list")).all("child")]

    async def signal(self, id: str, signal: int) -> None:  # noqa: A002
        """Send a signal to a child. Raises `NotFoundError`, and `ConflictError` where it does not run."""
        await self._ask("signal", ("id", id), ("sig", int(signal)))

    async def stop(self, id: str, grace: float = 5.0) -> ExitStatus:  # noqa: A002
        """End a child and return how it ended: SIGTERM now, SIGKILL to its process group after ``grace`` seconds.

        It is not restarted. One that has ended already is left as it is. Raises `NotFoundError`, and `DeadlineError`
        where it outlives its SIGKILL by 10 s (the kernel holds it).
        """

        async def ask() -> ChildStatus:
            answer = await self._ask("stop", ("id", id), ("grace-ms", _milliseconds(grace)))
            return parse_child(answer.get("child"))

        return await self._until_ended(id, ask, grace + _DEATH)

    async def wait(self, id: str, deadline: float) -> ExitStatus:  # noqa: A002
        """Wait until a child has ended for good and return how. Raises `NotFoundError`, `DeadlineError`."""

        async def ask() -> ChildStatus:
            for child in await self.list():
                if child.id == id:
                    return child
            raise NotFoundError(f"no child {id}")

        return await self._until_ended(id, ask, deadline)

    async def forget(self, id: str) -> None:  # noqa: A002
        """Forget an ended child, so that its id can be used again. Raises `NotFoundError`, `ConflictError`."""
        await self._ask("forget", ("id", id))

    async def keep(self, name: str, fd: int) -> None:
        """Leave a copy of ``fd`` with the holder as ``name``. Raises `ConflictError` where the name is taken."""
        await self._request(encode("keep", ("name", name)), [fd])

    async def fetch(self, name: str) -> int:
        """Return a copy of a kept descriptor, which is the caller's. Raises `NotFoundError`."""
        answer = await self._ask("fetch", ("name", name))
        if len(answer.fds) != 1:
            for fd in answer.fds:
                os.close(fd)
            raise UnreachableError(f"the holder sent {len(answer.fds)} descriptors for {name}")
        return answer.fds[0]

    async def drop(self, name: str) -> None:
        """Close a kept descriptor. Raises `NotFoundError`."""
        await self._ask("drop", ("name", name))

    async def names(self) -> set[str]:
        """Return the names of the kept descriptors."""
        return set((await self._ask("names")).all("name"))

    async def watch(self, callback: Callable[[ExitEvent], None]) -> Callable[[], None]:
        """Call ``callback`` at each end of a child from now on; return a function that ends this.

        An event comes after the child's last output is in its log. The loss of the holder is no event: see `wait_lost`.
        """
        self._watchers.append(callback)

        def unwatch() -> None:
            with contextlib.suppress(ValueError):
                self._watchers.remove(callback)

        try:
            await self._events_on()
        except BaseException:
            unwatch()
            raise
        return unwatch

    async def wait_lost(self) -> None:
        """Return when the holder has ended or hung up, or this object was closed."""
        await self._lost.wait()

    async def shutdown(self, grace: float = 5.0) -> None:
        """Stop every child and wait until the holder is gone. One that is gone already is fine.

        The main child goes first, within ``grace`` seconds, because it uses what the others serve; then they get as
        much. Raises `DeadlineError` where a child outlives its SIGKILL by 10 s.
        """
        if self._lost.is_set():
            return
        try:
            # The connection ends with the process, but a moment before it.
            async with asyncio.timeout(2 * grace + _DEATH), end_of_process(self._pid):
                with contextlib.suppress(UnreachableError):
                    await self._ask("shutdown", ("grace-ms", _milliseconds(grace)))
                await self._lost.wait()
        except TimeoutError:
            raise DeadlineError(
                "the holder did not end: one of its children outlives SIGKILL", left=f"the holder, pid {self._pid}"
            ) from None

    async def close(self) -> None:
        """Hang up. Idempotent; the holder and its children live on."""
        self._connection.close()
        self._on_lost(self._loss)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _request(
        self, packet: bytes, fds: Sequence[int] = (), *, deadline: float = _ANSWER, errors: _Errors = _ERRORS
    ) -> Packet:
        try:
            async with asyncio.timeout(deadline):
                answer = await self._connection.request(packet, fds)
        except TimeoutError:
            raise DeadlineError(f"the holder did not answer within {deadline:g} s") from None
        if answer.head == "ok":
            return answer
        if answer.head != "error":
            raise UnreachableError(f"the holder answered {answer.head[:32]!r}")
        name = answer.get("errno")
        raise errors.get(name, ExecutionError)(answer.get("message"), errno=name)

    async def _ask(self, verb: str, *fields: Field, deadline: float = _ANSWER) -> Packet:
        return await self._request(encode(verb, *fields), deadline=deadline)

    async def _events_on(self) -> None:
        async with self._turning_on:
            if not self._events:
                await self._ask("watch")
                self._events = True

    async def _until_ended(self, id: str, ask: Callable[[], Awaitable[ChildStatus]], deadline: float) -> ExitStatus:  # noqa: A002
        end = _End(id)
        self._ends.append(end)
        try:
            async with asyncio.timeout(deadline):
                # Listen first, look then: an end in between is seen twice rather than never.
                await self._events_on()
                if status := (await ask()).exit_status():
                    return status
                await end.come.wait()
        except TimeoutError:
            raise DeadlineError(f"child {id} did not end within {deadline:g} s", left=f"child {id}") from None
        finally:
            self._ends.remove(end)
        if end.status is None:
            raise self._loss
        return end.status

    def _on_event(self, packet: Packet) -> None:
        event = parse_exit(packet)
        if event is None:
            return
        for end in self._ends:
            if end.id == event.id and not event.restarting:
                end.status = event.exit_status()
                end.come.set()
        for callback in tuple(self._watchers):
            callback(event)

    def _on_lost(self, error: UnreachableError) -> None:
        self._loss = error
        self._lost.set()
        for end in self._ends:
            end.come.set()


@dataclass
class _End:
    """Someone waits for the end of a child; ``come`` without ``status``: the holder was lost."""

    id: str
    come: asyncio.Event = field(default_factory=asyncio.Event)
    status: ExitStatus | None = None


def _milliseconds(seconds: float) -> int:
    return max(0, round(seconds * 1000))
