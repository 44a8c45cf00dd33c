"""Two places for every page, on fakes: attach and detach with both, and what follows the loss of one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from framework.fake_vm import FakeLender, Killed, fake_vm
from framework.paged_vm import Paged
from vmcoal.controller import guard as guards
from vmcoal.controller import tune as tuning
from vmcoal.controller.api import MoveRequest, ShutdownRequest, TuneRequest
from vmcoal.controller.attach import attach
from vmcoal.controller.detach import detach
from vmcoal.controller.guard import Guard, held
from vmcoal.controller.lifecycle import plan_power_off
from vmcoal.controller.move import move
from vmcoal.controller.paging import paging
from vmcoal.controller.reconcile import reconcile
from vmcoal.controller.status import _troubles
from vmcoal.controller.tune import restore, tune
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, NotFoundError, PrerequisiteError, RefusedError, UsageError, VmcoalError
from vmcoal.model.attachment import AttachmentState, AttachRequest, DetachRequest, MemoryStyle, Plan
from vmcoal.model.machine import Accel, CpuMode
from vmcoal.model.paging import LossPolicy
from vmcoal.model.units import MIB

pytestmark = pytest.mark.unit

TWICE = AttachRequest(lender="attic", memory=256 * MIB, replicas=2, deadline=10.0)
LOCAL = msgspec.structs.replace(TWICE, replica_on="local")
GRAINS = msgspec.structs.replace(TWICE, style=MemoryStyle.GRANULAR)
WAYS = pytest.mark.parametrize("request_", [TWICE, LOCAL, GRAINS], ids=["lender", "local", "granular"])
ALL = DetachRequest(everything=True, deadline=10.0)


class Copied(Paged):
    """A VM whose pages are in two places."""

    vms: list[Vm]

    def places(self, vm: Vm) -> list[str]:
        """Return where the one region's pages are, as the book and the engine have it."""
        (region,) = self.pager.paged
        loans = vm.book.places(region)
        assert [loan.copy for loan in loans] == [False, True][: len(loans)]
        known = {number: place.lease for number, place in self.pager.paged[region].places.items()}
        assert known == {loan.number: loan.id for loan in loans if loan.lease.lender != "home"}
        assert vm.journal.open_operations() == []
        return [loan.lease.lender for loan in loans]

    def lose(self, lender: str) -> None:
        """Have a lender die, its lease with it."""
        self.world.lenders[lender].reachable = False
        for region in self.pager.paged.values():
            for place in region.places.values():
                if place.lease.startswith(f"m{lender}"):
                    place.connected = False
        for vm in self.vms:
            for loan in vm.book.of(lender):
                vm.keeper._gone(loan.id)

    async def ready(self, request: AttachRequest = TWICE) -> Vm:
        vm = await self.attached(request)
        self.vms = [vm]
        return vm


@pytest.fixture
def paged(tmp_path: Path) -> Iterator[Copied]:
    with fake_vm(tmp_path) as world:
        yield Copied(world)


@WAYS
async def test_there_and_back(paged: Copied, request_: AttachRequest) -> None:
    vm = await paged.ready(request_)
    assert paged.places(vm) == ["attic", "local" if request_.replica_on else "cellar"]
    assert {loan.state for loan in vm.book} == {AttachmentState.ATTACHED}
    assert sum(loan.size for loan in vm.book.on(2)) == 256 * MIB
    await detach(vm, ALL, paged.world.report)
    assert paged.world.leftovers() == []
    assert len(vm.book) == 0


async def test_a_plan_says_where(paged: Copied) -> None:
    vm = paged.world.controller()
    plan = await attach(vm, msgspec.structs.replace(TWICE, dry_run=True), paged.world.report)
    assert isinstance(plan, Plan)
    assert [step.where for step in plan.steps if step.name == "copy"] == ["cellar"]
    assert paged.world.fuse.calls == []
    await attach(vm, TWICE, paged.world.report)
    plan = await detach(vm, msgspec.structs.replace(ALL, dry_run=True), paged.world.report)
    assert isinstance(plan, Plan)
    assert [step.where for step in plan.steps if step.name == "release"] == ["attic", "cellar"]


@WAYS
async def test_a_failure_at_any_call_leaves_nothing(tmp_path: Path, request_: AttachRequest) -> None:
    for number in range(1, 60):
        (tmp_path / str(number)).mkdir()
        with fake_vm(tmp_path / str(number)) as world:
            Paged(world)
            vm = world.controller()
            world.fuse.arm(number, kill=False)
            try:
                await attach(vm, request_, world.report)
            except VmcoalError:
                assert world.leftovers() == [], f"after {world.fuse.calls}"
                assert len(vm.book) == 0
            else:
                assert len(world.fuse.calls) < number
                return
    pytest.fail("attach never succeeded")


