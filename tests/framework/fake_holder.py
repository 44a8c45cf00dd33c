"""A holder in memory, verified: tests/contract/test_holder_contract.py runs on it and on the real one.

Children are not processes. What a program does is looked up by the name of its executable; by default it runs until it
is stopped. Tests end children with `FakeHolder.end`, and see what was spawned in `FakeHolder.spawned`.
"""

from __future__ import annotations

import asyncio
import os
from builtins import list as List  # noqa: N812
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    PrerequisiteError,
    UnreachableError,
    UsageError,
)
from vmcoal.holding.client import ChildSpec, ChildState, ChildStatus, ExitEvent, ExitStatus, Holder, Restart
from vmcoal.holding.wire import encode_spawn
from vmcoal.layout import NAME_PATTERN, Folders

_RESTART_DELAY = 0.1
_IDLE_SIGNALS = {17, 18, 23, 28}  # CHLD, CONT, URG, WINCH: ignored by default


@dataclass(frozen=True)
class Program:
    """What an executable does: exits at once with ``code``, or runs; ``ignores`` some signals; or is not there."""

    code: int | None = None
    ignores: frozenset[int] = frozenset()
    missing: bool = False


@dataclass
class _Child:
    spec: ChildSpec
    program: Program
    status: ChildStatus
    stopping: bool = False
    in_a_row: int = 0
    timer: asyncio.TimerHandle | None = None


