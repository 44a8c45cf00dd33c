"""The controller's journal: intent before, outcome after each step.

One append-only table in SQLite (WAL). A controller that was killed is followed by one that replays it: items say what
is attached, operations without an end say what was under way and how far it had come.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vmcoal.errors import UNREADABLE, ExecutionError, PrerequisiteError

log = logging.getLogger(__name__)

T = TypeVar("T")

VERSION = 1
_COMPACT_ABOVE = 20_000
_LOOK_EVERY = 1000

_SCHEMA = """
create table if not exists events (
  seq integer primary key,
  at real not null,
  op integer not null,
  kind text not null check (kind in ('begin', 'intent', 'done', 'undone', 'end', 'put', 'drop')),
  name text not null,
  data text not null
)
"""


_ITEMS = "select kind, name, data from events where kind in ('put', 'drop') order by seq"

BOOTED = "booted"
"""The item that says that the VM's QEMU came up at least once."""

TUNING = "tuning"
"""The item that says how borrowed memory should behave (`vmcoal tune`)."""

PAUSED = "paused"
"""The item that is there while the controller has stopped the VM because memory that it touched is lost."""


def broken(path: Path, error: Exception) -> PrerequisiteError:
    """Return the error that says that the journal in ``path`` holds what no vmcoal wrote."""
    return PrerequisiteError(
        f"the journal {path} is broken: {error}",
        hint="move it away once the VM is off; its leases end at their lenders by themselves",
    )


def has_booted(path: Path) -> bool:
    """Return whether the journal in ``path`` says that its VM's QEMU ever came up; no journal says no."""
    if not path.exists():
        return False
    journal = Journal(path)
    try:
        return BOOTED in journal.items()
    finally:
        journal.close()


def read_items(path: Path) -> dict[str, Any]:
    """Return every item of the journal in ``path`` as plain data, without writing to it; no journal has none.

    Raises `PrerequisiteError` for one that cannot be read.
    """
    if not path.exists():
        return {}
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
            return _items((kind, name, msgspec.json.decode(data)) for kind, name, data in db.execute(_ITEMS))
    except (sqlite3.Error, *UNREADABLE) as error:
        raise PrerequisiteError(
            f"cannot read the journal {path}: {error}", hint="check that the state folder is readable (vmcoal doctor)"
        ) from error


