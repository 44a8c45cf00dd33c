"""What this VM borrows: one `Loan` for each lease, kept in the journal, and the views people get of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from vmcoal.controller.journal import Journal
from vmcoal.model.attachment import AttachedCpu, AttachedMemory, Attachment, AttachmentState, MemoryStyle
from vmcoal.model.lease import Lease, LeaseEvent, LeaseState, ResourceKind, advance
from vmcoal.model.link import Link
from vmcoal.model.machine import Engine, MachineSpec


class Loan(msgspec.Struct, frozen=True, kw_only=True):
    """One lease bound to a far node.

    Memory: ``style``, ``engine`` name, QOM ids ``backend`` and ``device``, ``size`` bytes the guest was given of
    ``capacity``, and the server's ``port``. CPU: ``cpu_engine`` and ``core``, the slot of the node. ``problem`` says
    what is wrong with it, for people. ``since`` is the time of the grant, seconds since the epoch.
    """

    lease: Lease
    node: int
    state: AttachmentState
    since: float
    link: Link | None = None
    style: MemoryStyle | None = None
    engine: str = ""
    backend: str = ""
    device: str = ""
    size: int = 0
    capacity: int = 0
    port: int = 0
    cpu_engine: Engine = Engine.LOCAL
    core: int = 0
    problem: str | None = None

    @property
    def id(self) -> str:
        """The lease's id."""
        return self.lease.id

    @property
    def is_memory(self) -> bool:
        """Whether it is a memory lease."""
        return self.lease.kind is ResourceKind.MEMORY


class LoanBook:
    """The loans of one VM, written through to its journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._loans: dict[str, Loan] = {
            key.removeprefix("loan:"): msgspec.convert(item, Loan)
            for key, item in journal.items().items()
            if key.startswith("loan:")
        }

    def __iter__(self) -> Iterator[Loan]:
        return iter(list(self._loans.values()))

    def __len__(self) -> int:
        return len(self._loans)

    def get(self, lease: str) -> Loan | None:
        """Return the loan of ``lease``, or ``None``."""
        return self._loans.get(lease)

    def of(self, lender: str, kind: ResourceKind | None = None) -> list[Loan]:
        """Return the loans from ``lender`` (of one kind), oldest first."""
        return [x for x in self if x.lease.lender == lender and (kind is None or x.lease.kind is kind)]

    def on(self, node: int, kind: ResourceKind | None = None) -> list[Loan]:
        """Return the loans on a far node (of one kind), oldest first."""
        return [x for x in self if x.node == node and (kind is None or x.lease.kind is kind)]

    def lenders(self) -> list[str]:
        """Return the lenders that lend something, in the order they came."""
        return list(dict.fromkeys(x.lease.lender for x in self))

    def bound(self) -> dict[int, str]:
        """Return the far nodes that are bound to a lender."""
        return {x.node: x.lease.lender for x in self}

    def cores(self, node: int) -> set[int]:
        """Return the vCPU slots of ``node`` that are lent."""
        return {x.core for x in self.on(node, ResourceKind.CPU)}

    def headroom_used(self, node: int) -> int:
        """Return the bytes of ``node``'s headroom that devices take."""
        return sum(x.capacity for x in self.on(node, ResourceKind.MEMORY))

    def put(self, loan: Loan) -> None:
        """Add or replace a loan; nothing is written if it did not change."""
        if self._loans.get(loan.id) != loan:
            self._journal.put(f"loan:{loan.id}", loan)
            self._loans[loan.id] = loan

    def drop(self, lease: str) -> None:
        """Remove a loan; idempotent."""
        if lease in self._loans:
            self._journal.drop(f"loan:{lease}")
            del self._loans[lease]


def moved(loan: Loan, event: LeaseEvent) -> Loan:
    """Return ``loan`` with its lease advanced by ``event``; raises `IllegalTransitionError`."""
    return msgspec.structs.replace(
        loan, lease=msgspec.structs.replace(loan.lease, state=advance(loan.lease.state, event))
    )


def link_changed(loan: Loan, *, up: bool) -> Loan:
    """Return ``loan`` after its lender went away or came back."""
    if up and loan.lease.state is LeaseState.UNREACHABLE:
        return moved(loan, LeaseEvent.LINK_BACK)
    if not up and loan.lease.state in (
        LeaseState.ACTIVE,
        LeaseState.GRANTED,
        LeaseState.ATTACHING,
        LeaseState.DRAINING,
    ):
        return moved(loan, LeaseEvent.LINK_LOST)
    return loan


def attachments(loans: Iterable[Loan], spec: MachineSpec) -> tuple[Attachment, ...]:
    """Return the loans as people see them: one attachment for each lender."""
    found: dict[str, list[Loan]] = {}
    for loan in loans:
        found.setdefault(loan.lease.lender, []).append(loan)
    return tuple(_attachment(lender, mine, spec) for lender, mine in found.items())


def _attachment(lender: str, loans: list[Loan], spec: MachineSpec) -> Attachment:
    node = loans[0].node
    return Attachment(
        lender=lender,
        node=node,
        distance=spec.far_node(node).distance,
        link=next((loan.link for loan in reversed(loans) if loan.link), None),
        cpus=tuple(
            AttachedCpu(
                lease=loan.id,
                engine=loan.cpu_engine,
                core=loan.core,
                device=None,
                state=loan.state,
                lease_state=loan.lease.state,
            )
            for loan in loans
            if not loan.is_memory
        ),
        memory=tuple(
            AttachedMemory(
                lease=loan.id,
                style=loan.style or MemoryStyle.DIMM,
                size=loan.size,
                capacity=loan.capacity,
                engine=loan.engine,
                backend=loan.backend,
                device=loan.device,
                state=loan.state,
                lease_state=loan.lease.state,
            )
            for loan in loans
            if loan.is_memory
        ),
    )
