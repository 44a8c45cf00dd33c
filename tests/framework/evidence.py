"""What is kept of a test that failed: its logs, journals and specs, under .out/failures."""

from __future__ import annotations

import shutil
from pathlib import Path

_OUT = Path(__file__).parents[2] / ".out" / "failures"
_SUFFIXES = (".log", ".1", ".json", ".sqlite", ".sqlite-wal", ".txt")

failed: set[str] = set()
"""Ids of the tests that failed so far."""

failures = 0
"""How often a test, or what it needed, failed so far; a second try that fails counts again."""

_kept: set[Path] = set()


def keep(name: str, home: Path) -> Path:
    """Copy the evidence of test (or module) ``name`` from its state folder below ``home``; return where it is.

    Of a test with several such folders, and of its second try, all is kept that has another name.
    """
    kept = _OUT / "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:100]
    if kept not in _kept:  # of an earlier run
        shutil.rmtree(kept, ignore_errors=True)
        _kept.add(kept)
    kept.mkdir(parents=True, exist_ok=True)
    for path in sorted((home / "s").rglob("*")):
        small = path.is_file() and not path.is_symlink() and path.stat().st_size < 8 << 20
        if small and path.suffix in _SUFFIXES:
            target = kept / path.relative_to(home / "s")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return kept