@WAYS
@pytest.mark.parametrize("what", ["attach", "detach"])
async def test_a_controller_killed_at_any_call(tmp_path: Path, request_: AttachRequest, what: str) -> None:
    for number in range(1, 60):
        (tmp_path / str(number)).mkdir()
        with fake_vm(tmp_path / str(number)) as world:
            Paged(world)
            vm = world.controller()
            if what == "detach":
                await attach(vm, request_, world.report)
            world.fuse.arm(number, kill=True)
            try:
                await (attach(vm, request_, world.report) if what == "attach" else detach(vm, ALL, world.report))
            except Killed:
                world.fuse.disarm()
                after = world.controller()
                await restore(after)
                await reconcile(after)
                assert after.journal.open_operations() == []
                held_leases = {lease.id for lender in world.lenders.values() for lease in lender.held()}
                booked = {loan.id for loan in after.book if loan.leased}
                assert booked == held_leases, f"killed at {world.fuse.calls}"
                if what == "attach":
                    assert world.leftovers() == [], f"killed at {world.fuse.calls}"
                elif len(after.book):
                    await detach(after, ALL, world.report)
                assert world.leftovers() == [], f"killed at {world.fuse.calls}"
            else:
                return
    pytest.fail(f"{what} never succeeded")


async def test_granular_memory_grows_and_shrinks_in_both_places(paged: Copied) -> None:
    vm = await paged.ready(GRAINS)
    await attach(vm, msgspec.structs.replace(GRAINS, memory=128 * MIB), paged.world.report)
    committed = [sum(lease.committed for lease in paged.world.lenders[x].held()) for x in ("attic", "cellar")]
    assert committed == [384 * MIB, 384 * MIB]
    await detach(vm, DetachRequest(lender="attic", memory=128 * MIB), paged.world.report)
    committed = [sum(lease.committed for lease in paged.world.lenders[x].held()) for x in ("attic", "cellar")]
    assert committed == [256 * MIB, 256 * MIB]
    assert {loan.size for loan in vm.book} == {256 * MIB}


async def test_detaching_the_copy_keeps_the_memory(paged: Copied) -> None:
    vm = await paged.ready()
    (region,) = paged.pager.paged.values()
    region.places[1].behind = 0
    result = await detach(vm, DetachRequest(lender="cellar"), paged.world.report)
    assert paged.places(vm) == ["attic"]
    assert any("attic alone" in note for note in result.notes)
    await Guard(vm).look()
    assert paged.places(vm) == ["attic"], "what was taken away on purpose is not made again"


