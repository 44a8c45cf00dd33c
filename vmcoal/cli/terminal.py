"""What commands that run something elsewhere need of this terminal."""

from __future__ import annotations

import contextlib
import shutil
import sys
import termios
import tty
from collections.abc import Iterator


def terminal_size() -> tuple[int, int]:
    """Return rows and columns of this terminal."""
    size = shutil.get_terminal_size()
    return size.lines, size.columns


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Pass every key on untouched, and make the terminal afterwards what it was."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
