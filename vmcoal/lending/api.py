"""What a lender answers on its control socket, in the words of `vmcoal.control.wire` (Call, Progress, Result).

Methods, with the type of ``params`` → the type of the result:

    status     –               → LenderStatus
    pair       PairRequest     → BorrowerView   Progress carries the code in ``detail``; a hang-up closes the window
    borrowers  –               → tuple[BorrowerView, ...]
    forget     ForgetRequest   → ReclaimResult  the borrower's leases are taken back, its key is refused from now on
    cordon     –               → LenderStatus
    uncordon   –               → LenderStatus
    drain      DrainRequest    → ReclaimResult  cordons, asks for everything back, takes it after the deadline
    stop       DrainRequest    → ReclaimResult  drains, then ends the lender and its holder
    metrics    –               → str (Prometheus text exposition)

``python -m vmcoal.lending NAME --cpus N --memory BYTES --gpu WHICH [--listen ADDRESS] [--metrics ADDRESS]
[--ready-fd N]`` runs a lender in the foreground; one byte on ``--ready-fd`` says that it answers. Without ``--cpus``,
``--memory`` and ``--gpu`` it lends what it lent last.
"""

from __future__ import annotations

import msgspec

from vmcoal.model.lease import Lease, Offer, ResourceKind


class LenderStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One lender. ``addresses`` it listens on, ``host:port``; ``pairing`` seconds that its pairing window is still
    open, or ``None``; ``uptime`` in seconds; ``degraded`` each with its next step. One that is not ``running`` offers
    nothing; ``held`` are the bytes of memory that it left, and ``leases`` are those that its journal has."""

    name: str
    addresses: tuple[str, ...]
    offer: Offer
    leases: tuple[Lease, ...] = ()
    borrowers: int = 0
    pairing: float | None = None
    metrics: str | None = None
    pid: int | None = None
    holder_pid: int | None = None
    uptime: float | None = None
    degraded: tuple[str, ...] = ()
    running: bool = True
    held: int | None = None


class PairRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Open the pairing window for ``seconds`` and one borrower. ``grants`` what it may borrow; ``name`` what it is
    called here, or ``None`` for the name it gives itself."""

    grants: tuple[ResourceKind, ...] = (ResourceKind.MEMORY,)
    name: str | None = None
    seconds: float = 300.0


class BorrowerView(msgspec.Struct, frozen=True, kw_only=True):
    """One paired borrower: its key's ``fingerprint``, ``paired_at`` seconds since the epoch, whether a session of it is
    open, and its live leases."""

    name: str
    fingerprint: str
    grants: tuple[ResourceKind, ...]
    paired_at: float
    connected: bool = False
    leases: tuple[Lease, ...] = ()


class ForgetRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Forget the borrower ``name``; what it borrowed is asked back, and taken after ``deadline`` seconds."""

    name: str
    deadline: float = 30.0


class DrainRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Get everything back within ``deadline`` seconds."""

    deadline: float = 60.0


class ReclaimResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came back: ids of leases that were ``released`` by their borrowers, and of those that were ``taken``."""

    released: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
