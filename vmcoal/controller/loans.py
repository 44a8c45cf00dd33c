"""What this VM borrows: one `Loan` for each lease, kept in the journal, and the views people get of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from vmcoal.controller.journal import Journal, broken
from vmcoal.machine.describe import PluggedState
from vmcoal.model.attachment import AttachedCpu, AttachedGpu, AttachedMemory, Attachment, AttachmentState, MemoryStyle
from vmcoal.model.gpu import GpuDevice
from vmcoal.model.lease import Lease, LeaseEvent, LeaseState, ResourceKind, advance
from vmcoal.model.link import Link
from vmcoal.model.machine import CpuMode, Engine, MachineSpec
from vmcoal.model.paging import HOME, LOCAL, LossPolicy
from vmcoal.model.pci import HostDriver
from vmcoal.model.units import format_size

LOAN = "loan:"
"""What the names of loans begin with in the journal."""


class Loan(msgspec.Struct, frozen=True, kw_only=True):
    """One lease bound to a far node.

    Memory: ``style``, ``engine`` name, QOM ids ``backend`` and ``device``, ``size`` bytes the guest was given of
    ``capacity``, and the server's ``port``. ``region`` is what the engine calls the memory: the lease that it was
    attached with, whoever has its pages by now; ``number`` is the place of this lease's bytes there. A ``copy`` is a
    second lease of a region; the device is the other one's. ``replicas`` is in how many places the region's pages are
    wanted, ``on_loss`` what touching a lost one does. CPU: ``cpu_engine`` and ``core``, the slot of the node.
    GPU: ``gpu`` what it is, ``device`` its PCI function and ``address`` where the guest has it; one of this host also
    ``host``, its address here, its IOMMU ``group``, and what its functions had ``before``.
    ``problem`` says what is wrong with it, for people. ``since`` is the time of the grant, seconds since the epoch.
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
    region: str = ""
    number: int = 0
    copy: bool = False
    replicas: int = 1
    on_loss: LossPolicy = LossPolicy.STALL
    cpu_engine: Engine = Engine.LOCAL
    core: int = 0
    gpu: GpuDevice | None = None
    address: str = ""
    host: str = ""
    group: str = ""
    before: tuple[HostDriver, ...] = ()
    problem: str | None = None

    def __post_init__(self) -> None:
        """A journal written before memory could move knows the lease only."""
        if not self.region:
            msgspec.structs.force_setattr(self, "region", self.lease.id)

    @property
    def id(self) -> str:
        """The lease's id."""
        return self.lease.id

    @property
    def leased(self) -> bool:
        """Whether another host lends it: memory that is home, or copied to this host's disk, has no lender."""
        return self.lease.lender not in (HOME, LOCAL)

    @property
    def is_memory(self) -> bool:
        """Whether it is a memory lease."""
        return self.lease.kind is ResourceKind.MEMORY

    @property
    def is_cpu(self) -> bool:
        """Whether it is a vCPU lease."""
        return self.lease.kind is ResourceKind.CPU

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU lease."""
        return self.lease.kind is ResourceKind.GPU

    @property
    def is_passthrough(self) -> bool:
        """Whether it is a PCI function of this host, which the guest has by VFIO."""
        return bool(self.host)


def loans_of(items: Mapping[str, Any], path: Path) -> dict[str, Loan]:
    """Return the loans among the items of the journal in ``path``; raises `PrerequisiteError` for a broken one."""
    try:
        return {
            key.removeprefix(LOAN): msgspec.convert(item, Loan) for key, item in items.items() if key.startswith(LOAN)
        }
    except msgspec.ValidationError as error:
        raise broken(path, error) from error


class LoanBook:
    """The loans of one VM, written through to its journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._loans = loans_of(journal.items(), journal.path)

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
        """Return the loans on a far node (of one kind), oldest first; copies are on none."""
        return [x for x in self if not x.copy and x.node == node and (kind is None or x.lease.kind is kind)]

    def lenders(self) -> list[str]:
        """Return the lenders that lend something, in the order they came."""
        return list(dict.fromkeys(x.lease.lender for x in self if x.leased))

    def sources(self) -> list[str]:
        """Return whom things can be detached from: the lenders, and this host where memory is home or left alone."""
        return list(dict.fromkeys(x.lease.lender for x in self if x.lease.lender != LOCAL or not x.copy))

    def bound(self) -> dict[int, str]:
        """Return the far nodes that are bound: to the lender whose things are there longest, or, where there are none,
        to this host for memory that is home."""
        found: dict[int, str] = {}
        for loan in sorted(self, key=lambda x: not x.leased):
            if not loan.copy:
                found.setdefault(loan.node, loan.lease.lender)
        return found

    def places(self, region: str) -> list[Loan]:
        """Return the loans of a region's memory: the one with the device first, then its copy."""
        return sorted((x for x in self if x.is_memory and x.region == region), key=lambda x: x.copy)

    def carrier(self, region: str) -> Loan | None:
        """Return the loan that the device of ``region`` belongs to, or ``None``."""
        return next((x for x in self if x.is_memory and x.region == region and not x.copy), None)

    def knows(self, lease: str) -> bool:
        """Return whether ``lease`` is in use as the name of a lease or of a region."""
        return any(lease in (x.id, x.region) for x in self)

    def cores(self, node: int) -> set[int]:
        """Return the vCPU slots of ``node`` that are lent."""
        return {x.core for x in self.on(node, ResourceKind.CPU)}

    def headroom_used(self, node: int) -> int:
        """Return the bytes of ``node``'s headroom that devices take."""
        return sum(x.capacity for x in self.on(node, ResourceKind.MEMORY))

    def put(self, loan: Loan) -> None:
        """Add or replace a loan; nothing is written if it did not change."""
        if self._loans.get(loan.id) != loan:
            self._journal.put(f"{LOAN}{loan.id}", loan)
            self._loans[loan.id] = loan

    def drop(self, lease: str) -> None:
        """Remove a loan; idempotent."""
        if lease in self._loans:
            self._journal.drop(f"{LOAN}{lease}")
            del self._loans[lease]

    def resize(self, region: str, size: int) -> None:
        """Note that the guest was given ``size`` bytes of a region's device."""
        for loan in self.places(region):
            self.put(msgspec.structs.replace(loan, size=size))

    def change(self, *loans: Loan, gone: Iterable[str] = ()) -> None:
        """Put ``loans`` and remove the loans of the leases ``gone``, as one change: there is no moment in between."""
        left = set(gone)
        self._journal.change({f"{LOAN}{x}": None for x in left} | {f"{LOAN}{x.id}": x for x in loans})
        self._loans = {x: loan for x, loan in self._loans.items() if x not in left} | {x.id: x for x in loans}


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


