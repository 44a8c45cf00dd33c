"""Parameter types and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from vmcoal import layout
from vmcoal.errors import UNREADABLE, NotFoundError, UsageError, VmcoalError
from vmcoal.model.paging import HOME, LOCAL, Compression, LossPolicy
from vmcoal.model.units import parse_duration, parse_size

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_VM = "default"

ANY, PCI = "any", "pci:"
"""How ``--gpu`` names one of a lender's GPUs, and how a function of this host begins."""


def name_of(param: click.Parameter | None) -> str:
    """Return what people call a parameter: ``--memory``, ``VM``."""
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return param.name.upper() if param and param.name else "value"


if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType  # not generic in older releases


class _Parsed(_Type):
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
            raise UsageError(f"{name_of(param)}: {error.message}", hint=error.hint) from error


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from ``least`` to ``most``."""

    def parse(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
        if not least <= number <= most:
            raise UsageError(f"{text!r} is not a count", hint=f"give a whole number from {least} to {most}")
        return number

    return parse


def _gpu(text: str) -> str:
    """Return `ANY`, or the full PCI address of ``pci:ADDRESS``."""
    if text == ANY:
        return ANY
    if not text.startswith(PCI):
        raise UsageError(
            f"{text!r} is no GPU", hint="--gpu alone is one of the lender's, --gpu pci:0000:01:00.0 one of this host"
        )
    from vmcoal.policy.passthrough import check_address

    return check_address(text.removeprefix(PCI))


class _Name(_Parsed):
    """The name of a VM or lender, completed from the folders."""

    def __init__(self, name: str, known: Callable[[], list[str]]) -> None:
        super().__init__(name, self._check)
        self.known = known

    def _check(self, text: str) -> str:
        return layout.check_name(text, self.name)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Return the known names that begin with ``incomplete``."""
        return [CompletionItem(name) for name in self.known() if name.startswith(incomplete)]


class _Place(_Name):
    """Where memory is or can be: a lender, or one of the words for this host."""

    def __init__(self, *here: str) -> None:
        super().__init__("lender", lambda: [*here, *paired_lenders()])
        self.here = here

    def _check(self, text: str) -> str:
        return text if text in self.here else super()._check(text)


class _LossPolicies(click.Choice[str]):
    """The loss policies. ``poison``, which userfaultfd has and people look for, is refused with the reason."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "poison":
            raise UsageError(
                "--on-loss poison would end the guest: KVM reports the memory error of a late page to whatever the "
                "guest does by then, and its kernel panics of it",
                hint="stall or pause; or a second place for the pages, so that none is lost: --replicas 2",
            )
        return super().convert(value, param, ctx)


def _completing(known: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    """Return what `click.argument` takes as ``shell_complete``: those of ``known`` that begin as what was typed."""
    return lambda ctx, param, incomplete: [name for name in known() if name.startswith(incomplete)]


def _borrowers() -> list[str]:
    return sorted({name for lender in local_lenders() for name in _records(layout.lender_folders(lender).borrowers)})


def _lab_hosts() -> list[str]:
    return sorted({path.parent.name for path in (layout.state_home() / "lab").glob("*/*/host.json")})


def _link_profiles() -> Iterable[str]:
    from vmcoal.lab.links import PROFILES

    return PROFILES


complete_borrowers = _completing(_borrowers)
complete_lab_hosts = _completing(_lab_hosts)
complete_links = _completing(_link_profiles)


def local_lenders() -> list[str]:
    """Return the names of the lenders that this user has run on this host, sorted."""
    return sorted(path.name for path in (layout.state_home() / "lend").glob("*") if path.is_dir())


def paired_lenders() -> list[str]:
    """Return the names of the lenders that this user is paired with, sorted; for completion only."""
    return _records(layout.known_lenders())


def _records(path: Path) -> list[str]:
    import msgspec

    try:
        return sorted(record["name"] for record in msgspec.json.decode(path.read_bytes())["records"])
    except (OSError, *UNREADABLE, LookupError, TypeError):
        return []


def host_name(otherwise: str) -> str:
    """Return this host's name as a name for vmcoal: lower case, other characters as hyphens; ``otherwise`` if empty."""
    import socket

    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname().split(".")[0].lower())
    return name[:32].strip("-") or otherwise


def _known_labs() -> list[str]:
    from vmcoal.lab.state import known_labs

    return known_labs()


def _parse_link(text: str) -> object:
    from vmcoal.lab.links import parse_link

    return parse_link(text)


SIZE = _Parsed("SIZE", parse_size)
SECONDS = _Parsed("DURATION", parse_duration)
COUNT = _Parsed("N", _whole(1, 4096))
COUNT_OR_NONE = _Parsed("N", _whole(0, 4096))
GPU = _Parsed("GPU", _gpu)
PORT = _Parsed("PORT", _whole(1, 65535))
VM = _Name("VM", layout.known_vms)
LENDER = _Name("lender", paired_lenders)
PLACE = _Place(HOME)
PLACE_OF_COPY = _Place(LOCAL)
REPLICAS = _Parsed("N", _whole(1, 2))
LOCAL_LENDER = _Name("lender", local_lenders)
LAB = _Name("lab", _known_labs)
LINK = _Parsed("LINK", _parse_link)

vm_argument = click.argument("vm", required=False, type=VM, metavar="[VM]")
output_option = click.option(
    "-o",
    "--output",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="What to print.",
)
on_loss_option = click.option(
    "--on-loss",
    type=_LossPolicies([policy.value for policy in LossPolicy]),
    help="What touching a page that no lender gives does: it waits (stall), or the whole VM waits (pause).",
)
compress_option = click.option(
    "--compress",
    type=click.Choice([compression.value for compression in Compression]),
    help="Whether pages are compressed before they are sealed and sent: always (on), never (off, until told), or "
    "where the measured rate of the link makes it pay (auto). The lender then sees how well each page compresses.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the exact steps, and change nothing.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
local_lender_option = click.option(
    "--name", type=LOCAL_LENDER, help="The lender on this host; needed only where there are several."
)


def deadline_option(default: float | None, what: str) -> Callable[[F], F]:
    """Return a ``--deadline`` option; ``what`` ends the sentence of its help."""
    minutes = default is not None and default >= 120 and default % 60 == 0
    shown = (
        f"  [default: {default / 60:g}m]" if default and minutes else f"  [default: {default:g}s]" if default else ""
    )
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
