"""The places that a region's pages are in: adding one, waiting until it has every page, giving one up.

One loan of a region has its device; a second one, the copy, has its pages as well. Which of the two is which only
decides what status says: the page engine reads from either.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

import msgspec

from vmcoal.backends.local_copy import ADDRESS
from vmcoal.controller.borrow import borrow, release, settle
from vmcoal.controller.loans import Loan
from vmcoal.controller.transaction import Transaction
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, DeadlineError, NotFoundError, RefusedError, UsageError, VmcoalError
from vmcoal.host.facts import Host
from vmcoal.layout import shm_home
from vmcoal.model.attachment import AttachmentState
from vmcoal.model.lease import Lease, LeaseState, ResourceKind
from vmcoal.model.paging import HOME, LOCAL, PagedRegion
from vmcoal.model.units import format_size
from vmcoal.policy.admission import admit
from vmcoal.policy.paging import PLACES, Candidate, Transfer, choose_spare, fits_home, only_at

_LOOK_FIRST, _LOOK_MAX = 0.02, 0.5
_STORE_DEADLINE = 20.0
_ANSWER = 1.0
"""Seconds that lenders have to say how much room they have, where the answer is only a hint."""

STILL = 30.0
"""Seconds without a byte after which a transfer is given up."""


async def region_of(vm: Vm, region: str) -> PagedRegion:
    """Return what the page engine says of ``region``; raises `NotFoundError` if it has none."""
    found = await vm.pager("regions").region(region)
    if found is None:
        raise NotFoundError(f"the page engine has no region {region}", hint=f"vmcoal status {vm.spec.name}")
    return found


def free_number(vm: Vm, region: str) -> int | None:
    """Return a number that no place of ``region`` has, or ``None``."""
    taken = {loan.number for loan in vm.book.places(region) if loan.lease.lender != HOME}
    return next((number for number in range(PLACES) if number not in taken), None)


async def candidates(vm: Vm, *, deadline: float = 5.0) -> list[Candidate]:
    """Return the paired lenders that answer within ``deadline`` seconds."""

    async def ask(name: str) -> Candidate | None:
        try:
            session = await vm.keeper.session(name, deadline=deadline)
            link = vm.keeper.links.get(name) or await vm.keeper.measure(name, 3)
            return Candidate(await session.offer(), session.grants, link.rtt)
        except VmcoalError:
            return None

    names = [record.name for record in vm.keeper.records()]
    return [found for found in await asyncio.gather(*map(ask, names)) if found is not None]


async def find_spare(vm: Vm, taken: Collection[str], size: int) -> str | None:
    """Return the nearest paired lender outside ``taken`` that has ``size`` bytes for us, or ``None``."""
    return choose_spare(await candidates(vm), taken, size)


async def way_out(vm: Vm, loan: Loan) -> str | None:
    """Return the command that takes a region's memory from ``loan``'s lender to where there is room for it: the nearest
    other lender that answers soon, or this host. ``None`` if there is no such place."""
    spare = None
    with contextlib.suppress(TimeoutError, VmcoalError):
        async with asyncio.timeout(_ANSWER):
            spare = await find_spare(vm, {place.lease.lender for place in vm.book.places(loan.region)}, loan.size)
    if spare is None:
        try:
            check_home_room((await region_of(vm, loan.region)).away)
        except (RefusedError, NotFoundError):
            return None
    return f"vmcoal move {vm.spec.name} --from {loan.lease.lender} --to {spare or HOME}"


async def choose_copy(vm: Vm, lender: str, wanted: str | None, capacity: int, committed: int) -> str:
    """Return where memory from ``lender`` can be a second time: at ``wanted``, or at the nearest other lender.

    Raises `UsageError`, `NotFoundError`, `RefusedError` if it cannot be there; nothing is changed.
    """
    vm.pager("second place for pages (--replicas)")
    if wanted == LOCAL:
        vm.local.check_room(capacity)
        return LOCAL
    if wanted == lender:
        raise UsageError(
            f"a copy at {lender} would be lost with it", hint="name another lender, or: --replica-on local"
        )
    if wanted is None:
        spare = await find_spare(vm, {lender}, committed)
        if spare is None:
            raise RefusedError(
                f"no paired lender but {lender} answers and has {format_size(committed)} for a copy",
                hint="pair another one, or keep the copy in a file here: --replica-on local",
            )
        return spare
    record = vm.keeper.record(wanted)
    session = await vm.keeper.session(record.name, deadline=10.0)
    await vm.keeper.measure(record.name)
    grants = frozenset(session.grants)
    admit(await session.offer(), grants, ResourceKind.MEMORY, capacity, committed, session.same_host)
    return record.name


def own_lease(vm: Vm, loan: Loan, place: str) -> Lease:
    """Return what stands for a lease of ``loan``'s region where its pages are on this host: at `HOME` or `LOCAL`."""
    return Lease(
        id=f"{place}-{loan.region}",
        kind=ResourceKind.MEMORY,
        amount=loan.capacity,
        committed=loan.size,
        state=LeaseState.ACTIVE,
        epoch=0,
        lender=place,
        borrower="",
        vm=vm.spec.name,
    )


