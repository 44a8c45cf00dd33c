"""Giving back what was lent: what served it ends and its leases go, after the guest let go of it, or by force."""

from __future__ import annotations

import contextlib
import logging

import msgspec

from vmcoal.controller import gpu, passthrough
from vmcoal.controller.borrow import end_lease, release
from vmcoal.controller.loans import Loan
from vmcoal.controller.places import finish_giving_up, give_up
from vmcoal.controller.vm import Vm
from vmcoal.errors import VmcoalError
from vmcoal.model.attachment import AttachmentState
from vmcoal.model.paging import LOCAL
from vmcoal.model.units import format_size

log = logging.getLogger(__name__)

_TELL = 2.0
"""Seconds for which a lender is waited for whose lease is taken from the guest by force."""


def places_of(vm: Vm, loan: Loan) -> list[Loan]:
    """Return the loans that end with ``loan``: all of its memory, if the device is its."""
    return vm.book.places(loan.region) if loan.is_memory and not loan.copy else [vm.book.get(loan.id) or loan]


async def give_back(
    vm: Vm, loan: Loan, *, qemu_ended: bool = False, deadline: float = 5.0, deaf: dict[str, str] | None = None
) -> list[str]:
    """End what served a loan that QEMU no longer uses, release its leases, and forget it. Returns notes for people.

    ``deadline`` and ``deaf`` as in `vmcoal.controller.borrow.release`.
    """
    if loan.is_passthrough:
        await passthrough.restore(vm, loan)
    elif loan.is_gpu:
        await gpu.end_way(vm, loan.id, qemu_ended=qemu_ended)
    if not loan.is_memory:
        return list(filter(None, [await release(vm, loan, deadline=deadline, deaf=deaf)]))
    places = vm.book.places(loan.region)
    pid = None if qemu_ended else await vm.qemu_pid()
    await vm.engine.remove(loan.region, mapped_by=pid, deadline=30.0)
    # The one with the device last: whoever follows a controller that is killed here finds it, and begins again.
    notes = [await release(vm, place, deadline=deadline, deaf=deaf) for place in reversed(places)]
    if any(place.lease.lender == LOCAL for place in places):
        await vm.local.stop(loan.region)
    return list(filter(None, notes))


async def by_force(vm: Vm, loan: Loan, error: VmcoalError, deaf: dict[str, str]) -> str:
    """Give a lease back although the guest still uses it; raises ``error`` for what is no lender's.

    The lenders that are ``deaf`` are told later; one that does not answer is among them afterwards.
    """
    if loan.is_passthrough:
        error.hint = f"only its end takes it from a guest that holds on to it: vmcoal shutdown {vm.spec.name} --force"
        raise error
    for place in places_of(vm, loan):
        try:
            if note := await end_lease(vm, place, deadline=_TELL, deaf=deaf):
                log.warning("release of %s: %s", place.id, note)
        except VmcoalError as refused:
            log.warning("release of %s: %s", place.id, refused)
    if loan.is_gpu:
        with contextlib.suppress(VmcoalError):
            await gpu.end_way(vm, loan.id)
        vm.book.drop(loan.id)
        return f"{error}; the lease was given back, programs in the guest get errors"
    if not loan.is_memory:
        vm.book.drop(loan.id)
        return f"{error}; the lease was given back, the guest still has the vCPUs online on this host"
    if loan.copy:
        return "; ".join([f"{error}; the copy was given up as it was", *await give_up(vm, loan, lost=True)])
    if not loan.leased:
        return f"{error}; it is on this host already, so nothing was lost and nothing given back"
    problem = (
        f"lease {loan.id} was given back by force while the guest used it: its {format_size(loan.size)} are lost, "
        "and whatever touches them stalls"
    )
    for place in vm.book.places(loan.region):
        if place.copy:
            await finish_giving_up(vm, place)
    current = vm.book.get(loan.id) or loan
    vm.book.put(msgspec.structs.replace(current, state=AttachmentState.DEGRADED, problem=problem))
    return problem
