"""One lease as its lender knows it, what a lender lends in all, and what time demands of a lease. Plain data, no clock.

Every time is in seconds on one monotonic clock.
"""

from __future__ import annotations

import msgspec

from vmcoal.model.gpu import GpuDevice
from vmcoal.model.lease import TERMINAL, Lease, LeaseEvent, LeaseState, LeaseTerms

MISSED_HEARTBEATS = 3
"""After so many heartbeats of silence a used lease is unreachable."""

CAN_BE_LOST = frozenset({LeaseState.ATTACHING, LeaseState.ACTIVE, LeaseState.DRAINING})
"""A lease that is granted and not used yet ends with its TTL; it has no bytes worth a grace."""

USED = CAN_BE_LOST | {LeaseState.UNREACHABLE}
"""Where a lease may have bytes that somebody uses."""


class Capacity(msgspec.Struct, frozen=True):
    """What the lender's operator lends in all: vCPUs, bytes and GPUs."""

    cpus: int
    memory: int
    gpus: tuple[GpuDevice, ...] = ()


class Limits(msgspec.Struct, frozen=True):
    """What terms a borrower can get, in seconds. ``resume`` is the least time that a borrower has to come back after a
    restart of the lender, whose own absence is not held against it."""

    ttl_min: float = 5.0
    ttl_max: float = 600.0
    grace_min: float = 5.0
    grace_max: float = 3600.0
    heartbeat: float = 2.0
    resume: float = 15.0

    def terms(self, ttl: float, grace: float) -> LeaseTerms:
        """Return the terms nearest to the wishes; a lease survives at least four heartbeats of silence."""
        ttl = min(max(ttl, self.ttl_min), self.ttl_max)
        grace = min(max(grace, self.grace_min), self.grace_max)
        return LeaseTerms(ttl=ttl, heartbeat=min(self.heartbeat, ttl / 4, grace / 4), grace=grace)


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One lease and what only the lender knows of it.

    ``token`` the borrower's name for its request; ``generation`` the nonce of the bytes; ``port`` of the server, 0
    where there is none; ``heard`` the last message; ``since`` when its state began; ``revoke_by`` when it is taken
    back; ``reason`` why it ends or ended; ``held`` while the server and its bytes are there; ``peer`` the IP address
    that its borrower came from last; ``gpu`` the device of a GPU lease.
    """

    lease: Lease
    token: str
    generation: str = ""
    port: int = 0
    heard: float
    since: float
    revoke_by: float | None = None
    reason: str = ""
    held: bool = True
    peer: str = ""
    gpu: GpuDevice | None = None

    @property
    def live(self) -> bool:
        """Whether the lease is in no terminal state."""
        return self.lease.state not in TERMINAL

    @property
    def silent_by(self) -> float:
        """When silence makes a used lease unreachable."""
        terms = self.lease.terms
        return self.heard + min(terms.ttl, MISSED_HEARTBEATS * terms.heartbeat)

    @property
    def ends_by(self) -> float | None:
        """When silence alone ends the lease; ``None`` where it does not, as a revocation has its own deadline."""
        if self.lease.state in (LeaseState.REQUESTED, LeaseState.REVOKING):
            return None
        terms = self.lease.terms
        return self.heard + (terms.ttl if self.lease.state is LeaseState.GRANTED else terms.grace)

    def demanded(self, now: float) -> tuple[LeaseEvent, str] | None:
        """Return what time demands of a live lease, with the reason, or ``None``.

        A revocation ends at its deadline; silence makes a used lease unreachable, and later ends it.
        """
        state = self.lease.state
        if self.revoke_by is not None and now >= self.revoke_by and state is not LeaseState.REQUESTED:
            return (LeaseEvent.DEADLINE if state is LeaseState.REVOKING else LeaseEvent.FORCE), self.reason
        if self.ends_by is not None and now >= self.ends_by:
            return LeaseEvent.DEADLINE, "the borrower went silent"
        if state in CAN_BE_LOST and now >= self.silent_by:
            return LeaseEvent.LINK_LOST, ""
        return None

    def next_demand(self) -> float | None:
        """Return when time demands something of a live lease at the earliest; ``None``: never."""
        times = [self.ends_by, self.revoke_by, self.silent_by if self.lease.state in CAN_BE_LOST else None]
        return min((due for due in times if due is not None), default=None)
