"""Steps that are journaled before and after, and undone in reverse.

`STEPS` knows how to undo each kind of step from plain data alone, so that a controller that was killed in the middle is
followed by one that undoes the same way. Every undo is idempotent: it may find its step not begun, half done or done.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from vmcoal.controller.journal import Journal, OpenStep
from vmcoal.errors import DeadlineError, ExecutionError, InternalError, VmcoalError
from vmcoal.model.units import format_duration

log = logging.getLogger(__name__)

GRACE = 1.5
"""Seconds for which an undo may hold up the error beyond the deadline of its operation."""

Undo = Callable[[dict[str, Any]], Awaitable[None]]
Progress = Callable[[int, int, str, float | None, str | None], None]
"""Called with step, steps, text, fraction of the step (0..1 or ``None``) and detail."""


class Transaction:
    """One operation on a VM: numbered steps, times, and the undo of what was begun."""

    def __init__(self, journal: Journal, undos: dict[str, Undo], op: int, steps: int, report: Progress) -> None:
        self._journal = journal
        self._undos = undos
        self._op = op
        self._steps = steps
        self._report = report
        self._number = 0
        self._told: dict[int, str] = {}
        self._begun: list[OpenStep] = []
        self.seconds: dict[str, float] = {}
        self.outlook: dict[str, str] = {}
        """How much longer what is under way would take, for people; said where a deadline is not met."""

    @contextmanager
    def branch(self) -> Iterator[Transaction]:
        """One of several lines of work that go on at once: the same transaction, but what it says is its own."""
        branch = copy.copy(self)
        self._told[self._number] = ""
        branch._number = 0
        yield branch
        self._told[branch._number] = ""

    @property
    def text(self) -> str:
        """What is under way, for people."""
        return " and ".join(filter(None, self._told.values()))

    def say(self, text: str) -> None:
        """Begin the next numbered step, for people."""
        self._told[self._number] = ""
        self._number = max(self._told) + 1
        self._told[self._number] = text
        self._report(self._number, max(self._steps, self._number), text, None, None)

    def progress(self, fraction: float, detail: str | None = None) -> None:
        """Report how far the current step is, unless another branch has begun a newer one."""
        if self._number == max(self._told):
            self._report(self._number, max(self._steps, self._number), self._told[self._number], fraction, detail)

    @asynccontextmanager
    async def step(self, name: str, **undo: Any) -> AsyncIterator[None]:
        """Do one step; ``undo`` is the data that undoing it needs, written down before it begins."""
        self._journal.intent(self._op, name, undo)
        begun = OpenStep(name, undo)
        self._begun.append(begun)
        started = time.monotonic()
        yield
        begun.done = True
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
        self._journal.done(self._op, name)

    async def roll_back(self) -> list[str]:
        """Undo what was begun, newest first, and end the operation; returns what could not be undone."""
        left = await undo_steps(self._journal, self._undos, self._op, self._begun)
        with _noted_if_possible():
            self._journal.end(self._op, "failed" if left else "undone")
        return left

    @property
    def not_undone(self) -> list[str]:
        """The names of the steps that are yet to be undone, in that order."""
        return [step.name for step in reversed(self._begun)]


class Undoing:
    """The undo of operations that were answered before it was over. Who changes the VM next waits for it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._under_way: dict[asyncio.Task[list[str]], tuple[str, int]] = {}

    @property
    def text(self) -> str | None:
        """What is being undone, for people."""
        kinds = dict.fromkeys(kind for kind, _ in self._under_way.values())
        return f"undo of {' and '.join(kinds)}" if kinds else None

    def keep(self, undo: asyncio.Task[list[str]], kind: str, op: int) -> None:
        """Look after the undo of operation ``op`` until it is over."""
        self._under_way[undo] = kind, op
        undo.add_done_callback(self._over)

    async def over(self) -> None:
        """Wait until nothing is being undone; each undo has deadlines of its own."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    async def stop(self) -> None:
        """Undo no further, as for a controller that ends: the next one finds in the journal what is left to undo."""
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def give_up(self) -> None:
        """Undo no further, for good: the VM ends, or what would have been undone is taken by force."""
        operations = [op for _, op in self._under_way.values()]
        await self.stop()
        for op in operations:
            with _noted_if_possible():
                self._journal.end(op, "failed")

    def _over(self, undo: asyncio.Task[list[str]]) -> None:
        kind, _ = self._under_way.pop(undo)
        if undo.cancelled():
            log.info("the undo of %s was broken off", kind)
        elif (error := undo.exception()) is not None:
            log.error("the undo of %s failed", kind, exc_info=error)
        else:
            log.info("the undo of %s is over%s", kind, "".join(f"; {line}" for line in undo.result()))


@contextmanager
def _noted_if_possible() -> Iterator[None]:
    """Go on where the journal cannot be written, as on a full disk: what is undone twice is undone all the same."""
    try:
        yield
    except ExecutionError as error:
        log.error("%s", error)


async def undo_steps(journal: Journal, undos: dict[str, Undo], op: int, steps: list[OpenStep]) -> list[str]:
    """Undo ``steps``, newest first, and journal it; what is left of ``steps`` is yet to be undone. Returns a line for
    each that could not be."""
    left: list[str] = []
    while steps:
        step = steps[-1]
        try:
            if (undo := undos.get(step.name)) is None:
                continue
            await undo(step.data)
        except VmcoalError as error:
            log.warning("cannot undo %s: %s", step.name, error)
            left.append(f"{step.name}: {error}")
        except Exception as error:  # a defect in one undo must not keep the others from being done
            log.exception("cannot undo %s", step.name)
            left.append(f"{step.name}: {error!r}")
        else:
            with _noted_if_possible():
                journal.undone(op, step.name)
        finally:
            steps.pop()
    return left


@asynccontextmanager
async def transaction(
    journal: Journal,
    undos: dict[str, Undo],
    kind: str,
    request: Any,
    *,
    steps: int,
    deadline: float,
    report: Progress,
    undoing: Undoing | None = None,
    asked: float | None = None,
) -> AsyncIterator[Transaction]:
    """Run the body as one journaled operation with a ``deadline`` in seconds.

    If it fails, is cancelled or runs out of time, what it began is undone before the error goes on; the error's
    ``left`` says what could not be. With ``undoing`` the error goes on at the deadline at the latest (and `GRACE`
    seconds): an undo that takes longer is handed to it, and ``left`` says so. ``asked`` is the deadline that people
    know, where this is a part of something longer.
    """
    ends = time.monotonic() + deadline
    op = journal.begin(kind, request)
    trans = Transaction(journal, undos, op, steps, report)
    try:
        async with asyncio.timeout(deadline):
            yield trans
        journal.end(op, "ok")
    except BaseException as error:
        failure = _explained(error, kind, asked or deadline, trans)
        undo = asyncio.create_task(trans.roll_back(), name=f"undo of {kind}")
        if undoing is not None:
            undoing.keep(undo, kind, op)
        if undoing is None or failure is None:
            left = await asyncio.shield(undo)
        else:
            await asyncio.wait({undo}, timeout=max(0.0, ends - time.monotonic()) + GRACE)
            left = undo.result() if undo.done() else [_goes_on(trans)]
        if left and failure is not None:
            failure.left = "; ".join(filter(None, [failure.left, *left]))
        if failure is None or failure is error:
            raise
        raise failure from error


def _goes_on(trans: Transaction) -> str:
    """Return what is told of an undo that is not over."""
    return f"not undone yet: {', '.join(trans.not_undone)}; that goes on, and the next command waits for it"


def _explained(error: BaseException, kind: str, deadline: float, trans: Transaction) -> VmcoalError | None:
    if isinstance(error, VmcoalError):
        return error
    if isinstance(error, TimeoutError):
        reached = "; ".join([trans.text, *trans.outlook.values()])
        return DeadlineError(
            f"{kind} did not finish within {format_duration(deadline)}, it was at: {reached}",
            hint="try again with a longer --deadline, and see vmcoal status",
        )
    if isinstance(error, OSError):
        return ExecutionError(f"{kind} failed at: {trans.text}: {error}")
    if isinstance(error, Exception):
        log.exception("%s failed", kind)
        return InternalError(f"{kind} failed at: {trans.text}: {error!r}", hint="vmcoal logs controller")
    return None
