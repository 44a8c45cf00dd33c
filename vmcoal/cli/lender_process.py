"""The process of a lender of this host: starting it, and calling it."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from vmcoal import layout
from vmcoal.control.client import NotListeningError, call, connect
from vmcoal.control.detached import EndedAtStartError, start_detached
from vmcoal.control.wire import Progress
from vmcoal.errors import ConflictError, ExecutionError, PrerequisiteError, UsageError, VmcoalError

T = TypeVar("T")

TALK = 15.0
_START = 60.0  # an emulated host is slow; one that fails ends at once


def preflight() -> None:
    """Check what lending cannot do without; raises `PrerequisiteError` with the first remedy."""
    from vmcoal.host.checks import CHECKS, Duty, Level, run_checks
    from vmcoal.host.facts import Host

    wrong = [finding for finding in run_checks(CHECKS, Host(), frozenset({Duty.LEND})) if finding.level is Level.FAIL]
    if wrong:
        raise PrerequisiteError(
            f"this host cannot lend: {wrong[0].description}: {wrong[0].found}",
            hint=f"{wrong[0].remedy}; all of it: vmcoal doctor --for lend",
        )


def refuse_running(folders: layout.LenderFolders, name: str) -> None:
    """Raise `ConflictError` if the lender runs."""
    try:
        connect(folders.control_socket, f"lender {name}").close()
    except NotListeningError:
        return
    raise ConflictError(f"lender {name} runs already", hint="see vmcoal lend status; vmcoal lend stop ends it")


def still_serves(folders: layout.LenderFolders) -> bool:
    """Return whether what a lender lent is served, with or without its process: its holder lives."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(5.0)
        try:
            sock.connect(str(folders.holder_socket))
        except OSError:
            return False
    return True


def start_lender(argv: list[str], folders: layout.LenderFolders, name: str) -> None:
    """Start the lender detached and wait until it answers; raises `ExecutionError` with its last words."""
    try:
        start_detached(argv, folders.log, what=f"lender {name}", deadline=_START)
    except EndedAtStartError as error:
        raise start_error(name, error.code, error.said, folders.log) from None


def start_error(name: str, code: int, said: str, log: Path) -> VmcoalError:
    """Return the error that a lender ended with at its start, from its exit code and what it wrote."""
    message = re.search(r"^vmcoal: error: (.+)$", said, re.MULTILINE)
    hint = re.search(r"^  hint: (.+)$", said, re.MULTILINE)
    for kind in (UsageError, PrerequisiteError, ConflictError):
        if message and kind.exit_code == code:
            return kind(message[1], hint=hint[1] if hint else None)
    return ExecutionError(
        f"lender {name} ended at its start with exit code {code}", hint=f"all of it is in {log}", stderr=said
    )


@contextlib.contextmanager
def ending(name: str) -> Iterator[None]:
    """Wait after the body, which ends the lender ``name``, until its process is gone: `TALK` seconds at most."""
    try:
        with connect(layout.lender_folders(name).control_socket, f"lender {name}") as sock:
            pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        process = os.pidfd_open(pid)
    except (NotListeningError, ProcessLookupError) as error:
        raise _does_not_run(name) from error
    try:
        yield
        select.select([process], [], [], TALK if pid != os.getpid() else 0)
    finally:
        os.close(process)


def _does_not_run(name: str) -> PrerequisiteError:
    return PrerequisiteError(f"lender {name} does not run", hint=f"vmcoal lend --name {name}")


def lender_call(
    name: str,
    method: str,
    params: msgspec.Struct | None = None,
    *,
    result: type[T],
    on_progress: Callable[[Progress], None] | None = None,
    deadline: float | None = TALK,
) -> T:
    """Call the lender ``name`` of this host; raises `PrerequisiteError` if it does not run."""
    try:
        return call(
            layout.lender_folders(name).control_socket,
            method,
            params,
            result=result,
            peer=f"lender {name}",
            on_progress=on_progress,
            deadline=deadline,
        )
    except NotListeningError as error:
        raise _does_not_run(name) from error