async def test_the_one_place_that_has_everything_is_not_given_up(
    paged: Copied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcoal.controller.places.STILL", 0.1)
    vm = await paged.ready()
    (region,) = paged.pager.paged.values()
    region.places[0].connected = False
    with pytest.raises(VmcoalError, match="no page has moved"):
        await detach(vm, DetachRequest(lender="cellar"), paged.world.report)
    assert paged.places(vm) == ["attic", "cellar"]


@pytest.mark.parametrize("lost", ["attic", "cellar"])
async def test_a_lost_place_is_replaced_on_a_spare_lender(paged: Copied, lost: str) -> None:
    vm = await paged.ready()
    (region,) = paged.pager.paged.values()
    region.places[1].behind = 0
    paged.world.lenders["barn"] = FakeLender("barn", rtt=70e-6)
    guard = Guard(vm)
    await guard.look()
    assert guard._interval() == guards._RARELY
    paged.lose(lost)
    assert any("its other place is used" in text for text in _troubles(vm))
    assert guard._interval() == guards._OFTEN
    await guard.look()
    left = "cellar" if lost == "attic" else "attic"
    assert paged.places(vm) == [left, "barn"]
    assert {loan.state for loan in vm.book} == {AttachmentState.ATTACHED}
    assert _troubles(vm) == []
    assert next(iter(vm.book)).device in paged.world.qemu.devices
    await detach(vm, ALL, paged.world.report)
    assert len(vm.book) == 0


async def test_a_place_that_came_back_while_another_operation_ran_is_kept(paged: Copied) -> None:
    """By then the other place may be the one that is lost, and giving this one up would lose every page."""
    vm = await paged.ready()
    ((name, region),) = paged.pager.paged.items()
    region.places[1].behind = 0
    region.places[0].connected = False
    guard = Guard(vm)
    guard._away = {loan.id: -1e9 for loan in vm.book}  # its grace is over
    seen = await paged.pager.region(name)
    assert seen is not None
    async with vm.queued_turn("something that takes minutes", brief=True):
        looking = asyncio.create_task(guard._keep_copies(name, seen))
        await asyncio.sleep(0)
        region.places[0].connected, region.places[1].connected = True, False
    await looking
    assert sorted(region.places) == [0, 1]
    assert paged.places(vm) == ["attic", "cellar"]


async def test_without_a_spare_lender_it_is_said_and_tried_again(paged: Copied) -> None:
    vm = await paged.ready()
    (region,) = paged.pager.paged.values()
    region.places[1].behind = 0
    paged.lose("attic")
    guard = Guard(vm)
    await guard.look()
    assert paged.places(vm) == ["cellar"]
    assert any("no other paired lender" in text for text in _troubles(vm))
    assert guard._interval() == guards._OFTEN
    paged.world.lenders["barn"] = FakeLender("barn")
    await guard.look()
    assert paged.places(vm) == ["cellar"], "not at every look"
    guard._retry.clear()
    await guard.look()
    assert paged.places(vm) == ["cellar", "barn"]
    assert _troubles(vm) == []


@pytest.mark.parametrize("spare", [True, False])
async def test_a_copy_on_this_host_is_copied_to_a_spare_lender(paged: Copied, spare: bool) -> None:
    """The only place that is left has no lender, and the guest runs on from it alone until there is another."""
    del paged.world.lenders["cellar"]
    vm = await paged.ready(LOCAL)
    (region,) = paged.pager.paged.values()
    region.places[1].behind = 0
    paged.lose("attic")
    guard = Guard(vm)
    await guard.look()
    assert paged.places(vm) == ["local"]
    assert any("this host's disk alone, and no other paired lender" in text for text in _troubles(vm))
    assert guard._interval() == guards._OFTEN
    if spare:
        paged.world.lenders["barn"] = FakeLender("barn")
        guard._retry.clear()
        await guard.look()
        assert paged.places(vm) == ["local", "barn"]
        assert _troubles(vm) == []
    await detach(vm, ALL, paged.world.report)
    assert len(vm.book) == 0
    assert paged.pager.paged == {}


async def test_a_place_that_comes_back_within_its_grace_is_kept(paged: Copied) -> None:
    vm = await paged.ready()
    (region,) = paged.pager.paged.values()
    region.places[0].connected = False
    guard = Guard(vm)
    await guard.look()
    assert paged.places(vm) == ["attic", "cellar"]
    (loan,) = vm.book.of("attic")
    guard._away[loan.id] -= loan.lease.terms.grace - 1
    await guard.look()
    assert paged.places(vm) == ["attic", "cellar"]
    region.places[0].connected = True
    await guard.look()
    assert guard._away == {}


async def test_both_places_lost_at_once_are_left_as_they_are(paged: Copied) -> None:
    vm = await paged.ready()
    paged.lose("attic")
    paged.lose("cellar")
    await Guard(vm).look()
    assert paged.places(vm) == ["attic", "cellar"]
    assert len(_troubles(vm)) >= 2


async def test_a_replicated_region_moves_one_of_its_places(paged: Copied) -> None:
    paged.world.lenders["barn"] = FakeLender("barn", rtt=70e-6)
    vm = await paged.ready()
    (region,) = paged.pager.paged.values()
    region.places[1].behind = 0
    for source, target, after in (
        ("attic", "barn", {"barn", "cellar"}),
        ("cellar", "attic", {"barn", "attic"}),
        ("attic", "cellar", {"barn", "cellar"}),
    ):
        await move(vm, MoveRequest(source=source, target=target, deadline=10.0), paged.world.report)
        assert set(paged.places(vm)) == after
    with pytest.raises(ConflictError, match="a copy"):
        await move(vm, MoveRequest(source="barn", target="cellar"), paged.world.report)


async def test_where_a_copy_cannot_be(paged: Copied) -> None:
    vm = paged.world.controller()
    replace = msgspec.structs.replace
    with pytest.raises(UsageError, match="lost with it"):
        await attach(vm, replace(TWICE, replica_on="attic"), paged.world.report)
    with pytest.raises(NotFoundError):
        await attach(vm, replace(TWICE, replica_on="barn"), paged.world.report)
    with pytest.raises(UsageError, match="1 to 2"):
        await attach(vm, replace(TWICE, replicas=3), paged.world.report)
    paged.world.local.full = True
    with pytest.raises(RefusedError, match="disk"):
        await attach(vm, LOCAL, paged.world.report)
    del paged.world.lenders["cellar"]
    with pytest.raises(RefusedError, match="no paired lender but attic") as caught:
        await attach(vm, TWICE, paged.world.report)
    assert "local" in (caught.value.hint or "")
    assert paged.world.fuse.calls == []


# What touching a lost page does


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copied]:
    monkeypatch.setattr("vmcoal.host.facts.Host.kernel", lambda self: "6.12.0")
    with fake_vm(tmp_path, CpuMode.HOTPLUG) as world:
        yield Copied(world)


