"""Granular memory: plugging a node's virtio-mem device, growing it, and seeing that the guest uses it."""

from __future__ import annotations

import asyncio
import time

import msgspec

from vmcoal.backends.base import MemoryRegion
from vmcoal.controller.loans import Loan
from vmcoal.controller.transaction import Transaction
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, ExecutionError
from vmcoal.machine import virtio_mem
from vmcoal.model.attachment import AttachRequest
from vmcoal.model.guest import MemorySpan
from vmcoal.model.lease import answered
from vmcoal.model.machine import FarNode
from vmcoal.model.units import format_size

_ONLINE = 20.0
_PAUSE, _PAUSE_MAX = 0.02, 0.5


def capacity(vm: Vm, far: FarNode) -> int:
    """Return the bytes of a new device: what is left of the node's headroom, so that it can grow, as far as the engine
    can empty it."""
    left = far.memory - vm.book.headroom_used(far.node)
    most = vm.engine.traits.largest_granular
    return left if most is None else min(left, most)


def check(vm: Vm, far: FarNode, size: int) -> None:
    """Raise `ConflictError` if a new device of ``far`` cannot give ``size`` bytes."""
    most = capacity(vm, far)
    if size > most:
        raise ConflictError(
            f"a granular device of node {far.node} can have {format_size(most)}, {format_size(size)} were asked for",
            hint="ask for less, or attach DIMMs (--dimm)",
        )


async def plug(vm: Vm, request: AttachRequest, loan: Loan, region: MemoryRegion, trans: Transaction) -> None:
    """Plug the device of ``loan`` and give the guest ``request.memory`` bytes of it."""
    far = vm.spec.far_node(loan.node)
    async with trans.step("plug-virtio-mem", device=loan.device, backend=loan.backend):
        await virtio_mem.plug(vm.qmp, region, far, loan.device, loan.backend, deadline=request.deadline)
    async with trans.step("resize", device=loan.device, before=0):
        await _resize(vm, loan.device, request.memory, request.deadline, trans)


async def grow(vm: Vm, request: AttachRequest, loan: Loan, trans: Transaction) -> Loan:
    """Make the device of ``loan`` larger by ``request.memory`` bytes; return the loan after it."""
    total = loan.size + request.memory
    for place in vm.book.places(loan.region):
        if place.leased:
            trans.say(f"lease {format_size(request.memory)} more from {place.lease.lender}")
            session = await vm.keeper.session(place.lease.lender)
            epoch = place.lease.epoch
            async with trans.step("commit", lender=session.name, lease=place.id, epoch=epoch, before=loan.size):
                reply = await session.resize(place.id, epoch, total)
            vm.book.put(msgspec.structs.replace(place, lease=answered(place.lease, reply)))
    trans.say(f"grow node {loan.node} to {format_size(total)}")
    async with trans.step("resize", device=loan.device, before=loan.size):
        await _resize(vm, loan.device, total, request.deadline, trans)
    trans.say("online the memory")
    await online(vm, loan, total)
    vm.book.resize(loan.region, total)
    return vm.book.get(loan.id) or loan


async def online(vm: Vm, loan: Loan, size: int) -> None:
    """Return when the guest has blocks for ``size`` bytes of the loan's device online, or had its time.

    The driver tells QEMU before it adds the blocks to its memory, and a kernel that does not put them online by itself
    (auto_online_blocks) leaves that to us. What is missing in the end is for the verification to tell.
    """
    if vm.agent is None:
        return
    start = (await virtio_mem.find(vm.qmp, loan.device)).memaddr
    ends, pause = time.monotonic() + _ONLINE, _PAUSE
    while True:
        view = await vm.agent.topology(deadline=30.0)
        span = range(start, start + loan.capacity)
        blocks = [block for block in view.blocks if block.number * view.block_size in span]
        for block in blocks:
            if block.state == "offline":
                where = MemorySpan(block.number * view.block_size, view.block_size)
                await vm.agent.memory_set(where, True, deadline=_ONLINE)
        if len(blocks) * view.block_size >= size or time.monotonic() > ends:
            return
        await asyncio.sleep(pause)
        pause = min(pause * 2, _PAUSE_MAX)


async def _resize(vm: Vm, device: str, size: int, deadline: float, trans: Transaction) -> None:
    reached = await virtio_mem.resize(
        vm.qmp,
        device,
        size,
        deadline=deadline,
        progress=lambda now: trans.progress(min(1.0, now / size), format_size(now)),
    )
    if reached != size:
        raise ExecutionError(
            f"the guest took {format_size(reached)} of {format_size(size)}",
            hint="the guest needs the virtio_mem driver and memory blocks to be onlined (vmcoal exec … dmesg)",
        )