def _items(rows: Iterable[tuple[Any, ...]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, name, data in rows:
        if kind == "put":
            found[name] = data
        else:
            found.pop(name, None)
    return found


@dataclass
class OpenStep:
    """One step of an operation: its undo data, and how far it came."""

    name: str
    data: dict[str, Any]
    done: bool = False


@dataclass
class OpenOperation:
    """An operation that began and did not end."""

    op: int
    kind: str
    request: dict[str, Any]
    steps: list[OpenStep] = field(default_factory=list)


class Journal:
    """The journal of one VM. One writer, one process; every method may raise `ExecutionError` when the disk fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = normal")
            self._db.execute("pragma cache_size = -128")  # KiB; else the process grows with what it appends
            version = self._db.execute("pragma user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise PrerequisiteError(
                    f"{path} was written by a vmcoal with journal version {version}, this one has {VERSION}",
                    hint="use that vmcoal to shut the VM down",
                )
            self._db.execute(_SCHEMA)
            self._db.execute(f"pragma user_version = {VERSION}")
            self._next_op = 1 + (self._db.execute("select max(op) from events").fetchone()[0] or 0)
            self._rows = int(self._db.execute("select count(*) from events").fetchone()[0])
        except sqlite3.Error as error:
            raise PrerequisiteError(
                f"cannot open the journal {path}: {error}",
                hint="check that the state folder is writable and has space (vmcoal doctor)",
            ) from error
        self._compact()

    def close(self) -> None:
        """Close the file; later calls fail."""
        self._db.close()

    def _append(self, op: int, kind: str, name: str, data: Any) -> None:
        text = msgspec.json.encode(data).decode()
        try:
            self._db.execute(
                "insert into events (at, op, kind, name, data) values (?, ?, ?, ?, ?)",
                (time.time(), op, kind, name, text),
            )
        except sqlite3.Error as error:
            raise ExecutionError(
                f"cannot write the journal {self.path}: {error}", hint="free space in the state folder, then try again"
            ) from error
        self._rows += 1

    def begin(self, kind: str, request: Any) -> int:
        """Open an operation and return its number."""
        op, self._next_op = self._next_op, self._next_op + 1
        self._append(op, "begin", kind, request)
        return op

    def intent(self, op: int, step: str, data: Any) -> None:
        """Record that ``step`` is about to be done; ``data`` is what undoing it needs."""
        self._append(op, "intent", step, data)

    def done(self, op: int, step: str) -> None:
        """Record that the newest ``step`` was done."""
        self._append(op, "done", step, {})

    def undone(self, op: int, step: str) -> None:
        """Record that the newest ``step`` was undone."""
        self._append(op, "undone", step, {})

    def end(self, op: int, outcome: str) -> None:
        """Close an operation: ``ok``, ``undone`` or ``failed``. Now and then this drops the history."""
        self._append(op, "end", outcome, {})
        self._compact()

    def put(self, key: str, item: Any) -> None:
        """Record an item's new content. Now and then this drops the history: a lender that comes and goes changes items
        without any operation."""
        self._append(0, "put", key, item)
        if not self._rows % _LOOK_EVERY:
            self._compact()

    def drop(self, key: str) -> None:
        """Record that an item is gone."""
        self._append(0, "drop", key, {})

    def change(self, items: Mapping[str, Any]) -> None:
        """Record what several items have become as one change; ``None`` stands for an item that is gone."""
        try:
            self._db.execute("begin")
            try:
                for key, item in items.items():
                    self._append(0, "drop" if item is None else "put", key, {} if item is None else item)
            except ExecutionError:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")
        except sqlite3.Error as error:
            raise ExecutionError(
                f"cannot write the journal {self.path}: {error}", hint="free space in the state folder, then try again"
            ) from error

    def mark_booted(self) -> None:
        """Record once that QEMU came up."""
        if BOOTED not in self.items():
            self.put(BOOTED, {"at": time.time()})

    def read(self, key: str, kind: type[T]) -> T:
        """Return an item as ``kind``, what that has by default where there is none; raises `PrerequisiteError`."""
        try:
            return msgspec.convert(self.items().get(key, {}), kind)
        except msgspec.ValidationError as error:
            raise broken(self.path, error) from error

    def items(self) -> dict[str, Any]:
        """Return every item as plain data, oldest first."""
        return _items(self._select(_ITEMS))

    def open_operations(self) -> list[OpenOperation]:
        """Return the operations that did not end, oldest first, with the steps that are not undone."""
        operations: dict[int, OpenOperation] = {}
        rows = self._select("select op, kind, name, data from events where op > 0 order by seq")
        for op, kind, name, data in rows:
            if kind == "begin":
                operations[op] = OpenOperation(op, name, data)
                continue
            if kind == "end":
                operations.pop(op, None)
                continue
            operation = operations.get(op)
            if operation is None:
                continue
            if kind == "intent":
                operation.steps.append(OpenStep(name, data))
                continue
            newest = next((step for step in reversed(operation.steps) if step.name == name), None)
            if newest is not None and kind == "done":
                newest.done = True
            elif newest is not None:
                operation.steps.remove(newest)
        return list(operations.values())

    def history(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return the newest events, newest first, for people."""
        rows = self._select("select at, op, kind, name, data from events order by seq desc limit ?", limit)
        return [{"at": at, "op": op, "kind": kind, "name": name, "data": data} for at, op, kind, name, data in rows]

    def _select(self, query: str, *values: int) -> Iterator[tuple[Any, ...]]:
        """Give rows whose last column is ``data``, decoded; raises `PrerequisiteError` for a journal that is broken."""
        try:
            for *columns, data in self._db.execute(query, values):
                yield *columns, msgspec.json.decode(data)
        except (sqlite3.Error, *UNREADABLE) as error:
            raise broken(self.path, error) from error

    def _compact(self) -> None:
        """Keep the items alone once there are many rows; a disk that refuses it leaves the journal as it is."""
        if self._rows <= _COMPACT_ABOVE or self.open_operations():
            return
        items = self.items()
        try:
            self._db.execute("begin")
            self._db.execute("delete from events")
            for key, item in items.items():
                self._append(0, "put", key, item)
            self._append(self._next_op, "begin", "compact", {})
            self._append(self._next_op, "end", "ok", {})
            self._db.execute("commit")
        except (sqlite3.Error, ExecutionError) as error:
            log.warning("cannot compact %s: %s", self.path, error)
            if self._db.in_transaction:
                self._db.execute("rollback")
        else:
            self._next_op += 1
            self._rows = len(items) + 2
