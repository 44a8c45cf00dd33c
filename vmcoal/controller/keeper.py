"""Keeps leases alive: one session for each lender, heartbeats, reconnection, and what it means when they stop.

A broken link is not a lost lease. While it is down the loans of that lender are `unreachable` and the VM is degraded;
when the same lender answers again within the grace, the leases resume in the same epoch. A lender that no longer knows
a lease has given it away: its bytes are lost, and that is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

import msgspec

from vmcoal.controller.loans import Loan, LoanBook, link_changed
from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    ExecutionError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
    VmcoalError,
)
from vmcoal.fabric.identity import LenderRecord, borrower_identity, lender_store
from vmcoal.fabric.messages import Granted, Notice, Revoke
from vmcoal.fabric.session import LenderSession
from vmcoal.model.attachment import AttachmentState
from vmcoal.model.lease import LeaseState
from vmcoal.model.link import Link
from vmcoal.policy.distance import summarize

log = logging.getLogger(__name__)

_CONNECT = 10.0
_HANG_UP = 0.5
_RETRY_FIRST, _RETRY_MAX = 0.5, 5.0
_OWED = 600.0
"""Seconds for which a lender is tried that could not be told; its own clock ends most leases before."""

Relink = Callable[[Loan, Granted, str], Awaitable[None]]
Revoked = Callable[[Revoke, str], None]
Changed = Callable[[], None]


class Keeper:
    """The sessions and heartbeats of one VM."""

    def __init__(self, vm: str, book: LoanBook, *, relink: Relink, revoked: Revoked, changed: Changed) -> None:
        self._vm = vm
        self._book = book
        self._relink = relink
        self._revoked = revoked
        self._changed = changed
        self._sessions: dict[str, LenderSession] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._beats: dict[str, asyncio.Task[None]] = {}
        self._down_since: dict[str, float] = {}
        self._owed: set[asyncio.Task[None]] = set()
        self.links: dict[str, Link] = {}
        self.notices: dict[str, str] = {}

    def records(self) -> list[LenderRecord]:
        """Return the paired lenders."""
        return lender_store().load()

    def record(self, lender: str | None) -> LenderRecord:
        """Return the paired lender called ``lender``, or the only one; raises `NotFoundError` or `UsageError`."""
        records = {record.name: record for record in self.records()}
        if not records:
            raise NotFoundError("no lender is paired", hint="on the lender: vmcoal lend pair; here: vmcoal pair HOST")
        if lender is None:
            if len(records) > 1:
                names = ", ".join(sorted(records))
                raise UsageError("several lenders are paired", hint=f"say which with --from: {names}")
            return next(iter(records.values()))
        if lender not in records:
            names = ", ".join(sorted(records))
            raise NotFoundError(f"no lender {lender!r} is paired", hint=f"paired: {names}; see also: vmcoal pair")
        return records[lender]

    async def session(self, lender: str, *, deadline: float = _CONNECT) -> LenderSession:
        """Return the open session to ``lender``, connecting if there is none, within ``deadline`` seconds."""
        ends = time.monotonic() + deadline
        lock = self._locks.setdefault(lender, asyncio.Lock())
        try:
            async with asyncio.timeout(deadline):
                await lock.acquire()  # somebody else may be trying to connect, and be more patient
        except TimeoutError:
            raise UnreachableError(
                f"{lender} does not answer", host=lender, hint=f"check the link: vmcoal ping {lender}"
            ) from None
        try:
            session = self._sessions.get(lender)
            if session is not None and not session.closed.done():
                return session
            self._sessions.pop(lender, None)
            record = self.record(lender)
            left = max(0.1, ends - time.monotonic())
            session = await LenderSession.connect(record, borrower_identity(), self._vm, deadline=left)
            self.notices.pop(lender, None)  # what still holds is told again
            self._sessions[lender] = session
            return session
        finally:
            lock.release()

    async def measure(self, lender: str, count: int = 10) -> Link:
        """Measure the link to ``lender`` with ``count`` round trips."""
        session = await self.session(lender)
        link = summarize(await session.sample_link(count))
        self.links[lender] = link
        return link

    def watch(self, lender: str) -> None:
        """Send heartbeats to ``lender`` from now on, as long as it lends something."""
        task = self._beats.get(lender)
        if task is None or task.done():
            self._beats[lender] = asyncio.create_task(self._keep(lender), name=f"heartbeat {lender}")

    async def release(self, lender: str, lease: str, epoch: int, *, deadline: float = _CONNECT) -> None:
        """Give a lease back to ``lender`` within ``deadline`` seconds.

        Raises what the session raises. One that did not answer (`UnreachableError`, `DeadlineError`) is told later.
        """
        try:
            session = await self.session(lender, deadline=deadline)
            await session.release(lease, epoch, deadline=deadline)
        except (UnreachableError, DeadlineError):
            self.owe(lender, lease, epoch)
            raise

    def owe(self, lender: str, lease: str, epoch: int) -> None:
        """Give a lease back as soon as its lender answers again, so that it need not wait until the grace is over."""
        task = asyncio.create_task(self._settle(lender, lease, epoch), name=f"release {lease}")
        self._owed.add(task)
        task.add_done_callback(self._owed.discard)

    def down_for(self, lender: str) -> float | None:
        """Return for how many seconds ``lender`` has been unreachable, or ``None`` if it answers."""
        since = self._down_since.get(lender)
        return None if since is None else time.monotonic() - since

    async def close(self) -> None:
        """End heartbeats and sessions; leases stay as they are."""
        beats = [*self._beats.values(), *self._owed]
        for task in beats:
            task.cancel()
        await asyncio.gather(*beats, return_exceptions=True)
        self._beats.clear()
        for session in self._sessions.values():
            with contextlib.suppress(VmcoalError, OSError):
                await session.close()
        self._sessions.clear()

    async def forget(self, lender: str) -> None:
        """Send no more heartbeats to a lender that lends nothing any more; its session stays for what may come."""
        if self._book.of(lender):
            return
        task = self._beats.pop(lender, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._down_since.pop(lender, None)

    async def _keep(self, lender: str) -> None:
        retry = _RETRY_FIRST
        while self._book.of(lender):
            session = None
            try:
                session = await self.session(lender)
                if lender in self._down_since or self._stale(lender):
                    await self._resume(lender, session)
                retry = _RETRY_FIRST
                await self._beat(lender, session)
                await asyncio.sleep(_RETRY_FIRST)  # else a lender that ends each session at once keeps this busy
            except Exception as error:
                if not isinstance(error, VmcoalError | OSError):
                    log.exception("lender %s", lender)
                try:
                    self._lost(lender, error)
                except ExecutionError as full:  # the journal's disk; heartbeats are to go on when it has room again
                    log.error("%s", full)
                await self._hang_up(lender, session)
                await asyncio.sleep(retry)
                retry = min(retry * 2, _RETRY_MAX)

    async def _settle(self, lender: str, lease: str, epoch: int) -> None:
        retry = _RETRY_FIRST
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OWED):
                while True:
                    await asyncio.sleep(retry)
                    retry, session = min(retry * 2, _RETRY_MAX), None
                    try:
                        session = await self.session(lender)
                        await session.release(lease, epoch)
                    except (UnreachableError, DeadlineError, OSError):
                        await self._hang_up(lender, session)
                    except VmcoalError as error:
                        log.info("lease %s is over: %s", lease, error)
                        return
                    else:
                        log.info("lease %s was given back to %s, which answers again", lease, lender)
                        return

    def _stale(self, lender: str) -> bool:
        return any(loan.lease.state is LeaseState.UNREACHABLE for loan in self._book.of(lender))

    async def _beat(self, lender: str, session: LenderSession) -> None:
        """Renew until the session ends; raises what ended it."""
        listener = asyncio.create_task(self._listen(lender, session))
        try:
            while self._book.of(lender):
                asked = {loan.id: loan.lease.epoch for loan in self._book.of(lender)}
                known = {lease.id for lease in await session.renew(list(asked.items()))}
                for lease in asked.keys() - known:
                    self._gone(lease)
                beat = min((loan.lease.terms.heartbeat for loan in self._book.of(lender)), default=0.0)
                done, _ = await asyncio.wait({listener}, timeout=beat)
                if done:
                    listener.result()
                    return
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def _listen(self, lender: str, session: LenderSession) -> None:
        async for message in session.events():
            if isinstance(message, Revoke):
                self._revoked(message, lender)
            elif isinstance(message, Notice):
                self.notices[lender] = message.text
                self._changed()
        await session.wait_closed()

    def _lost(self, lender: str, error: Exception) -> None:
        if lender not in self._down_since:
            log.warning("lender %s: %s", lender, error)
            self._down_since[lender] = time.monotonic()
        for loan in self._book.of(lender):
            self._book.put(link_changed(loan, up=False))
        self._changed()

    async def _hang_up(self, lender: str, session: LenderSession | None) -> None:
        """End a session that did not answer: its connection may be dead without knowing, and the next one tells. One
        that somebody else has opened meanwhile stays."""
        if session is not None:
            if self._sessions.get(lender) is session:
                del self._sessions[lender]
            with contextlib.suppress(Exception):  # whatever its end brings, heartbeats go on
                await session.close(deadline=_HANG_UP)

    async def _resume(self, lender: str, session: LenderSession) -> None:
        for loan in self._book.of(lender):
            try:
                granted = await session.resume(loan.id, loan.lease.epoch)
            except (NotFoundError, RefusedError, ConflictError):
                self._gone(loan.id)
                continue
            if loan.is_memory and granted.memory is not None:
                await self._relink(loan, granted, session.peer_address)
            if (current := self._book.get(loan.id)) is None:
                continue  # it was given back meanwhile
            back = link_changed(current, up=True)
            # A GPU that was lost is unplugged: nothing comes back.
            self._book.put(msgspec.structs.replace(back, problem=loan.problem if loan.is_gpu else None))
        self._down_since.pop(lender, None)
        log.info("lender %s is back", lender)
        self._changed()

    def _gone(self, lease: str) -> None:
        loan = self._book.get(lease)
        if loan is None or loan.problem is not None or loan.state is AttachmentState.ATTACHING:
            return
        lost = "its GPU is lost" if loan.is_gpu else "its vCPUs were given to somebody else"
        if loan.is_memory:
            alone = len(self._book.places(loan.region)) == 1
            lost = f"its {'' if alone else 'copy of '}{loan.size >> 20} MiB {'are' if alone else 'is'} lost"
        problem = f"{loan.lease.lender} no longer holds lease {lease}: {lost}"
        log.error("%s", problem)
        self._book.put(msgspec.structs.replace(loan, problem=problem, state=AttachmentState.DEGRADED))
        self._changed()
