"""Detach: a contract with a deadline.

room check → drain → offline → unplug confirmed → release: all vCPUs at once, then one piece of memory after the other,
newest first. Each of these either leaves whole or is put back into use; what cannot leave in time is said, and only
``--force`` loses anything.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable

import msgspec

from vmcoal.controller import gpu
from vmcoal.controller.api import DetachResult
from vmcoal.controller.borrow import untold
from vmcoal.controller.copies import copy_leaves
from vmcoal.controller.detach_plan import Leaving, choose, plan
from vmcoal.controller.give_back import by_force, give_back, places_of
from vmcoal.controller.loans import Loan, amounts, attachments
from vmcoal.controller.places import pulling, way_out
from vmcoal.controller.transaction import Progress, Transaction, transaction
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm, cpu_names
from vmcoal.errors import DeadlineError, RefusedError, UnreachableError, VmcoalError
from vmcoal.machine import cpu, memory, virtio_mem
from vmcoal.machine.unplug import Clock
from vmcoal.model.attachment import AttachmentState, DetachRequest, MemoryStyle, Plan
from vmcoal.model.guest import MemorySpan
from vmcoal.model.lease import LeaseEvent, answered
from vmcoal.model.machine import CpuMode
from vmcoal.model.units import format_duration, format_size
from vmcoal.together import unbroken

log = logging.getLogger(__name__)

_MARGIN = 2.0
"""Seconds before the deadline at which a guest that still shrinks is stopped, to tell how far it came."""

_TELL = 3.0
"""Seconds for which a lender is waited for that is told something; it need not know at once."""

_LAST = 1.0
"""The same for what has left the guest when the deadline is over."""


async def detach(vm: Vm, request: DetachRequest, report: Progress) -> DetachResult | Plan:
    """Detach what ``request`` says within its deadline, or return the plan of it."""
    began = time.monotonic()
    leaving = choose(vm, request)
    if request.dry_run:
        return plan(vm, request, leaving)
    notes: list[str] = []
    seconds: dict[str, float] = {}
    cpus = size = gpus = 0
    ends = began + request.deadline
    deaf: dict[str, str] = {}
    parties = _parties(leaving)
    steps = [_steps(vm, party[0].loan) for party in parties]
    for number, party in enumerate(parties):
        place = sum(steps[:number]), sum(steps)
        try:
            await _leave(vm, party, request, ends, report, place, notes, seconds, deaf)
        except VmcoalError as error:
            if request.force:
                await vm.undoing.give_up()
                notes += [await by_force(vm, item.loan, error, deaf) for item in party]
            else:
                if number:
                    gone = f"detached before it: {amounts(cpus, size, gpus)}"
                    error.left = "; ".join(filter(None, [error.left, gone]))
                raise
        cpus += sum(item.loan.is_cpu for item in party)
        gpus += sum(item.loan.is_gpu for item in party)
        size += sum(item.size for item in party)
    lenders = list(dict.fromkeys(x.loan.lease.lender for x in leaving))
    for lender in lenders:
        await vm.keeper.forget(lender)
    remaining = [loan for lender in lenders for loan in vm.book.of(lender)]
    seconds["total"] = time.monotonic() - began
    return DetachResult(
        cpus_removed=cpus,
        memory_removed=size,
        gpus_removed=gpus,
        remaining=attachments(remaining, vm.spec),
        seconds=seconds,
        notes=tuple(dict.fromkeys(notes)),
    )


def _parties(leaving: list[Leaving]) -> list[list[Leaving]]:
    """Return what leaves as one transaction each, in order: all vCPUs together, everything else alone."""
    vcpus = [item for item in leaving if item.loan.is_cpu]
    first = vcpus[0] if vcpus else None
    return [vcpus if item is first else [item] for item in leaving if item is first or not item.loan.is_cpu]


def _steps(vm: Vm, loan: Loan) -> int:
    """Return how many steps a loan takes to leave, and those with it, as people are told them."""
    if loan.is_memory:
        return 1 if loan.copy or loan.style is MemoryStyle.GRANULAR else 2
    if loan.is_gpu:
        return 1
    return 2 if vm.spec.cpu_mode is CpuMode.HOTPLUG else 1


async def _leave(
    vm: Vm,
    party: list[Leaving],
    request: DetachRequest,
    ends: float,
    report: Progress,
    place: tuple[int, int],
    notes: list[str],
    seconds: dict[str, float],
    deaf: dict[str, str],
) -> None:
    started = time.monotonic()
    deadline = ends - started
    before, steps = place
    item = party[0]
    kind = item.loan.lease.kind.value
    if deadline <= 0 and not request.force:
        raise DeadlineError(
            f"detach did not finish within {format_duration(request.deadline)}",
            left=f"{amounts(sum(x.loan.is_cpu for x in party), item.size, item.loan.is_gpu)} of "
            f"{item.loan.lease.lender} and what comes after it, attached as before",
            hint="try again with a longer --deadline, and see vmcoal status",
        )
    deadline = max(0.001, deadline)

    def numbered(step: int, _: int, text: str, fraction: float | None, detail: str | None) -> None:
        report(before + step, steps, text, fraction, detail)

    try:
        async with transaction(
            vm.journal,
            undos(vm),
            "detach",
            request,
            steps=steps,
            deadline=deadline,
            report=numbered,
            undoing=vm.undoing,
            asked=request.deadline,
        ) as trans:
            for one in party:
                for loan in places_of(vm, one.loan):
                    async with trans.step("drain", lease=loan.id):
                        if loan.id == one.loan.id:
                            vm.book.put(msgspec.structs.replace(loan, state=AttachmentState.DETACHING))
                        await _tell(vm, loan, deaf, min(_TELL, max(0.1, round(deadline / 4, 1))))
            if item.loan.copy:
                trans.say(f"give the copy of {item.loan.device} at {item.loan.lease.lender} up")
                notes.extend(await copy_leaves(vm, item.loan))
            elif item.loan.is_gpu:
                await _gpu_leaves(vm, item.loan, trans, deadline)
            elif not item.loan.is_memory:
                await _cpus_leave(vm, [one.loan for one in party], trans, notes, deadline)
            elif item.loan.style is MemoryStyle.GRANULAR:
                await _granular_leaves(vm, item, trans, notes, deadline)
            else:
                await _dimm_leaves(vm, item, trans, deadline)
    except VmcoalError:
        vm.metrics.unplugged(kind, "failed", time.monotonic() - started)
        raise
    vm.metrics.unplugged(kind, "ok", time.monotonic() - started)
    for name, value in trans.seconds.items():
        seconds[name] = seconds.get(name, 0.0) + value
    # There is no way back from here: a caller that goes away does not end it half way.
    notes.extend(await unbroken(_release(vm, party, min(5.0, max(_LAST, ends - time.monotonic())), deaf)))


async def _release(vm: Vm, party: list[Leaving], deadline: float, deaf: dict[str, str]) -> list[str]:
    """Give back what has left the guest; return notes for people."""
    notes: list[str] = []
    for one in party:
        left = vm.book.get(one.loan.id)
        if one.whole and left is not None and left.state is not AttachmentState.PARKED:
            notes += await give_back(vm, left, deadline=deadline, deaf=deaf)
    return notes


async def _tell(vm: Vm, loan: Loan, deaf: dict[str, str], deadline: float) -> None:
    """Tell the lender that a drain began; one that does not answer is among the ``deaf`` then, and holds nothing up."""
    lender = loan.lease.lender
    if not loan.leased or lender in deaf:
        return
    try:
        session = await vm.keeper.session(lender, deadline=deadline)
        await session.report(loan.id, loan.lease.epoch, LeaseEvent.DRAIN, deadline=deadline)
    except VmcoalError as error:
        log.warning("drain of %s: %s", loan.id, error)
        if isinstance(error, UnreachableError | DeadlineError):
            deaf[lender] = untold(lender, error)


async def _cpus_leave(vm: Vm, loans: list[Loan], trans: Transaction, notes: list[str], deadline: float) -> None:
    clock = Clock(deadline)
    if vm.spec.cpu_mode is CpuMode.HOTPLUG:
        # The guest may have let go of one after a detach had given up waiting for it.
        there = {node: await cpu.plugged_cores(vm.qmp, node) for node in {loan.node for loan in loans}}
        loans = [loan for loan in loans if loan.core in there[loan.node]]
        if not loans:
            return
    by_node: dict[int, list[Loan]] = {}
    for loan in loans:
        by_node.setdefault(loan.node, []).append(loan)
    where = [f"{_named(x.core for x in mine)} of node {node}" for node, mine in by_node.items()]
    trans.say(f"offline {' and '.join(where)}")
    if vm.agent is not None:
        for node, mine in by_node.items():
            cores = [loan.core for loan in mine]
            async with trans.step("offline-cpus", leases=[loan.id for loan in mine], node=node, cores=cores):
                await vm.agent.cpu_set(cpu_names(node, cores), False, deadline=max(1.0, clock.left))
    elif vm.spec.cpu_mode is not CpuMode.HOTPLUG:
        raise RefusedError(
            "no agent answers in the guest, and without it a parked vCPU cannot be taken offline",
            hint="as root in the guest: echo 0 > /sys/devices/system/cpu/cpuN/online, then detach with --force",
        )
    if vm.spec.cpu_mode is CpuMode.HOTPLUG:
        trans.say("unplug it" if len(loans) == 1 else "unplug them")
        for loan in loans:
            async with trans.step("unplug-cpu", lease=loan.id, node=loan.node, core=loan.core):
                await cpu.unplug_cpu(vm.qmp, loan.node, loan.core, deadline=clock.left)
    else:
        notes.append("vCPUs are parked (offline), because QEMU cannot unplug them under TCG")


def _named(cores: Iterable[int]) -> str:
    """Return ``vCPU 1`` or ``vCPUs 0 and 1``."""
    words = [str(core) for core in sorted(cores)]
    return f"vCPU {words[0]}" if len(words) == 1 else f"vCPUs {', '.join(words[:-1])} and {words[-1]}"


async def _gpu_leaves(vm: Vm, loan: Loan, trans: Transaction, deadline: float) -> None:
    name = loan.gpu.name if loan.gpu else loan.device
    trans.say(f"take {name} out of node {loan.node}")
    async with trans.step("hide-gpu", lease=loan.id):
        if not loan.is_passthrough:
            await gpu.hide(vm, loan.id)
        await gpu.unplug(vm, loan.id, loan.address, deadline=deadline)


async def _dimm_leaves(vm: Vm, item: Leaving, trans: Transaction, deadline: float) -> None:
    loan = item.loan
    trans.say(f"drain {format_size(loan.size)} of node {loan.node}")
    # It may have left after a detach had given up waiting for it; its backend is there still.
    here = await memory.has_device(vm.qmp, loan.device)
    if here and vm.agent is not None:
        dimm = await memory.find_dimm(vm.qmp, loan.device)
        span = MemorySpan(dimm.addr, dimm.size)
        room = await vm.agent.room(span, deadline=30.0)
        if not room.fits:
            raise RefusedError(
                f"{format_size(room.needed)} are in use there, {format_size(room.available)} are free elsewhere",
                left="it is attached as before",
                hint="free memory in the guest or attach other memory first; its kernel would kill programs"
                + await _stay(vm, loan),
            )
        async with pulling(vm, loan, trans) as pulled:

            def progress(done: int, total: int, note: str | None) -> None:
                trans.progress(done / max(1, total), "; ".join(filter(None, [f"{done} of {total} blocks", pulled()])))

            async with trans.step("offline-memory", lease=loan.id, device=loan.device, start=dimm.addr, size=dimm.size):
                await vm.agent.memory_set(span, False, deadline=deadline, progress=progress)
    trans.say("unplug it")
    async with trans.step("unplug-dimm", device=loan.device, backend=loan.backend):
        await memory.unplug_dimm(vm.qmp, loan.device, loan.backend, deadline=deadline)


async def _stay(vm: Vm, loan: Loan) -> str:
    """Return how memory can leave its lender without leaving the guest, for a hint."""
    if not vm.engine.traits.pages or not loan.leased:
        return ""
    way = await way_out(vm, loan)
    if way is None:
        return "; or pair a lender that has room for it, and move it there while it stays plugged: vmcoal move"
    return f"; or let it stay plugged and leave {loan.lease.lender} all the same: {way}"


async def _granular_leaves(vm: Vm, item: Leaving, trans: Transaction, notes: list[str], deadline: float) -> None:
    loan = item.loan
    rest = loan.size - item.size
    trans.say(f"shrink node {loan.node} to {format_size(rest)}")
    if item.whole and not await memory.has_device(vm.qmp, loan.device):
        await virtio_mem.unplug(vm.qmp, loan.device, loan.backend, deadline=15.0)
        return
    async with contextlib.AsyncExitStack() as stack:
        pulled = await stack.enter_async_context(pulling(vm, loan, trans)) if item.whole else lambda: ""

        def progress(now: int) -> None:
            said = "; ".join(filter(None, [f"{format_size(now)} left", pulled()]))
            trans.progress(min(1.0, (loan.size - now) / max(1, item.size)), said)

        await stack.enter_async_context(trans.step("resize", lease=loan.id, device=loan.device, before=loan.size))
        reached = await virtio_mem.resize(
            vm.qmp, loan.device, rest, deadline=max(1.0, deadline - _MARGIN), progress=progress
        )
        if reached != rest:
            raise RefusedError(
                f"the guest let go of {format_size(loan.size - reached)} of {format_size(item.size)}",
                hint=f"free memory in the guest, then detach again{await _stay(vm, loan)}",
            )
    async with trans.step("commit", lender=loan.lease.lender, lease=loan.id, epoch=loan.lease.epoch, before=loan.size):
        await _shrink_leases(vm, loan, rest)
    current = msgspec.structs.replace(vm.book.get(loan.id) or loan, size=rest, state=AttachmentState.ATTACHED)
    if rest == 0:
        try:
            await virtio_mem.unplug(vm.qmp, loan.device, loan.backend, deadline=15.0)
        except RefusedError:
            current = msgspec.structs.replace(current, state=AttachmentState.PARKED)
            notes.append(
                f"{loan.device} is empty but stays plugged until shutdown: this QEMU cannot unplug virtio-mem; "
                "its lease holds no memory and is used again by the next --granular attach"
            )
            if vm.engine.traits.pages and loan.leased:
                await vm.pager("home").home(loan.region, False)
    vm.book.put(current)


async def _shrink_leases(vm: Vm, loan: Loan, committed: int) -> None:
    """Give a part of a region's leases back; what stays is in use again, their drain is over."""
    vm.book.resize(loan.region, committed)
    for place in vm.book.places(loan.region):
        if not place.leased:
            continue
        try:
            session = await vm.keeper.session(place.lease.lender, deadline=_TELL)
            await session.resize(place.id, place.lease.epoch, committed, deadline=_TELL)
            reply = await session.report(place.id, place.lease.epoch, LeaseEvent.PLUGGED, deadline=_TELL)
        except (UnreachableError, DeadlineError) as error:
            log.warning("lease %s keeps its size: %s", place.id, error)
        else:
            current = vm.book.get(place.id) or place
            vm.book.put(msgspec.structs.replace(current, lease=answered(current.lease, reply)))
