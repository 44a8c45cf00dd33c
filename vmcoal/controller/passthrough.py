"""GPUs, and other PCI functions, of the host that the VM runs on: given to the guest by VFIO, and taken back.

look at what decides → take the function from its driver → plug it behind a far node's port → see that the guest gave
every BAR an address. The loan is this host's own (`HOME`): there is no lender and no lease that anybody could end. What
the functions had before is written down before it is changed, so that whoever comes next can restore it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec

from vmcoal.controller import gpu
from vmcoal.controller.api import AttachResult
from vmcoal.controller.loans import Loan, attachments
from vmcoal.controller.transaction import Progress, Transaction, transaction
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, ExecutionError, NotFoundError, UsageError
from vmcoal.guest import pci as guest_pci
from vmcoal.machine import vfio
from vmcoal.machine.argv import mmio_reserve
from vmcoal.machine.names import gpu_ids
from vmcoal.model.attachment import AttachmentState, AttachRequest, Plan, Step
from vmcoal.model.gpu import GpuDevice, GpuKind
from vmcoal.model.lease import Lease, LeaseState, ResourceKind
from vmcoal.model.machine import Engine, FarNode
from vmcoal.model.paging import HOME
from vmcoal.model.pci import DRIVER, VFIO, PassthroughFacts, PciFunction
from vmcoal.model.units import MIB, format_size
from vmcoal.policy.passthrough import (
    MARGIN,
    before,
    check_address,
    check_bars,
    check_window,
    choose_own_node,
    objections,
    remarks,
    to_bind,
)

_SEEN = 30.0
_DISPLAY, _ACCELERATOR = 0x03, 0x12


@dataclass(frozen=True)
class Journey:
    """What an attach decided before it changes anything. ``locked`` is the guest's memory in bytes."""

    facts: PassthroughFacts
    far: FarNode
    locked: int

    @property
    def function(self) -> PciFunction:
        """The function that the guest gets."""
        return self.facts.function


def check_request(request: AttachRequest) -> str:
    """Return the full address that ``request`` names; raises `UsageError` if it asks for anything beside."""
    if request.cpus or request.memory or request.gpu or request.lender is not None:
        raise UsageError(
            "a PCI function of this host comes from no lender",
            hint="attach what a lender lends with a command of its own",
        )
    return check_address(request.pci or "")


def refuse_beside(vm: Vm) -> None:
    """Raise `ConflictError` if the VM has a function of its host: its memory is pinned, so none can be borrowed."""
    held = [loan for loan in vm.book if loan.is_passthrough]
    if held:
        raise ConflictError(
            f"{vm.spec.name} has {held[0].host} of this host, and VFIO pins every page of the guest here: borrowed "
            "memory would all come here and stay",
            hint=f"first vmcoal detach {vm.spec.name} --gpu pci:{held[0].host}; a lender's GPU pins nothing",
        )


def _refuse_borrowed(vm: Vm) -> None:
    """Raise `ConflictError` if the VM has what a pinned guest cannot have."""
    name = vm.spec.name
    memory = [loan for loan in vm.book if loan.is_memory and loan.size]
    if memory:
        size = format_size(sum(loan.size for loan in memory if not loan.copy))
        raise ConflictError(
            f"{name} has {size} of memory through the memory engine {memory[0].engine}, and VFIO pins every page of "
            "the guest here: all of it would come here and stay",
            hint=f"first vmcoal detach {name} --all; or use a lender's GPU, which pins nothing: vmcoal attach --gpu",
        )
    if any(loan.is_cpu and loan.cpu_engine is Engine.FAR for loan in vm.book):
        raise ConflictError(
            f"{name} has vCPUs that run on a lender, and a device of this host cannot reach their memory",
            hint=f"first vmcoal detach {name} --all",
        )


