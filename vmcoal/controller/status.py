"""What a VM's status says, from QEMU, the guest and the loans."""

from __future__ import annotations

from vmcoal.controller import gpu
from vmcoal.controller.guard import held
from vmcoal.controller.loans import Loan, amounts, attachments, has_left
from vmcoal.controller.paging import paging
from vmcoal.controller.vm import Vm
from vmcoal.errors import VmcoalError
from vmcoal.holding.client import read_exits
from vmcoal.layout import VmFolders
from vmcoal.machine.describe import PluggedState, describe
from vmcoal.model.attachment import AttachmentState
from vmcoal.model.guest import GuestTopology
from vmcoal.model.lease import LeaseState, ResourceKind
from vmcoal.model.machine import CpuMode, MachineSpec
from vmcoal.model.status import NodeStatus, VmStatus
from vmcoal.model.units import format_duration, format_size


async def vm_status(vm: Vm, *, controller_pid: int) -> VmStatus:
    """Return the status of a running VM; parts that do not answer within a few seconds are left out, and said."""
    degraded: list[str] = []
    plugged: PluggedState | None = None
    state, version = vm.state, None
    if vm.monitor is not None:
        try:
            state = (await vm.monitor.execute("query-status", deadline=2.0))["status"]
            version = (await vm.monitor.execute("query-version", deadline=2.0))["qemu"]
            plugged = await describe(vm.monitor, vm.spec)
        except Exception as error:
            degraded.append(f"QEMU does not answer: {error}; see: vmcoal logs {vm.spec.name} qemu")
    guest: GuestTopology | None = None
    info = None
    if vm.agent is not None:
        try:
            info = await vm.agent.info(deadline=3.0)
            guest = await vm.agent.topology(deadline=3.0)
        except VmcoalError as error:
            degraded.append(f"the guest's agent does not answer: {error}; see: vmcoal logs {vm.spec.name} console")
    activity, paged = await paging(vm)
    degraded += _troubles(vm) + _gone(vm, plugged) + paged
    children = {child.id: child for child in await vm.holder.list()}
    qemu = children.get("qemu")
    return VmStatus(
        name=vm.spec.name,
        state=state,
        accel=vm.spec.accel,
        accel_reason=vm.spec.accel_reason,
        cpu_mode=vm.spec.cpu_mode,
        cpus=vm.spec.cpus,
        memory=vm.spec.memory,
        agent="none" if vm.agent is None or info is None else info.agent,
        guest=f"{info.os}, Linux {info.release}" if info else None,
        qemu_version=f"{version['major']}.{version['minor']}.{version['micro']}" if version else None,
        qemu_pid=qemu.pid if qemu else None,
        controller_pid=controller_pid,
        holder_pid=vm.holder.pid,
        ssh_port=vm.spec.net.ssh_port,
        metrics=vm.spec.metrics,
        memory_engine=vm.engine_choice if vm.spec.far_nodes else None,
        uptime=info.uptime if info else None,
        degraded=tuple(degraded),
        nodes=_nodes(vm, plugged, guest),
        attachments=attachments(vm.book, vm.spec),
        paging=activity,
        gpus=gpu.activity(vm),
        operation=vm.operation,
    )


def _troubles(vm: Vm) -> list[str]:
    name = vm.spec.name
    found: list[str] = []
    for lender in vm.book.lenders():
        down = vm.keeper.down_for(lender)
        loans = vm.book.of(lender)
        alone = sum(loan.size for loan in loans if loan.is_memory and len(vm.book.places(loan.region)) == 1)
        if down is not None:
            grace = max(loan.lease.terms.grace for loan in loans)
            others = "its GPU may be lost" if any(loan.is_gpu for loan in loans) else "its vCPUs are not renewed"
            stalls = f"what touches its {format_size(alone)} may stall" if alone else others
            rest = (
                f"it can still come back within {format_duration(grace - down)}"
                if down < grace
                else "its grace is over, the bytes may be gone"
            )
            gone = f"lender {lender} has been unreachable for {format_duration(max(down, 1.0))}"
            if not alone and all(loan.is_memory for loan in loans):
                found.append(
                    f"{gone}: its pages are read from their other place; bring it back within "
                    f"{format_duration(max(0.0, grace - down))}, else they are copied to another lender by themselves"
                )
            else:
                found.append(f"{gone}: {stalls}, {rest}; bring it back, or end the VM: vmcoal shutdown {name} --force")
        if notice := vm.keeper.notices.get(lender):
            found.append(f"lender {lender}: {notice}")
    for loan in vm.book:
        if loan.problem and loan.is_memory and len(vm.book.places(loan.region)) > 1:
            found.append(f"{loan.problem}; its other place is used, and this one is replaced by itself")
        elif loan.problem:
            lender = loan.lease.lender
            remedy = f"detach {name} --gpu --from {lender}" if loan.is_gpu else f"shutdown {name} --force"
            found.append(f"{loan.problem}; next: vmcoal {remedy}")
        elif loan.lease.state is LeaseState.REVOKING:
            found.append(
                f"{loan.lease.lender} takes lease {loan.id} back; next: vmcoal detach {name} --from {loan.lease.lender}"
            )
    found += vm.concerns.values()
    paused = held(vm)
    return [*found, paused] if paused else found


