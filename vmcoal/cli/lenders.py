"""``vmcoal pair``, ``unpair``, ``lenders`` and ``ping``: the lenders this user knows."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from vmcoal import layout
from vmcoal.cli.app import Command
from vmcoal.cli.output import device_words, note, print_json, table
from vmcoal.cli.params import COUNT, LENDER, host_name, output_option
from vmcoal.control.client import NotListeningError, call
from vmcoal.controller.api import LenderView, PingRequest, PingResult
from vmcoal.errors import NotFoundError, UsageError, VmcoalError
from vmcoal.model.lease import ResourceKind
from vmcoal.model.units import format_duration, format_size

if TYPE_CHECKING:
    from vmcoal.fabric.identity import Identity, LenderRecord
    from vmcoal.fabric.session import LenderSession

_PINGS = 5
_PATIENCE = 10.0
_SAMPLE = 15.0
_LONGEST_CODE = 256
_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<bare>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?)"
    r"|(?P<host>[A-Za-z0-9_.-]+))(?::(?P<port>\d{1,5}))?"
)


@click.command(
    cls=Command,
    example="""
    vmcoal pair 192.168.1.20
    vmcoal pair attic.local:6180 --name attic --code-file ~/code
    """,
)
@click.argument("address", metavar="LENDER_ADDRESS")
@click.option("--name", type=LENDER, help="What the lender is called here; else what it calls itself.")
@click.option(
    "--as", "borrower", metavar="NAME", help="What the lender shall call this host.  [default: its host name]"
)
@click.option(
    "--want",
    multiple=True,
    type=click.Choice([kind.value for kind in ResourceKind]),
    help="Accept only this kind; repeat it for each.  [default: all that is granted]",
)
@click.option("--code-file", metavar="FILE", help="Read the code from a file, or from stdin (-), without asking.")
@output_option
def pair(
    address: str, name: str | None, borrower: str | None, want: tuple[str, ...], code_file: str | None, form: str
) -> None:
    """Make a lender and this user known to each other, by the code that `vmcoal lend pair` shows there.

    The address is HOST, HOST:PORT or [IPV6]:PORT. The code proves both sides to each other and is of no use to anybody
    who listens. Afterwards each side knows the other by its key alone.
    """
    from vmcoal.fabric.identity import borrower_identity, lender_store
    from vmcoal.fabric.pairing import explain
    from vmcoal.fabric.pairing import pair as pair_with

    host, port = split_address(address)
    code = _read_code(code_file)
    record = asyncio.run(
        pair_with(
            host,
            port,
            code,
            identity=borrower_identity(),
            borrower=borrower or host_name("borrower"),
            store=lender_store(),
            name=name,
            wanted=tuple(ResourceKind(kind) for kind in want) or None,
        )
    )
    if form == "json":
        print_json(record)
        return
    grants = ", ".join(kind.value for kind in record.grants)
    click.echo(f"paired with {record.name} at {record.address}; it grants {grants}")
    for line in explain(record.grants):
        note(f"  {line}")
    note(f"next: vmcoal attach --from {record.name} --memory 512M")


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT`` or a bare IPv6 address; raises `UsageError`."""
    from vmcoal.fabric.identity import DEFAULT_PORT

    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match["port"] or DEFAULT_PORT) <= 65535:
        raise UsageError(f"{address!r} is not an address", hint="write it as HOST, HOST:PORT or [IPV6]:PORT")
    return match["v6"] or match["bare"] or match["host"], int(match["port"] or DEFAULT_PORT)


def _read_code(file: str | None) -> str:
    if file is not None:
        try:
            with click.open_file(file) as opened:
                code = opened.read(_LONGEST_CODE).strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(
                f"--code-file: cannot read {file!r}: {reason}", hint="give a file with the code"
            ) from error
    elif sys.stdin.isatty():
        code = click.prompt("code shown by vmcoal lend pair", err=True).strip()
    else:
        raise UsageError("stdin is not a terminal to ask for the code on", hint="give --code-file FILE, or - for stdin")
    if not code:
        raise UsageError("the code is empty", hint="run vmcoal lend pair on the lender: it shows one")
    return str(code)


@click.command(cls=Command, example="vmcoal unpair attic")
@click.argument("lender", type=LENDER)
def unpair(lender: str) -> None:
    """Forget a lender. It still knows this user's key, until `vmcoal lend forget` there."""
    from vmcoal.fabric.identity import lender_store

    record = lender_store().remove(lender)
    note(f"{record.name} at {record.address} is forgotten")


@click.command(
    cls=Command,
    example="""
    vmcoal lenders
    vmcoal lenders -o json
    """,
)
@output_option
def lenders(form: str) -> None:
    """List the paired lenders: what they offer, how far they are, and why they do not answer."""
    from vmcoal.fabric.identity import borrower_identity, lender_store

    records = lender_store().load()
    views = asyncio.run(_ask_all(records, borrower_identity())) if records else []
    if form == "json":
        print_json(views)
        return
    click.echo(lenders_text(views))


async def _ask_all(records: list[LenderRecord], identity: Identity) -> list[LenderView]:
    return list(await asyncio.gather(*(_ask(record, identity) for record in records)))


