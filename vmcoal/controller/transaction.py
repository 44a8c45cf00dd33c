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
        """Undo what was begun, newest first; returns what could not be undone."""
        return await undo_steps(self._journal, self._undos, self._op, self._begun)


async def undo_steps(journal: Journal, undos: dict[str, Undo], op: int, steps: list[OpenStep]) -> list[str]:
    """Undo ``steps``, newest first, and journal it. Returns a line for each that could not be undone."""
    left: list[str] = []
    for step in reversed(steps):
        undo = undos.get(step.name)
        if undo is None:
            continue
        try:
            await undo(step.data)
        except VmcoalError as error:
            log.warning("cannot undo %s: %s", step.name, error)
            left.append(f"{step.name}: {error}")
        except Exception as error:  # a defect in one undo must not keep the others from being done
            log.exception("cannot undo %s", step.name)
            left.append(f"{step.name}: {error!r}")
        else:
            journal.undone(op, step.name)
    steps.clear()
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
) -> AsyncIterator[Transaction]:
    """Run the body as one journaled operation with a ``deadline`` in seconds.

    If it fails, is cancelled or runs out of time, what it began is undone before the error goes on; the error's
    ``left`` says what could not be.
    """
    op = journal.begin(kind, request)
    trans = Transaction(journal, undos, op, steps, report)
    try:
        async with asyncio.timeout(deadline):
            yield trans
    except BaseException as error:
        failure = _explained(error, kind, deadline, trans)
        left = await asyncio.shield(trans.roll_back())
        journal.end(op, "failed" if left else "undone")
        if left and failure is not None:
            failure.left = "; ".join(filter(None, [failure.left, *left]))
        if failure is None or failure is error:
            raise
        raise failure from error
    journal.end(op, "ok")


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
