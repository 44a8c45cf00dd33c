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
from dataclasses import dataclass

import msgspec

from vmcoal.controller import gpu, passthrough
from vmcoal.controller.api import DetachResult
from vmcoal.controller.attach import amounts
from vmcoal.controller.borrow import release
from vmcoal.controller.copies import copy_leaves
from vmcoal.controller.loans import Loan, attachments
from vmcoal.controller.places import finish_giving_up, give_up, pulling, way_out
from vmcoal.controller.transaction import Progress, Transaction, transaction
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm, cpu_names
from vmcoal.errors import NotFoundError, RefusedError, UnreachableError, UsageError, VmcoalError
from vmcoal.machine import cpu, memory, virtio_mem
from vmcoal.model.attachment import AttachmentState, DetachRequest, MemoryStyle, Plan, Step
from vmcoal.model.guest import MemorySpan
from vmcoal.model.lease import LeaseEvent, ResourceKind, answered
from vmcoal.model.machine import CpuMode
from vmcoal.model.paging import LOCAL
from vmcoal.model.units import format_size
from vmcoal.policy.admission import GRAIN
from vmcoal.policy.placement import pick_dimms

log = logging.getLogger(__name__)

_MARGIN = 2.0
"""Seconds before the deadline at which a guest that still shrinks is stopped, to tell how far it came."""


