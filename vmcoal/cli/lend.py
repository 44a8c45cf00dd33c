"""``vmcoal lend`` and its commands, on the lender's side."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from datetime import datetime

import click
import msgspec

from vmcoal import layout
from vmcoal.cli.app import Group
from vmcoal.cli.config import load_config
from vmcoal.cli.lend_delete import delete
from vmcoal.cli.lend_text import amount, lender_text, total
from vmcoal.cli.lender_process import TALK, ending, lender_call, preflight, refuse_running, start_lender
from vmcoal.cli.outcome import printable
from vmcoal.cli.output import counted, note, print_json, print_plan, steps, table
from vmcoal.cli.params import (
    COUNT,
    LOCAL_LENDER,
    SECONDS,
    SIZE,
    complete_borrowers,
    deadline_option,
    dry_run_option,
    host_name,
    local_lender_option,
    local_lenders,
    output_option,
    resolve_local_lender,
    yes_option,
)
from vmcoal.control.wire import Progress
from vmcoal.errors import ConflictError, NotFoundError, PrerequisiteError, UsageError
from vmcoal.lending.api import BorrowerView, DrainRequest, ForgetRequest, LenderStatus, PairRequest, ReclaimResult
from vmcoal.model.attachment import Plan, Step
from vmcoal.model.gpu import PROGRAMS
from vmcoal.model.lease import ResourceKind
from vmcoal.model.units import format_duration


@click.group(
    cls=Group,
    invoke_without_command=True,
    example="""
    vmcoal lend --cpus 2 --memory 1G
    vmcoal lend --gpu auto
    vmcoal lend pair
    vmcoal lend status
    """,
)
@click.option("--cpus", type=COUNT, help="How many vCPUs to lend at most.")
@click.option("--memory", type=SIZE, help="How much memory to lend at most.")
@click.option(
    "--gpu",
    metavar="WHICH",
    help="OpenCL devices to lend: auto (GPUs; where there are none, the CPU), none, or ids.  [default: none]",
)
@click.option(
    "--gpu-memory",
    type=SIZE,
    help="How much memory of each GPU to lend at most: buffers and images, not code and variables of loaded programs."
    "  [default: all of it]",
)
@click.option(
    "--gpu-programs",
    type=click.IntRange(1, PROGRAMS),
    help=f"How many programs of a guest may use a GPU at once.  [default: {PROGRAMS}]",
)
@click.option(
    "--listen", metavar="ADDRESS", help="HOST, HOST:PORT or [IPV6]:PORT to listen on.  [default: every address]"
)
@click.option("--name", type=LOCAL_LENDER, help="The lender's name.  [default: from the host's name]")
@click.option("--data-ports", metavar="FIRST-LAST", help="TCP ports of the leases, for firewalls.  [default: any]")
@click.option("--metrics", metavar="ADDRESS", help="Serve Prometheus metrics on HOST:PORT.")
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@dry_run_option
@click.pass_context
def lend(
    ctx: click.Context,
    cpus: int | None,
    memory: int | None,
    gpu: str | None,
    gpu_memory: int | None,
    gpu_programs: int | None,
    listen: str | None,
    name: str | None,
    data_ports: str | None,
    metrics: str | None,
    foreground: bool,
    dry_run: bool,
) -> None:
    """Lend this host's CPUs, memory and GPUs to paired borrowers.

    Without a command it starts a lender in the background. One that ran before lends again what it lent then, unless
    --cpus, --memory or --gpu says otherwise. A GPU runs the borrower's programs: those of a CPU that is lent as an
    OpenCL device run on this host, in a sandbox (docs/gpu.md).
    """
    given = (cpus, memory, gpu, gpu_memory, gpu_programs, listen, name, data_ports, metrics)
    if ctx.invoked_subcommand is not None:
        if any(value is not None for value in given) or foreground or dry_run:
            raise UsageError(
                f"options go behind the command: vmcoal lend {ctx.invoked_subcommand} …",
                hint=f"vmcoal lend {ctx.invoked_subcommand} --help",
            )
        return
    defaults = load_config().lend
    chosen = name or defaults.name or host_name("lender")
    folders = layout.lender_folders(chosen)
    cpus, memory = cpus or defaults.cpus or None, memory or defaults.memory_bytes or None
    gpu = gpu or defaults.gpu or None
    said = any(value is not None for value in (cpus, memory, gpu))
    if not said and chosen not in local_lenders():
        raise UsageError("nothing to lend", hint="give --cpus N, --memory SIZE, --gpu auto or several of them")
    argv = [sys.executable, "-P", "-m", "vmcoal.lending", chosen]
    if said:
        argv += ["--cpus", str(cpus or 0), "--memory", str(memory or 0)]
    if gpu is None and (gpu_memory or gpu_programs):
        raise UsageError("limits of which GPUs?", hint="give --gpu auto, or ids that vmcoal doctor gpu lists")
    addresses = (
        ("--gpu", gpu),
        ("--gpu-memory", gpu_memory and str(gpu_memory)),
        ("--gpu-programs", gpu_programs and str(gpu_programs)),
        ("--listen", listen or defaults.listen),
        ("--data-ports", data_ports),
        ("--metrics", metrics),
    )
    for option, value in addresses:
        if value:
            argv += [option, value]
    if dry_run:
        click.echo("$ " + shlex.join(argv))
        note("nothing was changed")
        return
    preflight()
    fresh = not folders.state.exists()
    folders.make()
    refuse_running(folders, chosen)
    if foreground:
        sys.stdout.flush()
        os.execv(sys.executable, argv)  # noqa: S606
    try:
        start_lender(argv, folders, chosen)
    except (UsageError, PrerequisiteError, ConflictError):
        if fresh:  # it refused to start: there shall be no lender of that name
            shutil.rmtree(folders.state, ignore_errors=True)
            shutil.rmtree(folders.runtime, ignore_errors=True)
        raise
    status = lender_call(chosen, "status", result=LenderStatus)
    click.echo(f"lender {chosen} lends {total(status)} on {', '.join(status.addresses)}")
    note("next: vmcoal lend pair   and, on the borrower, what it prints")


@lend.command(
    "pair",
    short_help="Show the code with which one borrower pairs",
    example="""
    vmcoal lend pair
    vmcoal lend pair --grant memory --grant cpu --for 2m
    """,
)
@local_lender_option
@click.option(
    "--grant",
    "grants",
    multiple=True,
    type=click.Choice([kind.value for kind in ResourceKind]),
    help="What the borrower may borrow; repeat it for each kind.  [default: what is lent]",
)
@click.option("--borrower", metavar="NAME", help="What the borrower is called here; else what it calls itself.")
@click.option("--for", "seconds", type=SECONDS, default=300.0, help="How long the window is open.  [default: 5m]")
@output_option
def pair_(name: str | None, grants: tuple[str, ...], borrower: str | None, seconds: float, form: str) -> None:
    """Open a window for one borrower to pair in, and show the code it needs.

    Ctrl-C closes the window. Memory is the kind that needs the least trust; vCPUs that execute on this host (engine
    far) will need the most: their lender can read and change the whole guest.
    """
    lender = resolve_local_lender(name)
    kinds = tuple(ResourceKind(kind) for kind in dict.fromkeys(grants)) or _lent(lender)
    request = PairRequest(grants=kinds, name=borrower, seconds=seconds)

    def show(progress: Progress) -> None:
        note(progress.text)
        if progress.detail:
            click.echo(f"\n    code: {printable(progress.detail)}\n", err=True)

    view = lender_call(lender, "pair", request, result=BorrowerView, on_progress=show, deadline=seconds + TALK)
    if form == "json":
        print_json(view)
        return
    click.echo(f"paired with borrower {view.name} ({view.fingerprint}); it may borrow {_kinds(view.grants)}")


def _lent(lender: str) -> tuple[ResourceKind, ...]:
    offer = lender_call(lender, "status", result=LenderStatus).offer
    kinds = (
        (ResourceKind.MEMORY, offer.memory_total),
        (ResourceKind.CPU, offer.cpus_total),
        (ResourceKind.GPU, offer.gpus_total),
    )
    return tuple(kind for kind, total in kinds if total)


def _kinds(kinds: tuple[ResourceKind, ...]) -> str:
    return ", ".join(kind.value for kind in kinds) or "nothing"


@lend.command(
    "status", short_help="Show the lenders of this host and their leases", example="vmcoal lend status -o json"
)
@local_lender_option
@output_option
def status_(name: str | None, form: str) -> None:
    """Show the lenders of this host, what they have left, and their leases."""
    names = [resolve_local_lender(name)] if name else local_lenders()
    found = [_status(each) for each in names]
    if form == "json":
        print_json(found)
        return
    if not names:
        click.echo("this host lends nothing; vmcoal lend --cpus 2 --memory 1G")
        return
    click.echo("\n\n".join(map(lender_text, sorted(found, key=lambda status: not status.running))))


def _status(name: str) -> LenderStatus:
    try:
        return lender_call(name, "status", result=LenderStatus)
    except PrerequisiteError:
        from vmcoal.cli.lend_stopped import stopped_status

        return stopped_status(name)


@lend.command("borrowers", example="vmcoal lend borrowers")
@local_lender_option
@output_option
def borrowers(name: str | None, form: str) -> None:
    """List the paired borrowers and what they borrow."""
    views = lender_call(resolve_local_lender(name), "borrowers", result=tuple[BorrowerView, ...])
    if form == "json":
        print_json(views)
        return
    if not views:
        click.echo("no borrower is paired; vmcoal lend pair")
        return
    rows = [
        (
            view.name,
            view.fingerprint,
            _kinds(view.grants),
            "yes" if view.connected else "no",
            str(len(view.leases)),
            datetime.fromtimestamp(view.paired_at).astimezone().strftime("%Y-%m-%d %H:%M"),
        )
        for view in views
    ]
    click.echo(table(("BORROWER", "KEY", "GRANTS", "CONNECTED", "LEASES", "PAIRED"), rows))


@lend.command("metrics", example="vmcoal lend metrics")
@local_lender_option
def metrics_(name: str | None) -> None:
    """Print a lender's metrics as Prometheus would scrape them."""
    click.echo(lender_call(resolve_local_lender(name), "metrics", result=str).rstrip("\n"))


