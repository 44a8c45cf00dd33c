"""Transactions: every step is undone, newest first, whatever ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vmcoal.controller.journal import Journal
from vmcoal.controller.transaction import Transaction, Undoing, transaction
from vmcoal.errors import DeadlineError, ExecutionError, InternalError, RefusedError, UnreachableError

pytestmark = pytest.mark.unit


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.sqlite")
    yield journal
    journal.close()


class World:
    """What the steps change."""

    def __init__(self) -> None:
        self.there: list[str] = []
        self.undone: list[str] = []
        self.refuses: set[str] = set()
        self.breaks: dict[str, Exception] = {}
        self.told: list[tuple[int, int, str]] = []
        self.waits: dict[str, asyncio.Event] = {}

    def undos(self) -> dict[str, Any]:
        async def undo(data: dict[str, Any]) -> None:
            if data["what"] in self.refuses:
                raise UnreachableError("gone")
            if data["what"] in self.breaks:
                raise self.breaks[data["what"]]
            if data["what"] in self.waits:
                await self.waits[data["what"]].wait()
            self.undone.append(data["what"])

        return {"a": undo, "b": undo, "c": undo}

    def report(self, step: int, steps: int, text: str, fraction: float | None, detail: str | None) -> None:
        self.told.append((step, steps, text))

    async def do(self, trans: Transaction, names: str) -> None:
        for name in names:
            trans.say(name)
            async with trans.step(name, what=name):
                self.there.append(name)


async def run(journal: Journal, world: World, names: str, *, error: BaseException | None = None) -> None:
    async with transaction(journal, world.undos(), "attach", {}, steps=3, deadline=5.0, report=world.report) as trans:
        await world.do(trans, names)
        if error:
            raise error


async def test_success_undoes_nothing(journal: Journal) -> None:
    world = World()
    await run(journal, world, "abc")
    assert world.undone == []
    assert world.told == [(1, 3, "a"), (2, 3, "b"), (3, 3, "c")]
    assert journal.open_operations() == []


async def test_failure_undoes_in_reverse_and_the_error_goes_on(journal: Journal) -> None:
    world = World()
    with pytest.raises(RefusedError, match="no"):
        await run(journal, world, "abc", error=RefusedError("no"))
    assert world.undone == ["c", "b", "a"]
    assert journal.open_operations() == []


async def test_what_cannot_be_undone_is_said(journal: Journal) -> None:
    world = World()
    world.refuses = {"b"}
    with pytest.raises(RefusedError) as caught:
        await run(journal, world, "abc", error=RefusedError("no", left="a DIMM"))
    assert world.undone == ["c", "a"]
    assert caught.value.left == "a DIMM; b: gone"
    assert [event["name"] for event in journal.history(1)] == ["failed"]


async def test_a_defect_in_an_undo_does_not_stop_the_others(journal: Journal) -> None:
    world = World()
    world.breaks = {"c": ValueError("a defect"), "b": PermissionError(1, "not yours")}
    with pytest.raises(RefusedError) as caught:
        await run(journal, world, "abc", error=RefusedError("no"))
    assert world.undone == ["a"]
    assert caught.value.left == "c: ValueError('a defect'); b: PermissionError(1, 'not yours')"
    assert [event["name"] for event in journal.history(1)] == ["failed"]


async def test_a_defect_becomes_an_internal_error(journal: Journal) -> None:
    with pytest.raises(InternalError, match="KeyError"):
        await run(journal, World(), "a", error=KeyError("x"))


async def test_the_deadline_undoes(journal: Journal) -> None:
    world = World()
    with pytest.raises(DeadlineError, match="at: a"):
        async with transaction(
            journal, world.undos(), "attach", {}, steps=1, deadline=0.01, report=world.report
        ) as trans:
            await world.do(trans, "a")
            await asyncio.Event().wait()
    assert world.undone == ["a"]


async def test_cancellation_undoes(journal: Journal) -> None:
    world = World()
    begun = asyncio.Event()

    async def attach() -> None:
        async with transaction(
            journal, world.undos(), "attach", {}, steps=1, deadline=5.0, report=world.report
        ) as trans:
            await world.do(trans, "ab")
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(attach())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.undone == ["b", "a"]
    assert journal.open_operations() == []


async def test_a_step_that_fails_half_way_is_undone_too(journal: Journal) -> None:
    world = World()

    async def fail(trans: Transaction) -> None:
        async with trans.step("b", what="b"):
            raise RefusedError("half way")

    with pytest.raises(RefusedError):
        async with transaction(
            journal, world.undos(), "attach", {}, steps=1, deadline=5.0, report=world.report
        ) as trans:
            await world.do(trans, "a")
            await fail(trans)
    assert world.undone == ["b", "a"]


async def test_branches_speak_for_themselves(journal: Journal) -> None:
    world = World()
    told: list[tuple[int, str, float | None]] = []

    def report(step: int, steps: int, text: str, fraction: float | None, detail: str | None) -> None:
        told.append((step, text, fraction))

    with pytest.raises(DeadlineError, match=r"it was at: slow$"):
        async with transaction(journal, world.undos(), "attach", {}, steps=3, deadline=0.05, report=report) as trans:
            trans.say("first")
            with trans.branch() as slow:
                slow.say("slow")
                with trans.branch() as fast:
                    fast.say("fast")
                    slow.progress(0.1)  # not shown: a newer step has begun
                    fast.progress(0.2)
                    assert trans.text == "slow and fast"
                    async with slow.step("b", what="b"), fast.step("a", what="a"):
                        pass
                await asyncio.Event().wait()
    assert told == [(1, "first", None), (2, "slow", None), (3, "fast", None), (3, "fast", 0.2)]
    assert world.undone == ["a", "b"]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> World:
    """What has begun takes long to be undone."""
    monkeypatch.setattr("vmcoal.controller.transaction.GRACE", 0.01)
    world = World()
    world.waits["b"] = asyncio.Event()
    return world


async def give_in(journal: Journal, world: World, undoing: Undoing) -> str:
    """Let a transaction run out of time; return what it says is left."""
    with pytest.raises(DeadlineError) as caught:
        async with transaction(
            journal, world.undos(), "detach", {}, steps=2, deadline=0.01, report=world.report, undoing=undoing
        ) as trans:
            await world.do(trans, "abc")
            await asyncio.Event().wait()
    return caught.value.left or ""


async def test_an_undo_that_takes_long_does_not_hold_the_error_up(journal: Journal, slow: World) -> None:
    undoing = Undoing(journal)
    left = await give_in(journal, slow, undoing)
    assert left == "not undone yet: b, a; that goes on, and the next command waits for it"
    assert (slow.undone, undoing.text) == (["c"], "undo of detach")
    slow.waits["b"].set()
    await undoing.over()
    assert (slow.undone, undoing.text) == (["c", "b", "a"], None)
    assert journal.open_operations() == []
    assert [event["name"] for event in journal.history(1)] == ["undone"]


async def test_an_undo_that_is_stopped_is_left_to_the_next_controller(journal: Journal, slow: World) -> None:
    undoing = Undoing(journal)
    await give_in(journal, slow, undoing)
    await undoing.stop()
    (operation,) = journal.open_operations()
    assert [step.name for step in operation.steps] == ["a", "b"]


async def test_an_undo_that_is_given_up_is_over(journal: Journal, slow: World) -> None:
    undoing = Undoing(journal)
    await give_in(journal, slow, undoing)
    await undoing.give_up()
    assert (slow.undone, undoing.text) == (["c"], None)
    assert journal.open_operations() == []


async def test_what_is_undone_in_time_is_undone_before_the_error(journal: Journal) -> None:
    world = World()
    undoing = Undoing(journal)
    with pytest.raises(RefusedError) as caught:
        async with transaction(
            journal, world.undos(), "detach", {}, steps=2, deadline=60.0, report=world.report, undoing=undoing
        ) as trans:
            await world.do(trans, "ab")
            raise RefusedError("no")
    assert (caught.value.left, world.undone, undoing.text) == (None, ["b", "a"], None)


def fill_the_disk(monkeypatch: pytest.MonkeyPatch, journal: Journal, *kinds: str) -> None:
    """Let the journal refuse to write events of ``kinds`` from now on."""
    append = journal._append

    def full(op: int, kind: str, name: str, data: Any) -> None:
        if kind in kinds:
            raise ExecutionError("cannot write the journal: disk full")
        append(op, kind, name, data)

    monkeypatch.setattr(journal, "_append", full)


async def test_a_full_disk_keeps_nothing_from_being_undone(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    fill_the_disk(monkeypatch, journal, "undone", "end")
    with pytest.raises(RefusedError, match="no"):
        await run(journal, world, "abc", error=RefusedError("no"))
    assert world.undone == ["c", "b", "a"]


async def test_an_operation_whose_end_cannot_be_written_is_undone(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next controller would undo it, and the command says that it failed."""
    world = World()
    fill_the_disk(monkeypatch, journal, "end")
    with pytest.raises(ExecutionError, match="disk full"):
        await run(journal, world, "abc")
    assert world.undone == ["c", "b", "a"]


async def test_the_undo_of_what_is_cancelled_twice_is_waited_for(journal: Journal, slow: World) -> None:
    undoing, begun = Undoing(journal), asyncio.Event()

    async def attach() -> None:
        async with transaction(
            journal, slow.undos(), "attach", {}, steps=2, deadline=60.0, report=slow.report, undoing=undoing
        ) as trans:
            await slow.do(trans, "abc")
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(attach())
    await begun.wait()
    task.cancel()
    while undoing.text is None:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert undoing.text == "undo of attach"
    slow.waits["b"].set()
    await undoing.over()
    assert slow.undone == ["c", "b", "a"]
