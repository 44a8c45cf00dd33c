"""How commands reach a VM: its controller's control socket, and what can be known of a VM that does not run."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from vmcoal import layout
from vmcoal.cli.output import note, steps
from vmcoal.control.client import NotListeningError, call, connect
from vmcoal.control.wire import Output, Progress
from vmcoal.controller.api import ShutdownResult
from vmcoal.errors import UNREADABLE, ConflictError, ExecutionError, PrerequisiteError, VmcoalError
from vmcoal.model.machine import MachineSpec
from vmcoal.model.status import VmStatus

if TYPE_CHECKING:
    from vmcoal.controller.leftovers import Leftovers

T = TypeVar("T")


def vm_call(
    name: str,
    method: str,
    params: msgspec.Struct | None = None,
    *,
    result: type[T],
    on_progress: Callable[[Progress], None] | None = None,
    on_output: Callable[[Output], None] | None = None,
    stdin: int | None = None,
    terminal_size: Callable[[], tuple[int, int]] | None = None,
    deadline: float | None = None,
    undone: bool = False,
) -> T:
    """Call a VM's controller (see `vmcoal.control.client.call`); one that died while its VM lives is started again.
    ``undone``: Ctrl-C undoes what the call began, which is said because it takes a moment.

    Raises `PrerequisiteError` if the VM does not run.
    """

    def say_undone() -> None:
        click.echo("\ncancelling: what was begun is undone (Ctrl-C again: do not wait for it)", err=True)

    def attempt() -> T:
        return call(
            layout.vm_folders(name).control_socket,
            method,
            params,
            result=result,
            peer=f"the controller of VM {name}",
            on_progress=on_progress,
            on_output=on_output,
            on_cancel=say_undone if undone else None,
            stdin=stdin,
            terminal_size=terminal_size,
            deadline=deadline,
        )

    try:
        return attempt()
    except NotListeningError:
        revive(name)
    return attempt()


def vm_steps(name: str, method: str, params: msgspec.Struct | None, *, result: type[T]) -> T:
    """Call a VM's controller and show its steps on stderr."""
    with steps() as shown:
        return vm_call(name, method, params, result=result, on_progress=shown, undone=True)


def revive(name: str) -> None:
    """Start the controller of a VM that lives without one; raises `PrerequisiteError` if the VM does not run."""
    if not holder_lives(name):
        raise not_running(name)
    import asyncio

    from vmcoal.controller.start import ensure_controller

    note(f"the controller of VM {name} had ended; a new one is started")
    asyncio.run(ensure_controller(name))


def not_running(name: str) -> PrerequisiteError:
    """Return the error that says that a VM does not run, and what it left if it was killed."""
    left = left_behind(name)
    if left is None:
        return PrerequisiteError(f"VM {name} does not run", hint=f"vmcoal boot {name}")
    how = ": its processes were killed" if left.killed else ""
    return PrerequisiteError(f"VM {name} does not run{how}", left=left.text, hint=left.remedy)


def left_behind(name: str) -> Leftovers | None:
    """Return what a VM without holder and controller left, or ``None``."""
    folders = layout.vm_folders(name)
    if not folders.holder_socket.exists() and not folders.journal.exists():
        return None
    from vmcoal.controller.leftovers import leftovers

    return leftovers(folders)


def clean(left: Leftovers) -> ShutdownResult:
    """Take away what a VM left: a controller that is started for it gives everything back, and ends.

    Raises what keeps it from that, `ExecutionError` if something is left after it.
    """
    import asyncio

    from vmcoal.controller.start import ensure_controller

    why = "were killed" if left.killed else "could not give everything back when it ended"
    note(f"the processes of VM {left.name} {why}; what they left is taken away")
    try:
        asyncio.run(ensure_controller(left.name))
    except VmcoalError as error:
        if "released" not in error.details:
            raise
        released, notes = error.details["released"], error.details["notes"]
    else:
        raise ConflictError(f"VM {left.name} runs again", hint=f"vmcoal status {left.name}")
    rest = left_behind(left.name)
    if rest is not None:
        raise ExecutionError(
            f"not everything that VM {left.name} left could be taken away: {'; '.join(notes)}",
            left=rest.text,
            hint=f"vmcoal logs {left.name} controller; then try again",
        )
    return ShutdownResult(how="killed", exit_code=None, released=tuple(released), notes=tuple(notes))


def holder_lives(name: str) -> bool:
    """Return whether the process that holds a VM together runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(5.0)
        try:
            sock.connect(str(layout.vm_folders(name).holder_socket))
        except OSError:
            return False
    return True


def controller_lives(name: str) -> bool:
    """Return whether a VM's controller listens; that of a VM whose holder was killed gives back what it had."""
    try:
        connect(layout.vm_folders(name).control_socket, f"the controller of VM {name}").close()
    except NotListeningError:
        return False
    return True


def read_spec(name: str) -> MachineSpec:
    """Return the machine of a VM as it was asked for; raises `PrerequisiteError` if its file cannot be read."""
    path = layout.vm_folders(name).spec
    try:
        return msgspec.json.decode(path.read_bytes(), type=MachineSpec)
    except (OSError, *UNREADABLE) as error:
        raise PrerequisiteError(
            f"cannot read {path}: {error}", hint=f"vmcoal delete {name} removes the VM, its disk layer included"
        ) from error


def status_of(name: str) -> VmStatus:
    """Return a VM's status, also of one that does not run."""
    try:
        return call(
            layout.vm_folders(name).control_socket,
            "status",
            result=VmStatus,
            peer=f"the controller of VM {name}",
            deadline=10.0,
        )
    except NotListeningError:
        if holder_lives(name):
            return vm_call(name, "status", result=VmStatus, deadline=30.0)
    return offline_status(name)


def offline_status(name: str) -> VmStatus:
    """Return what the files of a VM say: its machine, how its QEMU ended, and what it left."""
    from vmcoal.controller.status import stopped_status

    status = stopped_status(read_spec(name), layout.vm_folders(name))
    left = left_behind(name)
    if left is None:
        return status
    how = "its processes were killed" if left.killed else "not everything could be given back when it ended"
    said = f"{how}; left behind: {left.text}; next: {left.remedy}"
    return msgspec.structs.replace(status, state="failed" if left.killed else status.state, degraded=(said,))
