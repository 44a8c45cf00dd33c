"""What goes over a control socket, a controller's or a lender's.

Newline-delimited JSON over a Unix stream socket (mode 0600, peer uid checked), one line at most `MAX_LINE` bytes. The
client sends one `Call`; the daemon answers with any number of `Progress` and `Output` and then one `Result` or
`Failure`. As long as the call runs it also sends `Alive`: at once, and every `ALIVE_INTERVAL` seconds; who hears
nothing for much longer than that may give up (`vmcoal.control.silence`). A client that hangs up, or closes its sending
half, cancels its call.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vmcoal.errors import WireError

API = 2
MAX_LINE = 1 << 20
ALIVE_INTERVAL = 5.0
"""Seconds between two signs of life of a daemon whose call runs."""


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One request; ``params`` is the struct of the method as plain data."""

    method: str
    params: dict[str, Any] = {}
    api: int = API


class Progress(msgspec.Struct, frozen=True, tag=True):
    """A step began: ``step`` of ``steps``. ``fraction`` 0..1 inside the step where known, with ``detail``."""

    step: int
    steps: int
    text: str
    fraction: float | None = None
    detail: str | None = None


class Output(msgspec.Struct, frozen=True, tag=True):
    """Output of a command in the guest. ``stream`` 1 stdout, 2 stderr."""

    stream: int
    data: bytes


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The call runs; nothing else is said of it."""


class Input(msgspec.Struct, frozen=True, tag=True):
    """Client to controller while an exec runs; ``eof`` closes stdin; ``rows``/``columns`` resize a tty's terminal."""

    data: bytes = b""
    eof: bool = False
    rows: int | None = None
    columns: int | None = None


class Result(msgspec.Struct, frozen=True, tag=True):
    """The call is done."""

    value: Any


class Failure(msgspec.Struct, frozen=True, tag=True):
    """The call failed."""

    error: WireError


Reply = Progress | Output | Alive | Result | Failure
