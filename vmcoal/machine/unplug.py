"""Removing a device, which is the guest's decision: ask, then listen for what becomes of it.

``device_del`` returns at once. Then comes DEVICE_DELETED, or a refusal in one of three dialects (ACPI_DEVICE_OST from a
guest that could not offline a DIMM or vCPU, DEVICE_UNPLUG_GUEST_ERROR, MEM_UNPLUG_ERROR), or nothing at all.

What leaves by ACPI (DIMMs and vCPUs) is asked for again while the guest shows no sign of having heard: QEMU raises the
event anew. After the first sign it is not, because a guest that refuses would go by the second request later on, when
nobody expects the device to leave any more. PCI slots are asked once: pressing their button again means "stay".
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from vmcoal.errors import DeadlineError, RefusedError
from vmcoal.machine.qmp_errors import is_busy, is_missing, is_pending, refusal, translated
from vmcoal.machine.seam import Monitor
from vmcoal_qmp import Event, EventStream, QmpCommandError, QmpTimeoutError, commands
from vmcoal_qmp.types import (
    AcpiDeviceOst,
    DeviceDeleted,
    DeviceUnplugGuestError,
    MemUnplugError,
    OstStatus,
    decode_event,
)

_EVENTS = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR", "MEM_UNPLUG_ERROR", "ACPI_DEVICE_OST")
_RETRY = 0.25
_COMMAND = 30.0
_AGAIN = 10.0
"""Seconds without any sign of the guest after which it is asked again."""

_REASONS = {
    OstStatus.FAILURE: "it failed",
    OstStatus.NOT_SUPPORTED: "it does not support that",
    OstStatus.DEVICE_IN_USE: "it is in use",
    OstStatus.DEVICE_BUSY: "it is in use and could not be emptied",
    OstStatus.DEPENDENCY_BUSY: "something that depends on it is in use",
}


class Clock:
    """A deadline that several steps share."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._end = time.monotonic() + deadline

    @property
    def left(self) -> float:
        """Seconds that are left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    def command(self) -> float:
        """Return the deadline of one command: what is left, at most 30 s, and enough to be answered at all."""
        return min(_COMMAND, max(1.0, self.left))


async def remove_device(monitor: Monitor, device: str, what: str, *, deadline: float, repeatable: bool = False) -> None:
    """Remove ``device`` and return when it is gone; returns at once if it is not there.

    ``what`` names it for people; one that is ``repeatable`` leaves by ACPI, see the module. Raises `RefusedError` with
    the guest's or QEMU's reason, `DeadlineError` if nobody answered within ``deadline`` seconds: the request stands
    then, and the guest may still let the device go.
    """
    clock = Clock(deadline)
    with translated(f"unplug {what}"):
        async with monitor.events(*_EVENTS, match=lambda event: _concerns(event, device)) as events:
            while await _ask(monitor, device, what, clock):
                if await _answer(events, what, clock, _AGAIN if repeatable else None):
                    return


def _concerns(event: Event, device: str) -> bool:
    return device in (event.data.get("device"), (event.data.get("info") or {}).get("device"))


async def _ask(monitor: Monitor, device: str, what: str, clock: Clock) -> bool:
    """Issue device_del; returns whether there is anything to wait for."""
    while True:
        try:
            await commands.device_del(monitor, device, deadline=clock.command())
        except QmpCommandError as error:
            if is_missing(error):
                return False
            if is_pending(error):
                return True
            if not is_busy(error) or not clock.left:
                raise refusal(error, f"unplug {what}", left="it is plugged as before") from error
        else:
            return True
        await asyncio.sleep(min(_RETRY, clock.left))


async def _answer(events: EventStream, what: str, clock: Clock, patience: float | None) -> bool:
    """Wait until the device is gone; returns ``False`` when the guest gave no sign for ``patience`` seconds."""
    while True:
        try:
            event = await events.wait_for(deadline=clock.left if patience is None else min(patience, clock.left))
        except QmpTimeoutError:
            if patience is None or not clock.left:
                raise _silence(what, clock) from None
            return False
        match decode_event(event):
            case DeviceDeleted():
                return True
            case DeviceUnplugGuestError():
                raise _refused(what, "it gave no reason")
            case MemUnplugError(msg=message):
                raise _refused(what, message)
            case AcpiDeviceOst(refused=True, status=status):
                raise _refused(what, _REASONS.get(status, f"ACPI status {status:#x}"), status=status)
            case AcpiDeviceOst(is_ejection=True):
                patience = None


def _silence(what: str, clock: Clock) -> DeadlineError:
    return DeadlineError(
        f"the guest did not let go of {what} within {clock.deadline:g} s",
        left="it is still plugged; the guest may yet let it go, and asking again goes on from there",
        hint="give it more time, or look at its kernel log",
    )


def _refused(what: str, reason: str, **details: Any) -> RefusedError:
    return RefusedError(
        f"the guest refuses to let go of {what}: {reason}",
        left="it is plugged as before",
        hint="stop what uses it in the guest (its kernel log says more), then detach again",
        **details,
    )


async def remove_object(monitor: Monitor, backend: str, *, deadline: float) -> None:
    """Delete a memory backend; returns at once if it is not there. Raises `RefusedError` while it is in use.

    After DEVICE_DELETED the backend may be held for a moment more; it is tried again until ``deadline``.
    """
    clock = Clock(deadline)
    with translated(f"delete memory backend {backend}"):
        while True:
            try:
                return await commands.object_del(monitor, backend, deadline=clock.command())
            except QmpCommandError as error:
                if is_missing(error):
                    return None
                if "in use" not in error.desc or not clock.left:
                    raise
            await asyncio.sleep(min(_RETRY, clock.left))
