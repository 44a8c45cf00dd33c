"""The lease book and its journal."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    ExecutionError,
    NotFoundError,
    PrerequisiteError,
    RefusedError,
    UsageError,
    VmcoalError,
)
from vmcoal.holding.children import ChildState, ExitEvent
from vmcoal.lending.book import MAX_LEASES, REMEMBERED, LeaseBook
from vmcoal.lending.desk import Desk
from vmcoal.lending.entry import Capacity, Entry, Limits
from vmcoal.lending.journal import LenderJournal
from vmcoal.metrics.lender import LenderMetrics
from vmcoal.model.lease import TERMINAL, LeaseEvent, LeaseState, ResourceKind
from vmcoal.model.units import MIB

pytestmark = pytest.mark.unit

S = LeaseState
K = ResourceKind


def make_book(memory: int = 100 * MIB, cpus: int = 4, **kwargs: object) -> LeaseBook:
    count = itertools.count(1)
    return LeaseBook("den", Capacity(cpus, memory), new_id=lambda: f"{next(count):08x}", **kwargs)  # type: ignore[arg-type]


def ask(book: LeaseBook, now: float = 0.0, token: str = "t", **changes: Any) -> Entry:
    request: dict[str, object] = {
        "borrower": "ann",
        "vm": "dev",
        "grants": {K.MEMORY, K.CPU},
        "same_host": True,
        "token": token,
        "kind": K.MEMORY,
        "amount": 10 * MIB,
        "committed": 10 * MIB,
        "ttl": 60.0,
        "grace": 60.0,
    }
    if "amount" in changes:
        changes.setdefault("committed", changes["amount"])
    request.update(changes)
    return book.request(now, **request)  # type: ignore[arg-type]


def active(book: LeaseBook, now: float = 0.0, **changes: Any) -> Entry:
    lease = ask(book, now, **changes).lease
    book.granted(now, lease.id, port=4000)
    book.report(now, lease.id, lease.epoch, lease.borrower, "attach")
    return book.report(now, lease.id, lease.epoch, lease.borrower, "plugged")


def state(book: LeaseBook, entry: Entry) -> LeaseState:
    return book.entry(entry.lease.id).lease.state


def test_life_of_a_lease() -> None:
    seen: list[LeaseEvent | None] = []
    book = make_book(record=lambda entry, event: seen.append(event))
    entry = active(book)
    lease = entry.lease
    assert lease.state is S.ACTIVE
    assert lease.epoch == 1
    assert book.offer().memory_free == 90 * MIB
    book.report(1, lease.id, 1, "ann", "drain")
    book.release(2, lease.id, 1, "ann")
    assert seen == [
        LeaseEvent.REQUEST,
        LeaseEvent.GRANT,
        LeaseEvent.ATTACH,
        LeaseEvent.PLUGGED,
        LeaseEvent.DRAIN,
        LeaseEvent.RELEASE,
    ]
    assert book.offer().memory_free == 90 * MIB, "it is free only when the bytes are gone"
    assert [e.lease.id for e in book.to_reclaim()] == [lease.id]
    book.reclaimed(lease.id)
    assert book.offer().memory_free == 100 * MIB
    assert book.release(3, lease.id, 1, "ann").lease.state is S.RELEASED


def test_a_repeated_token_returns_the_same_lease() -> None:
    book = make_book()
    first = ask(book)
    assert ask(book, 1.0).lease == first.lease
    with pytest.raises(ConflictError):
        ask(book, amount=20 * MIB)
    assert ask(book, borrower="bob").lease.id != first.lease.id
    book.release(2, first.lease.id, 1, "ann")
    with pytest.raises(ConflictError, match="released"):
        ask(book)
    with pytest.raises(UsageError):
        ask(book, token="")


def test_never_more_than_there_is() -> None:
    book = make_book()
    ask(book, amount=60 * MIB)
    with pytest.raises(RefusedError, match="free"):
        ask(book, token="u", amount=42 * MIB)
    ask(book, token="u", amount=40 * MIB)
    ask(book, token="g", amount=400 * MIB, committed=0)
    with pytest.raises(RefusedError, match="CPUs"):
        ask(book, token="c", kind=K.CPU, amount=5)


def test_too_many_leases() -> None:
    book = make_book(memory=1024 * MIB)
    for n in range(MAX_LEASES):
        ask(book, token=str(n), amount=2 * MIB)
    with pytest.raises(RefusedError, match="already"):
        ask(book, token="one more", amount=2 * MIB)


@pytest.mark.parametrize("event", ["", "grant", "plugged"])
def test_reports_that_make_no_sense(event: str) -> None:
    book = make_book()
    entry = ask(book)
    with pytest.raises((UsageError, ConflictError)):
        book.report(0, entry.lease.id, 1, "ann", event)


def test_only_its_borrower_with_its_epoch() -> None:
    book = make_book()
    entry = active(book)
    with pytest.raises(NotFoundError):
        book.release(0, entry.lease.id, 1, "bob")
    with pytest.raises(NotFoundError):
        book.release(0, "m0", 1, "ann")
    with pytest.raises(RefusedError, match="epoch"):
        book.release(0, entry.lease.id, 2, "ann")
    assert book.renew(0, "ann", "other-vm", [(entry.lease.id, 1)]) == ()
    assert book.renew(0, "bob", "dev", [(entry.lease.id, 1)]) == ()


def test_silence_then_back_within_the_grace() -> None:
    book = make_book()
    entry = active(book)
    book.sweep(5.9)
    assert state(book, entry) is S.ACTIVE
    book.sweep(6.0)
    assert state(book, entry) is S.UNREACHABLE
    assert book.renew(59.0, "ann", "dev", [(entry.lease.id, 1)])[0].state is S.ACTIVE
    book.sweep(118.9)
    assert state(book, entry) is S.UNREACHABLE
    book.sweep(119.0)
    assert state(book, entry) is S.EXPIRED
    assert book.renew(120.0, "ann", "dev", [(entry.lease.id, 1)]) == ()
    with pytest.raises(ConflictError, match="the borrower went silent"):
        book.owned(120.0, entry.lease.id, 1, "ann")


def test_an_unused_grant_ends_with_its_ttl() -> None:
    book = make_book()
    entry = ask(book, ttl=20.0, grace=600.0)
    book.granted(0, entry.lease.id, port=1)
    book.sweep(19.9)
    assert state(book, entry) is S.GRANTED
    book.sweep(20.0)
    assert state(book, entry) is S.EXPIRED


def test_a_lost_session_is_unreachable_at_once() -> None:
    book = make_book()
    entry, other = active(book), active(book, token="o", vm="other")
    book.lost(1.0, "ann", "dev")
    assert state(book, entry) is S.UNREACHABLE
    assert state(book, other) is S.ACTIVE


def test_revoke_then_deadline() -> None:
    book = make_book()
    entry, unused, gone = active(book), ask(book, token="u"), active(book, token="g", vm="gone")
    book.lost(0, "ann", "gone")
    for one in (entry, unused, gone):
        book.revoke(1.0, one.lease.id, 10.0, "cordoned")
    assert [state(book, e) for e in (entry, unused, gone)] == [S.REVOKING, S.RESCINDED, S.UNREACHABLE]
    assert book.renew(2.0, "ann", "gone", [(gone.lease.id, gone.lease.epoch)])[0].state is S.REVOKING
    book.revoke(3.0, entry.lease.id, 100.0, "again")
    book.sweep(10.9)
    assert state(book, entry) is S.REVOKING
    assert book.report(10.9, entry.lease.id, 1, "ann", "drain").lease.state is S.REVOKING
    book.sweep(11.0)
    assert [state(book, e) for e in (entry, gone)] == [S.FORCE_RELEASED, S.FORCE_RELEASED]


def test_an_unreachable_lease_is_taken_at_the_revocations_deadline() -> None:
    book = make_book()
    entry = active(book)
    book.lost(0, "ann", "dev")
    book.revoke(0, entry.lease.id, 10.0, "drain")
    book.sweep(10.0)
    assert state(book, entry) is S.FORCE_RELEASED


def test_resize() -> None:
    book = make_book()
    entry = active(book, amount=200 * MIB, committed=0)
    lease = entry.lease.id
    assert book.resize(0, lease, 1, "ann", 80 * MIB).lease.committed == 80 * MIB
    for wrong in (102 * MIB, 202 * MIB, 81 * MIB + 1, -2 * MIB):
        with pytest.raises(RefusedError):
            book.resize(0, lease, 1, "ann", wrong)
    assert book.offer().memory_free == 20 * MIB
    book.cordoned = True
    with pytest.raises(RefusedError, match="cordoned"):
        book.resize(0, lease, 1, "ann", 82 * MIB)
    assert book.resize(0, lease, 1, "ann", 2 * MIB).lease.committed == 2 * MIB
    cpus = active(book_with_cpus := make_book(), kind=K.CPU, amount=2)
    with pytest.raises(RefusedError, match="memory"):
        book_with_cpus.resize(0, cpus.lease.id, 1, "ann", 4)


def test_terms_are_bounded() -> None:
    limits = Limits()
    assert limits.terms(0, -1) == limits.terms(5, 5)
    assert limits.terms(float("inf"), 1e12).grace == 3600
    for ttl, grace in ((0, 0), (5, 3600), (600, 5)):
        terms = limits.terms(ttl, grace)
        assert terms.heartbeat * 4 <= min(terms.ttl, terms.grace)


def test_a_refused_record_undoes_the_change() -> None:
    def refuse(entry: Entry, event: LeaseEvent | None) -> None:
        raise ExecutionError("disk full")

    book = make_book(record=refuse)
    with pytest.raises(ExecutionError):
        ask(book)
    assert not book.entries()
    assert book.epoch == 0


def test_ended_leases_are_forgotten_in_the_end() -> None:
    book = make_book()
    for n in range(REMEMBERED + 20):
        entry = ask(book, token=str(n))
        book.failed(0, entry.lease.id, "no")
        book.reclaimed(entry.lease.id)
    assert len(book.entries()) == REMEMBERED


def test_journal_gives_back_what_it_was_told(tmp_path: Path) -> None:
    journal = LenderJournal(tmp_path / "j")
    book = make_book(record=journal.append)
    used, asked, ended = active(book), ask(book, token="a"), ask(book, token="e")
    book.failed(1.0, ended.lease.id, "no server")
    book.reclaimed(ended.lease.id)
    journal.set("cordoned", "1")
    journal.close()

    journal = LenderJournal(tmp_path / "j")
    again = make_book()
    again.restore(1000.0, journal.load())
    assert again.epoch == 3
    assert journal.get("cordoned") == "1"
    assert [state(again, e) for e in (used, asked, ended)] == [S.UNREACHABLE, S.FAILED, S.FAILED]
    assert [e.lease.id for e in again.to_reclaim()] == [asked.lease.id]
    assert [event for _, event, _ in journal.history(used.lease.id)] == ["request", "grant", "attach", "plugged"]
    again.sweep(1014.9)
    assert state(again, used) is S.UNREACHABLE, "the lender's own absence is not held against the borrower"
    again.sweep(1015.0)
    assert state(again, used) is S.EXPIRED
    journal.close()


def test_journal_prunes_only_old_ended_rows(tmp_path: Path) -> None:
    journal = LenderJournal(tmp_path / "j")
    book = make_book(record=journal.append)
    kept, *_ = [active(book), ask(book, token="x")]
    for n in range(1100):
        entry = ask(book, token=str(n), amount=2 * MIB)
        book.failed(0, entry.lease.id, "no")
        book.reclaimed(entry.lease.id)
    journal.prune({kept.lease.id})
    left = {e.lease.id for e in journal.load()}
    assert kept.lease.id in left
    assert 600 < len(left) < 700
    journal.close()


async def test_a_lender_that_runs_long_keeps_its_journal_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcoal.lending.journal.KEPT_ROWS", 50)
    monkeypatch.setattr("vmcoal.lending.desk.KEPT_ROWS", 50)
    journal = LenderJournal(tmp_path / "j")
    servers: Any = None
    book = make_book(record=lambda *change: desk.record(*change))
    desk = Desk(book, journal, servers, servers, metrics=LenderMetrics("den"))
    kept = active(book)
    for n in range(200):
        entry = ask(book, token=str(n), amount=2 * MIB)
        book.failed(0, entry.lease.id, "no")
        book.reclaimed(entry.lease.id)
    left = {e.lease.id for e in journal.load()}
    assert kept.lease.id in left
    assert len(left) < 60
    journal.close()


class Stuck:
    """Servers that do not end."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def stop(self, entry: Entry) -> None:
        raise self.error

    def resident(self, entry: Entry) -> int:
        return 0


