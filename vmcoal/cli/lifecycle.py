"""``vmcoal shutdown``, ``delete``, ``logs`` and ``controller``."""

from __future__ import annotations

import shutil
import sys
from collections import deque
from pathlib import Path
from typing import TypeVar

import click

from vmcoal import layout
from vmcoal.cli.app import Command
from vmcoal.cli.deleting import confirmed, remove
from vmcoal.cli.output import counted, note, print_json, print_plan
from vmcoal.cli.params import (
    COUNT,
    VM,
    deadline_option,
    dry_run_option,
    output_option,
    resolve_vm,
    vm_argument,
    yes_option,
)
from vmcoal.cli.vm import clean, controller_lives, holder_lives, left_behind, offline_status, vm_steps
from vmcoal.controller.api import ShutdownRequest, ShutdownResult
from vmcoal.errors import (
    ConflictError,
    NotFoundError,
    PrerequisiteError,
    UnreachableError,
    UsageError,
    VmcoalError,
)
from vmcoal.model.attachment import Plan

T = TypeVar("T")

_LOGS = ("console", "qemu", "controller", "qmp", "pager")


@click.command(
    cls=Command,
    example="""
    vmcoal shutdown
    vmcoal shutdown web --deadline 10s
    vmcoal shutdown web --dry-run
    """,
)
@vm_argument
@click.option("--force", is_flag=True, help="End QEMU at once, as if the power failed.")
@deadline_option(30.0, "the guest has to power off before it is ended")
@dry_run_option
@output_option
def shutdown(vm: str | None, force: bool, deadline: float, dry_run: bool, form: str) -> None:
    """Power a VM off and give everything it borrowed back; also what one left whose processes were killed."""
    name = resolve_vm(vm)
    request = ShutdownRequest(deadline=deadline, force=force, dry_run=dry_run)
    left = None if holder_lives(name) or controller_lives(name) else left_behind(name)
    if dry_run:
        print_plan(left.plan() if left else _ask(name, request, Plan), form)
        return
    result = clean(left) if left else _ask(name, request, ShutdownResult)
    for text in result.notes:
        note(f"note: {text}")
    if form == "json":
        print_json(result)
        return
    how = {
        "guest": "powered itself off",
        "agent": "was powered off by its agent",
        "forced": "was ended by force",
        "killed": "had been killed already",
        "ended": "had ended by itself already",
    }
    gave = f"; {counted(len(result.released), 'lease')} given back" if result.released else ""
    click.echo(f"VM {name} {how.get(result.how, result.how)}{gave}")


def _ask(name: str, request: ShutdownRequest, result: type[T]) -> T:
    """Have a VM's controller shut it down; one whose QEMU failed has no controller any more, and nothing to give back.

    Raises `PrerequisiteError` for one that ended in order.
    """
    try:
        return vm_steps(name, "shutdown", request, result=result)
    except (PrerequisiteError, UnreachableError):
        if holder_lives(name) or left_behind(name) is not None or offline_status(name).state != "failed":
            raise
    from vmcoal.controller.leftovers import ended_already

    done = ended_already(name, request, [], [])
    assert isinstance(done, result)
    return done


@click.command(cls=Command, example="vmcoal delete web --yes")
@click.argument("vm", type=VM)
@yes_option
@dry_run_option
def delete(vm: str, yes: bool, dry_run: bool) -> None:
    """Remove a stopped VM: its spec, disk layer, keys and logs. The image it was made from stays."""
    name = resolve_vm(vm)
    folders = layout.vm_folders(name)
    if holder_lives(name) or controller_lives(name):  # that of a VM that ended gives back what it had
        raise ConflictError(f"VM {name} runs", hint=f"vmcoal shutdown {name}")
    size = folders.overlay.stat().st_size if folders.overlay.exists() else 0
    disk = f", its disk layer of {size >> 20} MiB included" if size else ""
    if not confirmed(f"Remove VM {name}{disk}?", f"vmcoal delete {name}", folders, yes=yes, dry_run=dry_run):
        return
    if left := left_behind(name):
        try:
            clean(left)
        except VmcoalError as error:
            note(f"note: {error}; its leases end at their lenders by themselves")
    # machine.json goes first: without it there is no such VM, whatever stops the rest
    remove(folders, [folders.spec])
    note(f"VM {name} is gone")


def _logs_of(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    """Complete the words of ``vmcoal logs``."""
    return [word for word in (*layout.known_vms(), *_LOGS) if word.startswith(incomplete)]


@click.command(
    cls=Command,
    example="""
    vmcoal logs web
    vmcoal logs web qmp --lines 20
    """,
)
@click.argument("words", nargs=-1, metavar="[VM] [console|qemu|controller|qmp|pager]", shell_complete=_logs_of)
@click.option("-n", "--lines", type=COUNT, help="Only the last so many lines.")
def logs(words: tuple[str, ...], lines: int | None) -> None:
    """Print what a VM wrote: its serial console (the default), QEMU's stderr, or the log of its
    controller, of QMP or of the page engine."""
    rest = list(words)
    kind = rest.pop() if rest and rest[-1] in _LOGS else "console"
    if len(rest) > 1:
        raise UsageError(f"{rest[1]!r} is no log", hint=f"there is {', '.join(_LOGS)}")
    name = resolve_vm(rest[0] if rest else None)
    folders = layout.vm_folders(name)
    path = {
        "console": folders.console_log,
        "qemu": folders.qemu_log,
        "controller": folders.controller_log,
        "qmp": folders.qmp_log,
        "pager": folders.pager_log,
    }[kind]
    if not print_log(path, lines):
        raise NotFoundError(f"VM {name} has no {kind} log", hint=f"it would be {path}")


def print_log(path: Path, lines: int | None) -> bool:
    """Print the last ``lines`` lines (``None``: all) of a log and of its older part; return whether there is one."""
    parts = [part for part in (path.with_name(path.name + ".1"), path) if part.exists()]
    kept: deque[bytes] = deque(maxlen=lines)
    for part in parts:
        with part.open("rb") as file:
            if lines is None:
                shutil.copyfileobj(file, sys.stdout.buffer)
            else:
                kept.extend(file)
    for line in kept:
        sys.stdout.buffer.write(line)
    sys.stdout.flush()
    return bool(parts)


@click.command(cls=Command, example="vmcoal controller web")
@click.argument("vm", type=VM)
def controller(vm: str) -> None:
    """Run a VM's controller in the foreground, in place of the one that ended; Ctrl-C ends it, the VM runs on."""
    import os

    name = resolve_vm(vm)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "vmcoal.controller", name])  # noqa: S606
