"""What a VM's page engine does and what is wrong with it, for its status."""

from __future__ import annotations

import msgspec

from vmcoal.controller.vm import Vm
from vmcoal.errors import VmcoalError
from vmcoal.model.activity import PageFetch, PagingActivity, StoreActivity
from vmcoal.model.paging import HOME, LossPolicy, PagedRegion
from vmcoal.model.units import format_size

_DEADLINE = 2.0

_TOUCHED = {
    LossPolicy.STALL: "what touches it waits",
    LossPolicy.PAUSE: "the VM pauses when it is touched",
}


async def paging(vm: Vm) -> tuple[PagingActivity | None, list[str]]:
    """Return what the page engine of ``vm`` does and what is wrong, each with its next step.

    ``None`` where the VM borrows no memory, has another engine, or its pager does not answer.
    """
    if not vm.engine.traits.pages or not any(loan.is_memory for loan in vm.book):
        return None, []
    try:
        activity = await vm.pager("status").activity(deadline=_DEADLINE)
    except VmcoalError as error:
        return None, [f"the pager does not answer: {error}; next: vmcoal logs {vm.spec.name} pager"]
    lenders = {(loan.region, loan.number): loan.lease.lender for loan in vm.book if loan.is_memory}
    stores = tuple(
        msgspec.structs.replace(store, lender=lenders.get((store.region, store.number), "?"))
        for store in activity.stores
    )
    policies = {loan.region: loan.on_loss for loan in vm.book if loan.is_memory}
    regions = {
        name: msgspec.structs.replace(region, policy=policies.get(name, region.policy))
        for name, region in activity.regions.items()
    }
    down = {lender for lender in vm.book.lenders() if vm.keeper.down_for(lender) is not None}
    activity = msgspec.structs.replace(activity, stores=stores, regions=regions)
    return activity, paging_troubles(vm.spec.name, activity, down)


def paging_troubles(vm: str, activity: PagingActivity, down: set[str]) -> list[str]:
    """Return what is wrong with the paged memory of ``vm``, each with its next step.

    That a lender is in ``down`` is said already, with what it means.
    """
    found: list[str] = []
    for name, region in activity.regions.items():
        stores = [store for store in activity.stores if store.region == name and store.lender != HOME]
        if region.lost:
            found.append(_lost(vm, region, stores))
        away = [store for store in stores if not store.connected]
        others = len(stores) > len(away)
        found += [_away(vm, region, store, others) for store in away if store.lender not in down or region.waiting]
        behind = [store for store in stores if store.connected and store.behind]
        found += [
            f"{store.lender} is being given {format_size(store.behind)} of lease {name} that it does not have yet; "
            "nothing needs to be done"
            for store in behind
            if len(stores) > 1
        ]
    return found


def _lost(vm: str, region: PagedRegion, stores: list[StoreActivity]) -> str:
    who = " and ".join(store.lender for store in stores) or "no lender"
    gives = "do not give" if len(stores) > 1 else "does not give" if stores else "gives"
    return (
        f"{format_size(region.lost)} of memory are lost: {who} {gives} them back as they were, "
        f"{_TOUCHED[region.policy]}; save what you can, then: vmcoal shutdown {vm} --force"
    )


def _away(vm: str, region: PagedRegion, store: StoreActivity, others: bool) -> str:
    why = f" ({store.why})" if store.why else ""
    if others:
        return (
            f"the memory server of {store.lender} does not answer{why}; the other copy of its pages is used; "
            f"bring {store.lender} back"
        )
    waits = f"{region.waiting} accesses wait" if region.waiting > 1 else "an access waits" if region.waiting else ""
    now = (
        f"{waits} for its {format_size(region.away)} there"
        if waits
        else f"its {format_size(region.away)} cannot be read"
    )
    return (
        f"the memory server of {store.lender} does not answer{why}: {now}; bring {store.lender} back, "
        f"or end the VM: vmcoal shutdown {vm} --force"
    )


async def page_fetch(vm: Vm, lender: str, count: int) -> tuple[PageFetch | None, str | None]:
    """Read up to ``count`` pages that ``lender`` has of the memory of ``vm``, one at a time, and say how long one took;
    or say why that cannot be."""
    loans = [loan for loan in vm.book.of(lender) if loan.is_memory]
    if not loans:
        return None, f"{vm.spec.name} borrows no memory from {lender}"
    if not vm.engine.traits.pages:
        return None, f"the memory engine {vm.engine.traits.name} cannot measure it"
    try:
        p50, p99, pages = await vm.pager("samples").sample(loans[0].region, loans[0].number, max(1, min(1000, count)))
    except VmcoalError as error:
        return None, str(error)
    if not pages:
        return None, f"no page of {vm.spec.name} is with {lender} yet"
    return PageFetch(vm=vm.spec.name, p50=p50, p99=p99, pages=pages), None
