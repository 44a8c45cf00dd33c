"""What a new controller does with what its predecessor left: compare, then finish or undo.

An attach that did not end is undone. A detach is finished where QEMU has let go already, and put back where it has not:
vCPUs that leave together are one or the other together.
Whatever is booked is compared with what QEMU has plugged; what is gone is told, never papered over.
"""

from __future__ import annotations

import logging

import msgspec

from vmcoal.controller import gpu, passthrough
from vmcoal.controller.give_back import give_back
from vmcoal.controller.journal import OpenStep
from vmcoal.controller.loans import has_left
from vmcoal.controller.places import tidy
from vmcoal.controller.transaction import undo_steps
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm
from vmcoal.errors import VmcoalError
from vmcoal.machine import memory
from vmcoal.machine.describe import describe
from vmcoal.model.attachment import AttachmentState
from vmcoal.model.paging import LOCAL

log = logging.getLogger(__name__)


def _leases(step: OpenStep) -> set[str]:
    """Return the leases that a step of a detach was about."""
    return {step.data["lease"]} if "lease" in step.data else set(step.data.get("leases", []))


async def reconcile(vm: Vm) -> list[str]:
    """Finish or undo what was under way and return a line for each thing done or found wrong.

    QEMU's monitor must be connected; the guest's agent is used where it answers.
    """
    told: list[str] = []
    plugged = await describe(vm.qmp, vm.spec)
    gone = {loan.id for loan in vm.book if has_left(vm.spec, loan, plugged)}
    for operation in vm.journal.open_operations():
        if operation.kind == "detach":
            # A step whose device QEMU no longer has must not be taken back; the loop below finishes it.
            vcpus = {loan.id for loan in vm.book if loan.is_cpu and any(loan.id in _leases(x) for x in operation.steps)}
            over = gone if vcpus <= gone else gone - vcpus
            operation.steps = [step for step in operation.steps if not _leases(step) or not _leases(step) <= over]
        left = await undo_steps(vm.journal, undos(vm), operation.op, operation.steps)
        vm.journal.end(operation.op, "failed" if left else "undone")
        told.append(
            f"{operation.kind} was interrupted and " + (f"could not be undone: {'; '.join(left)}" if left else "undone")
        )
        plugged = await describe(vm.qmp, vm.spec)
        gone = {loan.id for loan in vm.book if has_left(vm.spec, loan, plugged)}
    for loan in sorted(vm.book, key=lambda x: x.copy):  # a copy goes with its memory
        if vm.book.get(loan.id) is None:
            continue
        # A vCPU that is still leaving was taken offline by a detach that ended well, and is parked.
        if loan.id in gone or (loan.is_cpu and loan.state is AttachmentState.DETACHING):
            try:
                # Its device is gone, but the controller may have been killed before it deleted the backend.
                if loan.is_gpu and not loan.is_passthrough:
                    await gpu.leave(vm, loan, deadline=10.0)
                if loan.is_memory:
                    await memory.ensure_unplugged(vm.qmp, loan.device, loan.backend, deadline=10.0)
                told += [f"lease {loan.id} had left the guest and was given back", *await give_back(vm, loan)]
            except VmcoalError as error:
                told.append(f"lease {loan.id} could not be given back: {error}")
            continue
        if loan.is_passthrough:
            await passthrough.settle(vm, loan)
            continue
        if loan.is_gpu:
            if await gpu.settle(vm, loan):
                told.append(f"the GPU of lease {loan.id} is lost")
            continue
        problem = await vm.engine.health(loan.region) if loan.is_memory and not loan.copy else None
        if problem is not None:
            vm.book.put(msgspec.structs.replace(loan, problem=problem, state=AttachmentState.DEGRADED))
            told.append(f"lease {loan.id}: {problem}")
        elif not loan.copy and loan.state in (AttachmentState.ATTACHING, AttachmentState.DETACHING):
            vm.book.put(msgspec.structs.replace(loan, state=AttachmentState.ATTACHED))
    told += await tidy(vm)
    await vm.local.sweep([loan.region for loan in vm.book if loan.lease.lender == LOCAL])
    for line in told:
        log.warning("reconcile: %s", line)
    return told
