"""A QMP monitor in memory: `FakeMachine` behaves as QEMU does, with a guest as the test wants it, and fails on demand.

    qmp = FakeMonitor()
    qmp.guest.unplug["dimm-1"] = "refuse"
    qmp.fail("device_add", QmpCommandError("device_add", None, "GenericError", "no"), carried_out=False)
    held = qmp.hold("object-add")

It is verified: tests/contract/test_qmp_contract.py runs on it and on real QEMUs, and tests/guest/test_qmp_guest.py
holds its guest against Linux.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from framework.fake_machine import FakeMachine, RefusalError
from vmcoal_qmp import (
    Event,
    EventHub,
    EventStream,
    QmpCommandError,
    QmpDisconnectedError,
    QmpTimeoutError,
)

Arguments = dict[str, Any]


@dataclass
class Fault:
    """What goes wrong, at the next ``times`` commands called ``command`` that ``when`` accepts."""

    command: str
    error: Exception
    when: Callable[[Arguments], bool]
    times: int
    carried_out: bool


@dataclass
class Hold:
    """A command that is kept from answering. ``reached`` is set when it was carried out; `release` lets it answer."""

    command: str
    when: Callable[[Arguments], bool]
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    _go: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        self._go.set()

    async def wait(self) -> None:
        self.reached.set()
        await self._go.wait()


def always(_arguments: Arguments) -> bool:
    return True


class FakeMonitor(FakeMachine):
    """Implements ``vmcoal.machine.seam.Monitor`` over a `FakeMachine`."""

    def __init__(self, **machine: Any) -> None:
        super().__init__(**machine)
        self.executed: list[tuple[str, Arguments]] = []
        self._hub = EventHub()
        self._faults: list[Fault] = []
        self._holds: list[Hold] = []
        self._lost: QmpDisconnectedError | None = None

    async def execute(self, command: str, arguments: Arguments | None = None, *, deadline: float = 10.0) -> Any:
        arguments = dict(arguments or {})
        await asyncio.sleep(0)
        if self._lost:
            raise QmpDisconnectedError(command, self._lost.reason)
        self.executed.append((command, arguments))
        fault = self._fault(command, arguments)
        if fault and not fault.carried_out:
            raise fault.error
        try:
            answer = self.carry_out(command, arguments)
        except RefusalError as refusal:
            raise QmpCommandError(command, arguments or None, refusal.qmp_class, refusal.desc) from None
        if fault:
            raise fault.error
        hold = next((hold for hold in self._holds if hold.command == command and hold.when(arguments)), None)
        if hold:
            try:
                async with asyncio.timeout(deadline):
                    await hold.wait()
            except TimeoutError:
                raise QmpTimeoutError(command, deadline) from None
        if self._lost and command != "quit":
            raise QmpDisconnectedError(command, self._lost.reason)
        return answer

    def events(
        self, *names: str, match: Callable[[Event], bool] | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        return self._hub.subscribe(*names, match=match)

    def emit(self, name: str, **data: Any) -> None:
        """Announce an event now."""
        self._hub.publish(Event(name, data, 1700000000.0))

    def fail(
        self,
        command: str,
        error: Exception,
        *,
        when: Callable[[Arguments], bool] = always,
        times: int = 1,
        carried_out: bool = False,
    ) -> None:
        """Let the next ``times`` of ``command`` raise ``error``: instead of being carried out, or after it (an answer
        that was lost)."""
        self._faults.append(Fault(command, error, when, times, carried_out))

    def hold(self, command: str, *, when: Callable[[Arguments], bool] = always) -> Hold:
        """Keep ``command`` from answering until `Hold.release`, or until its deadline."""
        self._holds.append(Hold(command, when))
        return self._holds[-1]

    def disconnect(self, reason: str = "QEMU closed the connection") -> None:
        """End the connection, as when QEMU dies."""
        if self._lost is None:
            self._lost = QmpDisconnectedError(None, reason)
            self._hub.end(self._lost)

    def sent(self, command: str) -> list[Arguments]:
        """Return the arguments of every ``command`` so far."""
        return [arguments for name, arguments in self.executed if name == command]

    def _fault(self, command: str, arguments: Arguments) -> Fault | None:
        for fault in self._faults:
            if fault.times and fault.command == command and fault.when(arguments):
                fault.times -= 1
                return fault
        return None
