"""What an attach takes: measured, chosen and checked beforehand, and the plan of it. Nothing here changes anything."""

from __future__ import annotations

from dataclasses import dataclass

from vmcoal.backends.conflicts import refuse_conflicts
from vmcoal.backends.cpu import choose_cpu_engine
from vmcoal.controller import gpu, granular, passthrough, tune
from vmcoal.controller.loans import Loan, amounts
from vmcoal.controller.places import choose_copy
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, UsageError
from vmcoal.fabric.session import LenderSession
from vmcoal.machine import cpu, memory, virtio_mem
from vmcoal.machine.names import memory_ids
from vmcoal.model.attachment import AttachRequest, MemoryStyle, Plan, Step
from vmcoal.model.gpu import GpuDevice
from vmcoal.model.lease import ResourceKind
from vmcoal.model.link import Link
from vmcoal.model.machine import CpuMode, FarNode
from vmcoal.model.paging import LOCAL
from vmcoal.model.units import MIB, format_duration, format_size
from vmcoal.policy.admission import GRAIN, admit
from vmcoal.policy.distance import link_distance
from vmcoal.policy.paging import PLACES
from vmcoal.policy.placement import check_headroom, choose_node, free_cores

BLOCK = 128 * MIB
"""DIMMs are multiples of a guest memory block, else part of them could not be onlined (x86-64 Linux)."""

_NEW = "new"
"""Stands in a plan for the lease that the lender will name."""


@dataclass(frozen=True)
class Journey:
    """What an attach decided before it changes anything."""

    lender: str
    session: LenderSession
    link: Link
    far: FarNode
    cores: tuple[int, ...]
    grow: Loan | None
    """The granular loan that is made larger instead of a new one."""
    copy_on: str | None = None
    """Where the pages are a second time."""
    gpu: GpuDevice | None = None
    """The GPU that the lender offers next."""


def check_request(request: AttachRequest) -> None:
    """Raise `UsageError` if the request makes no sense on any machine."""
    if request.cpus < 0 or request.memory < 0:
        raise UsageError("what is attached cannot be negative", hint="give --cpus and --memory positive values")
    if not request.cpus and not request.memory and not request.gpu:
        raise UsageError("nothing to attach", hint="say what: --cpus N, --memory SIZE, --gpu or several of them")
    if request.style is MemoryStyle.GRANULAR and not request.memory:
        raise UsageError("--granular is a way to attach memory", hint="add --memory SIZE")
    grain = GRAIN if request.style is MemoryStyle.GRANULAR else BLOCK
    if not request.memory and (request.cache or request.on_loss or request.compress or request.replicas != 1):
        raise UsageError(
            "--cache, --compress, --replicas and --on-loss are for borrowed memory",
            hint="add --memory SIZE; vmcoal tune changes all of them for what is attached",
        )
    if request.replica_on is not None and request.replicas == 1:
        raise UsageError("--replica-on is where a second place is", hint="add --replicas 2")
    if not 1 <= request.replicas <= PLACES:
        raise UsageError(f"pages are kept in 1 to {PLACES} places", hint="give --replicas 1 or 2")
    if request.memory % grain:
        below = request.memory // grain * grain
        nearest = f"{format_size(below)} or {format_size(below + grain)}" if below else format_size(grain)
        finer = "" if request.style is MemoryStyle.GRANULAR else ", or --granular for steps of 2 MiB"
        raise UsageError(
            f"{format_size(request.memory)} is no multiple of {format_size(grain)}", hint=f"ask for {nearest}{finer}"
        )