def check_home_room(away: int) -> None:
    """Raise `RefusedError` unless ``away`` more bytes fit into this host's memory."""
    info = os.statvfs(next(path for path in (shm_home(), *shm_home().parents) if path.exists()))
    available, files = Host().memory_available(), info.f_bavail * info.f_frsize
    if not fits_home(away, available, files):
        raise RefusedError(
            f"{format_size(away)} do not fit into this host's memory, {format_size(min(available, files))} are free",
            hint="end programs here, or move it to another lender: vmcoal move --to LENDER",
        )


async def add_copy(vm: Vm, carrier: Loan, lender: str, trans: Transaction, *, number: int | None = None) -> Loan:
    """Have the pages of ``carrier``'s region at ``lender`` (or in a local file) as well, as steps of ``trans``.

    ``number`` is that of a place that is no longer used, ``None`` for a free one. The pages that exist are copied
    meanwhile; `wait_until` waits for them. Returns the copy's loan.
    """
    region = carrier.region
    number = free_number(vm, region) if number is None else number
    if number is None:
        raise ConflictError(f"the pages of {carrier.device} are in {PLACES} places already", hint="see: vmcoal status")
    if lender == LOCAL:
        lease = own_lease(vm, carrier, LOCAL)
        async with trans.step("local-copy", region=region):
            server, address, link = await vm.local.start(region, carrier.capacity), ADDRESS, None
    else:
        session = await vm.keeper.session(lender)
        granted = await borrow(vm, session, trans, ResourceKind.MEMORY, carrier.capacity, carrier.size)
        assert granted.memory is not None
        lease, server, address = granted.lease, granted.memory, session.data_address(granted.memory)
        link = vm.keeper.links.get(lender)
    loan = msgspec.structs.replace(
        carrier,
        lease=lease,
        number=number,
        copy=True,
        port=server.port,
        link=link,
        since=time.time(),
        state=AttachmentState.ATTACHING,
        problem=None,
    )
    async with trans.step("book", lease=loan.id):
        vm.book.put(loan)
    async with trans.step("store", region=region, number=number):
        await vm.pager("second place for pages").store(region, number, lease, server, address, deadline=_STORE_DEADLINE)
    return loan


async def settle_copy(vm: Vm, loan: Loan) -> None:
    """Tell the lender of a copy that it is in use, and keep its lease alive."""
    if loan.leased:
        await settle(vm, await vm.keeper.session(loan.lease.lender), loan)
        vm.keeper.watch(loan.lease.lender)
    else:
        vm.book.put(msgspec.structs.replace(vm.book.get(loan.id) or loan, state=AttachmentState.ATTACHED))


def missing_at(region: PagedRegion, number: int) -> int:
    """Return the bytes that place ``number`` still has to get; one that does not answer has always something to get."""
    copy = region.copy(number)
    if copy is None:
        return region.size
    return copy.behind if copy.connected else max(1, copy.behind)


async def wait_until(vm: Vm, region: str, left: Callable[[PagedRegion], int], trans: Transaction | None = None) -> None:
    """Wait until ``left`` of a region is 0 bytes, and tell ``trans`` how far it is.

    Raises `DeadlineError` when nothing has moved for `STILL` seconds.
    """
    now = time.monotonic()
    transfer, pause = Transfer(left(await region_of(vm, region)), now), _LOOK_FIRST
    while True:
        rest, now = left(await region_of(vm, region)), time.monotonic()
        transfer.look(rest, now)
        if trans is not None:
            trans.progress(transfer.fraction, transfer.text(now))
        if not rest:
            return
        if transfer.still(now) > STILL:
            raise DeadlineError(
                f"no page has moved for {STILL:g} s, {format_size(rest)} are left",
                hint="see which lender does not answer: vmcoal status",
            )
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LOOK_MAX)