@dataclass(frozen=True)
class Leaving:
    """One loan and how many bytes of it leave the guest (none, if it is a vCPU's or a copy)."""

    loan: Loan
    size: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing of the loan remains."""
        return self.loan.copy or self.size == self.loan.size


def choose(vm: Vm, request: DetachRequest) -> list[Leaving]:
    """Return what leaves, in order: vCPUs and GPUs before memory, newest first. Nothing is changed.

    Raises `UsageError` for amounts that make no sense or are more than is attached, `NotFoundError` for a lender that
    lends nothing.
    """
    if request.cpus < 0 or request.memory < 0:
        raise UsageError("what is detached cannot be negative", hint="give --cpus and --memory positive values")
    lenders = vm.book.sources()
    if not lenders:
        raise NotFoundError(f"nothing is attached to {vm.spec.name}", hint=f"vmcoal attach {vm.spec.name}")
    if request.pci is not None:
        return [Leaving(passthrough.find(vm, request.pci))]
    if request.lender is None and not request.everything and len(lenders) > 1:
        raise UsageError(
            "resources of several lenders are attached", hint=f"say --all, or which with --from: {', '.join(lenders)}"
        )
    if request.lender is not None and request.lender not in lenders:
        raise NotFoundError(f"{request.lender} lends nothing to {vm.spec.name}", hint=f"these do: {', '.join(lenders)}")
    chosen = lenders if request.everything else [request.lender or lenders[0]]
    if request.cpus or request.memory or request.gpu:
        if len(chosen) > 1:
            raise UsageError("--all detaches everything", hint="give amounts with --from LENDER instead")
        return _some(vm, chosen[0], request)
    loans = [loan for lender in chosen for loan in vm.book.of(lender)]
    regions = {loan.region for loan in loans if loan.is_memory and not loan.copy}
    loans = [loan for loan in loans if not loan.copy or loan.region not in regions]  # a copy goes with its memory
    leaving = [Leaving(x, 0 if x.copy else x.size) for x in reversed(loans) if x.state is not AttachmentState.PARKED]
    return sorted(leaving, key=lambda x: x.loan.is_memory)


def _some(vm: Vm, lender: str, request: DetachRequest) -> list[Leaving]:
    leaving: list[Leaving] = []
    if request.gpu:
        loans = vm.book.of(lender, ResourceKind.GPU)
        if not loans:
            raise UsageError(f"no GPU of {lender} is attached", hint="see: vmcoal status")
        leaving.append(Leaving(loans[-1]))
    if request.cpus:
        loans = vm.book.of(lender, ResourceKind.CPU)
        if request.cpus > len(loans):
            raise UsageError(f"{request.cpus} vCPUs are more than the {len(loans)} attached", hint="see: vmcoal status")
        leaving += [Leaving(loan) for loan in loans[: -request.cpus - 1 : -1]]
    if request.memory:
        loans = [x for x in vm.book.of(lender, ResourceKind.MEMORY) if not x.copy]
        granular = [x for x in loans if x.style is MemoryStyle.GRANULAR and x.size]
        if granular and request.memory <= granular[0].size:
            if request.memory % GRAIN:
                raise UsageError(
                    f"{format_size(request.memory)} is no multiple of {format_size(GRAIN)}",
                    hint="granular memory has steps of 2M",
                )
            leaving.append(Leaving(granular[0], size=request.memory))
        else:
            dimms = {x.id: x.size for x in loans if x.style is not MemoryStyle.GRANULAR}
            if granular and request.memory > sum(dimms.values()):
                raise UsageError(
                    f"{format_size(request.memory)} is more than is attached, or spans DIMMs and granular memory",
                    hint="detach them one after the other, or all with --from and no amount",
                )
            by_id = {x.id: x for x in loans}
            leaving += [Leaving(by_id[lease], size=by_id[lease].size) for lease in pick_dimms(dimms, request.memory)]
    return leaving


def plan(vm: Vm, request: DetachRequest, leaving: list[Leaving]) -> Plan:
    """Return what `detach` would do, with the exact QMP commands."""
    steps: list[Step] = []
    for item in leaving:
        loan = item.loan
        if loan.copy:
            steps.append(Step("copy", f"use the copy of {loan.device} there no longer", "this host"))
        elif loan.is_passthrough:
            steps += passthrough.plan_detach(loan)
        elif loan.is_gpu:
            steps += gpu.plan_detach(loan)
        elif not loan.is_memory:
            steps.append(Step("offline vCPU", f"offline vCPU {loan.core} of node {loan.node}", "guest"))
            if vm.spec.cpu_mode is CpuMode.HOTPLUG:
                steps.append(Step("unplug vCPU", "unplug it", "QEMU", tuple(cpu.plan_unplug(loan.node, loan.core))))
        elif loan.style is MemoryStyle.GRANULAR:
            rest = loan.size - item.size
            steps.append(
                Step(
                    "shrink",
                    f"shrink node {loan.node} to {format_size(rest)}",
                    "QEMU",
                    tuple(virtio_mem.plan_resize(loan.device, rest)),
                )
            )
        else:
            steps.append(Step("room", f"check that what is in the {format_size(loan.size)} fits elsewhere", "guest"))
            steps.append(Step("offline memory", f"drain and offline {loan.device}", "guest"))
            steps.append(
                Step(
                    "unplug memory",
                    "unplug it and wait for the event",
                    "QEMU",
                    tuple(memory.plan_unplug(loan.device, loan.backend)),
                )
            )
        steps += [
            Step(
                "release",
                f"give lease {place.id} back" if item.whole else f"give a part of lease {place.id} back",
                place.lease.lender,
            )
            for place in _places(vm, loan)
            if place.leased
        ]
    cpus, size = sum(x.loan.is_cpu for x in leaving), sum(x.size for x in leaving)
    gpus = sum(x.loan.is_gpu for x in leaving)
    return Plan("detach", f"detach {amounts(cpus, size, gpus)} from {vm.spec.name}", tuple(steps))


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
    parties = _parties(leaving)
    steps = [_steps(vm, party[0].loan) for party in parties]
    for number, party in enumerate(parties):
        place = sum(steps[:number]), sum(steps)
        try:
            await _leave(vm, party, request, max(0.001, ends - time.monotonic()), report, place, notes, seconds)
        except VmcoalError as error:
            if request.force:
                notes += [await _force(vm, item.loan, error) for item in party]
            else:
                if number:
                    gone = f"{amounts(cpus, size, gpus)} were detached before"
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


def _places(vm: Vm, loan: Loan) -> list[Loan]:
    """Return the loans that end with ``loan``: all of its memory, if the device is its."""
    return vm.book.places(loan.region) if loan.is_memory and not loan.copy else [vm.book.get(loan.id) or loan]


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
    deadline: float,
    report: Progress,
    place: tuple[int, int],
    notes: list[str],
    seconds: dict[str, float],
) -> None:
    started = time.monotonic()
    before, steps = place
    item = party[0]
    kind = item.loan.lease.kind.value

    def numbered(step: int, _: int, text: str, fraction: float | None, detail: str | None) -> None:
        report(before + step, steps, text, fraction, detail)

    try:
        async with transaction(
            vm.journal, undos(vm), "detach", request, steps=steps, deadline=deadline, report=numbered
        ) as trans:
            for one in party:
                for loan in _places(vm, one.loan):
                    async with trans.step("drain", lease=loan.id):
                        if loan.id == one.loan.id:
                            vm.book.put(msgspec.structs.replace(loan, state=AttachmentState.DETACHING))
                        await _tell(vm, loan)
            if item.loan.copy:
                trans.say(f"give the copy of {item.loan.device} at {item.loan.lease.lender} up")
                notes.extend(await copy_leaves(vm, item.loan))
            elif item.loan.is_gpu:
                await _gpu_leaves(vm, item.loan, trans, deadline)
            elif not item.loan.is_memory:
                await _cpus_leave(vm, [one.loan for one in party], trans, notes)
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
    for one in party:
        left = vm.book.get(one.loan.id)
        if one.whole and left is not None and left.state is not AttachmentState.PARKED:
            notes.extend(await give_back(vm, left))


async def _tell(vm: Vm, loan: Loan) -> None:
    """Tell the lender that a drain began; a lender that does not answer does not hold it up."""
    if not loan.leased:
        return
    try:
        session = await vm.keeper.session(loan.lease.lender, deadline=3.0)
        await session.report(loan.id, loan.lease.epoch, LeaseEvent.DRAIN)
    except VmcoalError as error:
        log.warning("drain of %s: %s", loan.id, error)


async def _cpus_leave(vm: Vm, loans: list[Loan], trans: Transaction, notes: list[str]) -> None:
    by_node: dict[int, list[Loan]] = {}
    for loan in loans:
        by_node.setdefault(loan.node, []).append(loan)
    where = [f"{_named(x.core for x in mine)} of node {node}" for node, mine in by_node.items()]
    trans.say(f"offline {' and '.join(where)}")
    if vm.agent is not None:
        for node, mine in by_node.items():
            cores = [loan.core for loan in mine]
            async with trans.step("offline-cpus", leases=[loan.id for loan in mine], node=node, cores=cores):
                await vm.agent.cpu_set(cpu_names(node, cores), False, deadline=60.0)
    elif vm.spec.cpu_mode is not CpuMode.HOTPLUG:
        raise RefusedError(
            "no agent answers in the guest, and without it a parked vCPU cannot be taken offline",
            hint="as root in the guest: echo 0 > /sys/devices/system/cpu/cpuN/online, then detach with --force",
        )
    if vm.spec.cpu_mode is CpuMode.HOTPLUG:
        trans.say("unplug it" if len(loans) == 1 else "unplug them")
        for loan in loans:
            async with trans.step("unplug-cpu", lease=loan.id, node=loan.node, core=loan.core):
                await cpu.unplug_cpu(vm.qmp, loan.node, loan.core, deadline=30.0)
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
    dimm = await memory.find_dimm(vm.qmp, loan.device)
    if vm.agent is not None:
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
            session = await vm.keeper.session(place.lease.lender, deadline=5.0)
            await session.resize(place.id, place.lease.epoch, committed)
            reply = await session.report(place.id, place.lease.epoch, LeaseEvent.PLUGGED)
        except UnreachableError as error:
            log.warning("lease %s keeps its size: %s", place.id, error)
        else:
            current = vm.book.get(place.id) or place
            vm.book.put(msgspec.structs.replace(current, lease=answered(current.lease, reply)))


async def give_back(vm: Vm, loan: Loan, *, qemu_ended: bool = False) -> list[str]:
    """End what served a loan that QEMU no longer uses, release its leases, and forget it. Returns notes for people."""
    if loan.is_passthrough:
        await passthrough.restore(vm, loan)
    elif loan.is_gpu:
        await gpu.end_way(vm, loan.id, qemu_ended=qemu_ended)
    if not loan.is_memory:
        return list(filter(None, [await release(vm, loan)]))
    places = vm.book.places(loan.region)
    pid = None if qemu_ended else await vm.qemu_pid()
    await vm.engine.remove(loan.region, mapped_by=pid, deadline=30.0)
    # The one with the device last: whoever follows a controller that is killed here finds it, and begins again.
    notes = [await release(vm, place) for place in reversed(places)]
    if any(place.lease.lender == LOCAL for place in places):
        await vm.local.stop(loan.region)
    return list(filter(None, notes))


async def _force(vm: Vm, loan: Loan, error: VmcoalError) -> str:
    """Give a lease back although the guest still uses it; raises ``error`` for what is no lender's."""
    if loan.is_passthrough:
        error.hint = f"only its end takes it from a guest that holds on to it: vmcoal shutdown {vm.spec.name} --force"
        raise error
    for place in _places(vm, loan):
        if not place.leased:
            continue
        try:
            session = await vm.keeper.session(place.lease.lender, deadline=5.0)
            await session.release(place.id, place.lease.epoch)
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
