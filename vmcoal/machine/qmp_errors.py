"""The one place where errors of the monitor become vmcoal's, and where QEMU's refusals are told apart.

QMP has few error classes that mean something; for the rest QEMU's sentence is all there is. The sentences that matter
are matched here, and tested against the QEMU of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vmcoal.errors import DeadlineError, InternalError, RefusedError, UnreachableError
from vmcoal_qmp import QmpCommandError, QmpDisconnectedError, QmpProtocolError, QmpTimeoutError

_BUSY = re.compile(r"\bbusy\b", re.IGNORECASE)
_PENDING = re.compile(r"in the process of unplug", re.IGNORECASE)
_MISSING = re.compile(r"not found|not been found", re.IGNORECASE)
_HINTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"no free slots|no free memory slots|no more memory slots"), "detach memory, or boot with more slots"),
    (re.compile(r"not enough space|could not find position"), "detach memory, or boot with more --far-memory"),
    (re.compile(r"can't open backing store|cannot allocate memory|No such file", re.IGNORECASE), "is its lender up?"),
    (re.compile(r"duplicate|attempt to add", re.IGNORECASE), "it is plugged already; see: vmcoal status"),
)


def is_busy(error: QmpCommandError) -> bool:
    """Return whether the guest is still at the last thing that was asked of the slot: try again."""
    return bool(_BUSY.search(error.desc))


def is_pending(error: QmpCommandError) -> bool:
    """Return whether the device's removal was asked for already and the guest has not answered."""
    return bool(_PENDING.search(error.desc))


def is_missing(error: QmpCommandError) -> bool:
    """Return whether there is no such device or object."""
    return error.qmp_class == "DeviceNotFound" or bool(_MISSING.search(error.desc))


@contextmanager
def translated(doing: str, *, left: str | None = None, look: str = "vmcoal status") -> Iterator[None]:
    """Turn the monitor's errors into vmcoal's; ``doing`` completes "QEMU refused to …", ``left`` as in the errors, and
    ``look`` is the command that shows how it is.

    Raises `RefusedError`, `DeadlineError`, `UnreachableError`, and `InternalError` for answers that are not QMP.
    """
    try:
        yield
    except QmpCommandError as error:
        raise refusal(error, doing, left=left) from error
    except QmpTimeoutError as error:
        raise DeadlineError(
            f"QEMU was to {doing}, but: {error}",
            left=left or "QEMU may still do it",
            hint=f"is the host overloaded, or a lender of its memory unreachable? see: {look}",
        ) from error
    except QmpDisconnectedError as error:
        raise UnreachableError(
            f"QEMU was to {doing}, but: {error.reason}", left=left, hint=f"see how it ended: {look}"
        ) from error
    except QmpProtocolError as error:
        raise InternalError(f"QEMU was to {doing}, and answered what vmcoal does not understand: {error}") from error


def refusal(error: QmpCommandError, doing: str, *, left: str | None = None) -> RefusedError:
    """Return the `RefusedError` for a command that QEMU refused."""
    hint = next((hint for pattern, hint in _HINTS if pattern.search(error.desc)), None)
    return RefusedError(
        f"QEMU refused to {doing}: {error.desc}",
        left=left,
        hint=hint or "see what was asked of it, and its answers: vmcoal logs qmp",
        qmp_class=error.qmp_class,
        command=error.command,
    )
