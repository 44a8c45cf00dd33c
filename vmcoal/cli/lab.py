"""``vmcoal lab``: several virtual hosts on this machine."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from vmcoal.cli.app import Command, Group
from vmcoal.cli.lab_exec import run_in_host
from vmcoal.cli.lab_text import called, lab_text, ready_line, reporting
from vmcoal.cli.lab_tour import tour
from vmcoal.cli.output import counted, note, print_json, steps
from vmcoal.cli.params import COUNT, LAB, LINK, SECONDS, SIZE, complete_lab_hosts, complete_links, output_option
from vmcoal.errors import ConflictError, NotFoundError, UsageError

if TYPE_CHECKING:
    from vmcoal.lab.lab import LabRequest
    from vmcoal.lab.links import LinkProfile

_SHELL = ("/bin/sh", "-c", "cd; exec $(command -v bash || echo sh) -l")

_name_option = click.option("--name", type=LAB, help="The lab; needed only where there are several.")
_host_argument = click.argument("host", metavar="HOST", shell_complete=complete_lab_hosts)


@click.group(
    cls=Group,
    example="""
    vmcoal lab up --link wifi6e
    vmcoal lab exec host1 -- vmcoal doctor
    vmcoal lab down
    """,
)
def lab() -> None:
    """Several virtual hosts on this machine, each with KVM of its own, and links between them as bad as wanted.

    A host is a VM with Debian's kernel and vmcoal in it; without KVM here QEMU emulates a processor that has
    virtualization. Commands reach the hosts by a channel of their own, not by the network under test.
    """


@lab.command(
    "up",
    short_help="Start a lab, or what it lost",
    example="""
    vmcoal lab up
    vmcoal lab up --hosts 2 --link 30ms,5ms,0.5%,100M
    """,
)
@click.option("--name", type=LAB, help="The lab's name.  [default: lab]")
@click.option("--hosts", type=COUNT, help="How many hosts, 1 to 8.  [default: 3]")
@click.option(
    "--link",
    type=LINK,
    help="All links: lan, 5g-urllc, wifi6e, 5g, wifi, or RTT[,JITTER[,LOSS[,RATE]]], loss in %.  [default: lan]",
)
@click.option("--memory", type=SIZE, help="Memory of each host.  [default: 1536M]")
@click.option("--cpus", type=COUNT, help="CPUs of each host.  [default: 2]")
@click.option("--flavor", type=click.Choice(["12", "13"]), help="Debian's release in the hosts.  [default: 12]")
@click.option(
    "--iommu", is_flag=True, default=None, help="Give the hosts an emulated IOMMU, and PCI functions to pass through."
)
@click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    help="What runs the hosts; auto: KVM where it can be nested.  [default: auto]",
)
@click.option("--qemu", metavar="PROGRAM", help="The QEMU to run.  [default: qemu-system-x86_64]")
@click.option("--deadline", type=SECONDS, default=300.0, help="How long the hosts may take to boot.  [default: 5m]")
@output_option
def up(
    name: str | None,
    hosts: int | None,
    link: LinkProfile | None,
    memory: int | None,
    cpus: int | None,
    flavor: str | None,
    iommu: bool | None,
    accel: str | None,
    qemu: str | None,
    deadline: float,
    form: str,
) -> None:
    """Start a lab and wait until its hosts have booted; what fails on the way is undone.

    Hosts that a lab has lost are started again as they were made. Each host needs its memory of this machine; half of
    the link's delay is added in either direction, besides what the emulation takes itself.
    """
    from vmcoal.lab.lab import LabRequest, lab_up
    from vmcoal.lab.state import DEFAULT_LAB, known_labs, read_lab
    from vmcoal.model.machine import Accel

    chosen = name or DEFAULT_LAB
    given = {
        "hosts": hosts,
        "link": link,
        "memory": memory,
        "cpus": cpus,
        "flavor": flavor,
        "iommu": iommu,
        "accel": Accel(accel) if accel in ("kvm", "tcg") else None,
        "qemu": qemu,
    }
    options = {option: value for option, value in given.items() if value is not None}
    if options and chosen in known_labs() and (spec := read_lab(chosen)) is not None and spec.complete:
        raise ConflictError(
            f"lab {chosen} exists; --{next(iter(options))} is for a new one",
            hint=f"without options what it lost is started again; to make it anew: vmcoal lab down --name {chosen}",
        )
    request: LabRequest = LabRequest(name=chosen, deadline=deadline, **options)  # type: ignore[arg-type]
    with steps() as shown:
        status = lab_up(request, reporting(shown))
    if form == "json":
        print_json(status)
        return
    click.echo(ready_line(status))
    note(f"next: vmcoal lab shell {status.hosts[0].name}   or   vmcoal lab tour")


@lab.command(
    "status",
    example="""
    vmcoal lab status
    vmcoal lab status --name shed -o json
    """,
)
@_name_option
@output_option
def status_(name: str | None, form: str) -> None:
    """Show the labs of this user: their hosts and links."""
    from vmcoal.lab.lab import lab_status
    from vmcoal.lab.state import known_labs, resolve_lab

    names = [resolve_lab(name)] if name else known_labs()
    found = [asyncio.run(lab_status(each)) for each in names]
    if form == "json":
        print_json(found)
        return
    if not found:
        click.echo("there is no lab; vmcoal lab up starts one")
        return
    click.echo("\n\n".join(map(lab_text, found)))


class _WithCommand(Command):
    """``exec [OPTIONS] HOST -- CMD…``: what follows ``--`` goes to the host untouched."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- CMD..."]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the host's command away before click sees the rest."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["vmcoal.command"] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


