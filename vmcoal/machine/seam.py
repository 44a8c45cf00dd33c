"""The seam under hotplug: how a machine is launched and how its monitor is reached.

Hotplug uses `Monitor` only. Today QEMU is launched through the holder and spoken to over its own socket; a libvirt
domain can stand in by implementing the same two protocols (monitor through ``virDomainQemuMonitorCommand``, launch
through an emulator wrapper).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from vmcoal.model.machine import MachineSpec
from vmcoal_qmp import Event, EventStream


class Monitor(Protocol):
    """One QMP monitor. Errors are `vmcoal_qmp.QmpError`; a lost connection is `vmcoal_qmp.QmpDisconnectedError`."""

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, deadline: float = 30.0) -> Any:
        """Run one command and return its ``return`` value as plain data."""

    def events(
        self, *names: str, match: Callable[[Event], bool] | None = None
    ) -> AbstractAsyncContextManager[EventStream]:
        """Subscribe to events by name (all, if none is given) from the moment the context is entered."""


class Launcher(Protocol):
    """Starts, finds and ends the QEMU of one VM."""

    async def launch(self, spec: MachineSpec, *, deadline: float) -> Monitor:
        """Start QEMU and return its monitor, ready for commands. Nothing is left behind on failure; QEMU's stderr and
        exit code are in the error."""

    async def adopt(self, spec: MachineSpec, *, deadline: float) -> Monitor | None:
        """Find the running QEMU of ``spec`` and return its monitor, or ``None`` if it does not run."""

    async def exit_status(self) -> dict[str, Any] | None:
        """Return how QEMU ended (``code``, ``signal``, ``stderr`` tail), or ``None`` while it runs."""

    async def kill(self, *, grace: float) -> None:
        """End QEMU."""
