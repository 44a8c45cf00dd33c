"""Attach: from a request to memory and vCPUs that the guest uses, as one transaction.

measure the link → choose the far node → lease → prepare the bytes → plug → online → verify in the guest's own view.
Memory and vCPUs go their way at once: while a lender fills memory, the guest takes its vCPUs.
"""

from __future__ import annotations

import time

from vmcoal.controller import compression, gpu, granular, passthrough, tune
from vmcoal.controller.api import AttachResult
from vmcoal.controller.attach_plan import Journey, plan, survey
from vmcoal.controller.borrow import borrow, settle
from vmcoal.controller.loans import Loan, attachments, vcpus
from vmcoal.controller.places import add_copy, settle_copy
from vmcoal.controller.transaction import Progress, Transaction, transaction
from vmcoal.controller.undo import undos
from vmcoal.controller.vm import Vm, cpu_names
from vmcoal.errors import ExecutionError
from vmcoal.machine import cpu, memory
from vmcoal.machine.names import memory_ids
from vmcoal.model.attachment import AttachmentState, AttachRequest, MemoryStyle, Plan
from vmcoal.model.guest import MemorySpan
from vmcoal.model.lease import ResourceKind
from vmcoal.model.machine import CpuMode
from vmcoal.model.paging import LOCAL, Compression, LossPolicy
from vmcoal.model.units import format_duration, format_size
from vmcoal.together import together

_LEAST = 0.1
"""Seconds for an attach whose deadline is over when the link is measured, so that it says where it was."""


async def attach(vm: Vm, request: AttachRequest, report: Progress) -> AttachResult | Plan:
    """Attach what ``request`` says, or return the plan of it. Undone as a whole if anything fails."""
    if request.pci is not None:
        return await passthrough.attach(vm, request, report)
    began = time.monotonic()
    journey = await survey(vm, request)
    if request.dry_run:
        return plan(vm, request, journey)
    surveyed = time.monotonic() - began
    steps = 2 + (3 if request.memory else 0) + (journey.copy_on is not None)
    steps += (2 if request.cpus else 0) + (3 if request.gpu else 0)
    notes: list[str] = []
    async with transaction(
        vm.journal,
        undos(vm),
        "attach",
        request,
        steps=steps,
        deadline=max(_LEAST, request.deadline - surveyed),
        report=report,
        asked=request.deadline,
    ) as trans:
        trans.say(
            f"{journey.lender}: round trip {format_duration(journey.link.rtt)} → node {journey.far.node} "
            f"at distance {journey.far.distance}"
        )
        if request.cache is not None:
            await tune.set_cache(vm, request.cache, trans)
        if request.compress is not None:
            await tune.set_compression(vm, request.compress, trans)
        parts = [_attach_memory(vm, request, journey, trans)] if request.memory else []
        if request.cpus:
            parts.append(_attach_cpus(vm, request, journey, trans))
        if request.gpu:
            parts.append(_attach_gpu(vm, journey, trans))
        loans = [loan for part in await together(*parts) for loan in part]
        trans.say("verify in the guest")
        started = time.monotonic()
        verified = await _verify(vm, loans, notes)
        if note := await gpu.place(vm, journey.far.node):
            notes.append(note)
        trans.seconds |= {"survey": surveyed, "verify": time.monotonic() - started}
        await together(*(settle(vm, journey.session, loan) for loan in loans))
        await together(*(settle_copy(vm, x) for loan in loans for x in vm.book.places(loan.region) if x.copy))
    vm.granted.clear()
    gpu.forget_lost(vm, journey.lender)
    trans.seconds["total"] = time.monotonic() - began
    vm.keeper.watch(journey.lender)
    vm.metrics.attached(request, trans.seconds)
    if request.cpus:
        notes.append(f"the vCPUs run on this host (engine {request.engine}, {vm.spec.cpu_mode})")
    if journey.copy_on is not None:
        place = "in a file on this host" if journey.copy_on == LOCAL else f"at {journey.copy_on}"
        notes.append(f"every page is kept a second time {place}")
    mine = attachments(vm.book.of(journey.lender), vm.spec)[0]
    return AttachResult(
        attachment=mine,
        cpus_added=request.cpus,
        memory_added=request.memory,
        gpus_added=int(request.gpu),
        verified=verified,
        seconds=trans.seconds,
        notes=tuple(notes),
    )