@asynccontextmanager
async def pulling(vm: Vm, loan: Loan, trans: Transaction) -> AsyncIterator[Callable[[], str]]:
    """Pull a region's pages here, hottest first, while the body has the guest leave it; gives what is to be told of it.

    The guest's kernel reads what it moves, and would wait for the link page by page. Where this host has no room,
    nothing is pulled. Undone with ``trans``.
    """
    if not vm.engine.traits.pages or not loan.leased:
        yield lambda: ""
        return
    try:
        away = (await region_of(vm, loan.region)).away
        check_home_room(away)
    except (RefusedError, NotFoundError):
        yield lambda: ""
        return
    async with trans.step("home", region=loan.region):
        await vm.pager("home").home(loan.region, True)
    transfer = Transfer(away, time.monotonic())

    def text() -> str:
        return f"pages away: {transfer.text(time.monotonic())}"

    async def look() -> None:
        while True:
            with contextlib.suppress(VmcoalError):
                transfer.look((await region_of(vm, loan.region)).away, time.monotonic())
                trans.outlook[loan.region] = text()
            await asyncio.sleep(_LOOK_MAX)

    looking = asyncio.create_task(look(), name=f"pull of {loan.region}")
    try:
        yield text
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


def promote(vm: Vm, loan: Loan, *, gone: Collection[str] = ()) -> Loan:
    """Give the region's device to ``loan``; the loan that had it becomes the copy, unless it is among ``gone``."""
    old = vm.book.carrier(loan.region)
    new = msgspec.structs.replace(vm.book.get(loan.id) or loan, copy=False, state=AttachmentState.ATTACHED)
    if old is None or old.id == new.id or old.id in gone:
        vm.book.change(new, gone=gone)
    else:
        vm.book.change(new, msgspec.structs.replace(old, copy=True), gone=gone)
    return new


async def give_up(vm: Vm, loan: Loan, *, lost: bool = False) -> list[str]:
    """Use a place no longer and give its lease back; return notes for people.

    It is waited for until every page is elsewhere, unless the place is ``lost`` anyway. Idempotent: a new controller
    finishes it for a loan that is a copy and detaching.
    """
    pager = vm.pager("places")
    current = vm.book.get(loan.id) or loan
    other = next((x for x in vm.book.places(loan.region) if x.id != loan.id), None)
    if not lost and await pager.region(loan.region) is not None:
        await wait_until(vm, loan.region, lambda seen: only_at(seen, loan.number))
    if not current.copy and other is not None:
        promote(vm, other)
        current = vm.book.get(loan.id) or current
    vm.book.put(msgspec.structs.replace(current, state=AttachmentState.DETACHING))
    return await finish_giving_up(vm, current, lost=lost)


async def finish_giving_up(vm: Vm, loan: Loan, *, lost: bool = False) -> list[str]:
    """Take a place from the page engine and give its lease back; return notes for people.

    Raises `ConflictError` while it alone has pages, unless they are ``lost`` anyway.
    """
    others = [x for x in vm.book.places(loan.region) if x.id != loan.id and x.lease.lender != HOME]
    if all(other.number != loan.number for other in others):  # else the number is another place's by now
        await vm.pager("places").unstore(loan.region, loan.number, gone=lost)
    if loan.lease.lender == LOCAL:
        await vm.local.stop(loan.region)
    note = await release(vm, loan)
    await vm.keeper.forget(loan.lease.lender)
    return [note] if note else []


async def tidy(vm: Vm) -> list[str]:
    """Finish what was begun with places and not ended, while no operation is under way; return what was done or failed.

    A copy that is detaching, or whose device is gone, is given back. Memory that is home stays, other memory does not.
    """
    if not vm.engine.traits.pages:
        return []
    told: list[str] = []
    for loan in vm.book:
        if not loan.is_memory:
            continue
        try:
            if loan.copy and (loan.state is AttachmentState.DETACHING or vm.book.carrier(loan.region) is None):
                notes = await finish_giving_up(vm, loan)
                told += [f"lease {loan.id} was being given up and is given back", *notes]
            elif not loan.copy:
                await _stay(vm, loan)
        except VmcoalError as error:
            told.append(f"lease {loan.id}: {error}")
    return told


async def _stay(vm: Vm, loan: Loan) -> None:
    pager, home = vm.pager("home"), loan.lease.lender == HOME
    region = await pager.region(loan.region)
    if region is not None and region.home != home:
        await pager.home(loan.region, home)