@pytest.mark.parametrize("error", [ExecutionError("nbdkit does not end"), PermissionError(1, "not yours")])
async def test_what_cannot_be_taken_is_said_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("vmcoal.lending.desk._TAKE", 0.05)
    journal, stuck = LenderJournal(tmp_path / "j"), cast(Any, Stuck(error))
    book = make_book(record=lambda *change: desk.record(*change))
    desk = Desk(book, journal, stuck, stuck, metrics=LenderMetrics("den"), now=lambda: 1.0)
    entry = active(book)
    sweeping = asyncio.create_task(desk.sweep_forever())
    with pytest.raises(DeadlineError, match="not everything that was lent is back") as caught:
        await desk.take_back([entry], 0.0, "the lender ends", progress=lambda done, of: None)
    assert f"what lease {entry.lease.id} had is not back yet" in (caught.value.left or "")
    async with asyncio.timeout(60):
        while not desk.degraded:
            await asyncio.sleep(0.01)
    assert str(error) in desk.degraded[0]
    sweeping.cancel()
    await asyncio.gather(sweeping, return_exceptions=True)
    await desk.close()
    journal.close()


@pytest.mark.parametrize("server", ["serve", "pocld", "cuda"])
async def test_a_server_that_the_holder_gives_up_ends_its_lease(tmp_path: Path, server: str) -> None:
    journal, stuck = LenderJournal(tmp_path / "j"), cast(Any, Stuck(ExecutionError("no")))
    told: list[str] = []
    book = make_book(record=lambda *change: desk.record(*change))
    desk = Desk(
        book,
        journal,
        stuck,
        stuck,
        metrics=LenderMetrics("den"),
        revoked=lambda entry, deadline: told.append(entry.lease.id),
    )
    lease = active(book).lease.id
    desk.server_ended(
        ExitEvent(id=f"{server}-{lease}", pid=1, state=ChildState.EXITED, code=1, signal=0, restarting=False)
    )
    assert (told, book.entry(lease).live) == ([lease], False)
    await desk.close()
    journal.close()


