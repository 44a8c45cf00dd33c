"""``vmcoal lend delete``."""

from __future__ import annotations

import click

from vmcoal import layout
from vmcoal.cli.app import Command
from vmcoal.cli.deleting import confirmed, remove
from vmcoal.cli.lend_stopped import lent_files
from vmcoal.cli.lender_process import refuse_running, still_serves
from vmcoal.cli.output import note
from vmcoal.cli.params import LOCAL_LENDER, dry_run_option, resolve_local_lender, yes_option
from vmcoal.errors import ConflictError


@click.command("delete", cls=Command, example="vmcoal lend delete attic --yes")
@click.argument("lender", type=LOCAL_LENDER)
@yes_option
@dry_run_option
def delete(lender: str, yes: bool, dry_run: bool) -> None:
    """Remove a stopped lender: its key, its borrowers, its journal and logs. Borrowers have to pair again."""
    name = resolve_local_lender(lender)
    folders = layout.lender_folders(name)
    refuse_running(folders, name)
    if still_serves(folders):
        raise ConflictError(
            f"lender {name} was killed, and its memory servers still run",
            hint=f"start it and stop it, so that borrowers can leave: vmcoal lend --name {name}; vmcoal lend stop",
        )
    lent = lent_files(folders)
    question = f"Remove lender {name}, its key and its borrowers included?"
    if not confirmed(question, f"vmcoal lend delete {name}", folders, lent, yes=yes, dry_run=dry_run):
        return
    remove(folders, lent)
    note(f"lender {name} is gone")
