"""The lender's journal: an append-only log of lease entries in SQLite (WAL).

A lender that was killed reads it back and picks its leases up again. Keys are not in it; they live and die with the
runtime folder. Each row is a whole entry, so the newest row of a lease is its state.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import msgspec

from vmcoal.errors import ExecutionError, PrerequisiteError
from vmcoal.lending.entry import Entry
from vmcoal.model.lease import LeaseEvent

VERSION = 1
KEPT_ROWS = 2000
"""Rows of ended leases that stay for people to read."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, lease TEXT NOT NULL, event TEXT, entry BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS log_lease ON log (lease, seq);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


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
            raise PrerequisiteError(
                f"cannot use the journal {path}: {error}",
                hint="check the folder's owner, mode and free space; a broken journal can be moved away once "
                "nothing is lent",
            ) from error
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
        """Return the newest entry of each lease, in the order of their grants; unreadable entries are skipped."""
        rows = self._db.execute(
            "SELECT entry FROM log WHERE seq IN (SELECT MAX(seq) FROM log GROUP BY lease) ORDER BY seq"
        )
        entries = []
        for (blob,) in rows:
            try:
                entries.append(msgspec.json.decode(blob, type=Entry))
            except msgspec.MsgspecError:
                continue
        return sorted(entries, key=lambda entry: entry.lease.epoch)

    def history(self, lease: str) -> list[tuple[float, str | None, Entry]]:
        """Return (wall-clock time, event, entry) of all rows of ``lease``, the oldest first."""
        rows = self._db.execute("SELECT at, event, entry FROM log WHERE lease = ? ORDER BY seq", (lease,))
        return [(at, event, msgspec.json.decode(blob, type=Entry)) for at, event, blob in rows]

    def prune(self, keep: set[str]) -> None:
        """Drop all but the newest `KEPT_ROWS` rows, and never a row of the leases in ``keep``; raises
        `ExecutionError`."""
        marks = ",".join("?" * len(keep))
        try:
            self._db.execute(
                f"DELETE FROM log WHERE seq <= (SELECT MAX(seq) FROM log) - ? AND lease NOT IN ({marks})",  # noqa: S608
                (KEPT_ROWS, *sorted(keep)),
            )
        except sqlite3.Error as error:
            raise ExecutionError(
                f"cannot shorten the journal {self.path}: {error}", hint="free space in the state folder"
            ) from error
        self.appended = 0

    def get(self, key: str) -> str | None:
        """Return a fact about the lender itself (``epoch``, ``cordoned``, ``boot_id``), or ``None``."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

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