def has_left(spec: MachineSpec, loan: Loan, plugged: PluggedState) -> bool:
    """Whether QEMU no longer has what was leased. A vCPU that is parked instead of unplugged never leaves QEMU."""
    if loan.copy:
        return False
    if loan.is_memory:
        return loan.device not in plugged.devices
    if loan.is_gpu:  # a lost one was unplugged, and is told until it is detached
        return bool(loan.device) and loan.device not in {one.device for one in plugged.pci}
    return spec.cpu_mode is CpuMode.HOTPLUG and (loan.node, loan.core) not in plugged.cpus


def attachments(loans: Iterable[Loan], spec: MachineSpec) -> tuple[Attachment, ...]:
    """Return the loans as people see them: one attachment for each lender and node."""
    found: dict[tuple[str, int], list[Loan]] = {}
    for loan in loans:
        found.setdefault((loan.lease.lender, loan.node), []).append(loan)
    return tuple(_attachment(lender, node, mine, spec) for (lender, node), mine in found.items())


def _attachment(lender: str, node: int, loans: list[Loan], spec: MachineSpec) -> Attachment:
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
            if loan.is_cpu
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
                copy=loan.copy,
                on_loss=loan.on_loss,
            )
            for loan in loans
            if loan.is_memory
        ),
        gpus=tuple(
            AttachedGpu(
                lease=loan.id,
                engine=loan.engine,
                gpu=loan.gpu,
                device=loan.device,
                address=loan.address,
                host=loan.host,
                state=loan.state,
                lease_state=loan.lease.state,
            )
            for loan in loans
            if loan.gpu is not None
        ),
    )


def amounts(cpus: int, memory: int, gpus: int = 0) -> str:
    """Return ``2 vCPUs and 512 MiB``, leaving out what is zero."""
    parts = [vcpus(cpus)] if cpus else []
    if memory:
        parts.append(format_size(memory))
    if gpus:
        parts.append(f"{gpus} GPU{'s' if gpus != 1 else ''}")
    return " and ".join(parts) or "nothing"


def vcpus(count: int) -> str:
    """Return ``1 vCPU`` or ``2 vCPUs``."""
    return f"{count} vCPU{'s' if count != 1 else ''}"
