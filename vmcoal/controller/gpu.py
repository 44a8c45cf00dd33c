"""GPUs of lenders: attached, detached, and taken out when their lender is lost.

lease → the way to the lender → plug the PCI function → the guest's relay and OpenCL client. A GPU whose lender is lost
is final: the lender has freed what programs had there, so the slot is unplugged, and status says so until the loan is
detached or another GPU is attached in its place.
"""

from __future__ import annotations

import contextlib
import logging
import time

import msgspec

from vmcoal.backends import opencl
from vmcoal.controller.loans import Loan
from vmcoal.controller.transaction import Transaction
from vmcoal.controller.vm import Vm
from vmcoal.errors import (
    DeadlineError,
    ExecutionError,
    NotFoundError,
    PrerequisiteError,
    RefusedError,
    UnreachableError,
    VmcoalError,
)
from vmcoal.fabric.messages import Granted
from vmcoal.guest import gpu as guest_gpu
from vmcoal.guest import pci as guest_pci
from vmcoal.guest.channel import Agent
from vmcoal.machine import gpu, pci
from vmcoal.machine.names import gpu_ids
from vmcoal.model.activity import GpuActivity
from vmcoal.model.attachment import AttachmentState, Step
from vmcoal.model.gpu import GpuDevice
from vmcoal.model.lease import ResourceKind
from vmcoal.model.link import Link
from vmcoal.model.machine import FarNode
from vmcoal.model.units import format_size
from vmcoal.policy.passthrough import check_bars
from vmcoal.together import together

log = logging.getLogger(__name__)

CLASS = "0x038000"
_UNPLUG = 30.0
_AGENT = 10.0


def describe(device: GpuDevice) -> str:
    """Return a device in words: its name, and what it is where that is no GPU."""
    kind = "" if device.kind == "gpu" else f" ({device.kind})"
    memory = f", {format_size(device.memory)}" if device.memory else ""
    return f"{device.name}{kind}{memory}"


def agent_of(vm: Vm) -> Agent:
    """Return vmcoal's agent, without which programs in the guest would not find a GPU; raises `PrerequisiteError`."""
    if vm.agent is None or vm.agent.kind != "vmcoal":
        raise PrerequisiteError(
            "a GPU needs vmcoal's agent in the guest: it brings the client libraries there",
            hint="guest-agent/README.md installs it",
        )
    return vm.agent


async def check(vm: Vm, far: FarNode) -> None:
    """Raise what stands against a GPU in node ``far``; nothing is changed."""
    agent_of(vm)
    if why := guest_gpu.missing():
        raise PrerequisiteError(
            f"there are no client libraries to give to the guest: {why}", hint="run tools/setup, which builds it"
        )
    await pci.free_port(vm.qmp, far)


def plan(vm: Vm, far: FarNode, device: GpuDevice, lender: str, lease: str) -> list[Step]:
    """Return the steps of `attach` for the next GPU that ``lender`` offers."""
    socket = vm.folders.gpu_socket(lease)
    argv = opencl.pump_argv("<lender>", 0, opencl.psk_file(vm.folders, lease), socket, vm.folders.gpu_meter(lease))
    return [
        Step("lease GPU", f"lease {describe(device)} (engine {opencl.NAME})", lender),
        Step("way", "carry the calls to the lender", "this host", ({"argv": argv},)),
        Step(
            "plug GPU",
            f"plug a display-class PCI function into node {far.node}",
            "QEMU",
            tuple(gpu.plan_plug(far, lease, socket)),
        ),
        Step("show GPU", "bring the client libraries and let programs find the device", "guest"),
    ]


def plan_detach(loan: Loan) -> list[Step]:
    """Return the steps that take a GPU out."""
    return [
        Step("hide GPU", "let programs find it no more; those that use it get errors", "guest"),
        Step("unplug GPU", "unplug its PCI function", "QEMU", tuple(gpu.plan_unplug(loan.id))),
    ]


