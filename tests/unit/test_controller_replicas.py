"""A second place for the pages of memory that is attached already, and the way out of a lender, on fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from framework.fake_vm import FakeLender, Killed, fake_vm
from framework.paged_vm import Paged
from vmcoal.controller.api import MoveRequest, TuneRequest
from vmcoal.controller.attach import attach
from vmcoal.controller.detach import detach
from vmcoal.controller.guard import Guard
from vmcoal.controller.move import move
from vmcoal.controller.reconcile import reconcile
from vmcoal.controller.tune import restore, tune
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, NotFoundError, RefusedError, UsageError, VmcoalError
from vmcoal.model.attachment import AttachmentState, AttachRequest, DetachRequest, MemoryStyle
from vmcoal.model.guest import Room
from vmcoal.model.units import MIB

pytestmark = pytest.mark.unit

ONCE = AttachRequest(lender="attic", memory=256 * MIB, deadline=10.0)
GRAINS = msgspec.structs.replace(ONCE, style=MemoryStyle.GRANULAR)
WAYS = pytest.mark.parametrize("request_", [ONCE, GRAINS], ids=["dimm", "granular"])
TWICE = TuneRequest(replicas=2, deadline=10.0)
ALONE = TuneRequest(replicas=1, deadline=10.0)


@pytest.fixture
def paged(tmp_path: Path) -> Iterator[Paged]:
    with fake_vm(tmp_path) as world:
        yield Paged(world)


def at(vm: Vm) -> list[list[str]]:
    """Return who has the pages of each region, by the book."""
    assert {loan.state for loan in vm.book} <= {AttachmentState.ATTACHED}
    carriers = [loan for loan in vm.book if not loan.copy]
    return [[place.lease.lender for place in vm.book.places(loan.region)] for loan in carriers]


@WAYS
@pytest.mark.parametrize("on", [None, "cellar", "local"])
async def test_a_copy_is_added_and_given_up(paged: Paged, request_: AttachRequest, on: str | None) -> None:
    vm = await paged.attached(request_)
    assert at(vm) == [["attic"]]
    told = await tune(vm, msgspec.structs.replace(TWICE, replica_on=on), paged.world.report)
    (region,) = paged.pager.paged.values()
    assert region.places[1].behind == 0, "it is waited for"
    assert at(vm) == [["attic", on or "cellar"]]
    assert list(told.places.values()) == [("attic", on or "cellar")]
    assert {loan.replicas for loan in vm.book} == {2}
    again = await tune(vm, TWICE, paged.world.report)
    assert again.places == told.places
    alone = await tune(vm, ALONE, paged.world.report)
    assert at(vm) == [["attic"]]
    assert any("at attic alone" in note for note in alone.notes)
    await Guard(vm).look()
    assert at(vm) == [["attic"]], "what was taken away on purpose is not made again"
    await detach(vm, DetachRequest(everything=True, deadline=10.0), paged.world.report)
    assert paged.world.leftovers() == []


async def test_each_device_has_its_copy_where_there_is_room(paged: Paged) -> None:
    vm = await paged.attached(ONCE)
    await attach(vm, msgspec.structs.replace(ONCE, lender="cellar", node=None), paged.world.report)
    await tune(vm, TWICE, paged.world.report)
    assert sorted(at(vm)) == [["attic", "cellar"], ["cellar", "attic"]]
    assert vm.journal.open_operations() == []


@WAYS
@pytest.mark.parametrize("what", [TWICE, ALONE], ids=["add", "remove"])
async def test_a_controller_killed_at_any_call(tmp_path: Path, request_: AttachRequest, what: TuneRequest) -> None:
    for number in range(1, 60):
        (tmp_path / str(number)).mkdir()
        with fake_vm(tmp_path / str(number)) as world:
            paged = Paged(world)
            vm = await paged.attached(request_)
            if what is ALONE:
                await tune(vm, TWICE, world.report)
            world.fuse.arm(number, kill=True)
            try:
                await tune(vm, what, world.report)
            except Killed:
                world.fuse.disarm()
                after = world.controller()
                await restore(after)
                await reconcile(after)
                await Guard(after).look()
                assert after.journal.open_operations() == []
                leases = {lease.id for lender in world.lenders.values() for lease in lender.held()}
                assert {loan.id for loan in after.book if loan.leased} == leases, f"killed at {world.fuse.calls}"
                assert all("attic" in places for places in at(after))
                await detach(after, DetachRequest(everything=True, deadline=10.0), world.report)
                assert world.leftovers() == [], f"killed at {world.fuse.calls}"
            else:
                assert number > 1
                return
    pytest.fail("it never succeeded")


async def test_a_copy_that_fails_leaves_what_was(paged: Paged) -> None:
    vm = await paged.attached(ONCE)
    paged.pager.refuses.add("cellar")
    with pytest.raises(VmcoalError):
        await tune(vm, TWICE, paged.world.report)
    assert at(vm) == [["attic"]]
    assert {loan.replicas for loan in vm.book} == {1}, "the guard does not go on with it"
    assert paged.world.lenders["cellar"].held() == []


async def test_a_copy_that_has_pages_alone_stays(paged: Paged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcoal.controller.places.STILL", 0.1)
    vm = await paged.attached(ONCE)
    await tune(vm, TWICE, paged.world.report)
    (region,) = paged.pager.paged.values()
    region.places[0].connected = False
    with pytest.raises(VmcoalError, match="no page has moved"):
        await tune(vm, ALONE, paged.world.report)
    assert at(vm) == [["attic", "cellar"]]
    assert {loan.replicas for loan in vm.book} == {2}


async def test_where_a_copy_cannot_be(paged: Paged) -> None:
    vm = paged.world.controller()
    with pytest.raises(NotFoundError, match="no borrowed memory"):
        await tune(vm, TWICE, paged.world.report)
    await attach(vm, ONCE, paged.world.report)
    calls = len(paged.world.fuse.calls)
    for request, error in (
        (TuneRequest(replicas=3), UsageError),
        (TuneRequest(replica_on="cellar"), UsageError),
        (TuneRequest(replicas=1, replica_on="cellar"), UsageError),
        (TuneRequest(replicas=2, replica_on="attic"), UsageError),
        (TuneRequest(replicas=2, replica_on="barn"), NotFoundError),
    ):
        with pytest.raises(error):
            await tune(vm, request, paged.world.report)
    assert len(paged.world.fuse.calls) == calls
    await tune(vm, TWICE, paged.world.report)
    paged.world.lenders["barn"] = FakeLender("barn", rtt=70e-6)
    with pytest.raises(ConflictError, match="cellar has the copy") as caught:
        await tune(vm, TuneRequest(replicas=2, replica_on="barn"), paged.world.report)
    assert "vmcoal move" in (caught.value.hint or "")


async def test_memory_at_home_needs_no_copy(paged: Paged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcoal.controller.move.check_home_room", lambda away: None)
    vm = await paged.attached(ONCE)
    await move(vm, MoveRequest(source="attic", target="home", deadline=10.0), paged.world.report)
    with pytest.raises(ConflictError, match="home on this host") as caught:
        await tune(vm, TWICE, paged.world.report)
    assert "--from home" in (caught.value.hint or "")


# The way out of a lender


def full(away: int) -> None:
    """Stand in for a host without room."""
    raise RefusedError("no room", hint="end programs")


async def test_a_detach_that_does_not_fit_says_how_to_leave_all_the_same(
    paged: Paged, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await paged.attached(ONCE)
    paged.world.guest.room = Room(fits=False, needed=64 * MIB, available=MIB, explanation="")
    with pytest.raises(RefusedError, match="in use there") as caught:
        await detach(vm, DetachRequest(lender="attic"), paged.world.report)
    command = f"vmcoal move {vm.spec.name} --from attic --to cellar"
    assert command in (caught.value.hint or "")
    monkeypatch.setattr("vmcoal.controller.move.check_home_room", full)
    with pytest.raises(RefusedError, match="no room") as caught:
        await move(vm, MoveRequest(source="attic", target="home"), paged.world.report)
    assert command in (caught.value.hint or "")
    del paged.world.lenders["cellar"]
    monkeypatch.setattr("vmcoal.controller.places.check_home_room", lambda away: None)
    with pytest.raises(RefusedError) as caught:
        await detach(vm, DetachRequest(lender="attic"), paged.world.report)
    assert "--from attic --to home" in (caught.value.hint or "")
    monkeypatch.setattr("vmcoal.controller.places.check_home_room", full)
    with pytest.raises(RefusedError) as caught:
        await detach(vm, DetachRequest(lender="attic"), paged.world.report)
    assert "pair a lender" in (caught.value.hint or "")
