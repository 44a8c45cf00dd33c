"""The lender's journal: an append-only log of lease entries in SQLite (WAL).

A lender that was killed reads it back and picks its leases up again. Keys are not in it; they live and die with the
runtime folder. Each row is a whole entry, so the newest row of a lease is its state.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from vmcoal.errors import UNREADABLE, ExecutionError, PrerequisiteError
from vmcoal.lending.entry import Entry
from vmcoal.model.lease import LeaseEvent

T = TypeVar("T")

VERSION = 1
KEPT_ROWS = 2000
"""Rows of ended leases that stay for people to read."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, lease TEXT NOT NULL, event TEXT, entry BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS log_lease ON log (lease, seq);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

_ENTRIES = "SELECT lease, entry FROM log ORDER BY seq"


def read_entries(path: Path) -> list[Entry]:
    """Return what `LenderJournal.load` does, without writing to the journal in ``path``; no journal has none."""
    if not path.exists():
        return []
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            return _newest(db.execute(_ENTRIES))
    except sqlite3.Error as error:
        raise _broken(path, error) from error


def _newest(rows: Iterable[tuple[str, bytes]]) -> list[Entry]:
    newest: dict[str, Entry] = {}
    for lease, blob in rows:
        with contextlib.suppress(*UNREADABLE, TypeError):
            newest[lease] = msgspec.json.decode(blob, type=Entry)
    return sorted(newest.values(), key=lambda entry: entry.lease.epoch)


class LenderJournal:
    """The journal in the file ``path``; one process writes it.

    Raises `PrerequisiteError` where the file cannot be opened or is of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.appended = 0
        """Rows since the last `prune`."""
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=5.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA cache_size=-128")  # KiB; else the process grows with what it appends
            self._db.executescript(_SCHEMA)
            version = int(self.get("version") or VERSION)
        except (sqlite3.Error, ValueError) as error:
            raise _broken(path, error) from error
        if version > VERSION:
            self.close()
            raise PrerequisiteError(
                f"the journal {path} was written by a newer vmcoal (version {version}, this one knows {VERSION})",
                hint="upgrade vmcoal on this host",
            )
        self.set("version", str(VERSION))

    def append(self, entry: Entry, event: LeaseEvent | None) -> None:
        """Add an entry as it is after ``event``; raises `ExecutionError` where the disk refuses it."""
        row = (time.time(), entry.lease.id, event.value if event else None, msgspec.json.encode(entry))
        try:
            self._db.execute("INSERT INTO log (at, lease, event, entry) VALUES (?, ?, ?, ?)", row)
            self.appended += 1
        except sqlite3.Error as error:
            raise ExecutionError(
                f"cannot write the journal {self.path}: {error}", hint="free space in the state folder"
            ) from error

    def load(self) -> list[Entry]:
        """Return the newest entry of each lease that can be read, in the order of their grants: of a lease that ended
        since, what it had is found gone. Raises `PrerequisiteError` for a broken journal."""
        try:
            return _newest(self._db.execute(_ENTRIES))
        except sqlite3.Error as error:
            raise _broken(self.path, error) from error

    def history(self, lease: str) -> list[tuple[float, str | None, Entry]]:
        """Return (wall-clock time, event, entry) of all rows of ``lease``, the oldest first."""
        rows = self._db.execute("SELECT at, event, entry FROM log WHERE lease = ? ORDER BY seq", (lease,))
        return [(at, event, msgspec.json.decode(blob, type=Entry)) for at, event, blob in rows]

    def prune(self, keep: set[str]) -> None:
        """Drop all but the newest `KEPT_ROWS` rows, and never the newest row of the leases in ``keep``; raises
        `ExecutionError`. A borrower makes as many rows of a lease as it likes."""
        marks = ",".join("?" * len(keep))
        newest = f"SELECT MAX(seq) FROM log WHERE lease IN ({marks}) GROUP BY lease"  # noqa: S608
        try:
            self._db.execute(
                f"DELETE FROM log WHERE seq <= (SELECT MAX(seq) FROM log) - ? AND seq NOT IN ({newest})",  # noqa: S608
                (KEPT_ROWS, *sorted(keep)),
            )
        except sqlite3.Error as error:
            raise ExecutionError(
                f"cannot shorten the journal {self.path}: {error}", hint="free space in the state folder"
            ) from error
        self.appended = 0

    def get(self, key: str) -> str | None:
        """Return a fact about the lender itself (``epoch``, ``cordoned``, ``boot_id``), or ``None``; raises
        `PrerequisiteError` for a broken journal."""
        try:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise _broken(self.path, error) from error
        return None if row is None else str(row[0])

    def read(self, key: str, kind: type[T]) -> T | None:
        """Return a fact that is written as JSON, as ``kind``; raises as `get`."""
        said = self.get(key)
        try:
            return None if said is None else msgspec.json.decode(said, type=kind)
        except UNREADABLE as error:
            raise _broken(self.path, error) from error

    def set(self, key: str, value: str) -> None:
        """Write a fact about the lender itself; raises `ExecutionError`."""
        try:
            self._db.execute(
                "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
            )
        except sqlite3.Error as error:
            raise ExecutionError(
                f"cannot write the journal {self.path}: {error}", hint="free space in the state folder"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _broken(path: Path, error: Exception) -> PrerequisiteError:
    return PrerequisiteError(
        f"cannot use the journal {path}: {error}",
        hint="check the folder's owner, mode and free space; a broken journal can be moved away once nothing is lent",
    )
