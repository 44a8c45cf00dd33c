"""What ``vmcoal delete`` and ``vmcoal lend delete`` share: what would go, the question, and the end of the folders."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from vmcoal.cli.output import note
from vmcoal.errors import ExecutionError, UsageError
from vmcoal.layout import Folders


def confirmed(
    question: str, command: str, folders: Folders, others: Sequence[Path] = (), *, yes: bool, dry_run: bool
) -> bool:
    """Return whether to go on. On a dry run the files of ``folders`` and ``others`` are printed, and it is no.

    Raises `UsageError` where nobody can be asked (the hint is ``command`` with ``--yes``), `click.Abort` for a no.
    """
    if dry_run:
        for path in [*sorted(path for path in folders.state.rglob("*") if not path.is_dir()), *others]:
            click.echo(f"remove {path}")
        note("nothing was changed")
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("stdin is not a terminal to ask on", hint=f"{command} --yes")
    return click.confirm(question, abort=True, err=True)


def remove(folders: Folders, first: Sequence[Path] = ()) -> None:
    """Remove ``first``, then ``folders`` with all that is in them; raises `ExecutionError` that says what remains."""
    try:
        for path in first:
            path.unlink(missing_ok=True)
        for folder in (folders.runtime, folders.state):
            if folder.exists():
                shutil.rmtree(folder)
    except OSError as error:
        raise ExecutionError(
            f"cannot remove {error.filename}: {error.strerror}",
            left=f"what remains of {folders.state} and {folders.runtime}",
            hint="remove them by hand",
        ) from error