async def attach(vm: Vm, granted: Granted, far: FarNode, link: Link, address: str, trans: Transaction) -> Loan:
    """Attach the GPU of a granted lease to node ``far``; ``address`` is the lender's. Returns its loan."""
    server, lease = granted.gpu, granted.lease
    if server is None:
        raise RefusedError(f"{lease.lender} granted a GPU without a server", host=lease.lender)
    agent = agent_of(vm)
    loan = Loan(
        lease=lease,
        node=far.node,
        state=AttachmentState.ATTACHING,
        since=time.time(),
        link=link,
        engine=opencl.NAME,
        device=gpu_ids(lease.id).device,
        port=server.port,
        gpu=server.device,
    )
    async with trans.step("book", lease=lease.id):
        vm.book.put(loan)
    async with trans.step("serve-gpu", lease=lease.id):
        await gpu.open_way(vm.qmp, lease.id, vm.folders.gpu_socket(lease.id))
        await opencl.start(vm.holder, vm.folders, lease.id, server, address, host=lease.lender, deadline=_AGENT)
    trans.say(f"plug {describe(server.device)} into node {far.node}")
    started = time.monotonic()
    async with trans.step("plug-gpu", lease=lease.id):
        slot = await gpu.plug(vm.qmp, far, lease.id, deadline=_UNPLUG)
    vm.metrics.plugged("gpu", time.monotonic() - started)
    trans.say("let the guest's programs find it")
    async with trans.step("show-gpu", lease=lease.id):
        up = guest_gpu.up(agent, loan.device, far.node, server.device, deadline=_UNPLUG)
        # Without all of its BARs the function has no driver, and what waits for its port would not say why.
        seen, _ = await together(up, _whole(vm, agent, loan, slot, far))
        assert seen is not None
    if seen.pci_class != CLASS:
        raise ExecutionError(f"the guest sees a PCI function of class {seen.pci_class}, not {CLASS}")
    loan = msgspec.structs.replace(loan, address=seen.address)
    vm.book.put(loan)
    return loan


async def _whole(vm: Vm, agent: Agent, loan: Loan, slot: int, far: FarNode) -> None:
    """See that the guest gave every BAR of the function an address."""
    seen = await guest_pci.look(agent, slot, deadline=_UNPLUG)
    check_bars(loan.device, await pci.bars(vm.qmp, loan.device), seen, far)


async def verify(vm: Vm, loan: Loan) -> None:
    """See that the way to the lender still stands; the guest has described the function already."""
    if not await opencl.runs(vm.holder, loan.id):
        raise ExecutionError(
            f"the way to the GPU ended: {opencl.last_words(vm.folders, loan.id)}", host=loan.lease.lender
        )


async def place(vm: Vm, node: int) -> str | None:
    """Tell the guest in which node its GPUs are; returns a note for people where it cannot know that yet.

    Linux takes a bridge's node from the firmware only if the node is online at boot, and the far nodes are empty then.
    """
    addresses = [loan.address for loan in vm.book.on(node, ResourceKind.GPU) if loan.address]
    if not addresses or vm.agent is None:
        return None
    view = await vm.agent.topology(deadline=_AGENT)
    if not any(one.node == node for one in view.nodes):
        return f"the guest shows the GPU without a NUMA node until node {node} has CPUs or memory too"
    await vm.agent.pci_fix_node(addresses, node, deadline=_AGENT)
    return None


async def leave(vm: Vm, loan: Loan, *, deadline: float) -> None:
    """Take a GPU out of the guest: hide it, power its slot off, unplug it, end the way. Idempotent.

    Raises `RefusedError`, `DeadlineError`, `UnreachableError`.
    """
    await hide(vm, loan.id)
    await unplug(vm, loan.id, loan.address, deadline=deadline)
    await end_way(vm, loan.id)


async def hide(vm: Vm, lease: str) -> None:
    """Let the guest's programs find the GPU no more; a guest that does not answer finds it gone by itself."""
    if vm.agent is not None:
        with contextlib.suppress(VmcoalError):
            await guest_gpu.down(vm.agent, gpu_ids(lease).device, deadline=_AGENT)


async def unplug(vm: Vm, lease: str, address: str, *, deadline: float) -> None:
    """Unplug the function of a lease. The guest's own power-off of the slot (``address``) spares the five seconds in
    which a person could press its button again."""
    if address and vm.agent is not None:
        with contextlib.suppress(VmcoalError):
            await vm.agent.pci_power_off(address, deadline=_AGENT)
    await gpu.unplug(vm.qmp, lease, deadline=deadline)