async def survey(vm: Vm, request: AttachRequest) -> Journey:
    """Look at everything that can be known beforehand; nothing is changed. Raises the first objection."""
    address = check_request(request)
    if (known := vm.book.get(vfio.lease_of(address))) is not None:
        raise ConflictError(f"{address} is in node {known.node} already", hint=f"see: vmcoal status {vm.spec.name}")
    _refuse_borrowed(vm)
    pid = await vm.qemu_pid()
    opened = {loan.group for loan in vm.book if loan.is_passthrough}
    facts = await asyncio.to_thread(vm.pci.facts, address, qemu=pid)
    if facts.function.group in opened:
        facts = msgspec.structs.replace(facts, opens=None)
    locked = vm.spec.memory
    for error in objections(facts, locked):
        raise error
    free = {far.node: await vfio.free_ports(vm.qmp, far) for far in vm.spec.far_nodes}
    far = choose_own_node(vm.spec, _bound(vm, request.node), free, request.node)
    ports = sum(one.ports for one in vm.spec.far_nodes)
    check_window(facts.function, far, mmio_reserve(ports) * MIB)
    return Journey(facts, far, locked)


def _bound(vm: Vm, wanted: int | None) -> dict[int, str]:
    """Return the far nodes that are bound. One where the VM has nothing but functions and vCPUs of this host can be
    shared by them if it is ``wanted``: they are equally near, and the guest shows a function's node only then."""
    bound = vm.book.bound()
    if wanted in bound and all(loan.is_passthrough or loan.is_cpu for loan in vm.book.on(wanted)):
        del bound[wanted]
    return bound


def plan(vm: Vm, journey: Journey) -> Plan:
    """Return what `attach` would do, with the exact QMP command."""
    function, far = journey.function, journey.far
    steps = [
        Step(
            "bind", f"give {one.address} ({one.title}) to {DRIVER} instead of {one.driver or 'no driver'}", "this host"
        )
        for one in to_bind(journey.facts)
    ]
    steps.append(
        Step(
            "plug GPU",
            f"pin {format_size(journey.locked)} of memory and plug {function.address} into node {far.node}",
            "QEMU",
            tuple(vfio.plan_plug(far, function.address)),
        )
    )
    steps.append(Step("verify", "see that the guest gave every BAR an address", "guest"))
    summary = f"attach {function.title} ({function.address}) to node {far.node} of {vm.spec.name}"
    return Plan("attach", summary, tuple(steps), tuple(remarks(journey.facts)))


def _loan(vm: Vm, journey: Journey) -> Loan:
    function = journey.function
    lease = Lease(
        id=vfio.lease_of(function.address),
        kind=ResourceKind.GPU,
        amount=1,
        committed=1,
        state=LeaseState.ACTIVE,
        epoch=0,
        lender=HOME,
        borrower="",
        vm=vm.spec.name,
    )
    kinds = {_DISPLAY: GpuKind.GPU, _ACCELERATOR: GpuKind.ACCELERATOR}
    kind = kinds.get(function.pci_class >> 16, GpuKind.PCI)
    return Loan(
        lease=lease,
        node=journey.far.node,
        state=AttachmentState.ATTACHING,
        since=time.time(),
        engine=VFIO,
        device=gpu_ids(lease.id).device,
        gpu=GpuDevice(name=function.title, kind=kind, memory=0),
        host=function.address,
        group=function.group or "",
        before=before(to_bind(journey.facts)),
    )


