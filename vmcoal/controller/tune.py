"""How borrowed memory behaves: what a VM was told with `vmcoal tune`, and seeing that its page engine keeps to it.

What was asked for is an item of the journal, so that it outlives the controller and the page engine.
"""

from __future__ import annotations

import logging

import msgspec

from vmcoal.controller.api import TuneRequest, Tuning
from vmcoal.controller.journal import TUNING
from vmcoal.controller.transaction import Progress, Transaction, transaction
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm
from vmcoal.errors import UsageError, VmcoalError
from vmcoal.model.attachment import Step
from vmcoal.model.units import MIB, format_size

log = logging.getLogger(__name__)

CACHE_MIN = MIB
"""A cache that is smaller than this makes every access a fetch."""

_DEADLINE = 30.0


def tuning(vm: Vm) -> Tuning:
    """Return what the VM was told; what it was not told is ``None``."""
    return msgspec.convert(vm.journal.items().get(TUNING, {}), Tuning)


def check(vm: Vm, cache: int | None) -> None:
    """Raise `ConflictError` if this VM's engine has no cache, `UsageError` if ``cache`` (bytes) is none."""
    if cache is None:
        return
    vm.pager("bounded cache (--cache)")
    if cache < CACHE_MIN:
        raise UsageError(f"a cache of {format_size(cache)} is too small", hint=f"give {format_size(CACHE_MIN)} or more")


def plan_cache(vm: Vm, cache: int) -> Step:
    """Return the step that sets the cache, for a plan."""
    return Step(
        "cache", f"keep at most {format_size(cache)} of all memory that {vm.spec.name} borrows here", "this host"
    )


async def tune(vm: Vm, request: TuneRequest, report: Progress) -> Tuning:
    """Change what ``request`` names, at once and for good; return how it is then."""
    check(vm, request.cache)
    engine = vm.pager("cache and no loss policy")
    async with transaction(vm.journal, undos(vm), "tune", request, steps=1, deadline=_DEADLINE, report=report) as trans:
        if request.cache is not None:
            trans.say(f"keep at most {format_size(request.cache)} here")
            await set_cache(vm, request.cache, trans)
    return Tuning(cache=engine.cache)


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
    except VmcoalError as error:
        log.warning("the page engine does not take what it was told before: %s", error)