async def _attach_memory(vm: Vm, request: AttachRequest, journey: Journey, trans: Transaction) -> list[Loan]:
    with trans.branch() as branch:
        if journey.grow is not None:
            return [await granular.grow(vm, request, journey.grow, branch)]
        return [await _new_memory(vm, request, journey, branch)]


async def _new_memory(vm: Vm, request: AttachRequest, journey: Journey, trans: Transaction) -> Loan:
    far, in_grains = journey.far, request.style is MemoryStyle.GRANULAR
    capacity = granular.capacity(vm, far) if in_grains else request.memory
    trans.say(f"lease {format_size(request.memory)} from {journey.lender}")
    granted = await borrow(vm, journey.session, trans, ResourceKind.MEMORY, capacity, request.memory)
    assert granted.memory is not None
    lease = granted.lease
    ids = memory_ids(lease.id, request.style)
    loan = Loan(
        lease=lease,
        node=far.node,
        state=AttachmentState.ATTACHING,
        since=time.time(),
        link=journey.link,
        style=request.style,
        engine=vm.engine.traits.name,
        backend=ids.backend,
        device=ids.device,
        size=request.memory,
        capacity=capacity,
        port=granted.memory.port,
        replicas=1 if journey.copy_on is None else request.replicas,
        on_loss=request.on_loss or (tune.tuning(vm).on_loss if vm.engine.traits.pages else LossPolicy.STALL),
    )
    async with trans.step("book", lease=lease.id):
        vm.book.put(loan)
    async with trans.step("serve", lease=lease.id):
        region = await vm.engine.prepare(
            lease, granted.memory, journey.session.data_address(granted.memory), deadline=request.deadline
        )
    if journey.copy_on is not None:
        trans.say(f"have a second place for its pages: {journey.copy_on}")
        await add_copy(vm, loan, journey.copy_on, trans)
    if compression.wanted(vm) is not Compression.OFF:
        await compression.apply_compression(vm)
    trans.say(f"plug {format_size(request.memory)} into node {far.node}")
    started = time.monotonic()
    if in_grains:
        await granular.plug(vm, request, loan, region, trans)
    else:
        async with trans.step("plug-dimm", device=loan.device, backend=loan.backend):
            await memory.plug_dimm(vm.qmp, region, far.node, loan.device, loan.backend, deadline=request.deadline)
    await _check_mapped(vm, loan)
    vm.metrics.plugged("memory", time.monotonic() - started)
    trans.say("online the memory")
    await (granular.online(vm, loan, loan.size) if in_grains else _online_dimm(vm, loan, trans))
    return loan


async def _check_mapped(vm: Vm, loan: Loan) -> None:
    """Raise `ExecutionError` unless QEMU has the memory through the page engine.

    Without its preload library QEMU maps the file as it is: everything would seem to work, on this host's own memory.
    """
    if not vm.engine.traits.pages:
        return
    region = await vm.pager("regions").region(loan.region)
    if region is None or not region.mapped:
        raise ExecutionError(
            "QEMU maps the memory without the page engine: it would be this host's own, not the lender's",
            hint=f"see vmcoal logs {vm.spec.name} qemu; a QEMU that is started anew helps: vmcoal shutdown, then boot",
        )


