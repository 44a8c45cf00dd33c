"""Running the command line inside the test process, and as a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class _Stream(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        data: bytes = self.buffer.getvalue()  # type: ignore[attr-defined]
        return data.decode(errors="backslashreplace")


def vmcoal(*arguments: str, stdin: bytes = b"") -> Done:
    """Run ``vmcoal ARGUMENTS`` in this process, with no terminal."""
    from vmcoal.cli.main import main

    out, err = _Stream(), _Stream()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(io.BytesIO(stdin)), out, err
    try:
        with contextlib.suppress(SystemExit):
            code = main(list(arguments))
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    return Done(code, out.text(), err.text())


def spawn_vmcoal(*arguments: str, **kwargs: Any) -> subprocess.Popen[bytes]:
    """Start ``vmcoal ARGUMENTS`` as a process; stdout and stderr are pipes unless given."""
    # The environment is given: readline, once imported, puts LINES and COLUMNS into it behind the back of os.environ.
    options: dict[str, Any] = {
        "env": dict(os.environ),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "stdin": subprocess.DEVNULL,
    }
    options |= kwargs
    return subprocess.Popen([sys.executable, "-P", "-m", "vmcoal.cli.main", *arguments], **options)


def plain_times(text: str) -> str:
    """Return ``text`` with measured durations replaced, so that it can be compared."""
    return re.sub(r"\d+(\.\d+)? (µs|ms|s)\b", "TIME", text)