async def survey(vm: Vm, request: AttachRequest) -> Journey:
    """Measure, choose and check everything that can be known beforehand; nothing is changed."""
    check_request(request)
    if request.memory:
        passthrough.refuse_beside(vm)
    record = vm.keeper.record(request.lender)
    session = await vm.keeper.session(record.name, deadline=min(request.deadline, 10.0))
    if request.cpus:
        choose_cpu_engine(request.engine, session.same_host)
    if request.memory:
        refuse_conflicts(vm.engine.traits, vm.spec)
        tune.check(vm, request.cache, request.on_loss, request.compress)
    link = await vm.keeper.measure(record.name)
    bound = vm.book.bound()
    if session.same_host and all(loan.is_passthrough for loan in vm.book.on(request.node or 0)):
        bound.pop(request.node or 0, None)  # the lender's vCPUs run here, where the functions are
    far = choose_node(vm.spec, bound, record.name, link_distance(link), request.node)
    cores = tuple(free_cores(far, vm.book.cores(far.node), request.cpus))
    grow = None
    if request.memory:
        used = vm.book.headroom_used(far.node)
        in_grains = [x for x in vm.book.on(far.node, ResourceKind.MEMORY) if x.style is MemoryStyle.GRANULAR]
        if request.style is MemoryStyle.GRANULAR and in_grains:
            grow = in_grains[0]
            if grow.size + request.memory > grow.capacity:
                raise ConflictError(
                    f"node {far.node} has {format_size(grow.capacity - grow.size)} of its granular device left, "
                    f"{format_size(request.memory)} were asked for",
                    hint="ask for less, or attach DIMMs (--dimm) beside it",
                )
        else:
            check_headroom(far, used, request.memory)
            if request.style is MemoryStyle.GRANULAR:
                granular.check(vm, far, request.memory)
    if request.gpu:
        await gpu.check(vm, far)
    offer = await session.offer()
    grants = frozenset(session.grants)
    if request.memory:
        admit(offer, grants, ResourceKind.MEMORY, request.memory, request.memory, session.same_host)
    if request.cpus:
        admit(offer, grants, ResourceKind.CPU, request.cpus, request.cpus, session.same_host)
    copy_on = None
    if request.replicas > 1 and grow is not None and len(vm.book.places(grow.region)) < request.replicas:
        raise ConflictError(
            f"node {far.node} has a granular device without a copy, which grows",
            hint=f"leave out --replicas, or give the device its copy first: vmcoal tune {vm.spec.name} --replicas 2",
        )
    if request.replicas > 1 and grow is None:
        capacity = granular.capacity(vm, far) if request.style is MemoryStyle.GRANULAR else request.memory
        copy_on = await choose_copy(vm, record.name, request.replica_on, capacity, request.memory)
    if request.gpu:
        admit(offer, grants, ResourceKind.GPU, 1, 1, session.same_host)
    return Journey(record.name, session, link, far, cores, grow, copy_on, offer.gpus[0] if request.gpu else None)


def plan(vm: Vm, request: AttachRequest, journey: Journey) -> Plan:
    """Return what `attach` would do, with the exact argv and QMP commands."""
    far, lender = journey.far, journey.lender
    steps = [
        Step(
            "place",
            f"bind {lender} (round trip {format_duration(journey.link.rtt)}, distance "
            f"{link_distance(journey.link)}) to far node {far.node} at distance {far.distance}",
            "this host",
        )
    ]
    if request.memory:
        if journey.grow is None:
            capacity = granular.capacity(vm, far) if request.style is MemoryStyle.GRANULAR else request.memory
            region, argvs = vm.engine.plan(_NEW, capacity)
            if request.cache is not None:
                steps.append(tune.plan_cache(vm, request.cache))
            if request.compress is not None:
                steps.append(tune.plan_compression(vm, request.compress))
            steps.append(Step("lease memory", f"lease {format_size(request.memory)} of memory", lender))
            if journey.copy_on is not None:
                where = "this host" if journey.copy_on == LOCAL else journey.copy_on
                steps.append(Step("copy", f"keep every page of it a second time ({journey.copy_on})", where))
            steps.append(
                Step("serve", "make the bytes a file here", "this host", tuple({"argv": argv} for argv in argvs))
            )
            plug = (
                virtio_mem.plan_plug(region, far, _NEW, 0)
                if request.style is MemoryStyle.GRANULAR
                else memory.plan_plug(region, far.node, _NEW)
            )
            steps.append(Step("plug memory", f"plug it into node {far.node}", "QEMU", tuple(plug)))
        if request.style is MemoryStyle.GRANULAR:
            device = journey.grow.device if journey.grow else memory_ids(_NEW, request.style).device
            total = (journey.grow.size if journey.grow else 0) + request.memory
            steps.append(
                Step("resize", f"ask for {format_size(total)}", "QEMU", tuple(virtio_mem.plan_resize(device, total)))
            )
        steps.append(Step("online memory", "online its blocks as movable", "guest"))
    if request.cpus:
        steps.append(Step("lease vCPUs", f"lease {request.cpus} vCPUs", lender))
        if vm.spec.cpu_mode is not CpuMode.PARKED:
            plugs = tuple(command for core in journey.cores for command in cpu.plan_plug(vm.spec, far.node, core))
            steps.append(Step("plug vCPUs", f"plug {request.cpus} vCPUs into node {far.node}", "QEMU", plugs))
        steps.append(Step("online vCPUs", f"online them (engine {request.engine}, {vm.spec.cpu_mode})", "guest"))
    if journey.gpu is not None:
        steps += gpu.plan(vm, far, journey.gpu, lender, _NEW)
    steps.append(Step("verify", "compare with the guest's own /sys", "guest"))
    what = amounts(request.cpus, request.memory, int(request.gpu))
    return Plan("attach", f"attach {what} from {lender} to node {far.node} of {vm.spec.name}", tuple(steps))
