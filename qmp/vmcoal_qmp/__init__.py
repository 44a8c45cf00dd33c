"""QMP, the QEMU Machine Protocol, for asyncio: typed commands and events over the ``qemu.qmp`` library.

    client = await QmpClient.connect("/run/vm/qmp.sock", deadline=10)
    async with client.events("DEVICE_DELETED", match=lambda event: event.data.get("device") == "dimm1") as events:
        await commands.device_del(client, "dimm1")
        await events.wait_for(deadline=30)

Subscribe before you command: an event can arrive before the command's answer. Nothing here imports vmcoal, and nothing
is loaded before it is used, so that ``import vmcoal_qmp`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vmcoal_qmp.errors import (
    QmpCommandError,
    QmpDisconnectedError,
    QmpError,
    QmpProtocolError,
    QmpTimeoutError,
)

if TYPE_CHECKING:
    from vmcoal_qmp import commands, types
    from vmcoal_qmp.client import QmpClient
    from vmcoal_qmp.commands import Executor
    from vmcoal_qmp.events import Event, EventHub, EventStream
    from vmcoal_qmp.transcript import Transcript

__all__ = [
    "Event",
    "EventHub",
    "EventStream",
    "Executor",
    "QmpClient",
    "QmpCommandError",
    "QmpDisconnectedError",
    "QmpError",
    "QmpProtocolError",
    "QmpTimeoutError",
    "Transcript",
    "commands",
    "types",
]

_HOMES = {
    "Event": "events",
    "EventHub": "events",
    "EventStream": "events",
    "Executor": "commands",
    "QmpClient": "client",
    "Transcript": "transcript",
}


def __getattr__(name: str) -> Any:
    if name in ("commands", "types"):
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
