"""The one error tree of vmcoal.

    VmcoalError                     exit
    ├── UsageError                   2   the request makes no sense; nothing was looked at
    ├── PrerequisiteError            3   something that is needed is missing; nothing was changed
    ├── NotFoundError                4   no such VM, lender, lease, image
    ├── ConflictError                5   it exists already, is busy, or excludes what is there
    ├── RefusedError                 6   a lender, the guest or QEMU said no
    ├── UnreachableError             7   a lender, controller, agent or QEMU does not answer or broke off
    ├── DeadlineError                8   it did not finish in time
    ├── ExecutionError               9   it failed on the way and was undone, as far as `left` says
    ├── DegradedError               10   it works, but not as asked
    └── InternalError               70   a defect of vmcoal

Each error carries fields, not only text, and crosses the control socket and the lender session unchanged.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: text that is no UTF-8 and data that is nested too
deep have no errors of its own."""


class WireError(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it is sent between vmcoal processes."""

    kind: str
    message: str
    host: str | None = None
    left: str | None = None
    hint: str | None = None
    details: dict[str, Any] = {}


class VmcoalError(Exception):
    """What failed, on which host, what state was left, and the next step.

    ``message`` one line, no full stop; ``host`` the lender's or host's name where it is not this one; ``left`` what
    still stands after the failure (``None``: nothing was left behind); ``hint`` the next step; ``details`` plain
    JSON data (argv, exit code, tail of stderr, QMP class).
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        host: str | None = None,
        left: str | None = None,
        hint: str | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.host = host
        self.left = left
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        named = not self.host or self.host in self.message.split()
        return self.message if named else f"{self.message} on {self.host}"

    def to_wire(self) -> WireError:
        """Return the error as plain data."""
        return WireError(type(self).__name__, self.message, self.host, self.left, self.hint, self.details)

    @staticmethod
    def from_wire(wire: WireError) -> VmcoalError:
        """Rebuild an error; a kind this version does not know becomes a plain `VmcoalError`."""
        cls = _KINDS.get(wire.kind, VmcoalError)
        error = cls(wire.message, host=wire.host, left=wire.left, hint=wire.hint)
        error.details = dict(wire.details)
        return error


class UsageError(VmcoalError):
    """The request makes no sense; nothing was looked at."""

    exit_code = 2


class PrerequisiteError(VmcoalError):
    """Something that is needed is missing; nothing was changed."""

    exit_code = 3


class NotFoundError(VmcoalError):
    """There is no such VM, lender, lease or image."""

    exit_code = 4


class ConflictError(VmcoalError):
    """It exists already, is busy, or excludes what is there."""

    exit_code = 5


class RefusedError(VmcoalError):
    """A lender, the guest or QEMU said no."""

    exit_code = 6


class UnreachableError(VmcoalError):
    """A lender, controller, agent or QEMU does not answer or broke off."""

    exit_code = 7


class DeadlineError(VmcoalError):
    """It did not finish in time."""

    exit_code = 8


class ExecutionError(VmcoalError):
    """It failed on the way and was undone, as far as ``left`` says."""

    exit_code = 9


class DegradedError(VmcoalError):
    """It works, but not as asked."""

    exit_code = 10


class InternalError(VmcoalError):
    """A defect of vmcoal."""

    exit_code = 70


_KINDS: dict[str, type[VmcoalError]] = {
    cls.__name__: cls
    for cls in (
        VmcoalError,
        UsageError,
        PrerequisiteError,
        NotFoundError,
        ConflictError,
        RefusedError,
        UnreachableError,
        DeadlineError,
        ExecutionError,
        DegradedError,
        InternalError,
    )
}