class FakeHolder(Holder):
    """The interface of `Holder` without processes. ``programs`` by name of the executable."""

    def __init__(self, programs: Mapping[str, Program] | None = None, *, name: str = "fake") -> None:
        super().__init__()
        self._programs = dict(programs or {})
        self._name = name
        self._pid = os.getpid()
        self._children: dict[str, _Child] = {}
        self._kept: dict[str, int] = {}
        self._next_pid = 1 << 22
        self._closing: float | None = None
        self.spawned: List[ChildSpec] = []

    @classmethod
    async def start(cls, folders: Folders, *, name: str, deadline: float) -> FakeHolder:
        return cls(name=name)

    @classmethod
    async def connect(cls, socket: Path, *, deadline: float) -> FakeHolder:
        raise UnreachableError(f"no holder answers at {socket}: fakes have no socket")

    async def spawn(self, spec: ChildSpec) -> int:
        self._alive()
        _check(spec)
        if self._closing is not None:
            raise ConflictError("the holder is ending", errno="ESHUTDOWN")
        if spec.id in self._children:
            raise ConflictError(f"child {spec.id} exists", errno="EEXIST")
        program = self._programs.get(Path(spec.argv[0]).name, Program())
        if program.missing:
            raise PrerequisiteError(f"cannot execute {spec.argv[0]}: No such file or directory", errno="ENOENT")
        status = ChildStatus(id=spec.id, pid=0, state=ChildState.RUNNING, restarts=0, code=0, signal=0, dropped=0)
        child = self._children[spec.id] = _Child(spec, program, status)
        self.spawned.append(spec)
        self._run(child)
        return child.status.pid

    async def list(self) -> List[ChildStatus]:
        self._alive()
        return [child.status for child in self._children.values()]

    async def signal(self, id: str, signal: int) -> None:  # noqa: A002
        child = self._find(id)
        if child.status.state is not ChildState.RUNNING:
            raise ConflictError(f"child {id} does not run", errno="ESRCH")
        if not 1 <= signal <= 64:
            raise UsageError("sig must be a number from 1 to 64", errno="EINVAL")
        if signal not in child.program.ignores and signal not in _IDLE_SIGNALS:
            self._soon(child, ChildState.SIGNALED, 0, signal)

    async def stop(self, id: str, grace: float = 5.0) -> ExitStatus:  # noqa: A002
        self._stop(self._find(id), grace)
        return await self.wait(id, grace + 10)

    async def wait(self, id: str, deadline: float) -> ExitStatus:  # noqa: A002
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[ExitStatus] = loop.create_future()

        def look(event: ExitEvent) -> None:
            if event.id == id and not ended.done() and (status := event.exit_status()):
                ended.set_result(status)

        if status := self._find(id).status.exit_status():
            return status
        unwatch = await self.watch(look)
        lost = asyncio.ensure_future(self._lost.wait())
        either: set[asyncio.Future[Any]] = {ended, lost}
        try:
            await asyncio.wait(either, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        finally:
            unwatch()
            lost.cancel()
        if ended.done():
            return ended.result()
        self._alive()
        raise DeadlineError(f"child {id} did not end within {deadline:g} s", left=f"child {id}")

    async def forget(self, id: str) -> None:  # noqa: A002
        if self._find(id).status.live:
            raise ConflictError(f"child {id} has not ended", errno="EBUSY")
        del self._children[id]

    async def keep(self, name: str, fd: int) -> None:
        self._alive()
        if name in self._kept:
            raise ConflictError(f"descriptor {name} is kept already", errno="EEXIST")
        self._kept[name] = os.dup(fd)

    async def fetch(self, name: str) -> int:
        return os.dup(self._kept_fd(name))

    async def drop(self, name: str) -> None:
        os.close(self._kept_fd(name))
        del self._kept[name]

    async def names(self) -> set[str]:
        self._alive()
        return set(self._kept)

    async def watch(self, callback: Callable[[ExitEvent], None]) -> Callable[[], None]:
        self._alive()
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    async def wait_lost(self) -> None:
        await self._lost.wait()

    async def shutdown(self, grace: float = 5.0) -> None:
        if self._lost.is_set():
            return
        self._closing = grace
        mains = [child for child in self._live() if child.spec.main]
        for child in mains or self._live():
            self._stop(child, grace)
        self._review()
        await self._lost.wait()

    async def close(self) -> None:
        self.lose("the connection to the holder was closed")

    def end(self, id: str, *, code: int = 0, signal: int = 0) -> None:  # noqa: A002
        """Let a running child end."""
        self._ended(self._children[id], ChildState.SIGNALED if signal else ChildState.EXITED, code, signal)

    def lose(self, message: str = "the holder ended or hung up") -> None:
        """Let the holder die, and its children with it."""
        for child in self._children.values():
            if child.timer:
                child.timer.cancel()
        for fd in self._kept.values():
            os.close(fd)
        self._kept.clear()
        self._loss = UnreachableError(message)
        self._lost.set()

    def _alive(self) -> None:
        if self._lost.is_set():
            raise self._loss

    def _find(self, id: str) -> _Child:  # noqa: A002
        self._alive()
        if id not in self._children:
            raise NotFoundError(f"no child {id}", errno="ENOENT")
        return self._children[id]

    def _kept_fd(self, name: str) -> int:
        self._alive()
        if name not in self._kept:
            raise NotFoundError(f"no descriptor {name} is kept", errno="ENOENT")
        return self._kept[name]

    def _live(self) -> List[_Child]:
        return [child for child in self._children.values() if child.status.live]

    def _run(self, child: _Child) -> None:
        self._next_pid += 1
        child.status = replace(child.status, pid=self._next_pid, state=ChildState.RUNNING)
        if child.program.code is not None:
            self._soon(child, ChildState.EXITED, child.program.code, 0)

    def _soon(self, child: _Child, state: ChildState, code: int, signal: int) -> None:
        pid = child.status.pid

        def end() -> None:
            if child.status.state is ChildState.RUNNING and child.status.pid == pid:
                self._ended(child, state, code, signal)

        asyncio.get_running_loop().call_soon(end)

    def _stop(self, child: _Child, grace: float) -> None:
        child.stopping = True
        if child.timer:
            child.timer.cancel()
        if child.status.state is ChildState.WAITING:
            ended = ChildState.SIGNALED if child.status.signal else ChildState.EXITED
            self._settle(child, ended, child.status.code, child.status.signal)
        elif child.status.live and SIGTERM not in child.program.ignores:
            self._soon(child, ChildState.SIGNALED, 0, SIGTERM)
        elif child.status.live:
            kill = (child, ChildState.SIGNALED, 0, SIGKILL)
            child.timer = asyncio.get_running_loop().call_later(grace, self._soon, *kill)

    def _ended(self, child: _Child, state: ChildState, code: int, signal: int) -> None:
        spec = child.spec
        failed = state is ChildState.SIGNALED or code != 0
        if spec.restart is Restart.ON_FAILURE and failed and not child.stopping and child.in_a_row < spec.restart_max:
            delay = _RESTART_DELAY * 2**child.in_a_row
            child.in_a_row += 1
            child.timer = asyncio.get_running_loop().call_later(delay, self._restart, child)
            child.status = replace(child.status, state=ChildState.WAITING, code=code, signal=signal)
            self._tell(child, state, restarting=True)
        else:
            self._settle(child, state, code, signal)

    def _restart(self, child: _Child) -> None:
        child.status = replace(child.status, restarts=child.status.restarts + 1)
        self._run(child)

    def _settle(self, child: _Child, state: ChildState, code: int, signal: int) -> None:
        if child.timer:
            child.timer.cancel()
        child.status = replace(child.status, state=state, code=code, signal=signal)
        self._tell(child, state, restarting=False)
        if child.spec.main:
            self._closing = 5.0 if self._closing is None else self._closing
            for other in self._live():
                self._stop(other, self._closing)
        self._review()

    def _review(self) -> None:
        if self._closing is not None and not self._live():
            self.lose()

    def _tell(self, child: _Child, state: ChildState, *, restarting: bool) -> None:
        status = child.status
        event = ExitEvent(
            id=status.id, pid=status.pid, state=state, code=status.code, signal=status.signal, restarting=restarting
        )
        for callback in tuple(self._watchers):
            callback(event)


def _check(spec: ChildSpec) -> None:
    encode_spawn(spec)
    if not spec.argv:
        raise UsageError("spawn needs arg", errno="EINVAL")
    if not NAME_PATTERN.fullmatch(spec.id.replace(".", "-").replace("_", "-")):
        raise UsageError("id must be 1 to 64 of a-z 0-9 . _ -", errno="EINVAL")
    if any(not 3 <= target <= 255 for target in spec.fds):
        raise UsageError("fd must be 3 to 255", errno="EINVAL")
