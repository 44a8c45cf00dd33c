"""Leases as steps of a transaction: asked for, begun, confirmed, given back."""

from __future__ import annotations

import re
import secrets

import msgspec

from vmcoal.controller.loans import Loan
from vmcoal.controller.transaction import Transaction
from vmcoal.controller.vm import Vm
from vmcoal.errors import DeadlineError, NotFoundError, RefusedError, UnreachableError, VmcoalError
from vmcoal.fabric.messages import Granted
from vmcoal.fabric.session import LenderSession
from vmcoal.model.attachment import AttachmentState
from vmcoal.model.lease import LeaseEvent, ResourceKind, answered

_LEASE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_REQUEST_DEADLINE = 30.0


async def borrow(
    vm: Vm, session: LenderSession, trans: Transaction, kind: ResourceKind, amount: int, committed: int
) -> Granted:
    """Lease ``amount`` of ``kind`` as a step of ``trans``, and tell the lender that its use begins."""
    token = secrets.token_hex(16)
    async with trans.step("lease", lender=session.name, token=token, kind=kind, amount=amount, committed=committed):
        granted = await session.request(kind, amount, committed=committed, token=token, deadline=_REQUEST_DEADLINE)
    lease = granted.lease
    known = vm.book.knows(lease.id) or any(lease.id == other for other, _ in vm.granted.values())
    vm.granted[token] = lease.id, lease.epoch
    if not _LEASE_ID.fullmatch(lease.id) or known:
        raise RefusedError(f"{session.name} gave a lease an id that cannot be used", host=session.name)
    if kind is ResourceKind.MEMORY and granted.memory is None:
        raise RefusedError(f"{session.name} granted memory without a server", host=session.name)
    reply = await session.report(lease.id, lease.epoch, LeaseEvent.ATTACH)
    return msgspec.structs.replace(granted, lease=answered(lease, reply))


async def settle(vm: Vm, session: LenderSession, loan: Loan) -> None:
    """Tell the lender that the guest has what it lent."""
    reply = await session.report(loan.id, loan.lease.epoch, LeaseEvent.PLUGGED)
    current = vm.book.get(loan.id) or loan
    lease = answered(current.lease, reply)
    vm.book.put(msgspec.structs.replace(current, state=AttachmentState.ATTACHED, lease=lease))


async def release(vm: Vm, loan: Loan, *, deadline: float = 5.0, deaf: dict[str, str] | None = None) -> str | None:
    """Give a lease back to its lender and forget it; returns what `end_lease` does."""
    note = await end_lease(vm, loan, deadline=deadline, deaf={} if deaf is None else deaf)
    vm.book.drop(loan.id)
    return note


async def end_lease(vm: Vm, loan: Loan, *, deadline: float, deaf: dict[str, str]) -> str | None:
    """Give a lease back to its lender; return a note for people if it could not be told within ``deadline`` seconds.

    One that is among the ``deaf`` is told later; one that does not answer is among them, with its note, afterwards.
    """
    lender = loan.lease.lender
    if not loan.leased:
        return deaf.get(lender)
    if lender in deaf:
        vm.keeper.owe(lender, loan.id, loan.lease.epoch)
        return deaf[lender]
    try:
        await vm.keeper.release(lender, loan.id, loan.lease.epoch, deadline=deadline)
    except (UnreachableError, DeadlineError, NotFoundError, RefusedError) as error:
        note = untold(lender, error)
        if isinstance(error, UnreachableError | DeadlineError):
            deaf[lender] = note
        return note
    return None


def untold(lender: str, error: VmcoalError) -> str:
    """Return what is said of a lender that could not be told that its lease is over."""
    return (
        f"{lender} was not told ({error}); it is when it answers again, or takes the lease back when its time is over"
    )
