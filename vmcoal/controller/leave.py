"""Leaving a lender that wants everything back within a deadline, whatever way is open.

What another place has is given up at once. Else the memory leaves the guest, its pages pulled here meanwhile. Where the
guest has no room for that, or not in time, the memory stays plugged and moves: to the nearest lender with room, or
home. What none of this can meet is said in the status; the lender takes it at its deadline.
"""

from __future__ import annotations

import logging
import time

from vmcoal.controller.api import MoveRequest
from vmcoal.controller.detach import detach
from vmcoal.controller.loans import Loan
from vmcoal.controller.move import move_one
from vmcoal.controller.places import check_home_room, find_spare, give_up, region_of
from vmcoal.controller.transaction import Progress
from vmcoal.controller.vm import Vm
from vmcoal.errors import DeadlineError, ExecutionError, RefusedError, VmcoalError
from vmcoal.model.attachment import DetachRequest
from vmcoal.model.lease import ResourceKind
from vmcoal.model.paging import HOME
from vmcoal.model.units import format_size
from vmcoal.policy.paging import only_at

log = logging.getLogger(__name__)

_SHARE = 0.5
"""How much of the deadline the guest gets to let go of memory that could move instead."""


async def leave(vm: Vm, lender: str, deadline: float, report: Progress) -> list[str]:
    """Give everything back to ``lender`` within ``deadline`` seconds; return what was done, for people.

    Raises the error of the last way that was tried for what could not be given back.
    """
    ends = time.monotonic() + deadline
    told: list[str] = []
    paged = vm.engine.traits.pages
    for loan in [x for x in vm.book.of(lender, ResourceKind.MEMORY) if paged]:
        try:
            if await _elsewhere(vm, loan):
                told += [f"{loan.device} is read from its other place", *await give_up(vm, loan)]
        except VmcoalError as error:  # it has to leave like the rest
            log.warning("%s cannot be read from its other place: %s", loan.device, error)
    if not vm.book.of(lender):
        return told
    could_move = paged and bool(vm.book.of(lender, ResourceKind.MEMORY))
    left = max(1.0, ends - time.monotonic())
    request = DetachRequest(lender=lender, deadline=left * (_SHARE if could_move else 1.0))
    try:
        await detach(vm, request, report)
        return [*told, f"everything from {lender} left the guest"]
    except VmcoalError as error:  # also an agent that died of it: what cannot leave the guest can still move
        if not could_move:
            raise
        log.warning("%s cannot leave the guest: %s", lender, error)
        why: VmcoalError = error
    await vm.undoing.over()
    stuck: list[VmcoalError] = []
    memory = vm.book.of(lender, ResourceKind.MEMORY)
    for number, loan in enumerate(memory):
        share = max(1.0, ends - time.monotonic()) / (len(memory) - number)
        try:
            told.append(await _move(vm, loan, share, report, why))
        except VmcoalError as error:
            log.warning("%s", error)
            stuck.append(error)
    if stuck:
        raise stuck[0]
    if rest := vm.book.of(lender):
        raise DeadlineError(f"{len(rest)} vCPUs of {lender} could not leave the guest", hint=why.hint)
    return told


async def _elsewhere(vm: Vm, loan: Loan) -> bool:
    """Whether another place has every page of a region, or soon has."""
    if len(vm.book.places(loan.region)) < 2:
        return False
    seen = await region_of(vm, loan.region)
    return only_at(seen, loan.number) < seen.size


async def _move(vm: Vm, loan: Loan, deadline: float, report: Progress, why: VmcoalError) -> str:
    """Move memory that cannot leave the guest to another lender, or home."""
    size = format_size(loan.size)
    ways = []
    spare = await find_spare(vm, {x.lease.lender for x in vm.book.places(loan.region)}, loan.size)
    if spare is not None:
        ways.append(spare)
    try:
        check_home_room((await region_of(vm, loan.region)).away)
        ways.append(HOME)
    except RefusedError as error:
        log.info("%s", error)
    for number, target in enumerate(ways):
        request = MoveRequest(source=loan.lease.lender, target=target, deadline=deadline / (len(ways) - number))
        try:
            await move_one(vm, loan, target, request, request.deadline, report)
        except VmcoalError as error:
            log.warning("%s cannot move to %s: %s", loan.device, target, error)
            why = error
        else:
            return (
                f"the {size} of {loan.device} are {'home' if target == HOME else f'at {target}'} now and stay plugged"
            )
    raise ExecutionError(
        f"the {size} of {loan.device} cannot leave {loan.lease.lender} in time: {why}",
        left=f"{loan.lease.lender} takes them at its deadline, and what is in them is lost then",
        hint="free memory in the guest or on this host, or pair another lender: vmcoal pair",
    ) from why