@lend.command(
    "forget", short_help="Forget a borrower, and take back what it borrowed", example="vmcoal lend forget laptop"
)
@click.argument("borrower", metavar="BORROWER", shell_complete=complete_borrowers)
@local_lender_option
@deadline_option(30.0, "the borrower has to give back what it has")
@yes_option
@dry_run_option
@output_option
def forget(borrower: str, name: str | None, deadline: float, yes: bool, dry_run: bool, form: str) -> None:
    """Forget a borrower: what it borrowed is taken back, and its key is refused."""
    lender = resolve_local_lender(name)
    known = [view.name for view in lender_call(lender, "borrowers", result=tuple[BorrowerView, ...])]
    if borrower not in known:
        there = f"there is {', '.join(known)}" if known else "no borrower is paired"
        raise NotFoundError(f"lender {lender} knows no borrower {borrower!r}", hint=f"{there}: vmcoal lend borrowers")
    if dry_run:
        _print_reclaim(lender, "forget", borrower, deadline, form)
        return
    _ask(yes, f"Forget borrower {borrower} of lender {lender}?", f"vmcoal lend forget {borrower} --yes")
    _reclaim(lender, "forget", ForgetRequest(name=borrower, deadline=deadline), deadline, form)


@lend.command("stop", example="vmcoal lend stop --deadline 30s")
@local_lender_option
@deadline_option(60.0, "borrowers have to give everything back")
@output_option
def stop(name: str | None, deadline: float, form: str) -> None:
    """Get everything back, then end the lender."""
    lender = resolve_local_lender(name)
    with ending(lender):
        _reclaim(lender, "stop", DrainRequest(deadline=deadline), deadline, form)


