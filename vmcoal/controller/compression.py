"""Has the pages of a VM's borrowed memory compressed on their way, or not: as it was told, and as its links are."""

from __future__ import annotations

import logging

from vmcoal.controller.api import Tuning
from vmcoal.controller.journal import TUNING
from vmcoal.controller.vm import Vm
from vmcoal.model.paging import Compression
from vmcoal.policy.paging import compresses

log = logging.getLogger(__name__)


def wanted(vm: Vm) -> Compression:
    """Return what the VM was told of compression."""
    return vm.journal.read(TUNING, Tuning).compress


async def apply_compression(vm: Vm) -> None:
    """Have each region compressed or not, as the VM was told and as its links are now."""
    engine, told = vm.pager("compression (--compress)"), wanted(vm)
    for loan in vm.book:
        if not loan.is_memory or loan.copy:
            continue
        region = await engine.region(loan.region)
        if region is not None and region.compress is not compresses(told, region):
            log.info("pages of %s are %s", loan.device, "sent as they are" if region.compress else "compressed")
            await engine.set_compression(loan.region, not region.compress)
