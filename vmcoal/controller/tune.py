"""How borrowed memory behaves: what a VM was told with `vmcoal tune`, and seeing that its page engine keeps to it.

What was asked for is an item of the journal, so that it outlives the controller and the page engine.
"""

from __future__ import annotations

import logging

import msgspec

from vmcoal.controller import copies
from vmcoal.controller.api import TuneRequest, Tuning
from vmcoal.controller.compression import apply_compression
from vmcoal.controller.journal import TUNING
from vmcoal.controller.transaction import Progress, Transaction, transaction
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm
from vmcoal.errors import PrerequisiteError, UsageError, VmcoalError
from vmcoal.host.facts import Host
from vmcoal.model.attachment import Step
from vmcoal.model.paging import Compression, LossPolicy
from vmcoal.model.units import MIB, format_size
from vmcoal.policy.paging import refuse_loss

log = logging.getLogger(__name__)

CACHE_MIN = MIB
"""A cache that is smaller than this makes every access a fetch."""

_DEADLINE = 30.0
_COMPRESSES = {
    Compression.AUTO: "compress pages where the link is slow",
    Compression.ON: "compress pages",
    Compression.OFF: "send pages as they are",
}


def tuning(vm: Vm) -> Tuning:
    """Return what the VM was told; what it was not told is ``None``."""
    return vm.journal.read(TUNING, Tuning)


def check(vm: Vm, cache: int | None, on_loss: LossPolicy | None, compress: Compression | None) -> None:
    """Raise what keeps this VM from a ``cache`` of so many bytes, from a loss policy or from compressed pages.

    That is `ConflictError` for an engine without them, `UsageError` for too small a cache, `PrerequisiteError` for a
    host that cannot.
    """
    if cache is not None:
        vm.pager("bounded cache (--cache)")
        if cache < CACHE_MIN:
            least = format_size(CACHE_MIN)
            raise UsageError(f"a cache of {format_size(cache)} is too small", hint=f"give {least} or more")
    if compress is not None:
        vm.pager("compression (--compress)")
    if on_loss is not None:
        vm.pager("loss policy (--on-loss)")
        if reason := refuse_loss(on_loss, Host().kernel(), vm.spec.accel):
            raise PrerequisiteError(reason, hint="without it, what touches a lost page waits: --on-loss stall")


def plan_cache(vm: Vm, cache: int) -> Step:
    """Return the step that sets the cache, for a plan."""
    return Step(
        "cache", f"keep at most {format_size(cache)} of all memory that {vm.spec.name} borrows here", "this host"
    )


def plan_compression(vm: Vm, compress: Compression) -> Step:
    """Return the step that has pages compressed, for a plan."""
    return Step("compress", f"{_COMPRESSES[compress]}, of all memory that {vm.spec.name} borrows", "this host")


async def tune(vm: Vm, request: TuneRequest, report: Progress) -> Tuning:
    """Change what ``request`` names, for good, and wait for what has to be copied; return how it is then."""
    check(vm, request.cache, request.on_loss, request.compress)
    engine = vm.pager("cache and no loss policy")
    changes = await copies.survey(vm, request)
    steps = (request.cache is not None) + (request.on_loss is not None) + (request.compress is not None)
    async with transaction(
        vm.journal, undos(vm), "tune", request, steps=steps, deadline=_DEADLINE, report=report
    ) as trans:
        if request.cache is not None:
            trans.say(f"keep at most {format_size(request.cache)} here")
            await set_cache(vm, request.cache, trans)
        if request.compress is not None:
            trans.say(_COMPRESSES[request.compress])
            await set_compression(vm, request.compress, trans)
        if request.on_loss is not None:
            trans.say(f"{request.on_loss} what touches a lost page")
            told = tuning(vm)
            async with trans.step("told", told=told):
                vm.journal.put(TUNING, msgspec.structs.replace(told, on_loss=request.on_loss))
            for loan in vm.book:
                if loan.is_memory and not loan.copy and loan.on_loss is not request.on_loss:
                    async with trans.step("loss", region=loan.region, before=loan.on_loss):
                        set_loss(vm, loan.region, request.on_loss)
    notes = await copies.carry_out(vm, changes, request, report)
    return msgspec.structs.replace(tuning(vm), cache=engine.cache, places=copies.places(vm), notes=tuple(notes))


async def set_compression(vm: Vm, compress: Compression, trans: Transaction) -> None:
    """Say whether pages of borrowed memory are compressed on their way, as a step of ``trans``."""
    told = tuning(vm)
    async with trans.step("compress", told=told):
        vm.journal.put(TUNING, msgspec.structs.replace(told, compress=compress))
        await apply_compression(vm)


def set_loss(vm: Vm, region: str, policy: LossPolicy) -> None:
    """Note what touching a lost page of ``region`` does: with the page engine it waits, the guard does the rest."""
    for loan in vm.book.places(region):
        vm.book.put(msgspec.structs.replace(loan, on_loss=policy))


async def set_cache(vm: Vm, cache: int, trans: Transaction) -> None:
    """Change how many bytes of borrowed memory may be here, as a step of ``trans``."""
    engine = vm.pager("bounded cache (--cache)")
    told = tuning(vm)
    async with trans.step("cache", before=engine.cache, told=told):
        await engine.set_cache(cache)
        vm.journal.put(TUNING, msgspec.structs.replace(told, cache=cache))


async def restore(vm: Vm) -> None:
    """Tell the page engine again what the VM was told: after a new controller or a new pager began."""
    if not vm.engine.traits.pages:
        return
    engine = vm.pager("settings")
    told = tuning(vm)
    try:
        if told.cache is not None:
            await engine.set_cache(told.cache)
        await apply_compression(vm)
    except VmcoalError as error:
        log.warning("the page engine does not take what it was told before: %s", error)
