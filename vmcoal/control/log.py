"""The log of a daemon that writes to its stderr: bounded where that is a file."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
from pathlib import Path

LIMIT = 1 << 20
"""Bytes of a log; as many are kept of what came before, beside it as ``.1``."""


class BoundedLog(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to stderr. Where that is ``file``, a full one becomes ``.1`` and stdout and stderr go on in a new one, so
    that a traceback that nobody logged is bounded as well."""

    def __init__(self, file: Path, limit: int = LIMIT) -> None:
        super().__init__(sys.stderr)
        self._file = file
        self._limit = limit

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a log that cannot be turned over grows on."""
        super().emit(record)
        with contextlib.suppress(OSError):
            self._turn()

    def _turn(self) -> None:
        now = os.fstat(2)
        if not stat.S_ISREG(now.st_mode) or now.st_size < self._limit or not os.path.samestat(now, self._file.stat()):
            return
        self._file.replace(self._file.with_name(f"{self._file.name}.1"))
        fresh = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.dup2(fresh, 1)
            os.dup2(fresh, 2)
        finally:
            os.close(fresh)


def log_to(file: Path) -> None:
    """Log to stderr, which is ``file`` where the daemon was started in the background; ``VMCOAL_DEBUG`` says more."""
    level = logging.DEBUG if os.environ.get("VMCOAL_DEBUG") else logging.INFO
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(handlers=[BoundedLog(file)], level=level, format=form)
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    logging.getLogger("qemu").setLevel(logging.ERROR)
