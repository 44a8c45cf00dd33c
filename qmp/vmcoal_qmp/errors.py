"""The errors of this package.

QmpError
├── QmpCommandError        QEMU understood the command and said no
├── QmpDisconnectedError   there is no connection, or it was lost before the answer
├── QmpTimeoutError        no answer, or no event, within the deadline
└── QmpProtocolError       what came is not QMP, or not of the shape its schema promises
"""

from __future__ import annotations

from typing import Any


class QmpError(Exception):
    """Root of this package's errors."""


class QmpCommandError(QmpError):
    """QEMU refused a command, and did not carry it out.

    ``qmp_class`` is QMP's error class (``GenericError``, ``CommandNotFound``, ``DeviceNotFound``, …): the only part
    meant for programs; ``desc`` is QEMU's sentence for people and differs between versions.
    """

    def __init__(self, command: str, arguments: dict[str, Any] | None, qmp_class: str, desc: str) -> None:
        super().__init__(command, arguments, qmp_class, desc)
        self.command = command
        self.arguments = arguments
        self.qmp_class = qmp_class
        self.desc = desc

    def __str__(self) -> str:
        return f"{self.command}: {self.desc}"


class QmpDisconnectedError(QmpError):
    """No connection. ``command``: the one whose answer was lost (it may have been carried out), or ``None``;
    ``reason``: how the connection ended."""

    def __init__(self, command: str | None = None, reason: str = "QEMU closed the connection") -> None:
        super().__init__(command, reason)
        self.command = command
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.command}: {self.reason}" if self.command else self.reason


class QmpTimeoutError(QmpError):
    """Nothing came within ``deadline`` seconds.

    ``command``: what was not answered (QEMU may still carry it out); ``None`` while waiting for an event, of which
    ``events`` gives the names waited for (empty: any).
    """

    def __init__(self, command: str | None, deadline: float, events: tuple[str, ...] = ()) -> None:
        super().__init__(command, deadline, events)
        self.command = command
        self.deadline = deadline
        self.events = events

    def __str__(self) -> str:
        if self.command is not None:
            return f"{self.command}: no answer within {self.deadline:g} s"
        return f"no {' or '.join(self.events) or 'event'} within {self.deadline:g} s"


class QmpProtocolError(QmpError):
    """What the other end sent is not QMP, or an answer lacks what its schema promises; ``detail`` says what."""

    def __init__(self, command: str | None, detail: str) -> None:
        super().__init__(command, detail)
        self.command = command
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.command}: {self.detail}" if self.command else self.detail
