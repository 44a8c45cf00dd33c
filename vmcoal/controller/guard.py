"""Looks after paged memory while nobody asks for anything: places that are lost, and a VM that is to pause.

A place that does not come back within its grace is given up, and the region gets another one on a spare lender. A VM
whose memory was attached with ``--on-loss pause`` is stopped while a page that it touches is nowhere to be had. The
guard looks when something changed, every second while something is wrong or may have to be paused, and now and then
where there are copies, or links that may be worth compressing for; a VM with none of these is left alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from vmcoal.controller.compression import apply_compression, wanted
from vmcoal.controller.journal import PAUSED
from vmcoal.controller.loans import Loan
from vmcoal.controller.places import add_copy, find_spare, give_up, settle_copy, tidy
from vmcoal.controller.transaction import transaction
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm
from vmcoal.errors import VmcoalError
from vmcoal.machine.qmp_errors import translated
from vmcoal.model.attachment import AttachmentState
from vmcoal.model.lease import LeaseState
from vmcoal.model.paging import HOME, Compression, LossPolicy, PagedRegion
from vmcoal.model.units import format_size
from vmcoal.policy.paging import compresses

log = logging.getLogger(__name__)

_OFTEN, _RARELY = 1.0, 15.0
_RETRY = 30.0
"""Seconds after which a copy that could not be made is tried again."""

_REPLICATE = 60.0
_STOP = 30.0


class Guard:
    """Looks after the memory of one VM; ``grace`` of a place is that of its lease."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._kicked = asyncio.Event()
        self._away: dict[str, float] = {}
        self._retry: dict[str, float] = {}
        self._untidy = True
        self._sure = False
        """Whether this controller itself has stopped a VM that is paused."""

    def kick(self) -> None:
        """Look soon: something has changed."""
        self._kicked.set()

    async def run(self) -> None:
        """Look when there is reason to, until cancelled."""
        while True:
            pause: float | None = _RARELY
            with contextlib.suppress(VmcoalError):  # a journal that cannot be read, which the look tells
                pause = self._interval()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._kicked.wait()
            self._kicked.clear()
            if self._vm.state == "running":
                try:
                    await self.look()
                except VmcoalError as error:
                    log.warning("paged memory cannot be looked after: %s", error)
                except Exception:  # a defect in one look must not be the end of all
                    log.exception("paged memory cannot be looked after")

    async def look(self) -> None:
        """Look once, and do what has to be done."""
        vm = self._vm
        if not vm.engine.traits.pages:
            return
        carriers = [loan for loan in vm.book if loan.is_memory and not loan.copy]
        regions = {loan.region: await vm.pager("regions").region(loan.region) for loan in carriers}
        known = {region: seen for region, seen in regions.items() if seen is not None}
        await self._pause(carriers, known)
        if vm.operation is not None:
            self._untidy = True
            return  # it is looked at again when that is over
        if any(loan.copy and loan.state is AttachmentState.DETACHING for loan in vm.book) or self._untidy:
            self._untidy = False
            async with vm.queued_turn("tidy up", brief=True):
                for line in await tidy(vm):
                    log.warning("%s", line)
        told = wanted(vm)
        if told is Compression.AUTO and any(seen.compress is not compresses(told, seen) for seen in known.values()):
            async with vm.queued_turn("compression", brief=True):
                await apply_compression(vm)
        for loan in carriers:
            if loan.region in known:
                await self._keep_copies(loan.region, known[loan.region])
        vm.concerns = {region: text for region, text in vm.concerns.items() if region in known}

    # Copies

    async def _keep_copies(self, region: str, seen: PagedRegion) -> None:
        vm = self._vm
        for loan in vm.book.places(region):
            if self._is_spare(loan, seen):
                async with vm.queued_turn(f"give up {loan.lease.lender}", brief=True):
                    await self._give_up(loan.id, region)
        carrier = vm.book.carrier(region)
        if carrier is not None and len(vm.book.places(region)) < carrier.replicas:
            await self._replicate(carrier)
        elif region in vm.concerns:
            del vm.concerns[region]

    async def _give_up(self, lease: str, region: str) -> None:
        """Give a lost place up, if it still is: the turn may have come minutes after the look."""
        loan, seen = self._vm.book.get(lease), await self._vm.pager("regions").region(region)
        if loan is not None and seen is not None and self._is_spare(loan, seen):
            log.error("%s is lost as a place of %s; the other one has every page", loan.lease.lender, loan.device)
            for note in await give_up(self._vm, loan, lost=True):
                log.info("%s", note)

    def _is_spare(self, loan: Loan, seen: PagedRegion) -> bool:
        """Whether a place is lost, and another one has every page."""
        return self._is_lost(loan, seen) and any(copy.number != loan.number for copy in seen.whole)

    def _is_lost(self, loan: Loan, seen: PagedRegion) -> bool:
        """Whether a place will not come back: its lender says so, has other bytes, or its grace is over."""
        copy = seen.copy(loan.number)
        if copy is None or not loan.leased or loan.state in (AttachmentState.ATTACHING, AttachmentState.DETACHING):
            return False
        if copy.refused or (loan.problem is not None and not copy.connected):
            return True
        if copy.connected:
            self._away.pop(loan.id, None)
            return False
        since = self._away.setdefault(loan.id, time.monotonic())
        return time.monotonic() - since > loan.lease.terms.grace

    async def _replicate(self, carrier: Loan) -> None:
        """Have the pages of a region in one more place; what prevents it is told in the status."""
        vm, region = self._vm, carrier.region
        if time.monotonic() < self._retry.get(region, 0.0) or carrier.lease.lender == HOME:
            return
        self._retry[region] = time.monotonic() + _RETRY
        where = f"at {carrier.lease.lender}" if carrier.leased else "on this host's disk"
        what = f"the {format_size(carrier.size)} of {carrier.device} are {where} alone"
        try:
            async with vm.queued_turn("replicate", brief=True):
                current = vm.book.carrier(region)
                if current is None or len(vm.book.places(region)) >= current.replicas:
                    return
                spare = await find_spare(vm, {loan.lease.lender for loan in vm.book.places(region)}, carrier.size)
                if spare is None:
                    vm.concerns[region] = (
                        f"{what}, and no other paired lender has room for a copy; "
                        "pair one, or let one lend more: it is tried again by itself"
                    )
                    return
                async with transaction(
                    vm.journal, undos(vm), "replicate", {}, steps=1, deadline=_REPLICATE, report=lambda *args: None
                ) as trans:
                    trans.say(f"copy {current.device} to {spare}")
                    await settle_copy(vm, await add_copy(vm, current, spare, trans))
                vm.granted.clear()
        except VmcoalError as error:
            log.warning("no copy of %s: %s", carrier.device, error)
            vm.concerns[region] = f"{what}, and a copy cannot be made: {error}; it is tried again by itself"
        else:
            log.info("the pages of %s are copied to %s", carrier.device, spare)
            vm.concerns.pop(region, None)

    # Pause

    async def _pause(self, carriers: list[Loan], regions: dict[str, PagedRegion]) -> None:
        """Stop the VM while a page that it touched is nowhere to be had, and let it go on when it is back."""
        vm = self._vm
        held = PAUSED in vm.journal.items()
        waiting = [
            loan
            for loan in carriers
            if loan.on_loss is LossPolicy.PAUSE and loan.region in regions and regions[loan.region].waiting
        ]
        if waiting and not (held and self._sure):
            vm.journal.put(PAUSED, {"at": time.time()})
            log.error("the VM is paused: it touched memory of %s that nobody gives now", waiting[0].lease.lender)
            with translated("stop the guest"):
                await vm.qmp.execute("stop", deadline=_STOP)
            self._sure = True
        elif held and not waiting:
            with translated("let the guest go on"):
                await vm.qmp.execute("cont", deadline=_STOP)
            vm.journal.drop(PAUSED)
            log.info("the VM goes on: its memory is back")

    def _interval(self) -> float | None:
        """Return after how many seconds to look again without a reason, or ``None``."""
        vm = self._vm
        memory = [loan for loan in vm.book if loan.is_memory]
        if not memory or not vm.engine.traits.pages:
            return None
        wrong = vm.concerns or any(
            loan.problem or loan.lease.state is LeaseState.UNREACHABLE or loan.on_loss is LossPolicy.PAUSE
            for loan in memory
        )
        short = any(len(vm.book.places(x.region)) < x.replicas for x in memory if not x.copy)
        if wrong or short or self._untidy:
            return _OFTEN
        return _RARELY if any(loan.copy for loan in memory) or wanted(vm) is Compression.AUTO else None


def held(vm: Vm) -> str | None:
    """Return why the VM was paused by itself, for people, or ``None``."""
    if PAUSED not in vm.journal.items():
        return None
    return (
        "paused, because it touched memory that no lender gives now; it goes on by itself when the memory is back, "
        f"or let what touches it wait instead: vmcoal tune {vm.spec.name} --on-loss stall"
    )
