"""Starts a daemon of this host in the background and waits until it answers."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vmcoal.errors import DeadlineError


class EndedAtStartError(Exception):
    """The daemon ended before it was ready: its exit ``code``, and what it ``said`` to its log meanwhile."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"exit code {code}")
        self.code = code
        self.said = said


def start_detached(argv: Sequence[str], log: Path, *, what: str, deadline: float) -> None:
    """Start ``argv`` with ``--ready-fd N`` in a session of its own, and return when it writes a byte there.

    stdout and stderr are appended to ``log``. Raises `EndedAtStartError`, or `DeadlineError` after which it is ended.
    """
    ready, theirs = os.pipe()
    with os.fdopen(ready, "rb", buffering=0) as pipe, log.open("ab") as out:
        began = out.tell()
        try:
            child = subprocess.Popen(
                [*argv, "--ready-fd", str(theirs)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(theirs,),
                start_new_session=True,
                cwd="/",
            )
        finally:
            os.close(theirs)
        if not select.select([pipe], [], [], deadline)[0]:
            child.kill()
            child.wait()
            raise DeadlineError(f"{what} did not start within {deadline:g} s", hint=f"see {log}")
        if not pipe.read(1):
            code = child.wait()
            with log.open("rb") as said:
                said.seek(began)
                raise EndedAtStartError(code, said.read(1 << 16).decode(errors="replace"))
        child.returncode = 0  # it is on its own now; its end is not ours to wait for
