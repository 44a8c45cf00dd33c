"""The lease book: who was lent what, and what happens to it next. Pure: no I/O, and time is an argument.

Every time is in seconds on one monotonic clock. The book never lends more than its `Capacity`: a lease counts from its
request until its server and its bytes are gone (`LeaseBook.reclaimed`), not only until its terminal state.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import msgspec

from vmcoal.errors import ConflictError, NotFoundError, RefusedError, UsageError
from vmcoal.lending.entry import CAN_BE_LOST, USED, Capacity, Entry, Limits
from vmcoal.model.gpu import GpuDevice
from vmcoal.model.lease import (
    IllegalTransitionError,
    Lease,
    LeaseEvent,
    LeaseState,
    Offer,
    ResourceKind,
    advance,
)
from vmcoal.policy.admission import admit

S, E, K = LeaseState, LeaseEvent, ResourceKind

MAX_LEASES = 64
"""Live leases of one borrower: each is a process and a port."""

MAX_TOKEN = 128
REMEMBERED = 256
"""Ended leases that are remembered, so that a late message still gets a proper answer."""

REPORTS = {"attach": E.ATTACH, "plugged": E.PLUGGED, "drain": E.DRAIN}
"""What a borrower may report of a lease."""

_REACHED = {
    E.ATTACH: frozenset({S.ATTACHING, S.ACTIVE, S.DRAINING, S.REVOKING}),
    E.PLUGGED: frozenset({S.ACTIVE, S.REVOKING}),
    E.DRAIN: frozenset({S.DRAINING, S.REVOKING}),
}
"""Where a repeated report changes nothing."""


Record = Callable[[Entry, LeaseEvent | None], None]


class LeaseBook:
    """All leases of one lender.

    ``record`` is called with every changed entry before the change counts; what it raises undoes the change.
    ``new_id`` gives ids and generations that were never used before.
    """

    def __init__(
        self,
        lender: str,
        capacity: Capacity,
        *,
        limits: Limits | None = None,
        new_id: Callable[[], str],
        record: Record = lambda entry, event: None,
        epoch: int = 0,
        cordoned: bool = False,
    ) -> None:
        self.lender = lender
        self.capacity = capacity
        self.limits = limits or Limits()
        self.epoch = epoch
        self.cordoned = cordoned
        self._new_id = new_id
        self._record = record
        self._entries: dict[str, Entry] = {}

    # What there is

    def entries(self) -> list[Entry]:
        """Return every entry, the oldest first, ended ones included as far as they are remembered."""
        return list(self._entries.values())

    def live(self) -> list[Entry]:
        """Return the entries in no terminal state."""
        return [entry for entry in self._entries.values() if entry.live]

    def entry(self, lease: str) -> Entry:
        """Return the entry of ``lease``; raises `NotFoundError`."""
        try:
            return self._entries[lease]
        except KeyError:
            raise NotFoundError(f"there is no lease {lease}", host=self.lender) from None

    def used(self, kind: ResourceKind) -> int:
        """Return what of ``kind`` is committed, or not given back yet."""
        return sum(e.lease.committed for e in self._entries.values() if e.held and e.lease.kind is kind)

    def free_gpus(self) -> tuple[GpuDevice, ...]:
        """Return the GPUs that are not lent, or not given back yet."""
        taken = {e.gpu.id for e in self._entries.values() if e.held and e.gpu is not None}
        return tuple(device for device in self.capacity.gpus if device.id not in taken)

    def offer(self, *, same_host: bool = False) -> Offer:
        """Return what is free now."""
        gpus = self.free_gpus()
        return Offer(
            lender=self.lender,
            cpus_free=max(0, self.capacity.cpus - self.used(K.CPU)),
            cpus_total=self.capacity.cpus,
            memory_free=max(0, self.capacity.memory - self.used(K.MEMORY)),
            memory_total=self.capacity.memory,
            gpus_free=len(gpus),
            gpus_total=len(self.capacity.gpus),
            gpus=gpus,
            cordoned=self.cordoned,
            same_host=same_host,
        )

    # What the borrower asks

    def request(
        self,
        now: float,
        *,
        borrower: str,
        vm: str,
        grants: Collection[ResourceKind],
        same_host: bool,
        token: str,
        kind: ResourceKind,
        amount: int,
        committed: int,
        ttl: float,
        grace: float,
        peer: str = "",
    ) -> Entry:
        """Admit a request and return its entry, `REQUESTED`; a token that is known returns the lease it got.

        Raises `UsageError`, `RefusedError` (not granted, cordoned, too much), `ConflictError` (the token's lease
        ended or was another request).
        """
        if not 1 <= len(token) <= MAX_TOKEN:
            raise UsageError(f"a token has 1 to {MAX_TOKEN} characters", host=self.lender)
        for entry in self._entries.values():
            if (entry.token, entry.lease.borrower) == (token, borrower):
                return self._repeated(now, entry, vm, kind, amount)
        admit(self.offer(same_host=same_host), grants, kind, amount, committed, same_host)
        if sum(e.lease.borrower == borrower for e in self.live()) >= MAX_LEASES:
            raise RefusedError(
                f"{borrower} has {MAX_LEASES} leases already",
                host=self.lender,
                hint="detach something first, or attach more at once",
            )
        name = f"{kind.value[0]}{self._new_id()}"
        while name in self._entries:  # ids are short, and a borrower may ask millions of times
            name = f"{kind.value[0]}{self._new_id()}"
        lease = Lease(
            id=name,
            kind=kind,
            amount=amount,
            committed=committed,
            state=advance(S.OFFERED, E.REQUEST),
            epoch=self.epoch + 1,
            lender=self.lender,
            borrower=borrower,
            vm=vm,
            terms=self.limits.terms(ttl, grace),
        )
        gpu = self.free_gpus()[0] if kind is K.GPU else None
        entry = Entry(lease=lease, token=token, generation=self._new_id(), heard=now, since=now, peer=peer, gpu=gpu)
        self._put(entry, E.REQUEST)
        self.epoch = lease.epoch
        return entry

    def _repeated(self, now: float, entry: Entry, vm: str, kind: ResourceKind, amount: int) -> Entry:
        lease = entry.lease
        if not entry.live:
            raise ConflictError(
                f"the lease {lease.id} of this request is {lease.state}",
                host=self.lender,
                hint="ask again with a new token",
            )
        if (lease.vm, lease.kind, lease.amount) != (vm, kind, amount):
            raise ConflictError(f"this token belongs to another request, lease {lease.id}", host=self.lender)
        return self._hear(now, entry)

    def granted(self, now: float, lease: str, *, port: int) -> Entry:
        """The server of a requested lease runs on ``port`` (0: it needs none); raises `ConflictError` if it ended
        meanwhile."""
        entry = self.entry(lease)
        if entry.lease.state is not S.REQUESTED:
            raise ConflictError(f"lease {lease} is {entry.lease.state}", host=self.lender)
        return self._move(now, msgspec.structs.replace(entry, port=port, heard=now), E.GRANT)

    def failed(self, now: float, lease: str, reason: str) -> Entry:
        """The lease's server cannot be kept alive."""
        entry = self.entry(lease)
        return self._move(now, entry, E.FAIL, reason) if entry.live else entry

    def owned(self, now: float, lease: str, epoch: int, borrower: str) -> Entry:
        """Return a live entry of ``borrower`` that has just been heard of.

        Raises `NotFoundError` for another's lease as for none, `RefusedError` for another epoch, `ConflictError` for an
        ended lease.
        """
        entry = self._own(lease, epoch, borrower)
        if not entry.live:
            raise ConflictError(
                f"lease {lease} is {entry.lease.state}" + (f" ({entry.reason})" if entry.reason else ""),
                host=self.lender,
                hint="its bytes are gone: detach it and attach again",
            )
        return self._hear(now, entry)

    def report(self, now: float, lease: str, epoch: int, borrower: str, event: str) -> Entry:
        """Take a borrower's report of a lease's progress; a repeated one changes nothing. Raises as `owned`,
        `UsageError` and `ConflictError` where the lease's state refuses it."""
        what = REPORTS.get(event)
        if what is None:
            raise UsageError(f"{event!r} is not a report", host=self.lender)
        entry = self.owned(now, lease, epoch, borrower)
        if entry.lease.state in _REACHED[what]:
            return entry
        try:
            return self._move(now, entry, what)
        except IllegalTransitionError as error:
            raise ConflictError(str(error), host=self.lender) from error

    def renew(self, now: float, borrower: str, vm: str, leases: Iterable[tuple[str, int]]) -> tuple[Lease, ...]:
        """Return those of ``leases`` (id and epoch) that live on; the others are gone."""
        renewed = []
        for lease, epoch in leases:
            entry = self._entries.get(lease)
            if (
                entry
                and entry.live
                and (entry.lease.borrower, entry.lease.vm, entry.lease.epoch) == (borrower, vm, epoch)
            ):
                renewed.append(self._hear(now, entry).lease)
        return tuple(renewed)

    def resize(self, now: float, lease: str, epoch: int, borrower: str, committed: int) -> Entry:
        """Change what a granular memory lease commits; growing is admitted like a request."""
        entry = self.owned(now, lease, epoch, borrower)
        old = entry.lease
        if old.kind is not K.MEMORY:
            raise RefusedError("only memory can be resized", host=self.lender)
        growth = committed - old.committed
        if growth > 0:
            if old.state is S.REVOKING:
                raise RefusedError(f"lease {lease} is being revoked and cannot grow", host=self.lender)
            admit(self.offer(), {K.MEMORY}, K.MEMORY, old.amount, growth, False)
        admit(_UNLIMITED, {K.MEMORY}, K.MEMORY, old.amount, committed, False)
        return self._put(msgspec.structs.replace(entry, lease=msgspec.structs.replace(old, committed=committed)), None)

    def release(self, now: float, lease: str, epoch: int, borrower: str) -> Entry:
        """Give a lease back. Idempotent: an ended lease stays as it ended."""
        entry = self._own(lease, epoch, borrower)
        return self._move(now, entry, E.RELEASE, "given back") if entry.live else entry

    # What the lender decides

    def revoke(self, now: float, lease: str, deadline: float, reason: str) -> Entry:
        """Want a lease back within ``deadline`` seconds; a lease not in use ends at once, an unreachable one at the
        deadline. An earlier deadline stays."""
        entry = self.entry(lease)
        if not entry.live:
            return entry
        by = min(now + deadline, entry.revoke_by if entry.revoke_by is not None else now + deadline)
        entry = self._put(msgspec.structs.replace(entry, revoke_by=by, reason=reason), None)
        if entry.lease.state is S.REQUESTED:
            return self._move(now, entry, E.RESCIND, reason)
        if entry.lease.state in (S.UNREACHABLE, S.REVOKING):
            return entry
        return self._move(now, entry, E.REVOKE, reason)

    def force(self, now: float, lease: str, reason: str) -> Entry:
        """Take a lease back whatever is in it."""
        entry = self.entry(lease)
        if not entry.live:
            return entry
        return self._move(now, entry, E.RESCIND if entry.lease.state is S.REQUESTED else E.FORCE, reason)

    def came(self, borrower: str, vm: str, peer: str) -> None:
        """A session of a VM began, from IP address ``peer``."""
        for entry in self.live():
            if (entry.lease.borrower, entry.lease.vm) == (borrower, vm) and entry.peer != peer:
                self._put(msgspec.structs.replace(entry, peer=peer), None)

    def expiring(self, now: float) -> list[Entry]:
        """Return the used leases that silence alone ends at the next `sweep`."""
        return [e for e in self.live() if e.lease.state in USED and e.ends_by is not None and now >= e.ends_by]

    def alive(self, now: float, borrower: str, vm: str) -> None:
        """A VM that says nothing still uses what it borrowed: its grace begins again."""
        for entry in self.live():
            if (entry.lease.borrower, entry.lease.vm) == (borrower, vm) and entry.lease.state in USED:
                self._entries[entry.lease.id] = msgspec.structs.replace(entry, heard=now)

    def lost(self, now: float, borrower: str, vm: str) -> None:
        """The session of a VM broke off: its used leases are unreachable at once, not after missed heartbeats."""
        for entry in self.live():
            if (entry.lease.borrower, entry.lease.vm) == (borrower, vm):
                self._lose(now, entry)

    def sweep(self, now: float) -> None:
        """Do what time demands: silence makes leases unreachable, then ends them; revocations end at their deadline."""
        for entry in self.live():
            demanded = entry.demanded(now)
            if demanded is not None:
                self._move(now, entry, *demanded)

    def next_sweep(self, now: float) -> float:
        """Return when `sweep` has something to do at the earliest, at most one heartbeat from ``now``."""
        times = [now + self.limits.heartbeat]
        times += [due for entry in self.live() if (due := entry.next_demand()) is not None]
        return max(now, min(times))

    def reclaimed(self, lease: str) -> None:
        """The server of an ended lease and its bytes are gone: what it held is free again."""
        entry = self.entry(lease)
        if entry.live:
            raise ConflictError(f"lease {lease} is {entry.lease.state}", host=self.lender)
        self._put(msgspec.structs.replace(entry, held=False, port=0), None)
        ended = [e.lease.id for e in self._entries.values() if not e.held]
        for old in ended[:-REMEMBERED]:
            del self._entries[old]

    def to_reclaim(self) -> list[Entry]:
        """Return the ended leases whose server or bytes may still be there."""
        return [e for e in self._entries.values() if e.held and not e.live]

    def restore(self, now: float, entries: Iterable[Entry]) -> None:
        """Take entries over from before a restart of the lender. Half-made grants are failed; used leases are
        unreachable until they are heard of, for `Limits.resume` seconds at least."""
        for entry in entries:
            self._entries[entry.lease.id] = entry
            self.epoch = max(self.epoch, entry.lease.epoch)
            if entry.lease.state is S.REQUESTED:
                self._move(now, entry, E.FAIL, "the lender was restarted before it was granted")
            elif entry.live:
                late = 0.0 if entry.ends_by is None else max(0.0, now + self.limits.resume - entry.ends_by)
                self._lose(now, self._put(msgspec.structs.replace(entry, heard=entry.heard + late), None))

    # Inside

    def _own(self, lease: str, epoch: int, borrower: str) -> Entry:
        entry = self._entries.get(lease)
        if entry is None or entry.lease.borrower != borrower:
            raise NotFoundError(f"there is no lease {lease}", host=self.lender, hint="it ended; attach again")
        if entry.lease.epoch != epoch:
            raise RefusedError(
                f"lease {lease} is of epoch {entry.lease.epoch}, not {epoch}", host=self.lender, hint="attach again"
            )
        return entry

    def _hear(self, now: float, entry: Entry) -> Entry:
        entry = self._entries[entry.lease.id] = msgspec.structs.replace(entry, heard=now)
        if entry.lease.state is S.UNREACHABLE:
            entry = self._move(now, entry, E.LINK_BACK)
            if entry.revoke_by is not None:
                entry = self._move(now, entry, E.REVOKE, entry.reason)
        return entry

    def _lose(self, now: float, entry: Entry) -> None:
        if entry.lease.state in CAN_BE_LOST:
            self._move(now, entry, E.LINK_LOST)

    def _move(self, now: float, entry: Entry, event: LeaseEvent, reason: str = "") -> Entry:
        lease = msgspec.structs.replace(entry.lease, state=advance(entry.lease.state, event))
        return self._put(msgspec.structs.replace(entry, lease=lease, since=now, reason=reason or entry.reason), event)

    def _put(self, entry: Entry, event: LeaseEvent | None) -> Entry:
        self._record(entry, event)
        self._entries[entry.lease.id] = entry
        return entry


_UNLIMITED = Offer(lender="", cpus_free=0, cpus_total=0, memory_free=1 << 62, memory_total=1 << 62)