async def test_a_borrower_that_reports_for_ever_does_not_fill_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcoal.lending.journal.KEPT_ROWS", 50)
    monkeypatch.setattr("vmcoal.lending.desk.KEPT_ROWS", 50)
    journal = LenderJournal(tmp_path / "j")
    servers: Any = None
    book = make_book(record=lambda *change: desk.record(*change))
    desk = Desk(book, journal, servers, servers, metrics=LenderMetrics("den"))
    other, lease = active(book, token="o"), active(book).lease
    for _ in range(200):
        book.report(1.0, lease.id, lease.epoch, "ann", "drain")
        book.report(1.0, lease.id, lease.epoch, "ann", "plugged")
    assert len(journal.history(lease.id)) <= 101
    again = {entry.lease.id: entry.lease.state for entry in journal.load()}
    assert again == {lease.id: S.ACTIVE, other.lease.id: S.ACTIVE}
    journal.close()


def test_a_damaged_row_gives_way_to_the_one_before(tmp_path: Path) -> None:
    journal = LenderJournal(tmp_path / "j")
    book = make_book(record=journal.append)
    used, other = active(book), active(book, token="o")
    journal.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "j", isolation_level=None)) as file:
        file.execute(
            "UPDATE log SET entry = x'00ff' WHERE seq = (SELECT MAX(seq) FROM log WHERE lease = ?)", (used.lease.id,)
        )
    journal = LenderJournal(tmp_path / "j")
    found = {entry.lease.id: entry.lease.state for entry in journal.load()}
    assert found == {used.lease.id: S.ATTACHING, other.lease.id: S.ACTIVE}
    journal.close()