async def _ask(record: LenderRecord, identity: Identity) -> LenderView:
    from vmcoal.fabric.session import LenderSession
    from vmcoal.policy.distance import link_distance, summarize

    view = LenderView(name=record.name, address=record.address, grants=record.grants, reachable=False)
    try:
        session = await LenderSession.connect(record, identity, _own_name(), deadline=_PATIENCE)
        try:
            offer = await session.offer(deadline=_PATIENCE)
            link = summarize(await session.sample_link(_PINGS, deadline=_PATIENCE))
        finally:
            await session.close()
    except VmcoalError as error:
        return msgspec.structs.replace(view, error=error.message)
    return msgspec.structs.replace(
        view, reachable=True, grants=session.grants, offer=offer, link=link, distance=link_distance(link)
    )


def _own_name() -> str:
    """Return the name that stands for this command where a session wants a VM's."""
    return f"cli-{os.getpid()}"


def lenders_text(views: list[LenderView]) -> str:
    """Return the table of lenders."""
    if not views:
        return "no lender is paired; vmcoal pair ADDRESS, while vmcoal lend pair runs there"
    rows = []
    for view in views:
        offer, link = view.offer, view.link
        rows.append(
            (
                view.name,
                view.address,
                "cordoned" if offer and offer.cordoned else "up" if view.reachable else "down",
                f"{offer.cpus_free}/{offer.cpus_total}" if offer else "-",
                f"{format_size(offer.memory_free)} / {format_size(offer.memory_total)}" if offer else "-",
                f"{offer.gpus_free}/{offer.gpus_total}" if offer else "-",
                format_duration(link.rtt) if link else "-",
                str(view.distance or "-"),
                ",".join(kind.value for kind in view.grants) or "-",
            )
        )
    header = ("LENDER", "ADDRESS", "STATE", "CPUS FREE", "MEMORY FREE", "GPUS FREE", "RTT", "DISTANCE", "GRANTS")
    lines = [table(header, rows)]
    gpus = [(view.name, device) for view in views if view.offer for device in view.offer.gpus]
    if gpus:
        lines += ["", "GPUs that are free:", *(f"  {name}: {device_words(device)}" for name, device in gpus)]
    wrong = [view for view in views if view.error]
    if wrong:
        lines += ["", *(f"{view.name}: {view.error}" for view in wrong)]
    return "\n".join(lines)


@click.command(
    cls=Command,
    example="""
    vmcoal ping attic
    vmcoal ping attic --count 100 -o json
    """,
)
@click.argument("lender", required=False, type=LENDER)
@click.option("-c", "--count", type=COUNT, default=10, show_default=True, help="How many round trips.")
@output_option
def ping(lender: str | None, count: int, form: str) -> None:
    """Measure the link to a lender with vmcoal's own messages, and say which NUMA distance it stands for.

    RTT is the link alone, as the kernel sees it; p50 and p99 include both ends' software. Where a VM borrows memory
    from the lender, the fetch of single pages of it is measured too.
    """
    from vmcoal.fabric.identity import borrower_identity, lender_store

    records = lender_store().load()
    if lender is None and len(records) != 1:
        known = ", ".join(record.name for record in records)
        if not records:
            raise NotFoundError("no lender is paired", hint="vmcoal pair ADDRESS, while vmcoal lend pair runs there")
        raise UsageError("there are several lenders", hint=f"name one of {known}")
    record = records[0] if lender is None else lender_store().get(lender)
    result = _with_fetch(asyncio.run(_measure(record, borrower_identity(), count)), count)
    if form == "json":
        print_json(result)
        return
    link = result.link
    click.echo(
        f"{record.name} at {record.address}: RTT {format_duration(link.rtt)}, p50 {format_duration(link.p50)}, "
        f"p99 {format_duration(link.p99)} of {link.samples}; distance {result.distance}"
    )
    if result.fetch is None:
        click.echo(f"page fetch: not measured, {result.no_fetch}")
        return
    fetch = result.fetch
    p50, p99 = format_duration(fetch.p50), format_duration(fetch.p99)
    click.echo(f"page fetch into {fetch.vm}: p50 {p50}, p99 {p99} of {fetch.pages}")


def _with_fetch(result: PingResult, count: int) -> PingResult:
    """Return ``result`` with the fetch of pages, as the first VM tells it that borrows memory from the lender."""
    why = f"no running VM borrows memory from {result.lender}"
    for vm in layout.known_vms():
        try:
            seen = call(
                layout.vm_folders(vm).control_socket,
                "ping",
                PingRequest(lender=result.lender, count=count),
                result=PingResult,
                peer=f"the controller of VM {vm}",
                deadline=_PATIENCE + _SAMPLE + count,
            )
        except NotListeningError:
            continue
        except VmcoalError as error:
            why = f"{vm}: {error}"
            continue
        if seen.fetch is not None:
            return msgspec.structs.replace(result, fetch=seen.fetch)
        why = seen.no_fetch or why
    return msgspec.structs.replace(result, no_fetch=why)


async def _measure(record: LenderRecord, identity: Identity, count: int) -> PingResult:
    from vmcoal.fabric.session import LenderSession
    from vmcoal.policy.distance import link_distance, summarize

    session: LenderSession = await LenderSession.connect(record, identity, _own_name(), deadline=_PATIENCE)
    try:
        link = summarize(await session.sample_link(count, deadline=_PATIENCE + count))
    finally:
        await session.close()
    return PingResult(lender=record.name, link=link, distance=link_distance(link), node=None, node_distance=None)
