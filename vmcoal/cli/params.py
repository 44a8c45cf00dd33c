"""Parameter types and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from vmcoal import layout
from vmcoal.errors import NotFoundError, UsageError, VmcoalError
from vmcoal.model.units import parse_duration, parse_size

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_VM = "default"


def _name_of(param: click.Parameter | None) -> str:
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return param.human_readable_name if param else "value"


class _Parsed(click.ParamType):
    """A value that a function parses; what is wrong with it is said with the option's name."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self.parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parsed value; one that is none of text is a default and returned as it is."""
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except VmcoalError as error:
            raise UsageError(f"{_name_of(param)}: {error.message}", hint=error.hint) from error


def _parse_count(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if not 1 <= count <= 4096:
        raise UsageError(f"{text!r} is not a count", hint="give a whole number from 1 to 4096")
    return count


class _Name(_Parsed):
    """The name of a VM or lender, completed from the folders."""

    def __init__(self, name: str, known: Callable[[], list[str]]) -> None:
        super().__init__(name, lambda text: layout.check_name(text, name))
        self.known = known

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return the known names that begin with ``incomplete``."""
        return [CompletionItem(name) for name in self.known() if name.startswith(incomplete)]


def local_lenders() -> list[str]:
    """Return the names of the lenders that this user has run on this host, sorted."""
    return sorted(path.name for path in (layout.state_home() / "lend").glob("*") if path.is_dir())


def paired_lenders() -> list[str]:
    """Return the names of the lenders that this user is paired with, sorted; for completion only."""
    import msgspec

    try:
        known = msgspec.json.decode(layout.known_lenders().read_bytes())
        return sorted(entry["name"] for entry in known["lenders"])
    except (OSError, msgspec.DecodeError, LookupError, TypeError):
        return []


SIZE = _Parsed("SIZE", parse_size)
SECONDS = _Parsed("DURATION", parse_duration)
COUNT = _Parsed("N", _parse_count)
VM = _Name("VM", layout.known_vms)
LENDER = _Name("lender", paired_lenders)
LOCAL_LENDER = _Name("lender", local_lenders)

vm_argument = click.argument("vm", required=False, type=VM, metavar="[VM]")
output_option = click.option(
    "-o", "--output", "form", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Form."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the exact steps, and change nothing.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
local_lender_option = click.option(
    "--name", type=LOCAL_LENDER, help="The lender on this host; needed only where there are several."
)


def deadline_option(default: float | None, what: str) -> Callable[[F], F]:
    """Return a ``--deadline`` option; ``what`` ends the sentence of its help."""
    shown = f"  [default: {default:g}s]" if default else ""
    return click.option("--deadline", type=SECONDS, default=default, help=f"How long {what}.{shown}")


def resolve_vm(name: str | None) -> str:
    """Return the VM a command is about: ``name``, else the only one, else ``default``.

    Raises `NotFoundError` if it does not exist, `UsageError` if there are several to choose from.
    """
    known = layout.known_vms()
    if name is None:
        if not known:
            raise NotFoundError("there is no VM", hint="vmcoal boot")
        if len(known) > 1 and DEFAULT_VM not in known:
            raise UsageError("there are several VMs", hint=f"name one of {', '.join(known)}")
        return known[0] if len(known) == 1 else DEFAULT_VM
    if name not in known:
        hint = f"there is {', '.join(known)}" if known else f"vmcoal boot {name}"
        raise NotFoundError(f"there is no VM {name!r}", hint=hint)
    return name


def resolve_local_lender(name: str | None) -> str:
    """Return the lender of this host that a command is about; raises `NotFoundError`, `UsageError`."""
    known = local_lenders()
    if name is None:
        if not known:
            raise NotFoundError("this host lends nothing", hint="vmcoal lend --cpus 2 --memory 1G")
        if len(known) > 1:
            raise UsageError("this host has several lenders", hint=f"give --name, one of {', '.join(known)}")
        return known[0]
    if name not in known:
        raise NotFoundError(f"there is no lender {name!r} on this host", hint="vmcoal lend status")
    return name
