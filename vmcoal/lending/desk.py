"""Where leases are granted, kept and taken back: the book, its journal and the servers behind it, together.

Everything that is lent goes through one `Desk`; sessions and the operator's commands only ask it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from vmcoal.errors import DeadlineError, NotFoundError, RefusedError, UnreachableError, VmcoalError
from vmcoal.holding.children import ExitEvent
from vmcoal.lending.api import ReclaimResult
from vmcoal.lending.book import LeaseBook
from vmcoal.lending.entry import Entry
from vmcoal.lending.gpu_server import GpuServers, lease_of
from vmcoal.lending.journal import KEPT_ROWS, LenderJournal
from vmcoal.lending.memory_server import MemoryServers
from vmcoal.metrics.lender import LenderMetrics
from vmcoal.model.gpu import GpuServer
from vmcoal.model.lease import Lease, LeaseEvent, LeaseState, MemoryServer, ResourceKind
from vmcoal.policy.admission import GRAIN

log = logging.getLogger("vmcoal.lending")

_GRANT_DEADLINE = 60.0
_CHEAT_DEADLINE = 30.0
_TAKE = 20.0
"""Seconds that taking leases may need beyond the deadline of their borrowers."""
_RETRY = 2.0
_PAUSE = 0.01

Revoked = Callable[[Entry, float], None]
Server = MemoryServer | GpuServer
"""How to reach what a lease lends."""


class Desk:
    """Grants and reclaims. ``revoked`` tells a borrower that a lease is wanted back, and within how many seconds."""

    def __init__(
        self,
        book: LeaseBook,
        journal: LenderJournal,
        servers: MemoryServers,
        gpus: GpuServers,
        *,
        metrics: LenderMetrics,
        revoked: Revoked = lambda entry, deadline: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.book = book
        self.servers = servers
        self.gpus = gpus
        self.revoked = revoked
        self.now = now
        self.metrics = metrics
        self._journal = journal
        self._granting: dict[str, asyncio.Task[Entry]] = {}
        self._reclaiming: dict[str, asyncio.Task[None]] = {}
        self._troubles: dict[str, str] = {}
        self._waiters: set[asyncio.Event] = set()
        self._reviving = asyncio.Lock()

    @property
    def degraded(self) -> tuple[str, ...]:
        """What does not work as it should, for people."""
        return tuple(self._troubles.values())

    def record(self, entry: Entry, event: LeaseEvent | None) -> None:
        """Write a change of the book down, then let it happen.

        A full disk refuses new leases, never an end: what cannot be written then is found out again after a restart.
        """
        if event is not None:
            self.metrics.event(entry.lease.kind, event.value)
            log.info(
                "lease %s of %s/%s: %s → %s",
                entry.lease.id,
                entry.lease.borrower,
                entry.lease.vm,
                event,
                entry.lease.state,
            )
        try:
            self._journal.append(entry, event)
            if self._journal.appended >= KEPT_ROWS:
                self._journal.prune({other.lease.id for other in self.book.entries() if other.held} | {entry.lease.id})
            self._troubles.pop("journal", None)
        except VmcoalError as error:
            self._troubles["journal"] = f"{error.message}; {error.hint}"
            if event in (LeaseEvent.REQUEST, LeaseEvent.GRANT):
                raise
            log.error("%s", error)
        for waiter in self._waiters:
            waiter.set()

    # For the borrower

    async def grant(self, entry: Entry) -> tuple[Lease, Server | None]:
        """Make a requested lease real, once however often it is asked for; return it with its server."""
        lease = entry.lease.id
        if entry.lease.state is LeaseState.REQUESTED:
            task = self._granting.get(lease)
            if task is None:
                task = self._granting[lease] = asyncio.create_task(self._grant(entry), name=f"grant {lease}")
            # A session that ends must not end the grant: the borrower asks again with the same token.
            entry = await asyncio.shield(task)
        return await self._with_server(entry)

    async def resume(self, entry: Entry) -> tuple[Lease, Server | None]:
        """Return a live lease with its server, which is started again if it has to be.

        Raises `RefusedError` if its bytes are gone, `UnreachableError` while its server cannot run (another program
        has its port).
        """
        if self._behind(entry) is not None and entry.lease.state is not LeaseState.REQUESTED:
            try:
                await self._revive(entry)
            except VmcoalError as error:
                raise UnreachableError(
                    f"lease {entry.lease.id} cannot be served now: {error.message}",
                    host=self.book.lender,
                    hint="its bytes are kept; see vmcoal lend status there",
                ) from error
            entry = self.book.entry(entry.lease.id)
            if not entry.live:
                raise RefusedError(
                    f"what lease {entry.lease.id} lent is gone: {entry.reason}",
                    host=self.book.lender,
                    hint="detach it and attach again",
                )
        return await self.grant(entry)

    async def release(self, lease: str, epoch: int, borrower: str) -> Lease:
        """Take back what a borrower gives back; its server and bytes are gone when this returns."""
        entry = self.book.release(self.now(), lease, epoch, borrower)
        await self._reclaim(entry.lease.id)
        return entry.lease

    def resize(self, lease: str, epoch: int, borrower: str, committed: int) -> Lease:
        """Change what a granular lease commits; never below the bytes that the borrower has not discarded."""
        entry = self.book.owned(self.now(), lease, epoch, borrower)
        if entry.lease.kind is ResourceKind.MEMORY and 0 <= committed < entry.lease.committed:
            used = -(-self.servers.resident(entry) // GRAIN) * GRAIN
            committed = max(committed, min(used, entry.lease.committed))
        return self.book.resize(self.now(), lease, epoch, borrower, committed).lease

    # For the operator

    def revoke(self, entry: Entry, deadline: float, reason: str) -> None:
        """Want a lease back within ``deadline`` seconds; what is not back then is taken by `sweep`."""
        entry = self.book.revoke(self.now(), entry.lease.id, deadline, reason)
        if entry.live:
            self.revoked(entry, deadline)
        self.reap()

    async def take_back(
        self, entries: list[Entry], deadline: float, reason: str, *, progress: Callable[[int, int], None]
    ) -> ReclaimResult:
        """Revoke leases and wait until each is back or taken; ``progress`` is told how many of how many are.

        Cancelling it leaves the revocations as they are. Raises `DeadlineError` where what they had cannot be taken.
        """
        ends = time.monotonic() + deadline + _TAKE
        for entry in entries:
            self.revoke(entry, deadline, reason)
        ids, last = [entry.lease.id for entry in entries], -1
        with self._changes() as changed:
            while True:
                changed.clear()
                found = [entry for entry in self.book.entries() if entry.lease.id in ids]
                left = sum(entry.held for entry in found)
                if left != last:
                    last = left
                    progress(len(ids) - left, len(ids))
                if not left:
                    break
                try:
                    async with asyncio.timeout(max(0.0, ends - time.monotonic())):
                        await changed.wait()
                except TimeoutError:
                    raise self._not_back(found) from None
        taken = [e.lease.id for e in found if e.lease.state in (LeaseState.FORCE_RELEASED, LeaseState.EXPIRED)]
        return ReclaimResult(released=tuple(lease for lease in ids if lease not in taken), taken=tuple(taken))

    def _not_back(self, entries: list[Entry]) -> DeadlineError:
        held = [entry.lease.id for entry in entries if entry.held]
        told = [self._troubles.get(f"reclaim {lease}", f"what lease {lease} had is not back yet") for lease in held]
        return DeadlineError(
            "not everything that was lent is back", left="; ".join(told), hint="it is tried again: vmcoal lend status"
        )

    # For the daemon

    async def adopt(self, entries: list[Entry], *, same_boot: bool) -> None:
        """Take over what an earlier lender left: its book, and the servers that are still there or can be again."""
        self.book.restore(self.now(), entries)
        for entry in self.book.live():
            if not same_boot:
                self.book.failed(self.now(), entry.lease.id, "the lender's host was started anew")
        await self.revive_all()
        entries = self.book.entries()
        for name in [*await self.servers.sweep(entries), *await self.gpus.sweep(entries)]:
            log.warning("ended %s, which belonged to no lease", name)
        self.reap()

    async def revive_all(self) -> None:
        """See that every live lease has its server: after a restart of this process or of the holder."""
        for entry in self.book.live():
            if self._behind(entry) is not None and entry.lease.state is not LeaseState.REQUESTED:
                try:
                    await self._revive(entry)
                except VmcoalError as error:
                    log.error("lease %s has no server: %s", entry.lease.id, error)

    def server_ended(self, event: ExitEvent) -> None:
        """Take note of the end of a lease's server; one that the holder gave up is the end of its lease."""
        lease = lease_of(event.id)
        entry = next((e for e in self.book.live() if e.lease.id == lease), None)
        if entry is None or entry.lease.state is LeaseState.REQUESTED or self._reviving.locked():
            return
        log.warning("the server of lease %s ended (%s %s)", lease, event.state, event.signal or event.code)
        if event.restarting:
            self.metrics.restarted()
        else:
            self.book.failed(self.now(), lease, "its server cannot be kept alive")
            self.revoked(self.book.entry(lease), 0.0)
            self.reap()

    async def sweep_forever(self) -> None:
        """Do what time demands, until cancelled."""
        retry = 0.0
        with self._changes() as changed:
            while True:
                changed.clear()
                self._spare_the_connected()
                self.book.sweep(self.now())
                self._check_use()
                self.reap()
                if any(key.startswith("serve ") for key in self._troubles) and self.now() >= retry:
                    await self.revive_all()
                    retry = self.now() + _RETRY
                # A change may have brought a deadline nearer.
                pause = max(_PAUSE, self.book.next_sweep(self.now()) - self.now())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await changed.wait()

    def reap(self) -> None:
        """Begin to give back what ended leases hold."""
        for entry in self.book.to_reclaim():
            lease = entry.lease.id
            if lease not in self._granting and lease not in self._reclaiming:
                task = self._reclaiming[lease] = asyncio.create_task(self._give_back(entry), name=f"reclaim {lease}")
                task.add_done_callback(self._reclaimed)

    def _reclaimed(self, task: asyncio.Task[None]) -> None:
        self._reclaiming = {lease: other for lease, other in self._reclaiming.items() if other is not task}

    async def close(self) -> None:
        """End what is under way; grants are undone."""
        tasks = [*self._granting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._reclaiming.values(), return_exceptions=True)

    # Inside

    async def _grant(self, entry: Entry) -> Entry:
        lease, port, began, outcome = entry.lease.id, 0, time.monotonic(), "ok"
        try:
            if (servers := self._behind(entry)) is not None:
                async with asyncio.timeout(_GRANT_DEADLINE):
                    port = (await servers.start(entry)).port
            return self.book.granted(self.now(), lease, port=port)
        except TimeoutError:
            outcome = "DeadlineError"
            self.book.failed(self.now(), lease, "its server was not ready in time")
            raise DeadlineError(
                f"the lender could not make the {entry.lease.kind} ready in time", host=self.book.lender
            ) from None
        except BaseException as error:
            outcome = type(error).__name__
            self.book.failed(self.now(), lease, str(error) or "it was given up")
            raise
        finally:
            self.metrics.granted(entry.lease.kind, time.monotonic() - began, outcome)
            del self._granting[lease]
            self.reap()

    def _behind(self, entry: Entry) -> MemoryServers | GpuServers | None:
        """Return who serves a lease of this kind; a vCPU has no server."""
        if entry.lease.kind is ResourceKind.MEMORY:
            return self.servers
        return self.gpus if entry.lease.kind is ResourceKind.GPU else None

    async def _with_server(self, entry: Entry) -> tuple[Lease, Server | None]:
        servers = self._behind(entry)
        if servers is None:
            return entry.lease, None
        server = servers.describe(entry)
        if server is None:
            raise RefusedError(f"the key of lease {entry.lease.id} is gone", host=self.book.lender, hint="attach again")
        return entry.lease, server

    async def _revive(self, entry: Entry) -> None:
        lease = entry.lease.id
        trouble = f"serve {lease}"
        async with self._reviving:
            try:
                servers = self._behind(entry)
                assert servers is not None
                await servers.find(entry)
                self._troubles.pop(trouble, None)
            except NotFoundError as error:
                self._troubles.pop(trouble, None)
                self.book.failed(self.now(), lease, error.message)
                self.reap()
            except VmcoalError as error:
                self._troubles[trouble] = f"lease {lease} cannot be served: {error.message}; {error.hint}"
                raise

    async def _reclaim(self, lease: str) -> None:
        self.reap()
        task = self._reclaiming.get(lease)
        if task is not None:
            await asyncio.shield(task)

    async def _give_back(self, entry: Entry) -> None:
        lease, began = entry.lease.id, time.monotonic()
        trouble = f"reclaim {lease}"
        try:
            if (servers := self._behind(entry)) is not None:
                await servers.stop(entry)
            self.book.reclaimed(lease)
            self.metrics.reclaimed(entry.lease.kind, time.monotonic() - began)
            self._troubles.pop(trouble, None)
            self._troubles.pop(f"serve {lease}", None)
        except Exception as error:
            defect = None if isinstance(error, VmcoalError) else error
            log.error("lease %s is over, but what it had is not back: %s", lease, error, exc_info=defect)
            self._troubles[trouble] = f"what lease {lease} had is not back yet: {error}"

    def _spare_the_connected(self) -> None:
        """Take no lease from a VM whose data connection lives: only its controller is silent, and will be back."""
        silent = {(entry.lease.borrower, entry.lease.vm) for entry in self.book.expiring(self.now())}
        for entry in self.book.live() if silent else ():
            vm = entry.lease.borrower, entry.lease.vm
            servers = self._behind(entry)
            if vm in silent and servers is not None and servers.in_use(entry):
                log.info("%s/%s is silent, but uses lease %s: it is kept", *vm, entry.lease.id)
                self.book.alive(self.now(), *vm)
                silent.discard(vm)

    def _check_use(self) -> None:
        """Take back granular leases that hold more bytes than they committed: the others' promises rest on it. Once
        more is used than is lent in all, they are taken at once."""
        memory = [entry for entry in self.book.entries() if entry.held and entry.lease.kind is ResourceKind.MEMORY]
        used = {entry.lease.id: self.servers.resident(entry) for entry in memory}
        deadline = _CHEAT_DEADLINE
        if sum(used.values()) > self.book.capacity.memory + GRAIN * len(used):
            deadline = 0.0
        for entry in memory:
            lease = entry.lease
            granular = entry.live and lease.committed < lease.amount
            sooner = entry.revoke_by is None or entry.revoke_by > self.now() + deadline
            if granular and sooner and used[lease.id] > lease.committed + GRAIN:
                self.revoke(entry, deadline, "it holds more bytes than it asked for")

    @contextlib.contextmanager
    def _changes(self) -> Iterator[asyncio.Event]:
        """An event that is set at each change of the book."""
        event = asyncio.Event()
        self._waiters.add(event)
        try:
            yield event
        finally:
            self._waiters.discard(event)
