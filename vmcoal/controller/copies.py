"""Copies of memory that is attached already: a second place for its pages is added, or given up, while they are used.

One piece of memory after the other, each as a transaction of its own: what has its copy keeps it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec

from vmcoal.controller.api import TuneRequest
from vmcoal.controller.loans import Loan
from vmcoal.controller.places import add_copy, choose_copy, give_up, missing_at, settle_copy, wait_until
from vmcoal.controller.transaction import Progress, transaction
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, NotFoundError, UsageError, VmcoalError
from vmcoal.model.attachment import AttachmentState
from vmcoal.model.paging import HOME, LOCAL
from vmcoal.model.units import format_size
from vmcoal.policy.paging import PLACES


@dataclass(frozen=True)
class Change:
    """One thing to do: have a copy of ``loan``'s memory at ``target``, or, without, give up the copy that it is."""

    loan: Loan
    target: str | None = None


def places(vm: Vm) -> dict[str, tuple[str, ...]]:
    """Return for each device of borrowed memory who has its pages."""
    return {
        loan.device: tuple(place.lease.lender for place in vm.book.places(loan.region))
        for loan in vm.book
        if loan.is_memory and not loan.copy and loan.size
    }


async def survey(vm: Vm, request: TuneRequest) -> list[Change]:
    """Return what has to be done for as many places as ``request`` says; nothing is changed.

    Raises `UsageError`, `NotFoundError`, `ConflictError`, `RefusedError` for what cannot be.
    """
    if request.replicas is None:
        if request.replica_on is not None:
            raise UsageError("--replica-on is where a second place is", hint="add --replicas 2")
        return []
    if not 1 <= request.replicas <= PLACES:
        raise UsageError(f"pages can be in 1 to {PLACES} places", hint="give --replicas 1 or 2")
    vm.pager("second place for pages (--replicas)")
    if request.replicas == 1:
        if request.replica_on is not None:
            raise UsageError("--replica-on is where a second place is", hint="leave out --replicas 1")
        return [Change(loan) for loan in vm.book if loan.copy and loan.state is not AttachmentState.DETACHING]
    carriers = [x for x in vm.book if x.is_memory and not x.copy and x.size and x.state is not AttachmentState.PARKED]
    if not carriers:
        raise NotFoundError(
            f"{vm.spec.name} has no borrowed memory",
            hint=f"vmcoal attach {vm.spec.name} --memory SIZE --replicas 2 attaches some that is in two places",
        )
    changes = []
    for loan in carriers:
        if loan.lease.lender == HOME:
            raise ConflictError(
                f"the pages of {loan.device} are home on this host, where nothing can take them away",
                hint=f"to have them at a lender again: vmcoal move {vm.spec.name} --from home --to LENDER",
            )
        if copy := next((x for x in vm.book.places(loan.region) if x.copy), None):
            if request.replica_on not in (None, copy.lease.lender):
                raise ConflictError(
                    f"{copy.lease.lender} has the copy of {loan.device}",
                    hint=f"vmcoal move {vm.spec.name} --from {copy.lease.lender} --to LENDER takes it elsewhere"
                    if copy.leased
                    else f"to give it up first: vmcoal tune {vm.spec.name} --replicas 1",
                )
            continue
        target = await choose_copy(vm, loan.lease.lender, request.replica_on, loan.capacity, loan.size)
        changes.append(Change(loan, target))
    return changes


async def carry_out(vm: Vm, changes: list[Change], request: TuneRequest, report: Progress) -> list[str]:
    """Do what `survey` found; return notes for people. Raises what the first failure was, with what was done before."""
    ends = time.monotonic() + request.deadline
    notes: list[str] = []
    for number, change in enumerate(changes):

        def numbered(_: int, __: int, text: str, fraction: float | None, detail: str | None, at: int = number) -> None:
            report(at + 1, len(changes), text, fraction, detail)

        left = max(0.001, ends - time.monotonic())
        try:
            notes += await (_add if change.target else _remove)(vm, change, request, left, numbered)
        except VmcoalError as error:
            if number:
                error.left = "; ".join(filter(None, [error.left, f"{number} of {len(changes)} devices are done"]))
            raise
    return notes


async def _add(vm: Vm, change: Change, request: TuneRequest, deadline: float, report: Progress) -> list[str]:
    loan, target = change.loan, change.target
    assert target is not None
    wanted = msgspec.structs.replace(loan, replicas=PLACES)
    where = "to a file on this host" if target == LOCAL else f"to {target}"
    async with transaction(
        vm.journal, undos(vm), "replicate", request, steps=1, deadline=deadline, report=report
    ) as trans:
        trans.say(f"copy the {format_size(loan.size)} of {loan.device} {where}")
        copy = await add_copy(vm, wanted, target, trans)
        await wait_until(vm, loan.region, lambda seen: missing_at(seen, copy.number), trans)
        await settle_copy(vm, copy)
    vm.granted.clear()
    # Only now, so that a copy that was undone is not made anew by itself.
    if (carrier := vm.book.carrier(loan.region)) is not None:
        vm.book.put(msgspec.structs.replace(carrier, replicas=PLACES))
    return []


async def _remove(vm: Vm, change: Change, request: TuneRequest, deadline: float, report: Progress) -> list[str]:
    loan = change.loan
    async with transaction(
        vm.journal, undos(vm), "replicate", request, steps=1, deadline=deadline, report=report
    ) as trans:
        trans.say(f"give the copy of {loan.device} at {loan.lease.lender} up")
        return await copy_leaves(vm, loan)


async def copy_leaves(vm: Vm, loan: Loan) -> list[str]:
    """Give up the copy that ``loan`` is, and see that none is made in its place; return notes for people."""
    before = vm.book.carrier(loan.region)
    if before is not None:  # first, so that none is made anew if this controller is killed
        vm.book.put(msgspec.structs.replace(before, replicas=1))
    try:
        notes = await give_up(vm, loan)
    except (VmcoalError, asyncio.CancelledError):
        if (carrier := vm.book.carrier(loan.region)) is not None and before is not None:
            vm.book.put(msgspec.structs.replace(carrier, replicas=before.replicas))
        raise
    if (carrier := vm.book.carrier(loan.region)) is not None:
        notes.append(f"the pages of {carrier.device} are at {carrier.lease.lender} alone now")
    return notes