@lab.command(
    "exec",
    cls=_WithCommand,
    short_help="Run a command in a host",
    example="""
    vmcoal lab exec host1 -- vmcoal status
    echo 'cat /proc/cpuinfo' | vmcoal lab exec host1 -i -- sh
    """,
)
@_host_argument
@_name_option
@click.option("-t", "--tty", "terminal", is_flag=True, help="Give the command a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Send it stdin; -t does so too.")
@click.option("--deadline", type=SECONDS, help="End it after this long.")
@click.pass_context
def exec_(
    ctx: click.Context, host: str, name: str | None, terminal: bool, interactive: bool, deadline: float | None
) -> None:
    """Run a command in a host as root; its output and its exit code become this command's.

    A command that a signal ended gives 128 plus the signal's number.
    """
    from vmcoal.lab.state import resolve_lab

    command = ctx.meta.get("vmcoal.command")
    if not command:
        raise UsageError(
            "there is no command to run", hint=f"put it behind two hyphens: vmcoal lab exec {host} -- vmcoal doctor"
        )
    run_in_host(resolve_lab(name), host, tuple(command), terminal, interactive or terminal, deadline)


@lab.command("shell", short_help="Open a shell in a host", example="vmcoal lab shell host1")
@_host_argument
@_name_option
def shell(host: str, name: str | None) -> None:
    """Open a root shell in a host; vmcoal is installed there."""
    from vmcoal.lab.state import resolve_lab

    run_in_host(resolve_lab(name), host, _SHELL, sys.stdin.isatty(), True, None)


@lab.command(
    "link",
    short_help="Give the link between two hosts another profile",
    example="""
    vmcoal lab link host1 host2 wifi
    vmcoal lab link host1 host3 30ms,5ms,0.5%,100M
    """,
)
@click.argument("a", metavar="HOST", shell_complete=complete_lab_hosts)
@click.argument("b", metavar="HOST", shell_complete=complete_lab_hosts)
@click.argument("profile", metavar="LINK", type=LINK, shell_complete=complete_links)
@_name_option
@output_option
def link_(a: str, b: str, profile: LinkProfile, name: str | None, form: str) -> None:
    """Give the link between two hosts another profile; a link that was cut is whole again.

    LINK is lan, 5g-urllc, wifi6e, 5g, wifi, or RTT[,JITTER[,LOSS[,RATE]]] with the loss in percent. Half of RTT and
    JITTER are added in either direction.
    """
    _change_link(name, a, b, profile, False, form)