lend.add_command(delete)


def _print_reclaim(lender: str, kind: str, borrower: str | None, deadline: float, form: str) -> None:
    """Print what would be asked back, from one borrower or from all; nothing is changed."""
    leases = lender_call(lender, "status", result=LenderStatus).leases
    asked = [
        Step(
            "ask back",
            f"ask {lease.borrower} for lease {lease.id} of VM {lease.vm} ({amount(lease)}), "
            f"and take it after {format_duration(deadline)}",
            lease.borrower,
        )
        for lease in leases
        if borrower in (None, lease.borrower)
    ]
    if borrower is None:
        first, what = Step("cordon", "lend nothing new", lender), f"drain lender {lender}"
        asked.insert(0, first)
    else:
        asked.append(Step("forget", f"refuse the key of {borrower}", lender))
        what = f"forget borrower {borrower} of lender {lender}"
    print_plan(Plan(kind, what, tuple(asked)), form)


def _ask(yes: bool, question: str, hint: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("stdin is not a terminal to ask on", hint=hint)
    click.confirm(question, abort=True, err=True)


def _reclaim(lender: str, method: str, params: msgspec.Struct, deadline: float, form: str) -> None:
    with steps() as shown:
        result = lender_call(
            lender, method, params, result=ReclaimResult, on_progress=shown, deadline=deadline + 2 * TALK
        )
    if form == "json":
        print_json(result)
        return
    done = {"stop": "ended", "drain": "drained", "forget": "forgot the borrower"}[method]
    text = f"lender {lender} {done}"
    if result.released or result.taken:
        text += f": {counted(len(result.released), 'lease')} came back"
    if result.taken:
        text += f", {len(result.taken)} taken: {', '.join(result.taken)}"
    click.echo(text)


def _switch(name: str | None, method: str, form: str) -> None:
    status = lender_call(resolve_local_lender(name), method, result=LenderStatus)
    if form == "json":
        print_json(status)
        return
    still = f"; {counted(len(status.leases), 'lease')} still out" if status.offer.cordoned and status.leases else ""
    click.echo(f"lender {status.name} " + ("lends nothing new" if status.offer.cordoned else "lends again") + still)


@lend.command("cordon", example="vmcoal cordon")
@local_lender_option
@output_option
def cordon(name: str | None, form: str) -> None:
    """Lend nothing new; what is lent stays lent."""
    _switch(name, "cordon", form)


@lend.command("uncordon", example="vmcoal uncordon")
@local_lender_option
@output_option
def uncordon(name: str | None, form: str) -> None:
    """Lend again."""
    _switch(name, "uncordon", form)


@lend.command(
    "drain", short_help="Ask for everything back, and take it after a deadline", example="vmcoal drain --deadline 2m"
)
@local_lender_option
@deadline_option(60.0, "borrowers have to give everything back before it is taken")
@dry_run_option
@output_option
def drain(name: str | None, deadline: float, dry_run: bool, form: str) -> None:
    """Lend nothing new, ask for everything back, and take it after the deadline.

    A borrower moves what its guest has no room for to another lender, or home. What it cannot save in time is lost:
    what touches it in the guest waits for ever, and a VM with the FUSE engine ends.
    """
    if dry_run:
        _print_reclaim(resolve_local_lender(name), "drain", None, deadline, form)
        return
    _reclaim(resolve_local_lender(name), "drain", DrainRequest(deadline=deadline), deadline, form)