async def _online_dimm(vm: Vm, loan: Loan, trans: Transaction) -> None:
    if vm.agent is None:
        return
    dimm = await memory.find_dimm(vm.qmp, loan.device)
    async with trans.step("online-memory", device=loan.device, start=dimm.addr, size=dimm.size):
        await vm.agent.memory_set(
            MemorySpan(dimm.addr, dimm.size),
            True,
            deadline=30.0,
            progress=lambda done, total, note: trans.progress(done / max(1, total), f"{done} of {total} blocks"),
        )


async def _attach_cpus(vm: Vm, request: AttachRequest, journey: Journey, trans: Transaction) -> list[Loan]:
    with trans.branch() as branch:
        return await _new_cpus(vm, request, journey, branch)


async def _new_cpus(vm: Vm, request: AttachRequest, journey: Journey, trans: Transaction) -> list[Loan]:
    far, mode = journey.far, vm.spec.cpu_mode
    trans.say(f"lease and plug {vcpus(request.cpus)} into node {far.node}")
    # A lease for each, so that they can leave one by one.
    leases = await together(*(borrow(vm, journey.session, trans, ResourceKind.CPU, 1, 1) for _ in journey.cores))
    loans = []
    for core, granted in zip(journey.cores, leases, strict=True):
        loan = Loan(
            lease=granted.lease,
            node=far.node,
            state=AttachmentState.ATTACHING,
            since=time.time(),
            link=journey.link,
            cpu_engine=request.engine,
            engine=request.engine,
            core=core,
        )
        async with trans.step("book", lease=loan.id):
            vm.book.put(loan)
        loans.append(loan)
    started = time.monotonic()
    if mode is not CpuMode.PARKED:
        plugged = await cpu.plugged_cores(vm.qmp, far.node)
        for core in journey.cores:
            if core not in plugged:
                async with trans.step("plug-cpu", node=far.node, core=core):
                    await cpu.plug_cpu(vm.qmp, vm.spec, far.node, core, deadline=30.0)
    trans.say(f"online {vcpus(request.cpus)}")
    if vm.agent is not None:
        async with trans.step("online-cpus", node=far.node, cores=journey.cores):
            await vm.agent.cpu_set(cpu_names(far.node, journey.cores), True, deadline=60.0)
    vm.metrics.plugged("cpu", time.monotonic() - started)
    return loans


async def _attach_gpu(vm: Vm, journey: Journey, trans: Transaction) -> list[Loan]:
    with trans.branch() as branch:
        branch.say(f"lease a GPU from {journey.lender}")
        granted = await borrow(vm, journey.session, branch, ResourceKind.GPU, 1, 1)
        address = journey.session.data_address(granted.gpu) if granted.gpu else ""
        return [await gpu.attach(vm, granted, journey.far, journey.link, address, branch)]


async def _verify(vm: Vm, loans: list[Loan], notes: list[str]) -> bool:
    if vm.agent is None:
        notes.append(
            "plugged, unverified: no agent answers in the guest; as root there: "
            "for f in /sys/devices/system/cpu/cpu*/online; do echo 1 > $f; done; "
            "for f in /sys/devices/system/memory/memory*/state; do echo online_movable > $f; done"
        )
        return False
    view = await vm.agent.topology(deadline=30.0)
    for loan in loans:
        if loan.is_memory:
            there = [block for block in view.blocks if block.node == loan.node and block.state == "online"]
            online = len(there) * view.block_size
            wanted = sum(x.size for x in vm.book.on(loan.node, ResourceKind.MEMORY))
            if online < wanted:
                raise ExecutionError(
                    f"the guest has {format_size(online)} of {format_size(wanted)} online in node {loan.node}",
                    hint=f"vmcoal logs {vm.spec.name} console shows what its kernel says",
                )
            if any("Movable" not in block.zone for block in there):
                notes.append("some of the memory is not in the movable zone and may refuse to leave")
        elif loan.is_gpu:
            await gpu.verify(vm, loan)
        elif not any(x.online and (x.node, x.core) == (loan.node, loan.core) for x in view.cpus):
            raise ExecutionError(f"the guest does not have vCPU {loan.core} of node {loan.node} online")
    return True
