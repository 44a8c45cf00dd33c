"""Move: the pages of borrowed memory go to another lender, home, or from home to a lender, while the guest uses them.

The device stays plugged and the guest notices nothing. For each device in turn: the new place is added and gets every
page, as one transaction, then the old one is given up. Whatever ends in between, each page has a place: before the
transaction ended the new place is taken away again, after it the old one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from vmcoal.controller.api import MoveRequest, MoveResult
from vmcoal.controller.loans import Loan, attachments
from vmcoal.controller.places import (
    add_copy,
    check_home_room,
    finish_giving_up,
    free_number,
    give_up,
    missing_at,
    own_lease,
    promote,
    region_of,
    settle_copy,
    wait_until,
    way_out,
)
from vmcoal.controller.transaction import Progress, Transaction, transaction
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, NotFoundError, RefusedError, UsageError, VmcoalError
from vmcoal.model.attachment import AttachmentState, Plan, Step
from vmcoal.model.lease import ResourceKind
from vmcoal.model.paging import HOME
from vmcoal.model.units import format_size
from vmcoal.policy.admission import admit
from vmcoal.policy.distance import link_distance
from vmcoal.policy.paging import only_at
from vmcoal.together import unbroken

_STEPS = 2
"""Numbered steps for each device."""

_NEAR = 20
"""Distances that differ by less are as good as the same: tiers lie further apart."""


@dataclass(frozen=True)
class Journey:
    """What moves, and where to."""

    loans: list[Loan]
    source: str
    target: str

    @property
    def size(self) -> int:
        """How many bytes the guest was given of it."""
        return sum(loan.size for loan in self.loans)


async def survey(vm: Vm, request: MoveRequest) -> Journey:
    """Check everything that can be known beforehand; nothing is changed."""
    vm.pager("way to move memory")
    if request.source == request.target:
        raise UsageError(f"it is at {request.source} already", hint="give another --to")
    loans = vm.book.of(request.source, ResourceKind.MEMORY)
    loans = [loan for loan in loans if loan.size and loan.state is not AttachmentState.PARKED]
    if not loans:
        known = [x for x in vm.book.sources() if any(loan.size for loan in vm.book.of(x, ResourceKind.MEMORY))]
        where = f"memory is at: {', '.join(known)}" if known else "no memory is attached"
        raise NotFoundError(f"{vm.spec.name} has no memory at {request.source}", hint=where)
    if request.target == HOME:
        if copies := [loan for loan in loans if loan.copy]:
            raise ConflictError(
                f"{request.source} has a copy of {copies[0].device} only",
                hint=f"to give the copy up: vmcoal detach --from {request.source}",
            )
        try:
            check_home_room(sum([(await region_of(vm, loan.region)).away for loan in loans]))
        except RefusedError as error:
            if way := await way_out(vm, loans[0]):
                error.hint = f"end programs here, or take it to another lender: {way}"
            raise
        return Journey(loans, request.source, HOME)
    record = vm.keeper.record(request.target)
    for loan in loans:
        if any(place.lease.lender == record.name for place in vm.book.places(loan.region)):
            raise ConflictError(
                f"{record.name} has a copy of {loan.device} already",
                hint=f"choose another lender, or give that copy up first: vmcoal detach --from {record.name}",
            )
    session = await vm.keeper.session(record.name, deadline=10.0)
    await vm.keeper.measure(record.name)
    amount, committed = sum(loan.capacity for loan in loans), sum(loan.size for loan in loans)
    grants = frozenset(session.grants)
    admit(await session.offer(), grants, ResourceKind.MEMORY, amount, committed, session.same_host)
    return Journey(loans, request.source, record.name)


def plan(vm: Vm, journey: Journey) -> Plan:
    """Return what `move` would do."""
    steps = []
    for loan in journey.loans:
        if journey.target == HOME:
            steps.append(Step("pull", f"pull the pages of {loan.device} here, hottest first", "this host"))
        else:
            steps.append(Step("lease memory", f"lease {format_size(loan.size)} of memory", journey.target))
            steps.append(Step("copy", f"copy the pages of {loan.device} to it while they are used", "this host"))
        if loan.leased:
            steps.append(Step("release", f"give lease {loan.id} back", loan.lease.lender))
    what = f"move {format_size(journey.size)} of {vm.spec.name} from {journey.source} to {journey.target}"
    return Plan("move", what, tuple(steps))


async def move(vm: Vm, request: MoveRequest, report: Progress) -> MoveResult | Plan:
    """Move what ``request`` says, or return the plan of it. A device has moved as a whole or not at all."""
    began = time.monotonic()
    journey = await survey(vm, request)
    if request.dry_run:
        return plan(vm, journey)
    notes: list[str] = []
    moved = 0
    for number, loan in enumerate(journey.loans):

        def numbered(
            step: int, _: int, text: str, fraction: float | None, detail: str | None, before: int = number * _STEPS
        ) -> None:
            report(before + step, _STEPS * len(journey.loans), text, fraction, detail)

        left = max(0.001, request.deadline - (time.monotonic() - began))
        try:
            notes += await move_one(vm, loan, journey.target, request, left, numbered)
        except VmcoalError as error:
            if moved:
                gone = f"{format_size(moved)} were moved before"
                error.left = "; ".join(filter(None, [error.left, gone]))
            raise
        moved += loan.size
    notes += _distances(vm, journey)
    reached = [loan for loan in vm.book if loan.lease.lender == journey.target]
    return MoveResult(
        source=journey.source,
        target=journey.target,
        memory_moved=moved,
        attachments=attachments(reached, vm.spec),
        seconds=time.monotonic() - began,
        notes=tuple(dict.fromkeys(notes)),
    )


def _distances(vm: Vm, journey: Journey) -> list[str]:
    """Return notes on nodes whose distance is not that of where their memory is now: the guest read it at its boot."""
    link = vm.keeper.links.get(journey.target)
    now = "at home it is near" if link is None else f"the link to {journey.target} stands for {link_distance(link)}"
    nodes = {loan.node for loan in journey.loans if not loan.copy}
    told = [f"node {node} keeps its distance of {vm.spec.far_node(node).distance}; {now}" for node in sorted(nodes)]
    same = link is not None and all(
        abs(vm.spec.far_node(node).distance - link_distance(link)) <= _NEAR for node in nodes
    )
    return [] if same else told


async def move_one(
    vm: Vm, loan: Loan, target: str, request: msgspec.Struct, deadline: float, report: Progress
) -> list[str]:
    """Move one place of a region's pages to ``target``; return notes for people."""
    async with transaction(
        vm.journal, undos(vm), "move", request, steps=_STEPS, deadline=deadline, report=report
    ) as trans:
        copy = await (_pull(vm, loan, trans) if target == HOME else _copy(vm, loan, target, trans))
        vm.granted.clear()
    # There is no way back from here: a caller that goes away does not end it half way.
    try:
        notes = await unbroken(_arrived(vm, loan, copy))
        if loan.lease.lender == HOME:
            trans.say(f"let the pages of {loan.device} go to {target}")
            await wait_until(vm, loan.region, lambda seen: missing_at(seen, copy.number), trans)
        return notes
    except VmcoalError as error:
        return [f"it has moved, but not all is done, which is tried again: {error}"]


