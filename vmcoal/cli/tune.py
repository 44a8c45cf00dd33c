"""``vmcoal tune``."""

from __future__ import annotations

import click

from vmcoal.cli.app import Command
from vmcoal.cli.output import note, print_json
from vmcoal.cli.params import (
    PLACE_OF_COPY,
    REPLICAS,
    SIZE,
    compress_option,
    deadline_option,
    on_loss_option,
    output_option,
    resolve_vm,
    vm_argument,
)
from vmcoal.cli.vm import vm_steps
from vmcoal.controller.api import TuneRequest, Tuning
from vmcoal.errors import UsageError
from vmcoal.model.paging import Compression, LossPolicy
from vmcoal.model.units import format_size


@click.command(
    cls=Command,
    example="""
    vmcoal tune
    vmcoal tune web --cache 512M
    vmcoal tune web --on-loss pause
    vmcoal tune web --compress auto
    vmcoal tune web --replicas 2
    vmcoal tune web --replica-on local
    """,
)
@vm_argument
@click.option(
    "--cache", type=SIZE, help="How much of all the memory that the VM borrows may be on this host at a time."
)
@click.option(
    "--replicas",
    type=REPLICAS,
    help="In how many places each page of all that is attached is kept: 2 to survive a lender, 1 to give copies up.",
)
@click.option(
    "--replica-on",
    type=PLACE_OF_COPY,
    metavar="LENDER|local",
    help="Where the second place is: another lender, or a file on this host. Else the nearest other lender with room.",
)
@on_loss_option
@compress_option
@deadline_option(3600.0, "copies may take; what is not done by then is undone")
@output_option
def tune(
    vm: str | None,
    cache: int | None,
    replicas: int | None,
    replica_on: str | None,
    on_loss: str | None,
    compress: str | None,
    deadline: float,
    form: str,
) -> None:
    """Show or change how a running VM's borrowed memory behaves. Changes hold for good.

    The cache is one budget for the whole VM, whoever lends: what is used most stays here, the rest is with the lenders.
    Pages are copied to a second place while the guest uses them; when the command returns, all of them are there.
    Ctrl-C undoes the copy that is under way.
    """
    if replicas == 1 and replica_on:
        raise UsageError("--replica-on is where a second place is", hint="leave out --replicas 1")
    request = TuneRequest(
        cache=cache,
        on_loss=None if on_loss is None else LossPolicy(on_loss),
        compress=None if compress is None else Compression(compress),
        replicas=2 if replicas is None and replica_on else replicas,
        replica_on=replica_on,
        deadline=deadline,
    )
    name = resolve_vm(vm)
    result = vm_steps(name, "tune", request, result=Tuning)
    for text in result.notes:
        note(f"note: {text}")
    if form == "json":
        print_json(result)
        return
    click.echo(tuned_text(result))


_LOSS = {
    LossPolicy.STALL: "waits until the page is back",
    LossPolicy.PAUSE: "waits, and the whole VM with it",
}


_COMPRESSES = {
    Compression.AUTO: "pages are compressed where the link is slow",
    Compression.ON: "pages are compressed before they are sent",
    Compression.OFF: "pages are sent as they are",
}


def tuned_text(told: Tuning) -> str:
    """Return how borrowed memory behaves, one line each."""
    cache = format_size(told.cache) if told.cache else "-"
    lines = [
        f"Cache:    {cache} of all borrowed memory may be on this host",
        f"On loss:  {told.on_loss}: what touches a page that no lender gives {_LOSS[told.on_loss]}",
        f"Compress: {told.compress}: {_COMPRESSES[told.compress]}",
    ]
    lines += [f"Pages:    {device} at {' and '.join(places)}" for device, places in told.places.items()]
    return "\n".join(lines)
