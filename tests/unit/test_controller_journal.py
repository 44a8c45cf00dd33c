"""The journal: what a controller that follows a killed one reads."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmcoal.controller import journal as journal_module
from vmcoal.controller.journal import Journal
from vmcoal.errors import PrerequisiteError

pytestmark = pytest.mark.unit


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_items_survive_and_the_newest_counts(path: Path) -> None:
    journal = Journal(path)
    journal.put("loan:a", {"size": 1})
    journal.put("loan:b", {"size": 2})
    journal.put("loan:a", {"size": 3})
    journal.drop("loan:b")
    journal.close()
    assert Journal(path).items() == {"loan:a": {"size": 3}}


def test_an_operation_without_an_end_is_open_with_its_steps(path: Path) -> None:
    journal = Journal(path)
    ended = journal.begin("attach", {})
    journal.intent(ended, "lease", {})
    journal.end(ended, "ok")
    op = journal.begin("attach", {"memory": 1})
    journal.intent(op, "lease", {"token": "t"})
    journal.done(op, "lease")
    journal.intent(op, "plug", {"device": "d"})
    journal.close()
    [found] = Journal(path).open_operations()
    assert (found.kind, found.request) == ("attach", {"memory": 1})
    assert [(step.name, step.data, step.done) for step in found.steps] == [
        ("lease", {"token": "t"}, True),
        ("plug", {"device": "d"}, False),
    ]


def test_undone_steps_are_not_undone_again(path: Path) -> None:
    journal = Journal(path)
    op = journal.begin("attach", {})
    for core in (0, 1):
        journal.intent(op, "plug-cpu", {"core": core})
        journal.done(op, "plug-cpu")
    journal.undone(op, "plug-cpu")
    [found] = journal.open_operations()
    assert [step.data for step in found.steps] == [{"core": 0}]


def test_operation_numbers_go_on_after_a_restart(path: Path) -> None:
    first = Journal(path)
    number = first.begin("attach", {})
    first.close()
    assert Journal(path).begin("attach", {}) == number + 1


def test_it_is_compacted_and_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_COMPACT_ABOVE", 20)
    journal = Journal(path)
    for index in range(30):
        journal.put(f"loan:{index % 3}", {"n": index})
    number = journal.begin("attach", {})
    journal.end(number, "ok")
    journal.close()
    again = Journal(path)
    assert again.items() == {"loan:0": {"n": 27}, "loan:1": {"n": 28}, "loan:2": {"n": 29}}
    assert len(again.history()) <= 5
    assert again.begin("attach", {}) > number


def test_it_is_compacted_while_it_is_used_but_not_during_an_operation(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_COMPACT_ABOVE", 50)
    journal = Journal(path)
    open_one = journal.begin("attach", {})
    for _ in range(30):
        journal.end(journal.begin("detach", {}), "ok")
    assert len(journal.history(100)) == 61
    journal.put("loan:1", {"n": 1})
    journal.end(open_one, "ok")
    assert len(journal.history(100)) == 3
    assert journal.items() == {"loan:1": {"n": 1}}
    for _ in range(200):
        journal.end(journal.begin("detach", {}), "ok")
    assert len(journal.history(500)) <= 52


def test_a_lender_that_comes_and_goes_does_not_fill_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_COMPACT_ABOVE", 100)
    monkeypatch.setattr(journal_module, "_LOOK_EVERY", 10)
    journal = Journal(path)
    journal.put("loan:b", {"size": 2})
    for turn in range(1000):
        journal.put("loan:a", {"turn": turn})
    assert len(journal.history(5000)) <= 110
    assert journal.items() == {"loan:a": {"turn": 999}, "loan:b": {"size": 2}}
    journal.close()


@pytest.mark.parametrize("read", [Journal.items, Journal.open_operations, Journal.history])
def test_a_damaged_journal_is_told_without_a_traceback(path: Path, read: Callable[[Journal], Any]) -> None:
    journal = Journal(path)
    journal.intent(journal.begin("attach", {}), "lease", {"token": "t"})
    journal.put("loan:a", {"size": 1})
    journal.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("update events set data = '{broken'")
    journal = Journal(path)
    with pytest.raises(PrerequisiteError, match="is broken"):
        read(journal)
    journal.close()


def test_a_journal_of_another_version_is_refused(path: Path) -> None:
    journal = Journal(path)
    journal._db.execute("pragma user_version = 99")
    journal.close()
    with pytest.raises(PrerequisiteError, match="version 99"):
        Journal(path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="cannot open the journal") as caught:
        Journal(tmp_path / "missing" / "journal.sqlite")
    assert caught.value.hint


_events = st.lists(st.tuples(st.sampled_from(["put", "drop"]), st.sampled_from("abc"), st.integers(0, 9)), max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(_events)
def test_replay_is_what_was_written(tmp_path: Path, events: list[tuple[str, str, int]]) -> None:
    path = tmp_path / "replay.sqlite"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    expected: dict[str, Any] = {}
    for kind, key, value in events:
        if kind == "put":
            journal.put(key, value)
            expected[key] = value
        else:
            journal.drop(key)
            expected.pop(key, None)
    journal.close()
    again = Journal(path)
    assert again.items() == expected
    again.close()