def _gone(vm: Vm, plugged: PluggedState | None) -> list[str]:
    """Return what has left the guest though nobody asked, as after a detach that had given up waiting for it."""
    if plugged is None or vm.operation is not None:
        return []
    found: dict[str, list[Loan]] = {}
    for loan in vm.book:
        if loan.state is AttachmentState.ATTACHED and has_left(vm.spec, loan, plugged):
            found.setdefault(loan.lease.lender, []).append(loan)
    return [
        f"{_amounts(loans)} of {lender} left the guest by itself; next: vmcoal detach {vm.spec.name} --from {lender}"
        for lender, loans in found.items()
    ]


def _amounts(loans: list[Loan]) -> str:
    size = sum(loan.size for loan in loans if loan.is_memory)
    return amounts(sum(loan.is_cpu for loan in loans), size, sum(loan.is_gpu for loan in loans))


def _nodes(vm: Vm, plugged: PluggedState | None, guest: GuestTopology | None) -> tuple[NodeStatus, ...]:
    spec = vm.spec
    bound = vm.book.bound()
    online_cpus: dict[int, int] = {}
    online_memory: dict[int, int] = {}
    if guest is not None:
        for cpu in guest.cpus:
            if cpu.online and cpu.node is not None:
                online_cpus[cpu.node] = online_cpus.get(cpu.node, 0) + 1
        for node in guest.nodes:
            online_memory[node.node] = node.memory_total
    rows = [
        NodeStatus(
            node=0,
            distance=10,
            lender=None,
            cpus_plugged=spec.cpus,
            cpus_online=online_cpus.get(0, 0) if guest else None,
            memory_plugged=spec.memory,
            memory_online=online_memory.get(0, 0) if guest else None,
            cpu_slots=spec.cpus,
            memory_headroom=spec.memory,
        )
    ]
    for far in spec.far_nodes:
        loans = vm.book.on(far.node, ResourceKind.MEMORY)
        cores = plugged.cores(far.node) if plugged else vm.book.cores(far.node)
        rows.append(
            NodeStatus(
                node=far.node,
                distance=far.distance,
                lender=bound.get(far.node),
                cpus_plugged=far.cpus if spec.cpu_mode is CpuMode.PARKED else len(cores),
                cpus_online=online_cpus.get(far.node, 0) if guest else None,
                memory_plugged=sum(loan.size for loan in loans),
                memory_online=online_memory.get(far.node, 0) if guest else None,
                cpu_slots=far.cpus,
                memory_headroom=far.memory,
                pci_ports=far.ports,
                gpu_window=far.gpu_window,
            )
        )
    return tuple(rows)


def stopped_status(spec: MachineSpec, folders: VmFolders) -> VmStatus:
    """Return the status of a VM that has no holder: how its QEMU ended, if it ever ran."""
    last = next((record for record in reversed(read_exits(folders.exits)) if record.id == "qemu"), None)
    failed = last is not None and (last.state == "signaled" or last.code != 0)
    ended = None
    if last is not None:
        ended = {"at": last.at, "state": last.state, "code": last.code}
        if failed:
            ended["stderr"] = tail(folders.qemu_log)
    return VmStatus(
        name=spec.name,
        state="failed" if failed else "stopped",
        accel=spec.accel,
        accel_reason=spec.accel_reason,
        cpu_mode=spec.cpu_mode,
        cpus=spec.cpus,
        memory=spec.memory,
        exit=ended,
    )


def tail(path: object, lines: int = 8, limit: int = 4096) -> str:
    """Return the last lines of a log file, or an empty string."""
    try:
        with open(str(path), "rb") as file:  # noqa: PTH123
            file.seek(0, 2)
            file.seek(max(0, file.tell() - limit))
            text = file.read(limit).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
