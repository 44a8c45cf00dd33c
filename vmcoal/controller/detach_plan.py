"""What a detach takes, chosen from what is attached, and the plan of it. Nothing here changes anything."""

from __future__ import annotations

from dataclasses import dataclass

from vmcoal.controller import gpu, passthrough
from vmcoal.controller.give_back import places_of
from vmcoal.controller.loans import Loan, amounts
from vmcoal.controller.vm import Vm
from vmcoal.errors import NotFoundError, UsageError
from vmcoal.machine import cpu, memory, virtio_mem
from vmcoal.model.attachment import AttachmentState, DetachRequest, MemoryStyle, Plan, Step
from vmcoal.model.lease import ResourceKind
from vmcoal.model.machine import CpuMode
from vmcoal.model.units import format_size
from vmcoal.policy.admission import GRAIN
from vmcoal.policy.placement import pick_dimms


@dataclass(frozen=True)
class Leaving:
    """One loan and how many bytes of it leave the guest (none, if it is a vCPU's or a copy)."""

    loan: Loan
    size: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing of the loan remains."""
        return self.loan.copy or self.size == self.loan.size


def choose(vm: Vm, request: DetachRequest) -> list[Leaving]:
    """Return what leaves, in order: vCPUs and GPUs before memory, newest first. Nothing is changed.

    Raises `UsageError` for amounts that make no sense or are more than is attached, `NotFoundError` for a lender that
    lends nothing.
    """
    if request.cpus < 0 or request.memory < 0:
        raise UsageError("what is detached cannot be negative", hint="give --cpus and --memory positive values")
    lenders = vm.book.sources()
    if not lenders:
        raise NotFoundError(f"nothing is attached to {vm.spec.name}", hint=f"vmcoal attach {vm.spec.name}")
    if request.pci is not None:
        return [Leaving(passthrough.find(vm, request.pci))]
    if request.lender is None and not request.everything and len(lenders) > 1:
        raise UsageError(
            "resources of several lenders are attached", hint=f"say --all, or which with --from: {', '.join(lenders)}"
        )
    if request.lender is not None and request.lender not in lenders:
        raise NotFoundError(f"{request.lender} lends nothing to {vm.spec.name}", hint=f"these do: {', '.join(lenders)}")
    chosen = lenders if request.everything else [request.lender or lenders[0]]
    if request.cpus or request.memory or request.gpu:
        if len(chosen) > 1:
            raise UsageError("--all detaches everything", hint="give amounts with --from LENDER instead")
        return _some(vm, chosen[0], request)
    loans = [loan for lender in chosen for loan in vm.book.of(lender)]
    regions = {loan.region for loan in loans if loan.is_memory and not loan.copy}
    loans = [loan for loan in loans if not loan.copy or loan.region not in regions]  # a copy goes with its memory
    leaving = [Leaving(x, 0 if x.copy else x.size) for x in reversed(loans) if x.state is not AttachmentState.PARKED]
    return sorted(leaving, key=lambda x: x.loan.is_memory)


def _some(vm: Vm, lender: str, request: DetachRequest) -> list[Leaving]:
    leaving: list[Leaving] = []
    if request.gpu:
        loans = vm.book.of(lender, ResourceKind.GPU)
        if not loans:
            raise UsageError(f"no GPU of {lender} is attached", hint="see: vmcoal status")
        leaving.append(Leaving(loans[-1]))
    if request.cpus:
        loans = vm.book.of(lender, ResourceKind.CPU)
        if request.cpus > len(loans):
            raise UsageError(f"{request.cpus} vCPUs are more than the {len(loans)} attached", hint="see: vmcoal status")
        leaving += [Leaving(loan) for loan in loans[: -request.cpus - 1 : -1]]
    if request.memory:
        loans = [x for x in vm.book.of(lender, ResourceKind.MEMORY) if not x.copy]
        granular = [x for x in loans if x.style is MemoryStyle.GRANULAR and x.size]
        if granular and request.memory <= granular[0].size:
            if request.memory % GRAIN:
                raise UsageError(
                    f"{format_size(request.memory)} is no multiple of {format_size(GRAIN)}",
                    hint="granular memory has steps of 2M",
                )
            leaving.append(Leaving(granular[0], size=request.memory))
        else:
            dimms = {x.id: x.size for x in loans if x.style is not MemoryStyle.GRANULAR}
            if granular and request.memory > sum(dimms.values()):
                raise UsageError(
                    f"{format_size(request.memory)} is more than is attached, or spans DIMMs and granular memory",
                    hint="detach them one after the other, or all with --from and no amount",
                )
            by_id = {x.id: x for x in loans}
            leaving += [Leaving(by_id[lease], size=by_id[lease].size) for lease in pick_dimms(dimms, request.memory)]
    return leaving


def plan(vm: Vm, request: DetachRequest, leaving: list[Leaving]) -> Plan:
    """Return what `detach` would do, with the exact QMP commands."""
    steps: list[Step] = []
    for item in leaving:
        loan = item.loan
        if loan.copy:
            steps.append(Step("copy", f"use the copy of {loan.device} there no longer", "this host"))
        elif loan.is_passthrough:
            steps += passthrough.plan_detach(loan)
        elif loan.is_gpu:
            steps += gpu.plan_detach(loan)
        elif not loan.is_memory:
            steps.append(Step("offline vCPU", f"offline vCPU {loan.core} of node {loan.node}", "guest"))
            if vm.spec.cpu_mode is CpuMode.HOTPLUG:
                steps.append(Step("unplug vCPU", "unplug it", "QEMU", tuple(cpu.plan_unplug(loan.node, loan.core))))
        elif loan.style is MemoryStyle.GRANULAR:
            rest = loan.size - item.size
            steps.append(
                Step(
                    "shrink",
                    f"shrink node {loan.node} to {format_size(rest)}",
                    "QEMU",
                    tuple(virtio_mem.plan_resize(loan.device, rest)),
                )
            )
        else:
            steps.append(Step("room", f"check that what is in the {format_size(loan.size)} fits elsewhere", "guest"))
            steps.append(Step("offline memory", f"drain and offline {loan.device}", "guest"))
            steps.append(
                Step(
                    "unplug memory",
                    "unplug it and wait for the event",
                    "QEMU",
                    tuple(memory.plan_unplug(loan.device, loan.backend)),
                )
            )
        steps += [
            Step(
                "release",
                f"give lease {place.id} back" if item.whole else f"give a part of lease {place.id} back",
                place.lease.lender,
            )
            for place in places_of(vm, loan)
            if place.leased
        ]
    cpus, size = sum(x.loan.is_cpu for x in leaving), sum(x.size for x in leaving)
    gpus = sum(x.loan.is_gpu for x in leaving)
    return Plan("detach", f"detach {amounts(cpus, size, gpus)} from {vm.spec.name}", tuple(steps))
