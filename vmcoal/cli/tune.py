"""``vmcoal tune``."""

from __future__ import annotations

import click

from vmcoal.cli.app import Command
from vmcoal.cli.output import print_json
from vmcoal.cli.params import SIZE, output_option, resolve_vm, vm_argument
from vmcoal.cli.vm import vm_steps
from vmcoal.controller.api import TuneRequest, Tuning
from vmcoal.model.units import format_size


@click.command(
    cls=Command,
    example="""
    vmcoal tune
    vmcoal tune web --cache 512M
    """,
)
@vm_argument
@click.option(
    "--cache", type=SIZE, help="How much of all the memory that the VM borrows may be on this host at a time."
)
@output_option
def tune(vm: str | None, cache: int | None, form: str) -> None:
    """Show or change how a running VM's borrowed memory behaves. Changes hold at once and for good.

    The cache is one budget for the whole VM, whoever lends: what is used most stays here, the rest is with the lenders.
    """
    name = resolve_vm(vm)
    result = vm_steps(name, "tune", TuneRequest(cache=cache), result=Tuning)
    if form == "json":
        print_json(result)
        return
    click.echo(tuned_text(result))


def tuned_text(told: Tuning) -> str:
    """Return how borrowed memory behaves, one line each."""
    return f"Cache:    {format_size(told.cache) if told.cache else '-'} of all borrowed memory may be on this host"
