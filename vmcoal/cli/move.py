"""``vmcoal move``."""

from __future__ import annotations

import click

from vmcoal.cli.app import Command
from vmcoal.cli.output import note, print_json, print_plan
from vmcoal.cli.params import PLACE, deadline_option, dry_run_option, output_option, resolve_vm, vm_argument
from vmcoal.cli.vm import vm_steps
from vmcoal.controller.api import MoveRequest, MoveResult
from vmcoal.model.attachment import Plan
from vmcoal.model.paging import HOME
from vmcoal.model.units import format_duration, format_size


@click.command(
    cls=Command,
    example="""
    vmcoal move web --from attic --to cellar
    vmcoal move web --from attic --to home
    vmcoal move web --from home --to cellar --dry-run
    """,
)
@vm_argument
@click.option("--from", "source", type=PLACE, required=True, help="Where the memory is: a lender, or home.")
@click.option("--to", "target", type=PLACE, required=True, help="Where it goes: a paired lender, or home (this host).")
@deadline_option(3600.0, "it may take before it is undone")
@dry_run_option
@output_option
def move(vm: str | None, source: str, target: str, deadline: float, dry_run: bool, form: str) -> None:
    """Move borrowed memory to another lender, or home, while the guest uses it.

    It stays plugged in its node. At home it is this host's own memory until it is moved to a lender or detached. Ctrl-C
    undoes what has not arrived yet.
    """
    request = MoveRequest(source=source, target=target, deadline=deadline, dry_run=dry_run)
    name = resolve_vm(vm)
    if dry_run:
        print_plan(vm_steps(name, "move", request, result=Plan), form)
        return
    result = vm_steps(name, "move", request, result=MoveResult)
    for text in result.notes:
        note(f"note: {text}")
    if form == "json":
        print_json(result)
        return
    where = "is home on this host" if result.target == HOME else f"is at {result.target}"
    moved, took = format_size(result.memory_moved), format_duration(result.seconds)
    click.echo(f"{moved} of VM {name} {where} now, {result.source} has none of it; it took {took}")