@lab.command("cut", short_help="Cut the link between two hosts", example="vmcoal lab cut host1 host2")
@click.argument("a", metavar="HOST", shell_complete=complete_lab_hosts)
@click.argument("b", metavar="HOST", shell_complete=complete_lab_hosts)
@_name_option
@output_option
def cut(a: str, b: str, name: str | None, form: str) -> None:
    """Lose everything between two hosts from now on, and close nothing; `vmcoal lab link` mends it."""
    _change_link(name, a, b, None, True, form)


def _change_link(name: str | None, a: str, b: str, profile: LinkProfile | None, cut: bool, form: str) -> None:
    from vmcoal.lab.lab import lab_link
    from vmcoal.lab.links import describe_link
    from vmcoal.lab.state import resolve_lab

    changed = asyncio.run(lab_link(resolve_lab(name), a, b, profile, cut=cut))
    if form == "json":
        print_json(changed)
        return
    if cut:
        click.echo(f"the link between {changed.a} and {changed.b} is cut")
        note(f"next: vmcoal lab link {changed.a} {changed.b} {changed.profile.name}")
    else:
        click.echo(f"the link between {changed.a} and {changed.b} is {describe_link(changed.profile)}")


@lab.command("kill", short_help="End a host as if its power was cut", example="vmcoal lab kill host2")
@_host_argument
@_name_option
def kill(host: str, name: str | None) -> None:
    """End a host as if its power was cut; what it had is lost. `vmcoal lab up` starts it again, empty."""
    from vmcoal.lab.lab import lab_kill
    from vmcoal.lab.state import resolve_lab

    asyncio.run(lab_kill(resolve_lab(name), host))
    note(f"{host} is gone; vmcoal lab up starts it again")


@lab.command("logs", short_help="Print a host's console", example="vmcoal lab logs host1 -n 30")
@_host_argument
@click.argument("kind", type=click.Choice(["console", "qemu", "qmp"]), default="console")
@_name_option
@click.option("-n", "--lines", type=COUNT, help="Only the last so many lines.")
def logs(host: str, kind: str, name: str | None, lines: int | None) -> None:
    """Print what a host wrote: its serial console (the default), QEMU's stderr, or QMP's transcript."""
    from vmcoal.cli.lifecycle import print_log
    from vmcoal.lab.state import resolve_lab
    from vmcoal.layout import lab_host_folders

    folders = lab_host_folders(host, resolve_lab(name))
    path = {"console": folders.console_log, "qemu": folders.qemu_log, "qmp": folders.qmp_log}[kind]
    if not print_log(path, lines):
        raise NotFoundError(f"{host} has no {kind} log", hint=f"it would be {path}")


@lab.command(
    "down",
    short_help="End a lab and remove everything of it",
    example="""
    vmcoal lab down
    vmcoal lab down --all
    """,
)
@_name_option
@click.option("--all", "everything", is_flag=True, help="Every lab of this user.")
@output_option
def down(name: str | None, everything: bool, form: str) -> None:
    """End the hosts of a lab and remove everything of it; also one that was left half started, or killed."""
    from vmcoal.lab.lab import lab_down
    from vmcoal.lab.state import known_labs, resolve_lab

    if everything and name:
        raise UsageError("--all and --name exclude each other", hint="give one of them")
    gone = {each: asyncio.run(lab_down(each)) for each in (known_labs() if everything else [resolve_lab(name)])}
    if form == "json":
        print_json(gone)
        return
    for each, hosts in gone.items():
        click.echo(f"{called(each)} is gone" + (f", {counted(len(hosts), 'running host')} ended" if hosts else ""))
    if not gone:
        click.echo("there is no lab")


lab.add_command(tour)