async def _copy(vm: Vm, loan: Loan, target: str, trans: Transaction) -> Loan:
    """Have all pages at ``target`` as well; return the loan there."""
    trans.say(f"lease {format_size(loan.size)} from {target}")
    if free_number(vm, loan.region) is None:
        # Both places are in use. The other one has everything, so this one's number can be the new one's.
        await wait_until(vm, loan.region, lambda seen: only_at(seen, loan.number))
        async with trans.step("unstore", lease=loan.id):
            await vm.pager("places").unstore(loan.region, loan.number)
        copy = await add_copy(vm, loan, target, trans, number=loan.number)
    else:
        copy = await add_copy(vm, loan, target, trans)
    if loan.lease.lender != HOME:  # what is home goes there when nothing else depends on it
        trans.say(f"copy the pages of {loan.device} to {target}")
        await wait_until(vm, loan.region, lambda seen: missing_at(seen, copy.number), trans)
    await settle_copy(vm, copy)
    return vm.book.get(copy.id) or copy


async def _pull(vm: Vm, loan: Loan, trans: Transaction) -> Loan:
    """Have all pages on this host; return the loan that stands for that, which is not booked yet."""
    trans.say(f"pull the pages of {loan.device} here, hottest first")
    async with trans.step("home", region=loan.region):
        await vm.pager("home").home(loan.region, True)
    await wait_until(vm, loan.region, lambda seen: seen.away, trans)
    lease = own_lease(vm, loan, HOME)
    return msgspec.structs.replace(
        loan, lease=lease, link=None, port=0, number=0, replicas=1, problem=None, copy=False, since=time.time()
    )


async def _arrived(vm: Vm, loan: Loan, new: Loan) -> list[str]:
    """Give up the place that ``loan`` is, now that ``new`` has its pages."""
    if new.lease.lender == HOME:
        old = vm.book.places(loan.region)
        leaving = [msgspec.structs.replace(x, copy=True, state=AttachmentState.DETACHING) for x in old]
        vm.book.change(new, *leaving)
        return [note for place in leaving for note in await finish_giving_up(vm, place)]
    if loan.lease.lender == HOME:
        promote(vm, new, gone=[loan.id])
        await vm.pager("home").home(loan.region, False)
        return []
    if not loan.copy:
        promote(vm, new)
    return await give_up(vm, loan)