async def attach(vm: Vm, request: AttachRequest, report: Progress) -> AttachResult | Plan:
    """Give the guest the function that ``request`` names, or return the plan of it. Undone as a whole if it fails."""
    began = time.monotonic()
    journey = await survey(vm, request)
    if request.dry_run:
        return plan(vm, journey)
    surveyed = time.monotonic() - began
    loan, function, far = _loan(vm, journey), journey.function, journey.far
    async with transaction(
        vm.journal, undos(vm), "attach", request, steps=3, deadline=request.deadline, report=report
    ) as trans:
        trans.seconds["survey"] = surveyed
        async with trans.step("book", lease=loan.id):
            vm.book.put(loan)
        functions = to_bind(journey.facts)
        if functions:
            trans.say(f"take {', '.join(one.address for one in functions)} from this host")
        async with trans.step("take-pci", functions=loan.before):
            await vm.pci.take(functions, deadline=request.deadline)
        trans.say(f"pin {format_size(journey.locked)} of memory and plug {function.title} into node {far.node}")
        started = time.monotonic()
        pid = await vm.qemu_pid()
        if pid is not None and journey.facts.memlock is not None:
            vm.pci.allow_locking(pid, journey.locked + MARGIN)
        async with trans.step("plug-gpu", lease=loan.id):
            slot = await vfio.plug(vm.qmp, far, function.address, deadline=request.deadline)
        vm.metrics.plugged("gpu", time.monotonic() - started)
        loan = await _seen(vm, loan, function, slot, far, trans)
        notes = list(filter(None, [*remarks(journey.facts), await gpu.place(vm, far.node)]))
    if vm.agent is None:
        notes.append("plugged, unverified: no agent answers in the guest")
    trans.seconds["total"] = time.monotonic() - began
    vm.metrics.attached(request, trans.seconds)
    mine = next(one for one in attachments(vm.book.of(HOME), vm.spec) if one.node == far.node)
    return AttachResult(
        attachment=mine,
        cpus_added=0,
        memory_added=0,
        gpus_added=1,
        verified=vm.agent is not None,
        seconds=trans.seconds,
        notes=tuple(notes),
    )


async def _seen(vm: Vm, loan: Loan, function: PciFunction, slot: int, far: FarNode, trans: Transaction) -> Loan:
    """See what the guest made of the function, and book it."""
    address = ""
    if vm.agent is not None:
        trans.say("see that the guest gave every BAR an address")
        seen = await guest_pci.look(vm.agent, slot, deadline=_SEEN)
        if (seen.vendor, seen.device) != (function.vendor, function.device):
            raise ExecutionError(f"the guest sees {seen.vendor:04x}:{seen.device:04x} in slot {slot}")
        check_bars(function.title, function.bars, seen, far)
        address = seen.address
    loan = msgspec.structs.replace(loan, state=AttachmentState.ATTACHED, address=address)
    vm.book.put(loan)
    return loan


def find(vm: Vm, address: str) -> Loan:
    """Return the loan of the host's function ``address``; raises `NotFoundError`, `UsageError`."""
    loan = vm.book.get(vfio.lease_of(check_address(address)))
    if loan is None:
        raise NotFoundError(f"{vm.spec.name} has no {address} of this host", hint=f"see: vmcoal status {vm.spec.name}")
    return loan


def plan_detach(loan: Loan) -> list[Step]:
    """Return the steps that take a function out and give it back."""
    return [
        Step("unplug GPU", f"unplug {loan.host}", "QEMU", tuple(vfio.plan_unplug(loan.host))),
        *(
            Step("give back", f"give {one.address} back to {one.driver or 'no driver'}", "this host")
            for one in loan.before
        ),
    ]


async def restore(vm: Vm, loan: Loan) -> None:
    """Give the functions of a loan back to the drivers they had; the guest has let go of it. Idempotent.

    While the guest has another function of their group, they stay where they are, and go with that one: the kernel
    gives a group away only as a whole. Raises `ExecutionError`, `DeadlineError`.
    """
    others = [x for x in vm.book if x.is_passthrough and x.id != loan.id and x.group == loan.group]
    if others:
        heir = others[-1]
        before = {one.address: one for one in (*heir.before, *loan.before)}
        vm.book.change(
            msgspec.structs.replace(heir, before=tuple(before.values())), msgspec.structs.replace(loan, before=())
        )
        return
    await vm.pci.give_back(loan.before)


async def settle(vm: Vm, loan: Loan) -> None:
    """Note that the guest still has a function that was on its way out or in when the last controller ended."""
    if loan.state is not AttachmentState.ATTACHED:
        vm.book.put(msgspec.structs.replace(loan, state=AttachmentState.ATTACHED))
