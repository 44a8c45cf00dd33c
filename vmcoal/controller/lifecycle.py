"""A VM from launch to end: boot, adopt, power off, and what is cleaned up when QEMU is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from datetime import UTC, datetime

import msgspec

from vmcoal.backends.choose import choose_memory_engine, sweep
from vmcoal.backends.local_copy import LocalCopies
from vmcoal.controller.api import ShutdownRequest, ShutdownResult
from vmcoal.controller.give_back import give_back
from vmcoal.controller.journal import PAUSED, Journal
from vmcoal.controller.keeper import Changed, Keeper, Relink, Revoked
from vmcoal.controller.loans import LoanBook
from vmcoal.controller.transaction import Progress
from vmcoal.controller.vm import QEMU, Vm
from vmcoal.errors import (
    UNREADABLE,
    DeadlineError,
    ExecutionError,
    InternalError,
    NotFoundError,
    PrerequisiteError,
    UnreachableError,
    VmcoalError,
)
from vmcoal.holding.client import ChildState, Holder
from vmcoal.host.pci import PciBus
from vmcoal.layout import VmFolders
from vmcoal.machine.launch import HolderLauncher
from vmcoal.metrics.controller import ControllerMetrics
from vmcoal.model.attachment import AttachmentState, Plan, Step
from vmcoal.model.machine import MachineSpec
from vmcoal.model.units import format_duration

log = logging.getLogger(__name__)

_LAUNCH_DEADLINE = 60.0


def load_spec(folders: VmFolders) -> MachineSpec:
    """Return the spec in ``machine.json``; raises `NotFoundError` or `PrerequisiteError`."""
    name = folders.state.name
    try:
        return msgspec.json.decode(folders.spec.read_bytes(), type=MachineSpec)
    except FileNotFoundError:
        raise NotFoundError(f"there is no VM {name}", hint=f"vmcoal status; vmcoal boot {name}") from None
    except (OSError, *UNREADABLE) as error:
        raise PrerequisiteError(
            f"cannot read {folders.spec}: {error}", hint=f"vmcoal delete {name} removes the VM, its disk layer included"
        ) from error


def save_spec(spec: MachineSpec, folders: VmFolders) -> None:
    """Write ``machine.json`` atomically; raises `PrerequisiteError`."""
    draft = folders.spec.with_suffix(".new")
    try:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2) + b"\n")
        draft.chmod(0o600)
        draft.replace(folders.spec)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise PrerequisiteError(
            f"cannot write {folders.spec}: {error.strerror}", hint="check the space and mode of the state folder"
        ) from error


async def assemble(
    spec: MachineSpec, folders: VmFolders, holder: Holder, *, relink: Relink, revoked: Revoked, changed: Changed
) -> Vm:
    """Put the parts of a VM together; nothing is started."""
    journal = Journal(folders.journal)
    book = LoanBook(journal)
    engine, choice, environment = await choose_memory_engine(spec, holder, folders, QEMU)
    return Vm(
        spec=spec,
        folders=folders,
        journal=journal,
        book=book,
        holder=holder,
        launcher=HolderLauncher(holder, folders, environment),
        engine=engine,
        local=LocalCopies(holder, folders),
        keeper=Keeper(spec.name, book, relink=relink, revoked=revoked, changed=changed),
        pci=PciBus(),
        metrics=ControllerMetrics(spec.name),
        engine_choice=choice,
    )


async def launch(vm: Vm, report: Progress) -> None:
    """Start QEMU and connect its monitor."""
    report(1, 2, f"start QEMU ({vm.spec.accel}: {vm.spec.accel_reason})", None, None)
    vm.journal.drop(PAUSED)  # of a QEMU that ended while it was stopped
    vm.monitor = await vm.launcher.launch(vm.spec, deadline=_LAUNCH_DEADLINE)
    vm.state = "running"


def plan_power_off(vm: Vm, request: ShutdownRequest) -> Plan:
    """Return what `power_off` would do."""
    steps = []
    if not request.force:
        agent = "ask the guest's agent, " if vm.agent is not None else ""
        button = ({"execute": "system_powerdown"},) if vm.agent is None else ()
        steps.append(
            Step("power off", f"{agent}wait {format_duration(request.deadline)} for the guest", "guest", button)
        )
    steps.append(Step("end", "end QEMU" if request.force else "end QEMU if it still runs then", "this host"))
    steps += [Step("release", f"give lease {loan.id} back", loan.lease.lender) for loan in vm.book if loan.leased]
    steps += [Step("give back", f"give {loan.host} back to this host", "this host") for loan in vm.book if loan.host]
    return Plan("shutdown", f"power {vm.spec.name} off and give everything back", tuple(steps))


async def power_off(vm: Vm, request: ShutdownRequest, report: Progress) -> ShutdownResult:
    """Power the guest off, by its agent and the power button, then by ending QEMU; give everything back."""
    name = vm.spec.name
    how = "forced"
    report(1, 3, "power the guest off" if not request.force else "end QEMU", None, None)
    vm.state = "stopping"
    if not request.force:
        how = await _ask(vm)
        try:
            await vm.holder.wait(QEMU, deadline=request.deadline)
        except (DeadlineError, UnreachableError, NotFoundError):
            how = "forced" if await vm.launcher.exit_status() is None else how
    if await vm.launcher.exit_status() is None:
        await vm.launcher.kill(grace=5.0)
    report(2, 3, "give back what was borrowed", None, None)
    released, notes = await clean_up(vm)
    report(3, 3, f"{name} is off", None, None)
    status = await vm.launcher.exit_status()
    if status is not None and status.get("with_holder"):
        holder_lost(vm)  # nobody else writes it down
    code = None if status is None else status.get("code")
    return ShutdownResult(how=how, exit_code=code, released=tuple(released), notes=tuple(notes))


async def _ask(vm: Vm) -> str:
    if vm.agent is not None:
        try:
            await vm.agent.poweroff(deadline=5.0)
        except UnreachableError:
            return "agent"  # it went down before it could answer
        except VmcoalError as error:
            log.warning("poweroff through the agent: %s", error)
        else:
            return "agent"
    if vm.monitor is not None:
        with contextlib.suppress(Exception):
            await vm.monitor.execute("system_powerdown", deadline=5.0)
    return "guest"


async def clean_up(vm: Vm) -> tuple[list[str], list[str]]:
    """After QEMU ended: end what served its memory, release every lease. Returns the leases given back, and notes for
    people."""
    released: list[str] = []
    notes: list[str] = []
    deaf: dict[str, str] = {}
    await vm.undoing.give_up()
    for loan in sorted(vm.book, key=lambda x: x.copy):  # a copy goes with its memory
        if vm.book.get(loan.id) is None:
            released.append(loan.id)
            continue
        try:
            notes += await give_back(vm, loan, qemu_ended=True, deaf=deaf)
        except VmcoalError as error:
            notes.append(f"lease {loan.id}: {error}")
            if loan.is_passthrough:
                # Nobody else knows what it had before: the next boot, or a detach, tries again.
                problem = f"{loan.host} could not be given back to this host: {error}"
                vm.book.put(msgspec.structs.replace(loan, state=AttachmentState.DEGRADED, problem=problem))
                continue
            vm.book.drop(loan.id)
        released.append(loan.id)
    await sweep(vm.holder, vm.folders)
    with contextlib.suppress(VmcoalError):
        await vm.local.sweep(())
    for operation in vm.journal.open_operations():
        vm.journal.end(operation.op, "failed")
    await vm.keeper.close()
    notes = list(dict.fromkeys(notes))
    for note in notes:
        log.warning("%s", note)
    return released, notes


async def check_region(vm: Vm, lease: str) -> None:
    """Say what became of the memory of a lease after a process behind it ended."""
    loan = vm.book.get(lease)
    if loan is None or not loan.is_memory or vm.state != "running" or vm.operation is not None:
        return
    problem = await vm.engine.health(lease)
    loan = vm.book.get(lease)
    if problem is not None and loan is not None:
        vm.book.put(msgspec.structs.replace(loan, problem=problem, state=AttachmentState.DEGRADED))


async def end_holder(vm: Vm) -> None:
    """End the holder with whatever still runs under it; it ends by itself when QEMU does."""
    with contextlib.suppress(VmcoalError, OSError):
        await vm.holder.shutdown(grace=5.0)
    for name in ("qmp_socket", "agent_socket", "qga_socket", "console_socket", "holder_socket"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(getattr(vm.folders, name))  # noqa: PTH108
    with contextlib.suppress(OSError):
        vm.folders.runtime.rmdir()


def start_failure(name: str, error: Exception) -> VmcoalError:
    """Return what is said of an ``error`` that keeps the controller of VM ``name`` from its work."""
    if isinstance(error, VmcoalError):
        return error
    log.error("the start failed", exc_info=error)
    if isinstance(error, OSError):
        return ExecutionError(f"the controller of {name} cannot work: {error}", hint=f"vmcoal logs {name} controller")
    return InternalError(f"the controller of {name} failed: {error!r}", hint=f"vmcoal logs {name} controller")


def not_running(vm: Vm) -> PrerequisiteError:
    """Return the error that says that the VM ended in order, and runs no more."""
    return PrerequisiteError(f"{vm.spec.name} does not run", hint=f"vmcoal boot {vm.spec.name}")


def holder_lost(vm: Vm) -> ExecutionError:
    """Return the error that says that the VM's holder was killed, and QEMU with it (its parent-death signal is
    SIGKILL); write down what the holder could not."""
    name = vm.spec.name
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    with contextlib.suppress(OSError), vm.folders.exits.open("a") as exits:
        exits.write(f"{at} {QEMU} 0 {ChildState.SIGNALED} {int(signal.SIGKILL)}\n")
    return ExecutionError(
        f"QEMU of {name} ended: its holder (vmcoal-holder) was killed",
        hint=f"if the host ran out of memory, its kernel log says so: journalctl -k; then vmcoal boot {name}",
    )


async def qemu_is_gone(vm: Vm, *, booting: bool) -> bool:
    """Return whether QEMU has ended, or is to end because its boot failed. One that runs and does not answer has not:
    the next controller may find it in a better state."""
    try:
        return booting or await vm.qemu_pid() is None
    except UnreachableError:
        return True


async def qemu_failure(vm: Vm) -> ExecutionError:
    """Return the error that says how QEMU ended."""
    status = await vm.launcher.exit_status() or {}
    how = f"signal {status['signal']}" if status.get("signal") else f"exit code {status.get('code')}"
    stderr = str(status.get("stderr") or "").strip()
    last = stderr.splitlines()[-1] if stderr else "it wrote nothing to stderr"
    return ExecutionError(
        f"QEMU of {vm.spec.name} ended with {how}: {last}",
        hint=f"vmcoal logs {vm.spec.name} qemu; then vmcoal boot {vm.spec.name}",
        **status,
    )


async def wait_for(condition: asyncio.Event, deadline: float, what: str, hint: str) -> None:
    """Wait for an event; raises `DeadlineError`."""
    try:
        await asyncio.wait_for(condition.wait(), deadline)
    except TimeoutError:
        raise DeadlineError(f"{what} within {deadline:g} s", hint=hint) from None