def test_a_damaged_journal_is_told_without_a_traceback(tmp_path: Path) -> None:
    journal = LenderJournal(tmp_path / "j")
    book = make_book(memory=1 << 40, record=journal.append)
    for n in range(60):
        active(book, token=str(n), borrower=f"b{n}")
    journal.close()
    size = (tmp_path / "j").stat().st_size
    with (tmp_path / "j").open("r+b") as file:
        for page in range(4096, size, 4096):
            file.seek(page)
            file.write(b"\xa5" * 4096)
    with pytest.raises(PrerequisiteError, match="journal"):
        LenderJournal(tmp_path / "j").load()


def test_no_lease_takes_the_id_of_another() -> None:
    ids = iter(["a1", "g1", "a1", "a1", "a2", "g2"])
    book = LeaseBook("den", Capacity(4, 100 * MIB), new_id=lambda: next(ids))
    one, two = ask(book, token="1"), ask(book, token="2")
    assert [entry.lease.id for entry in book.entries()] == [one.lease.id, two.lease.id] == ["ma1", "ma2"]


def test_journal_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"not a database" * 100)
    with pytest.raises(PrerequisiteError, match="journal"):
        LenderJournal(tmp_path / "j")
    journal = LenderJournal(tmp_path / "newer")
    journal.set("version", "99")
    journal.close()
    with pytest.raises(PrerequisiteError, match="newer"):
        LenderJournal(tmp_path / "newer")


