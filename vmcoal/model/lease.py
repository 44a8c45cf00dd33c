"""Leases: what a lender lent to a borrower, and the one total table of its states.

A lease begins as an offer and ends in a terminal state that holds nothing. `unreachable` is not an end: the link is
gone, the bytes are kept until the negotiated grace is over, and the same epoch resumes.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from vmcoal.model.gpu import GpuDevice


class ResourceKind(enum.StrEnum):
    """What can be lent. Trust is granted by kind."""

    MEMORY = "memory"
    CPU = "cpu"
    GPU = "gpu"


class LeaseState(enum.StrEnum):
    """Where a lease is in its life."""

    OFFERED = "offered"
    REQUESTED = "requested"
    GRANTED = "granted"
    ATTACHING = "attaching"
    ACTIVE = "active"
    UNREACHABLE = "unreachable"
    DRAINING = "draining"
    REVOKING = "revoking"
    RELEASED = "released"
    DECLINED = "declined"
    RESCINDED = "rescinded"
    EXPIRED = "expired"
    FORCE_RELEASED = "force_released"
    FAILED = "failed"


class LeaseEvent(enum.StrEnum):
    """What can happen to a lease."""

    REQUEST = "request"  # the borrower asks
    GRANT = "grant"  # the lender admits it and starts its server
    DECLINE = "decline"  # the lender says no
    RESCIND = "rescind"  # the lender takes the offer or the unused grant back
    ATTACH = "attach"  # the borrower begins to plug it
    PLUGGED = "plugged"  # the guest uses it
    LINK_LOST = "link_lost"  # heartbeats stopped
    LINK_BACK = "link_back"  # the same epoch speaks again
    DRAIN = "drain"  # the borrower gives it back
    REVOKE = "revoke"  # the lender wants it back by a deadline
    RELEASE = "release"  # the borrower no longer uses it
    DEADLINE = "deadline"  # the TTL, the grace or the revocation's deadline is over
    FORCE = "force"  # it is taken whatever is in it
    FAIL = "fail"  # its server cannot be kept alive


S, E = LeaseState, LeaseEvent

TERMINAL = frozenset({S.RELEASED, S.DECLINED, S.RESCINDED, S.EXPIRED, S.FORCE_RELEASED, S.FAILED})
"""States that hold nothing, on either host."""

_MOVES: dict[tuple[LeaseState, LeaseEvent], LeaseState] = {
    (S.OFFERED, E.REQUEST): S.REQUESTED,
    (S.OFFERED, E.RESCIND): S.RESCINDED,
    (S.OFFERED, E.DEADLINE): S.EXPIRED,
    (S.REQUESTED, E.GRANT): S.GRANTED,
    (S.REQUESTED, E.DECLINE): S.DECLINED,
    (S.REQUESTED, E.RESCIND): S.RESCINDED,
    (S.REQUESTED, E.RELEASE): S.RELEASED,
    (S.REQUESTED, E.DEADLINE): S.EXPIRED,
    (S.REQUESTED, E.FAIL): S.FAILED,
    (S.GRANTED, E.ATTACH): S.ATTACHING,
    (S.GRANTED, E.RESCIND): S.RESCINDED,
    (S.GRANTED, E.REVOKE): S.RESCINDED,
    (S.GRANTED, E.RELEASE): S.RELEASED,
    (S.GRANTED, E.LINK_LOST): S.UNREACHABLE,
    (S.GRANTED, E.DEADLINE): S.EXPIRED,
    (S.GRANTED, E.FORCE): S.FORCE_RELEASED,
    (S.GRANTED, E.FAIL): S.FAILED,
    (S.ATTACHING, E.PLUGGED): S.ACTIVE,
    (S.ATTACHING, E.DRAIN): S.DRAINING,
    (S.ATTACHING, E.RELEASE): S.RELEASED,
    (S.ATTACHING, E.REVOKE): S.REVOKING,
    (S.ATTACHING, E.LINK_LOST): S.UNREACHABLE,
    (S.ATTACHING, E.DEADLINE): S.EXPIRED,
    (S.ATTACHING, E.FORCE): S.FORCE_RELEASED,
    (S.ATTACHING, E.FAIL): S.FAILED,
    (S.ACTIVE, E.LINK_LOST): S.UNREACHABLE,
    (S.ACTIVE, E.DRAIN): S.DRAINING,
    (S.ACTIVE, E.REVOKE): S.REVOKING,
    (S.ACTIVE, E.RELEASE): S.RELEASED,
    (S.ACTIVE, E.DEADLINE): S.EXPIRED,
    (S.ACTIVE, E.FORCE): S.FORCE_RELEASED,
    (S.ACTIVE, E.FAIL): S.FAILED,
    (S.UNREACHABLE, E.LINK_BACK): S.ACTIVE,
    (S.UNREACHABLE, E.RELEASE): S.RELEASED,
    (S.UNREACHABLE, E.DEADLINE): S.EXPIRED,
    (S.UNREACHABLE, E.FORCE): S.FORCE_RELEASED,
    (S.UNREACHABLE, E.FAIL): S.FAILED,
    (S.DRAINING, E.PLUGGED): S.ACTIVE,  # the drain was given up: it is in use again
    (S.DRAINING, E.RELEASE): S.RELEASED,
    (S.DRAINING, E.REVOKE): S.REVOKING,
    (S.DRAINING, E.LINK_LOST): S.UNREACHABLE,
    (S.DRAINING, E.DEADLINE): S.EXPIRED,
    (S.DRAINING, E.FORCE): S.FORCE_RELEASED,
    (S.DRAINING, E.FAIL): S.FAILED,
    (S.REVOKING, E.RELEASE): S.RELEASED,
    (S.REVOKING, E.DRAIN): S.REVOKING,
    (S.REVOKING, E.DEADLINE): S.FORCE_RELEASED,
    (S.REVOKING, E.FORCE): S.FORCE_RELEASED,
    (S.REVOKING, E.LINK_LOST): S.REVOKING,
    (S.REVOKING, E.LINK_BACK): S.REVOKING,
    (S.REVOKING, E.FAIL): S.FAILED,
}

TRANSITIONS: dict[tuple[LeaseState, LeaseEvent], LeaseState | None] = {
    (state, event): _MOVES.get((state, event)) for state in LeaseState for event in LeaseEvent
}
"""The total table: every state with every event; ``None`` means that the event is refused there."""


class IllegalTransitionError(ValueError):
    """An event that its state refuses; ``state`` and ``event`` say which."""

    def __init__(self, state: LeaseState, event: LeaseEvent) -> None:
        super().__init__(f"a lease that is {state} refuses {event}")
        self.state = state
        self.event = event


def advance(state: LeaseState, event: LeaseEvent) -> LeaseState:
    """Return the state after ``event``; raises `IllegalTransitionError` where the table refuses it."""
    after = TRANSITIONS[state, event]
    if after is None:
        raise IllegalTransitionError(state, event)
    return after


class LeaseTerms(msgspec.Struct, frozen=True):
    """Durations in seconds that both sides agreed on at the grant.

    ``ttl``: without a renewal the lease ends; ``heartbeat``: how often the borrower renews; ``grace``: how long an
    unreachable borrower's bytes are kept, counted from the last heartbeat.
    """

    ttl: float = 60.0
    heartbeat: float = 2.0
    grace: float = 60.0


class Lease(msgspec.Struct, frozen=True):
    """One lease as both sides see it.

    ``amount`` bytes of memory, or a count of vCPUs or GPUs; ``committed`` what of it the lender counts as in use (a
    granular memory lease grows and shrinks below ``amount``); ``epoch`` the fencing number, raised by every grant, part
    of the data plane's export name; ``borrower`` the name the lender paired it under.
    """

    id: str
    kind: ResourceKind
    amount: int
    committed: int
    state: LeaseState
    epoch: int
    lender: str
    borrower: str
    vm: str
    terms: LeaseTerms = LeaseTerms()


def answered(lease: Lease, reply: Lease) -> Lease:
    """Return a borrower's ``lease`` after an answer of its lender, which may change its state, its terms and what it
    counts as in use; what was granted stays what it was."""
    committed = min(reply.committed, lease.amount)
    return msgspec.structs.replace(lease, state=reply.state, terms=reply.terms, committed=committed)


class Offer(msgspec.Struct, frozen=True):
    """What a lender would lend now: free vCPUs, bytes and GPUs, and what it has in all. ``gpus`` the free ones, in the
    order in which they are lent."""

    lender: str
    cpus_free: int
    cpus_total: int
    memory_free: int
    memory_total: int
    gpus_free: int = 0
    gpus_total: int = 0
    gpus: tuple[GpuDevice, ...] = ()
    cordoned: bool = False
    same_host: bool = False


class MemoryServer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach the bytes of a memory lease: NBD over TCP with TLS-PSK (RFC 4279). ``export`` carries the lease and
    its epoch; ``psk`` is hex. The address is that of the session's own peer unless ``address`` says otherwise."""

    port: int
    export: str
    psk_identity: str
    psk: str
    address: str | None = None

    def __repr__(self) -> str:
        return f"MemoryServer(port={self.port}, export={self.export!r}, psk=…)"


class MemoryRegion(msgspec.Struct, frozen=True, kw_only=True):
    """Borrowed bytes as a file of this host that QEMU can map.

    ``backend`` the QOM type and ``props`` for ``object-add`` (``mem-path``, ``size``, ``share``, …); ``children`` the
    holder's ids of the processes behind it.
    """

    lease: str
    size: int
    backend: str
    props: dict[str, Any]
    children: tuple[str, ...]
