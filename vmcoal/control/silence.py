"""How long the other side of a call may say nothing, and what is said of it then.

A daemon whose call runs says so every few seconds (`vmcoal.control.wire.Alive`), so that a call may take as long as it
likes and still ends when nobody is there to end it. One that is stopped (SIGSTOP, Ctrl-Z, a debugger) is recognised by
its state and told after `STOPPED` seconds; one that only says nothing after `SILENT`, because a busy host is slow.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from vmcoal.errors import UnreachableError

STOPPED = 5.0
"""Seconds for which a process has to be seen stopped, and to say nothing."""
SILENT = 30.0
"""Seconds of silence of a process that is not stopped."""


class Silence:
    """Measures for how long the process behind the connected Unix socket ``sock`` has said nothing.

    What counts is the time in which this process looked: one that was itself stopped, with its host or by Ctrl-Z, has
    not waited.
    """

    LOOK = 1.0
    """Seconds after which to look again."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._peer = peer
        self._pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self._silent = 0.0
        self._stopped = 0.0

    def broken(self) -> None:
        """It said something."""
        self._silent = self._stopped = 0.0

    def lasted(self, seconds: float) -> None:
        """Nothing was heard for ``seconds`` more; raises `UnreachableError` where that is too long."""
        waited = min(seconds, 2 * self.LOOK)
        self._silent += waited
        error = self.stopped()
        self._stopped = self._stopped + waited if error else 0.0
        if error is not None and self._stopped >= STOPPED:
            raise error
        if self._silent >= SILENT:
            raise UnreachableError(
                f"{self._peer}{self._named()} has said nothing for {self._silent:.0f} s",
                left="what this command began is undone if it goes on",
                hint=f"see its log; if it hangs, end it: kill -9 {self._pid or 'PID'}; "
                "what it holds outlives it, and another one goes on",
            )

    def stopped(self) -> UnreachableError | None:
        """Return the error that says that the process is stopped, or ``None`` if it is not, or cannot be seen."""
        state = process_state(self._pid)
        if state not in ("T", "t"):
            return None
        by, remedy = (
            ("stopped", f"kill -CONT {self._pid} lets it go on")
            if state == "T"
            else ("held by a debugger", "let the debugger go on")
        )
        return UnreachableError(
            f"{self._peer}{self._named()} is {by}",
            left="what this command began is undone when it goes on",
            hint=f"{remedy}; if it was not stopped on purpose, see its log",
        )

    def _named(self) -> str:
        return f" (process {self._pid})" if self._pid else ""


def process_state(pid: int) -> str | None:
    """Return the state letter of process ``pid`` (proc_pid_stat(5)), or ``None`` if it is not to be seen."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return None