class BookMachine(RuleBasedStateMachine):
    """Borrowers, faults and restarts against one book; `servers` stands for the processes and bytes that exist."""

    @initialize(memory=st.integers(0, 20), cpus=st.integers(0, 4))
    def start(self, memory: int, cpus: int) -> None:
        self.now = 0.0
        self.capacity = Capacity(cpus, memory * 2 * MIB)
        self.count = itertools.count(1)
        self.saved: dict[str, Entry] = {}
        self.servers: dict[str, str] = {}
        self.epochs: list[int] = []
        self.generations: set[str] = set()
        self.tokens = itertools.count()
        self.book = self.new_book()

    def new_book(self) -> LeaseBook:
        return LeaseBook(
            "den",
            self.capacity,
            limits=Limits(grace_max=100.0),
            new_id=lambda: f"{next(self.count):x}",
            record=lambda entry, event: self.saved.__setitem__(entry.lease.id, entry),
        )

    def pick(self, data: st.DataObject) -> Entry | None:
        entries = self.book.entries()
        return data.draw(st.sampled_from(entries)) if entries else None

    @rule(
        kind=st.sampled_from([K.MEMORY, K.CPU]),
        amount=st.integers(-1, 12),
        part=st.integers(0, 12),
        borrower=st.sampled_from(["ann", "bob"]),
        works=st.booleans(),
        ttl=st.floats(0, 100),
        grace=st.floats(0, 200),
    )
    def request(self, kind: K, amount: int, part: int, borrower: str, works: bool, ttl: float, grace: float) -> None:
        unit = 2 * MIB if kind is K.MEMORY else 1
        committed = min(part, amount) if kind is K.MEMORY else amount
        try:
            entry = ask(
                self.book,
                self.now,
                str(next(self.tokens)),
                borrower=borrower,
                kind=kind,
                amount=amount * unit,
                committed=committed * unit,
                ttl=ttl,
                grace=grace,
            )
        except RefusedError:
            return
        assert entry.generation not in self.generations
        self.generations.add(entry.generation)
        self.epochs.append(entry.lease.epoch)
        self.servers[entry.lease.id] = entry.generation
        if works:
            self.book.granted(self.now, entry.lease.id, port=1)
        else:
            self.book.failed(self.now, entry.lease.id, "it did not start")

    @rule(data=st.data(), event=st.sampled_from(["attach", "plugged", "drain"]))
    def report(self, data: st.DataObject, event: str) -> None:
        if entry := self.pick(data):
            with contextlib.suppress(VmcoalError):
                self.book.report(self.now, entry.lease.id, entry.lease.epoch, entry.lease.borrower, event)

    @rule(data=st.data(), committed=st.integers(-1, 13))
    def resize(self, data: st.DataObject, committed: int) -> None:
        if entry := self.pick(data):
            lease = entry.lease
            with contextlib.suppress(VmcoalError):
                self.book.resize(self.now, lease.id, lease.epoch, lease.borrower, committed * 2 * MIB)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if entry := self.pick(data):
            self.book.release(self.now, entry.lease.id, entry.lease.epoch, entry.lease.borrower)
            assert not self.book.entry(entry.lease.id).live

    @rule(data=st.data(), deadline=st.floats(0, 50), force=st.booleans())
    def revoke(self, data: st.DataObject, deadline: float, force: bool) -> None:
        if entry := self.pick(data):
            if force:
                self.book.force(self.now, entry.lease.id, "mine")
                assert not self.book.entry(entry.lease.id).live
            else:
                self.book.revoke(self.now, entry.lease.id, deadline, "mine")

    @rule(seconds=st.floats(0, 30), heard=st.booleans())
    def time_passes(self, seconds: float, heard: bool) -> None:
        self.now += seconds
        if heard:
            for borrower in ("ann", "bob"):
                self.book.renew(self.now, borrower, "dev", [(e.lease.id, e.lease.epoch) for e in self.book.live()])
        self.book.sweep(self.now)
        assert self.book.next_sweep(self.now) >= self.now

    @rule()
    def session_lost(self) -> None:
        self.book.lost(self.now, "ann", "dev")

    @rule()
    def cordon(self) -> None:
        self.book.cordoned = not self.book.cordoned

    @precondition(lambda self: self.book.to_reclaim())
    @rule()
    def reclaim(self) -> None:
        entry = self.book.to_reclaim()[0]
        self.servers.pop(entry.lease.id, None)
        self.book.reclaimed(entry.lease.id)

    @rule()
    def restart(self) -> None:
        cordoned = self.book.cordoned
        self.book = self.new_book()
        self.book.restore(self.now, list(self.saved.values()))
        self.book.cordoned = cordoned

    @rule()
    def silence_to_the_end(self) -> None:
        self.now += 10_000
        self.book.sweep(self.now)
        assert not [e for e in self.book.live() if e.lease.state is not S.REQUESTED]
        for entry in self.book.to_reclaim():
            self.servers.pop(entry.lease.id, None)
            self.book.reclaimed(entry.lease.id)
        assert self.book.offer().memory_free == self.capacity.memory
        assert self.book.offer().cpus_free == self.capacity.cpus
        assert not self.servers

    @invariant()
    def never_lends_more_than_it_has(self) -> None:
        if hasattr(self, "book"):
            assert self.book.used(K.MEMORY) <= self.capacity.memory
            assert self.book.used(K.CPU) <= self.capacity.cpus

    @invariant()
    def every_live_lease_has_a_server_and_ended_ones_hold_nothing(self) -> None:
        if hasattr(self, "book"):
            for entry in self.book.entries():
                assert entry.live == (entry.lease.state not in TERMINAL)
                if entry.live or entry.held:
                    assert self.servers[entry.lease.id] == entry.generation
                else:
                    assert entry.lease.id not in self.servers
            assert set(self.servers) <= {e.lease.id for e in self.book.entries()}

    @invariant()
    def epochs_rise(self) -> None:
        if hasattr(self, "book"):
            assert self.epochs == sorted(set(self.epochs))

    @invariant()
    def the_journal_knows_what_the_book_knows(self) -> None:
        if hasattr(self, "book"):
            for entry in self.book.entries():
                saved = self.saved[entry.lease.id]
                assert msgspec.structs.replace(saved, heard=entry.heard) == entry


BookMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBookMachine = BookMachine.TestCase
