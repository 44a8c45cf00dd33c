"""``vmcoal tune``."""

from __future__ import annotations

import click

from vmcoal.cli.app import Command
from vmcoal.cli.output import print_json
from vmcoal.cli.params import SIZE, on_loss_option, output_option, resolve_vm, vm_argument
from vmcoal.cli.vm import vm_steps
from vmcoal.controller.api import TuneRequest, Tuning
from vmcoal.model.paging import LossPolicy
from vmcoal.model.units import format_size


@click.command(
    cls=Command,
    example="""
    vmcoal tune
    vmcoal tune web --cache 512M
    vmcoal tune web --on-loss pause
    """,
)
@vm_argument
@click.option(
    "--cache", type=SIZE, help="How much of all the memory that the VM borrows may be on this host at a time."
)
@on_loss_option
@output_option
def tune(vm: str | None, cache: int | None, on_loss: str | None, form: str) -> None:
    """Show or change how a running VM's borrowed memory behaves. Changes hold at once and for good.

    The cache is one budget for the whole VM, whoever lends: what is used most stays here, the rest is with the lenders.
    """
    request = TuneRequest(cache=cache, on_loss=None if on_loss is None else LossPolicy(on_loss))
    name = resolve_vm(vm)
    result = vm_steps(name, "tune", request, result=Tuning)
    if form == "json":
        print_json(result)
        return
    click.echo(tuned_text(result))


_LOSS = {
    LossPolicy.STALL: "waits until the page is back",
    LossPolicy.POISON: "gets a memory error",
    LossPolicy.PAUSE: "waits, and the whole VM with it",
}


def tuned_text(told: Tuning) -> str:
    """Return how borrowed memory behaves, one line each."""
    cache = format_size(told.cache) if told.cache else "-"
    return (
        f"Cache:    {cache} of all borrowed memory may be on this host\n"
        f"On loss:  {told.on_loss}: what touches a page that no lender gives {_LOSS[told.on_loss]}"
    )
