"""Moving borrowed memory while it is used, on fakes: every failure and every kill leaves each page a place."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from framework.fake_vm import FakeLender, Killed, fake_vm
from framework.paged_vm import Paged
from vmcoal.controller import places
from vmcoal.controller.api import MoveRequest, MoveResult
from vmcoal.controller.attach import attach
from vmcoal.controller.detach import detach
from vmcoal.controller.leave import leave
from vmcoal.controller.move import move
from vmcoal.controller.reconcile import reconcile
from vmcoal.controller.tune import restore
from vmcoal.controller.vm import Vm
from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    ExecutionError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
    VmcoalError,
)
from vmcoal.lending.entry import Capacity
from vmcoal.model.attachment import AttachmentState, AttachRequest, DetachRequest, MemoryStyle, Plan
from vmcoal.model.guest import Room
from vmcoal.model.lease import LeaseState
from vmcoal.model.machine import CpuMode
from vmcoal.model.units import MIB

pytestmark = pytest.mark.unit

MEMORY = AttachRequest(lender="attic", memory=256 * MIB, deadline=10.0)
GRAINS = msgspec.structs.replace(MEMORY, style=MemoryStyle.GRANULAR)
ALL = DetachRequest(everything=True, deadline=10.0)
WAYS = [("attic", "cellar"), ("attic", "home"), ("home", "cellar")]


class Moved(Paged):
    """A VM whose pages move."""

    async def ready(self, source: str, request: AttachRequest = MEMORY) -> Vm:
        """Return a controller of a VM whose memory is at ``source``."""
        vm = await self.attached(request)
        if source == "home":
            await self.move(vm, "attic", "home")
        return vm

    async def move(self, vm: Vm, source: str, target: str) -> MoveResult:
        result = await move(vm, MoveRequest(source=source, target=target, deadline=10.0), self.world.report)
        assert isinstance(result, MoveResult)
        return result

    def at(self, vm: Vm) -> str:
        """Return where the one device's memory is, and check that the books of all sides agree: but for a lease whose
        release was what failed, which ends when its time to live is over."""
        (loan,) = vm.book
        assert not loan.copy
        assert loan.state is AttachmentState.ATTACHED
        (region,) = self.pager.paged.values()
        held = {lease.id: lease for x in self.world.lenders.values() for lease in x.held()}
        if self.world.fuse.broken == "release":
            held = {lease: held[lease] for lease in held if lease == loan.id}
        if loan.lease.lender == "home":
            assert region.home
            assert (region.away, region.places, held) == (0, {}, {})
        else:
            assert not region.home
            assert {number: place.lease for number, place in region.places.items()} == {loan.number: loan.id}
            assert set(held) == {loan.id}
            assert held[loan.id].state is LeaseState.ACTIVE
        assert vm.journal.open_operations() == []
        return loan.lease.lender


@pytest.fixture
def paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(places, "check_home_room", lambda away: None)
    with fake_vm(tmp_path) as world:
        yield Moved(world)


@pytest.mark.parametrize(("source", "target"), WAYS)
@pytest.mark.parametrize("request_", [MEMORY, GRAINS], ids=["dimm", "granular"])
async def test_there(paged: Moved, source: str, target: str, request_: AttachRequest) -> None:
    vm = await paged.ready(source, request_)
    result = await paged.move(vm, source, target)
    assert (result.source, result.target, result.memory_moved) == (source, target, 256 * MIB)
    assert [at.lender for at in result.attachments] == [target]
    assert paged.at(vm) == target
    assert any("copy" in text or "pull" in text for text in paged.world.told)
    device = next(iter(vm.book)).device
    assert device in paged.world.qemu.devices
    await detach(vm, ALL, paged.world.report)
    assert paged.world.leftovers() == []
    assert paged.pager.paged == {}


@pytest.mark.parametrize(("source", "target"), WAYS)
async def test_a_failure_at_any_call_leaves_it_at_one_place(tmp_path: Path, source: str, target: str) -> None:
    for number in range(1, 40):
        (tmp_path / str(number)).mkdir()
        with fake_vm(tmp_path / str(number)) as world:
            paged = Moved(world)
            vm = await paged.ready(source)
            world.fuse.arm(number, kill=False)
            try:
                await paged.move(vm, source, target)
            except VmcoalError:
                pass
            else:
                if len(world.fuse.calls) < number:
                    return
            world.fuse.disarm()
            await places.tidy(vm)
            assert paged.at(vm) in (source, target), f"after {world.fuse.calls}"
            await detach(vm, ALL, world.report)
            told = [left for left in world.leftovers() if world.fuse.broken != "release" or "lease" not in left]
            assert told == []
    pytest.fail("move never succeeded")


@pytest.mark.parametrize(("source", "target"), WAYS)
async def test_a_controller_killed_at_any_call(tmp_path: Path, source: str, target: str) -> None:
    for number in range(1, 40):
        (tmp_path / str(number)).mkdir()
        with fake_vm(tmp_path / str(number)) as world:
            paged = Moved(world)
            vm = await paged.ready(source)
            world.fuse.arm(number, kill=True)
            try:
                await paged.move(vm, source, target)
            except Killed:
                world.fuse.disarm()
                after = world.controller()
                await restore(after)
                await reconcile(after)
                assert paged.at(after) in (source, target), f"killed at {world.fuse.calls}"
                await detach(after, ALL, world.report)
                assert world.leftovers() == []
            else:
                return
    pytest.fail("move never succeeded")


@pytest.mark.parametrize(("source", "target"), WAYS)
async def test_cancelling_leaves_it_at_one_place(paged: Moved, source: str, target: str) -> None:
    vm = await paged.ready(source)
    paged.pager.step = 0
    (region,) = paged.pager.paged.values()
    region.away = 64 * MIB if source != "home" else 0
    task = asyncio.create_task(paged.move(vm, source, target))
    while not any(text.startswith("2/") for text in paged.world.told[-1:]) and not region.home:
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # What is home belongs to the lender as soon as its pages may go there.
    assert paged.at(vm) == (target if source == "home" else source)


async def test_a_transfer_that_stands_still_is_undone(paged: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "STILL", 0.1)
    vm = await paged.ready("attic")
    paged.pager.step = 0
    with pytest.raises(DeadlineError, match="no page has moved"):
        await paged.move(vm, "attic", "cellar")
    assert paged.at(vm) == "attic"


async def test_a_target_that_cannot_be_reached(paged: Moved) -> None:
    vm = await paged.ready("attic")
    paged.pager.refuses.add("cellar")
    with pytest.raises(VmcoalError, match="nothing answers"):
        await paged.move(vm, "attic", "cellar")
    assert paged.at(vm) == "attic"


async def test_what_cannot_be_moved(paged: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = await paged.ready("attic")
    with pytest.raises(UsageError):
        await paged.move(vm, "attic", "attic")
    with pytest.raises(NotFoundError, match="no memory at cellar"):
        await paged.move(vm, "cellar", "home")
    with pytest.raises(NotFoundError, match="no lender 'barn' is paired"):
        await paged.move(vm, "attic", "barn")
    paged.world.lenders["shed"] = FakeLender("shed", memory=128 * MIB)
    with pytest.raises(RefusedError, match="128 MiB free"):
        await paged.move(vm, "attic", "shed")

    def full(away: int) -> None:
        raise RefusedError("no room")

    monkeypatch.setattr("vmcoal.controller.move.check_home_room", full)
    with pytest.raises(RefusedError, match="no room"):
        await paged.move(vm, "attic", "home")
    assert paged.at(vm) == "attic"


async def test_a_plan_changes_nothing(paged: Moved) -> None:
    vm = await paged.ready("attic")
    calls = len(paged.world.fuse.calls)
    for target in ("cellar", "home"):
        plan = await move(vm, MoveRequest(source="attic", target=target, dry_run=True), paged.world.report)
        assert isinstance(plan, Plan)
        assert plan.steps
    assert len(paged.world.fuse.calls) == calls


async def test_an_engine_that_does_not_page(tmp_path: Path) -> None:
    with fake_vm(tmp_path, CpuMode.PLUG_PARK) as world:
        vm = world.controller()
        await attach(vm, MEMORY, world.report)
        with pytest.raises(ConflictError, match="no way to move memory"):
            await move(vm, MoveRequest(source="attic", target="home"), world.report)


# Leaving a lender that wants everything back


async def drained(paged: Moved, request: AttachRequest = MEMORY, *, room: bool = True) -> tuple[Vm, list[str]]:
    vm = await paged.ready("attic", request)
    if not room:
        paged.world.guest.room = Room(fits=False, needed=200 * MIB, available=100 * MIB)
    return vm, await leave(vm, "attic", 5.0, paged.world.report)


async def test_what_fits_into_the_guest_leaves_it(paged: Moved) -> None:
    vm, told = await drained(paged)
    assert told == ["everything from attic left the guest"]
    assert "home" in paged.world.fuse.calls, "its pages are pulled meanwhile"
    assert paged.world.leftovers() == []
    assert len(vm.book) == 0


async def test_what_does_not_fit_into_the_guest_goes_to_another_lender(paged: Moved) -> None:
    vm, told = await drained(paged, room=False)
    assert paged.at(vm) == "cellar"
    assert "at cellar now" in told[0]


async def test_without_another_lender_it_comes_home(paged: Moved) -> None:
    del paged.world.lenders["cellar"]
    vm, told = await drained(paged, room=False)
    assert paged.at(vm) == "home"
    assert "home now" in told[0]


async def test_a_lender_that_cannot_be_left_is_said(paged: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(away: int) -> None:
        raise RefusedError("no room")

    monkeypatch.setattr("vmcoal.controller.leave.check_home_room", full)
    del paged.world.lenders["cellar"]
    with pytest.raises(ExecutionError, match="cannot leave attic in time") as caught:
        await drained(paged, room=False)
    assert "lost then" in (caught.value.left or "")


async def test_memory_moves_also_where_the_guests_agent_dies_of_the_drain(paged: Moved) -> None:
    vm = await paged.ready("attic")
    assert vm.agent is not None
    vm.agent.fail["memory_set"] = UnreachableError("the guest's agent hung up")  # type: ignore[attr-defined]
    assert "at cellar now" in (await leave(vm, "attic", 5.0, paged.world.report))[0]
    assert paged.at(vm) == "cellar"


async def test_what_can_move_does_though_something_before_it_cannot(paged: Moved) -> None:
    vm = await paged.ready("attic", msgspec.structs.replace(MEMORY, memory=512 * MIB))
    await attach(vm, msgspec.structs.replace(MEMORY, memory=128 * MIB), paged.world.report)
    paged.world.lenders["cellar"].book.capacity = Capacity(0, 256 * MIB)
    paged.world.guest.room = Room(fits=False, needed=200 * MIB, available=100 * MIB)

    def full(away: int) -> None:
        raise RefusedError("no room")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmcoal.controller.leave.check_home_room", full)
        with pytest.raises(ExecutionError, match=r"512 MiB of .* cannot leave attic in time"):
            await leave(vm, "attic", 5.0, paged.world.report)
    assert {loan.size >> 20: loan.lease.lender for loan in vm.book} == {512: "attic", 128: "cellar"}


async def test_what_another_place_has_is_given_up_at_once(paged: Moved) -> None:
    vm, told = await drained(paged, msgspec.structs.replace(MEMORY, replicas=2))
    assert "other place" in told[0]
    assert paged.at(vm) == "cellar"
    assert all(loan.device in paged.world.qemu.devices for loan in vm.book)


@pytest.mark.parametrize("request_", [MEMORY, GRAINS], ids=["dimm", "granular"])
async def test_a_detach_that_fails_lets_pages_leave_again(paged: Moved, request_: AttachRequest) -> None:
    vm = await paged.ready("attic", request_)
    command = "device_del" if request_ is MEMORY else "qom-set"
    paged.world.qemu.fail(command, UnreachableError("broken"), times=1)
    with pytest.raises(VmcoalError):
        await detach(vm, ALL, paged.world.report)
    assert "home" in paged.world.fuse.calls
    assert paged.at(vm) == "attic"


async def test_no_room_in_the_guest_names_the_way_that_is_left(paged: Moved) -> None:
    vm = await paged.ready("attic")
    paged.world.guest.room = Room(fits=False, needed=200 * MIB, available=100 * MIB)
    with pytest.raises(RefusedError) as caught:
        await detach(vm, ALL, paged.world.report)
    assert "vmcoal move web --from attic --to cellar" in (caught.value.hint or "")


async def test_a_deadline_that_is_not_met_says_what_is_left(paged: Moved, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcoal.controller.undo._DEADLINE", 0.1)
    vm = await paged.ready("attic")
    paged.pager.step = 0
    assert vm.agent is not None
    vm.agent.silent.add("memory_set")  # type: ignore[attr-defined]
    with pytest.raises(DeadlineError, match="pages away: 64 MiB of 64 MiB left"):
        await detach(vm, msgspec.structs.replace(ALL, deadline=0.3), paged.world.report)
    (region,) = paged.pager.paged.values()
    assert not region.home