def status(paged: Copied) -> str:
    return next((call for call in reversed(paged.world.fuse.calls) if call in ("stop", "cont")), "cont")


async def test_a_vm_pauses_while_its_memory_is_lost_and_goes_on(kvm: Paged) -> None:
    vm = await kvm.ready(msgspec.structs.replace(TWICE, replicas=1, on_loss=LossPolicy.PAUSE))
    guard = Guard(vm)
    assert guard._interval() == guards._OFTEN
    (region,) = kvm.pager.paged.values()
    await guard.look()
    assert (status(kvm), held(vm)) == ("cont", None)
    region.waiting = 1
    await guard.look()
    await guard.look()
    assert status(kvm) == "stop"
    assert "--on-loss stall" in (held(vm) or "")
    assert held(vm) in _troubles(vm)
    after = kvm.world.controller()  # a new controller goes on watching
    region.waiting = 0
    await Guard(after).look()
    assert (status(kvm), held(after)) == ("cont", None)


async def test_a_paused_vm_is_let_go_by_another_policy(kvm: Paged) -> None:
    vm = await kvm.ready(msgspec.structs.replace(TWICE, replicas=1, on_loss=LossPolicy.PAUSE))
    (region,) = kvm.pager.paged.values()
    region.waiting = 1
    guard = Guard(vm)
    await guard.look()
    assert status(kvm) == "stop"
    await tune(vm, TuneRequest(on_loss=LossPolicy.STALL), kvm.world.report)
    await guard.look()
    assert (status(kvm), {loan.on_loss for loan in vm.book}) == ("cont", {LossPolicy.STALL})


async def test_the_policy_is_kept(kvm: Paged) -> None:
    vm = await kvm.ready(msgspec.structs.replace(TWICE, replicas=1))
    told = await tune(vm, TuneRequest(on_loss=LossPolicy.PAUSE), kvm.world.report)
    assert told.on_loss is LossPolicy.PAUSE
    after = kvm.world.controller()
    await attach(after, msgspec.structs.replace(TWICE, replicas=1), kvm.world.report)
    assert [loan.on_loss for loan in after.book] == [LossPolicy.PAUSE] * 2
    activity, _ = await paging(after)
    assert activity is not None
    assert [region.policy for region in activity.regions.values()] == [LossPolicy.PAUSE] * 2


async def test_a_policy_that_fails_half_way_is_taken_back(kvm: Paged, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = await kvm.ready(msgspec.structs.replace(TWICE, replicas=1))
    set_loss = tuning.set_loss

    def half(vm: Vm, region: str, policy: LossPolicy) -> None:
        set_loss(vm, region, policy)
        raise RefusedError("no")

    with monkeypatch.context() as patch, pytest.raises(RefusedError):
        patch.setattr(tuning, "set_loss", half)
        await tune(vm, TuneRequest(on_loss=LossPolicy.PAUSE, cache=64 * MIB), kvm.world.report)
    told = await tune(vm, TuneRequest(), kvm.world.report)
    assert (told.cache, told.on_loss) == (256 * MIB, LossPolicy.STALL)
    assert {loan.on_loss for loan in vm.book} == {LossPolicy.STALL}


async def test_tcg_stalls_only(paged: Copied) -> None:
    assert paged.world.spec.accel is Accel.TCG
    vm = paged.world.controller()
    with pytest.raises(PrerequisiteError, match="needs KVM"):
        await attach(vm, msgspec.structs.replace(TWICE, on_loss=LossPolicy.PAUSE), paged.world.report)
    with pytest.raises(PrerequisiteError, match="needs KVM"):
        await tune(vm, TuneRequest(on_loss=LossPolicy.PAUSE), paged.world.report)


async def test_a_shutdown_can_be_seen_before(paged: Copied) -> None:
    vm = await paged.ready()
    plan = plan_power_off(vm, ShutdownRequest(dry_run=True))
    assert [step.where for step in plan.steps if step.name == "release"] == ["attic", "cellar"]
    assert plan_power_off(vm, ShutdownRequest(force=True)).steps[0].name == "end"


async def test_a_command_waits_for_what_the_guard_does_and_not_for_another_command(paged: Copied) -> None:
    vm = paged.world.controller()
    order: list[str] = []

    async def command() -> None:
        async with vm.turn("attach"):
            order.append("command")

    async with vm.queued_turn("replicate", brief=True):
        waiting = asyncio.create_task(command())
        await asyncio.sleep(0)
        order.append("guard")
    await waiting
    assert order == ["guard", "command"]
    async with vm.queued_turn("give back to attic"):
        with pytest.raises(ConflictError, match="busy: give back to attic"):
            await command()