async def end_way(vm: Vm, lease: str, *, qemu_ended: bool = False) -> None:
    """End the process that carries the calls, and QEMU's side of it."""
    await opencl.stop(vm.holder, vm.folders, lease)
    if vm.monitor is not None and not qemu_ended:
        await gpu.close_way(vm.monitor, lease)


async def show_again(vm: Vm, agent: Agent, lease: str | None = None) -> None:
    """Let programs find the GPUs that are plugged (or that of ``lease``): the guest was booted anew, or keeps it. One
    that finds them already is left alone."""
    if agent.kind != "vmcoal":
        return
    for loan in vm.book:
        wanted = loan.state is AttachmentState.ATTACHED if lease is None else loan.id == lease
        if loan.is_gpu and not loan.is_passthrough and loan.device and wanted:
            await guest_gpu.up(agent, loan.device, loan.node, loan.gpu, keep=True, deadline=_UNPLUG)


async def lost(vm: Vm, loan: Loan) -> None:
    """The way to a GPU ended by itself: unplug it, give the lease back, and say so until it is detached."""
    why = opencl.last_words(vm.folders, loan.id)
    log.warning("GPU %s of %s: %s", loan.id, loan.lease.lender, why)
    problem = f"the GPU {loan.gpu.name if loan.gpu else ''} of {loan.lease.lender} (lease {loan.id}) is lost: {why}"
    try:
        await leave(vm, loan, deadline=_UNPLUG)
        problem += "; it was unplugged"
        device = ""
    except VmcoalError as error:
        problem += f"; it could not be unplugged: {error}"
        device = loan.device
    try:
        await vm.keeper.release(loan.lease.lender, loan.id, loan.lease.epoch, deadline=3.0)
    except (UnreachableError, DeadlineError, NotFoundError, RefusedError) as error:
        log.info("lease %s ends by itself: %s", loan.id, error)
    current = vm.book.get(loan.id) or loan
    vm.book.put(
        msgspec.structs.replace(current, state=AttachmentState.DEGRADED, problem=problem, device=device, address="")
    )


def activity(vm: Vm) -> tuple[GpuActivity, ...]:
    """Return what the attached GPUs do, as far as it is counted."""
    found = []
    for loan in vm.book:
        counted = opencl.counted(vm.folders, loan.id) if loan.is_gpu and not loan.host and loan.device else ()
        if counted:
            bytes_out, bytes_in, calls, failed, busy, *latency = counted
            found.append(
                GpuActivity(
                    lease=loan.id,
                    lender=loan.lease.lender,
                    name=loan.gpu.name if loan.gpu else "",
                    bytes_out=bytes_out,
                    bytes_in=bytes_in,
                    calls=calls,
                    failed=failed,
                    busy=busy / 1e6,
                    attached=max(0.0, time.time() - loan.since),
                    latency=tuple(latency),
                )
            )
    return tuple(found)


async def settle(vm: Vm, loan: Loan) -> bool:
    """Take a GPU out whose way to the lender has ended; returns whether it had. A detach that was broken off before
    its slot was off leaves it plugged, and the guest finds it again."""
    if not loan.device or loan.problem is not None:
        return False
    if not await opencl.runs(vm.holder, loan.id):
        await lost(vm, loan)
        return True
    if loan.state is not AttachmentState.ATTACHED:
        vm.book.put(msgspec.structs.replace(loan, state=AttachmentState.ATTACHED))
        if vm.agent is not None:
            with contextlib.suppress(VmcoalError):
                await show_again(vm, vm.agent)
    return False


async def check_way(vm: Vm, lease: str) -> None:
    """Take a GPU out whose way to its lender ended by itself, as soon as no operation is under way."""
    async with vm.queued_turn("take out a lost GPU"):
        loan = vm.book.get(lease)
        if loan is not None and vm.state == "running":
            await settle(vm, loan)


def forget_lost(vm: Vm, lender: str) -> None:
    """Forget the lost GPUs of a lender that lends another one now."""
    for loan in vm.book.of(lender, ResourceKind.GPU):
        if loan.problem is not None and not loan.device:
            vm.book.drop(loan.id)
