"""Messages between a borrower's controller and a lender, inside one SSH session.

Each message is one line of JSON of at most `MAX_LINE` bytes, a tagged struct; unknown tags and unknown fields end the
session with `Refuse`. The borrower sends `Hello` first, the lender answers `Welcome` or `Refuse`. Requests carry an
``id`` that the answer repeats; `Revoke`, `Notice` come unasked.
"""

from __future__ import annotations

import msgspec

from vmcoal.errors import WireError
from vmcoal.model.gpu import GpuServer
from vmcoal.model.lease import Lease, Offer, ResourceKind
from vmcoal.model.lease import MemoryServer as MemoryServer

PROTOCOL = 1
"""Version of these messages; a session needs the same one on both sides."""

MAX_LINE = 64 * 1024


class _Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Hello(_Message, frozen=True, kw_only=True):
    """First message of the borrower. ``boot_id`` /proc/sys/kernel/random/boot_id, to know the same host."""

    protocol: int
    software: str
    vm: str
    boot_id: str


class Welcome(_Message, frozen=True, kw_only=True):
    """The lender's answer. ``borrower`` the name it paired the key under; ``grants`` the kinds it may borrow."""

    protocol: int
    software: str
    lender: str
    boot_id: str
    borrower: str
    grants: tuple[ResourceKind, ...]


class Refuse(_Message, frozen=True, kw_only=True):
    """The lender (or borrower) ends the session; ``id`` of the request that is refused, or 0."""

    id: int = 0
    error: WireError


class Ping(_Message, frozen=True, kw_only=True):
    """Answered at once by `Pong`."""

    id: int


class Pong(_Message, frozen=True, kw_only=True):
    """Answer to `Ping`."""

    id: int


class GetOffer(_Message, frozen=True, kw_only=True):
    """Ask what is free; answered by `OfferReply`."""

    id: int


class OfferReply(_Message, frozen=True, kw_only=True):
    """What is free now."""

    id: int
    offer: Offer


class Request(_Message, frozen=True, kw_only=True):
    """Ask for a lease; answered by `Granted` or `Refuse`. ``amount`` as in `Lease`; ``committed`` is below ``amount``
    only for granular memory. ``ttl`` and ``grace`` in seconds are wishes; the grant says what they became. ``token`` is
    chosen by the borrower and makes a repeated request (after a broken session) return the same lease."""

    id: int
    token: str
    kind: ResourceKind
    amount: int
    committed: int
    ttl: float
    grace: float


class Granted(_Message, frozen=True, kw_only=True):
    """A lease with what is needed to use it: ``memory`` for memory leases, ``gpu`` for GPU leases."""

    id: int
    lease: Lease
    memory: MemoryServer | None = None
    gpu: GpuServer | None = None


class Report(_Message, frozen=True, kw_only=True):
    """The borrower tells a lease's progress: ``event`` attach | plugged | drain; answered by `LeaseReply`."""

    id: int
    lease: str
    epoch: int
    event: str


class Renew(_Message, frozen=True, kw_only=True):
    """Heartbeat for all leases of this VM, as (lease, epoch); answered by `Renewed`."""

    id: int
    leases: tuple[tuple[str, int], ...]


class Renewed(_Message, frozen=True, kw_only=True):
    """The leases that live on; one that is missing here is gone."""

    id: int
    leases: tuple[Lease, ...]


class Resize(_Message, frozen=True, kw_only=True):
    """Change the committed bytes of a granular memory lease; answered by `LeaseReply` or `Refuse`."""

    id: int
    lease: str
    epoch: int
    committed: int


class Resume(_Message, frozen=True, kw_only=True):
    """After a new session: ask for a lease's server again (a restarted lender may listen on another port); answered by
    `Granted` or `Refuse`."""

    id: int
    lease: str
    epoch: int


class Release(_Message, frozen=True, kw_only=True):
    """Give a lease back; idempotent; answered by `LeaseReply`."""

    id: int
    lease: str
    epoch: int


class LeaseReply(_Message, frozen=True, kw_only=True):
    """The lease after a request."""

    id: int
    lease: Lease


class Revoke(_Message, frozen=True, kw_only=True):
    """The lender wants a lease back within ``deadline`` seconds, then takes it (``cordon``/``drain``, or its owner)."""

    lease: str
    epoch: int
    deadline: float
    reason: str


class Notice(_Message, frozen=True, kw_only=True):
    """For the user: one line, e.g. that the lender is cordoned. It holds until the next one; an empty one ends it."""

    text: str


FromBorrower = Hello | Ping | GetOffer | Request | Report | Renew | Resize | Resume | Release | Refuse
FromLender = Welcome | Pong | OfferReply | Granted | Renewed | LeaseReply | Revoke | Notice | Refuse
