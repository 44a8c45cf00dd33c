"""Attach and detach on fakes: what they do, refuse and undo, and what a controller finds that follows a killed one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from framework.fake_vm import FakeLender, FakeVm, Killed, fake_vm
from vmcoal.controller.api import AttachResult, DetachResult
from vmcoal.controller.attach import attach
from vmcoal.controller.attach_plan import check_request
from vmcoal.controller.detach import detach
from vmcoal.controller.keeper import Keeper
from vmcoal.controller.reconcile import reconcile
from vmcoal.controller.status import vm_status
from vmcoal.controller.vm import Vm
from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    PrerequisiteError,
    RefusedError,
    UnreachableError,
    UsageError,
    VmcoalError,
)
from vmcoal.machine import cpu
from vmcoal.model.attachment import AttachmentState, AttachRequest, DetachRequest, MemoryStyle, Plan
from vmcoal.model.guest import Room
from vmcoal.model.lease import Lease, LeaseState, ResourceKind
from vmcoal.model.machine import CpuMode, Engine
from vmcoal.model.units import GIB, MIB

pytestmark = pytest.mark.unit

BOTH = AttachRequest(cpus=2, memory=256 * MIB, deadline=10.0)
GRANULAR = AttachRequest(memory=256 * MIB, style=MemoryStyle.GRANULAR, deadline=10.0)
ALL = DetachRequest(everything=True, deadline=10.0)
MODES = list(CpuMode)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> CpuMode:
    found: CpuMode = request.param
    return found


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FakeVm]:
    with fake_vm(tmp_path) as vm:
        yield vm


async def attached(world: FakeVm, vm: Vm, request: AttachRequest = BOTH) -> AttachResult:
    result = await attach(vm, request, world.report)
    assert isinstance(result, AttachResult)
    return result


async def detached(world: FakeVm, vm: Vm, request: DetachRequest = ALL) -> DetachResult:
    result = await detach(vm, request, world.report)
    assert isinstance(result, DetachResult)
    return result


async def test_there_and_back(tmp_path: Path, mode: CpuMode) -> None:
    with fake_vm(tmp_path, mode) as world:
        vm = world.controller()
        result = await attached(world, vm)
        assert (result.attachment.node, result.attachment.distance) == (2, 80)
        assert result.verified
        assert [cpu.engine for cpu in result.attachment.cpus] == [Engine.LOCAL] * 2
        states = {lease.state for lease in world.lenders["attic"].held()}
        assert states == {LeaseState.ACTIVE}
        assert list(dict.fromkeys(text.split(" ")[0] for text in world.told)) == [f"{n}/7" for n in range(1, 8)]
        back = await detached(world, vm)
        assert (back.cpus_removed, back.memory_removed, back.remaining) == (2, 256 * MIB, ())
        assert world.leftovers() == []


@pytest.mark.parametrize("request_", [BOTH, GRANULAR], ids=["dimm", "granular"])
async def test_an_answer_does_not_change_what_was_granted(world: FakeVm, request_: AttachRequest) -> None:
    def lie(call: str, lease: Lease) -> Lease:
        if call == "request":
            return lease
        other = ResourceKind.CPU if lease.kind is ResourceKind.MEMORY else ResourceKind.MEMORY
        return msgspec.structs.replace(lease, kind=other, amount=64 * GIB, committed=32 * GIB, epoch=7, lender="home")

    world.lenders["attic"].lies = lie
    vm = world.controller()
    await attached(world, vm, request_)
    if request_ is GRANULAR:
        await attached(world, vm, request_)
    (memory,) = vm.book.of("attic", ResourceKind.MEMORY)
    granted = world.lenders["attic"].book.entry(memory.id).lease
    assert (memory.lease.amount, memory.lease.epoch) == (granted.amount, granted.epoch)
    assert memory.lease.committed <= granted.amount
    assert len(vm.book) == 1 + request_.cpus
    if request_ is BOTH:  # a virtio-mem device stays, emptied
        await detached(world, vm)
        assert world.leftovers() == []


async def test_one_id_for_several_leases_is_refused(world: FakeVm) -> None:
    granted: list[Lease] = []

    def lie(call: str, lease: Lease) -> Lease:
        granted.append(msgspec.structs.replace(lease, id="x1"))
        return granted[-1]

    lender = world.lenders["attic"]
    lender.lies = lie
    lender.book.report = lambda *args: SimpleNamespace(lease=granted[-1])  # type: ignore[assignment, method-assign]
    vm = world.controller()
    with pytest.raises(RefusedError, match="an id that cannot be used"):
        await attach(vm, AttachRequest(cpus=2, deadline=10.0), world.report)
    assert len(vm.book) == 0
    assert [left for left in world.leftovers() if not left.startswith("lease ")] == []


async def test_again_and_again_leaves_nothing_more(tmp_path: Path, mode: CpuMode) -> None:
    with fake_vm(tmp_path, mode) as world:
        vm = world.controller()
        for _ in range(3):
            await attached(world, vm)
            await detached(world, vm)
            assert world.leftovers() == []
        assert len(vm.book) == 0


async def test_granular_memory_grows_and_shrinks(world: FakeVm) -> None:
    world.qemu.version = (9, 0)
    vm = world.controller()
    first = await attached(world, vm, GRANULAR)
    [memory] = first.attachment.memory
    assert (memory.size, memory.capacity) == (256 * MIB, 2 * GIB)
    second = await attached(world, vm, msgspec.structs.replace(GRANULAR, memory=130 * MIB))
    assert [m.size for m in second.attachment.memory] == [386 * MIB]
    assert sum(lease.committed for lease in world.lenders["attic"].held()) == 386 * MIB
    part = await detached(world, vm, DetachRequest(memory=128 * MIB))
    assert [m.size for m in part.remaining[0].memory] == [258 * MIB]
    assert sum(lease.committed for lease in world.lenders["attic"].held()) == 258 * MIB
    await detached(world, vm)
    assert world.leftovers() == []


async def test_granular_memory_stays_empty_where_qemu_cannot_unplug_it(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm, GRANULAR)
    back = await detached(world, vm)
    assert any("until shutdown" in note for note in back.notes)
    [memory] = back.remaining[0].memory
    assert (memory.state, memory.size) == (AttachmentState.PARKED, 0)
    assert [lease.committed for lease in world.lenders["attic"].held()] == [0]
    again = await attached(world, vm, GRANULAR)
    assert [m.size for m in again.attachment.memory] == [256 * MIB]
    assert len(world.lenders["attic"].held()) == 1


async def test_dry_run_changes_nothing(tmp_path: Path, mode: CpuMode) -> None:
    with fake_vm(tmp_path, mode) as world:
        vm = world.controller()
        for request in (BOTH, GRANULAR):
            plan = await attach(vm, msgspec.structs.replace(request, dry_run=True), world.report)
            assert isinstance(plan, Plan)
        assert world.fuse.calls == []
        await attached(world, vm)
        count = len(world.fuse.calls)
        plan = await detach(vm, msgspec.structs.replace(ALL, dry_run=True), world.report)
        assert isinstance(plan, Plan)
        assert [step.name for step in plan.steps][-1] == "release"
        assert len(world.fuse.calls) == count


async def test_the_plan_is_what_is_done(world: FakeVm) -> None:
    vm = world.controller()
    plan = await attach(vm, msgspec.structs.replace(BOTH, dry_run=True), world.report)
    assert isinstance(plan, Plan)
    planned = [c["execute"] for step in plan.steps for c in step.commands if "execute" in c]
    await attached(world, vm)
    done = [call for call in world.fuse.calls if call in ("object-add", "device_add", "qom-set")]
    assert sorted(planned) == sorted(done)  # memory and vCPUs are plugged at once


async def test_two_lenders_land_at_the_distance_of_their_links(world: FakeVm) -> None:
    world.lenders["cloud"] = FakeLender("cloud", rtt=0.010)
    vm = world.controller()
    near = await attached(world, vm, msgspec.structs.replace(BOTH, lender="attic"))
    far = await attached(world, vm, msgspec.structs.replace(BOTH, lender="cloud"))
    assert near.attachment.distance < far.attachment.distance
    with pytest.raises(UsageError, match="several lenders"):
        await detach(vm, DetachRequest(), world.report)
    await detached(world, vm)
    assert world.leftovers() == []


@pytest.mark.parametrize("request_", [BOTH, GRANULAR], ids=["dimm", "granular"])
async def test_a_failure_at_any_call_leaves_nothing(tmp_path: Path, mode: CpuMode, request_: AttachRequest) -> None:
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        with fake_vm(folder, mode) as world:
            world.qemu.version = (9, 0)
            vm = world.controller()
            world.fuse.arm(number, kill=False)
            try:
                await attach(vm, request_, world.report)
            except VmcoalError as error:
                assert world.leftovers() == [], f"after {world.fuse.calls}"
                assert error.left is None
                assert vm.journal.open_operations() == []
                assert len(vm.book) == 0
            else:
                assert len(world.fuse.calls) < number
                return
    pytest.fail("attach never succeeded")


@pytest.mark.parametrize("request_", [BOTH, GRANULAR], ids=["dimm", "granular"])
async def test_a_controller_killed_at_any_call_of_an_attach(
    tmp_path: Path, mode: CpuMode, request_: AttachRequest
) -> None:
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        with fake_vm(folder, mode) as world:
            world.qemu.version = (9, 0)
            world.fuse.arm(number, kill=True)
            try:
                await attach(world.controller(), request_, world.report)
            except Killed:
                world.fuse.disarm()
                after = world.controller()
                await reconcile(after)
                assert world.leftovers() == [], f"killed at {world.fuse.calls}"
                assert after.journal.open_operations() == []
                await attached(world, after, request_)
                await detached(world, after)
                assert world.leftovers() == []
            else:
                return
    pytest.fail("attach never succeeded")


@pytest.mark.parametrize("request_", [BOTH, GRANULAR], ids=["dimm", "granular"])
async def test_a_controller_killed_at_any_call_of_a_detach(
    tmp_path: Path, mode: CpuMode, request_: AttachRequest
) -> None:
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        with fake_vm(folder, mode) as world:
            world.qemu.version = (9, 0)
            vm = world.controller()
            await attached(world, vm, request_)
            world.fuse.arm(number, kill=True)
            try:
                await detach(vm, ALL, world.report)
            except Killed:
                world.fuse.disarm()
                after = world.controller()
                await reconcile(after)
                assert after.journal.open_operations() == []
                assert {loan.state for loan in after.book} <= {AttachmentState.ATTACHED}
                held = {lease.id for lease in world.lenders["attic"].held()}
                assert {loan.id for loan in after.book} == held, f"killed at {world.fuse.calls}"
                if len(after.book):
                    await detached(world, after)
                assert world.leftovers() == [], f"killed at {world.fuse.calls}"
            else:
                return
    pytest.fail("detach never succeeded")


VCPUS = AttachRequest(cpus=2, deadline=10.0)


def in_use(world: FakeVm) -> int:
    """Return how many far vCPUs are online in the guest."""
    return sum(cpu.online and cpu.socket > 0 for cpu in world.guest.cpus.values())


async def test_vcpus_leave_as_one_transaction(tmp_path: Path, mode: CpuMode) -> None:
    """Whichever call fails, all of them stay in use, or all have left."""
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        with fake_vm(folder, mode) as world:
            vm = world.controller()
            await attached(world, vm, VCPUS)
            world.fuse.arm(number, kill=False)
            try:
                result = await detached(world, vm, DetachRequest(cpus=2, deadline=10.0))
            except VmcoalError as error:
                assert error.left is None
                assert (len(vm.book), in_use(world)) == (2, 2), f"after {world.fuse.calls}"
                assert {loan.state for loan in vm.book} == {AttachmentState.ATTACHED}
                assert vm.journal.open_operations() == []
                world.fuse.disarm()
                await detached(world, vm)
            else:
                assert (result.cpus_removed, len(vm.book), in_use(world)) == (2, 0, 0)
                if len(world.fuse.calls) < number:
                    return
    pytest.fail("detach never succeeded")


async def test_a_controller_killed_at_any_call_while_vcpus_leave(tmp_path: Path, mode: CpuMode) -> None:
    """Whoever follows it finds all of them in use, or none."""
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        with fake_vm(folder, mode) as world:
            await attached(world, vm := world.controller(), VCPUS)
            world.fuse.arm(number, kill=True)
            try:
                await detach(vm, DetachRequest(cpus=2, deadline=10.0), world.report)
            except Killed:
                world.fuse.disarm()
                after = world.controller()
                await reconcile(after)
                assert (len(after.book), in_use(world)) in ((2, 2), (0, 0)), f"killed at {world.fuse.calls}"
                assert {loan.state for loan in after.book} <= {AttachmentState.ATTACHED}
                assert {lease.id for lease in world.lenders["attic"].held()} == {loan.id for loan in after.book}
                assert after.journal.open_operations() == []
                if len(after.book):
                    await detached(world, after)
                assert world.leftovers() == [], f"killed at {world.fuse.calls}"
            else:
                return
    pytest.fail("detach never succeeded")


async def test_a_guest_has_the_whole_deadline_to_let_go_of_vcpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A nested, emulated guest may need more than half a minute for one of them."""
    given: list[float] = []
    with fake_vm(tmp_path, CpuMode.HOTPLUG) as world:
        vm = world.controller()
        await attached(world, vm, VCPUS)
        agent = vm.agent
        assert agent is not None
        unplug, offline = cpu.unplug_cpu, agent.cpu_set

        async def slow_unplug(*args: Any, deadline: float) -> None:
            given.append(deadline)
            await unplug(*args, deadline=deadline)

        async def slow_offline(*args: Any, deadline: float) -> Any:
            given.append(deadline)
            return await offline(*args, deadline=deadline)

        monkeypatch.setattr(cpu, "unplug_cpu", slow_unplug)
        monkeypatch.setattr(agent, "cpu_set", slow_offline)
        await detached(world, vm, DetachRequest(cpus=2, deadline=1000.0))
    assert len(given) == 3
    assert sorted(given, reverse=True) == given
    assert all(300.0 < deadline <= 1000.0 for deadline in given)


async def leave_by_itself(world: FakeVm) -> None:
    """Let the guest let go of everything, as one that answers a detach after its deadline."""
    for name in list(world.qemu.devices):
        world.qemu._gone(name)


@pytest.mark.parametrize("request_", [BOTH, GRANULAR], ids=["dimm", "granular"])
async def test_what_left_after_a_detach_gave_up_can_be_given_back(tmp_path: Path, request_: AttachRequest) -> None:
    with fake_vm(tmp_path, CpuMode.HOTPLUG) as world:
        vm = world.controller()
        await attached(world, vm, request_)
        await leave_by_itself(world)
        (line,) = (await vm_status(vm, controller_pid=1)).degraded
        assert line.endswith("256 MiB of attic left the guest by itself; next: vmcoal detach web --from attic")
        result = await detached(world, vm)
        assert (result.cpus_removed, result.memory_removed) == (request_.cpus, 256 * MIB)
        assert world.leftovers() == []
        assert len(vm.book) == 0


async def test_cancelling_a_detach_does_not_end_its_giving_back_half_way(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm)
    held = world.qemu.hold("object-del")
    task = asyncio.create_task(detach(vm, ALL, world.report))
    await held.reached.wait()
    blow, reached, go = world.fuse.blow, asyncio.Event(), asyncio.Event()

    async def hold(what: str) -> None:
        if what == "release":
            reached.set()
            await go.wait()
        await blow(what)

    world.fuse.blow = hold  # type: ignore[method-assign]
    held.release()
    await reached.wait()
    task.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.leftovers() == []
    assert len(vm.book) == 0


async def test_cancelling_an_attach_undoes_it(world: FakeVm) -> None:
    vm = world.controller()
    held = world.qemu.hold("device_add")
    task = asyncio.create_task(attach(vm, BOTH, world.report))
    await held.reached.wait()
    task.cancel()
    held.release()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.leftovers() == []


async def test_a_guest_that_never_answers_runs_into_the_deadline(
    world: FakeVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcoal.controller.undo._AGENT_DEADLINE", 0.1)
    vm = world.controller()
    assert vm.agent is not None
    vm.agent.silent.add("memory_set")  # type: ignore[attr-defined]
    with pytest.raises(DeadlineError, match="online the memory"):
        await attach(vm, msgspec.structs.replace(BOTH, deadline=0.6), world.report)
    assert world.leftovers() == []


async def test_a_guest_without_an_agent_gets_it_unverified(world: FakeVm) -> None:
    vm = world.controller()
    vm.agent = None
    result = await attached(world, vm, msgspec.structs.replace(BOTH, cpus=0))
    assert not result.verified
    assert any("unverified" in note for note in result.notes)


async def test_no_room_in_the_guest_refuses_the_detach(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm)
    world.guest.room = Room(fits=False, needed=200 * MIB, available=100 * MIB)
    with pytest.raises(RefusedError, match="200 MiB are in use") as caught:
        await detach(vm, msgspec.structs.replace(ALL, deadline=5.0), world.report)
    assert caught.value.left is not None
    assert [loan.state for loan in vm.book if loan.is_memory] == [AttachmentState.ATTACHED]
    assert {lease.state for lease in world.lenders["attic"].held()} == {LeaseState.ACTIVE}


async def test_a_refused_block_puts_the_memory_back_into_use(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm)
    first = min(number for number, block in world.guest.blocks.items() if block.node)
    world.guest.refuse_block(first, "EPERM")
    with pytest.raises(RefusedError):
        await detach(vm, DetachRequest(memory=256 * MIB, deadline=5.0), world.report)
    world.guest.blocks[first].refuse = ""
    assert all(block.state == "online" for block in world.guest.blocks.values())
    assert [loan.state for loan in vm.book if loan.is_memory] == [AttachmentState.ATTACHED]
    await detached(world, vm)
    assert world.leftovers() == []


async def test_force_gives_the_lease_back_and_says_what_is_lost(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm, msgspec.structs.replace(BOTH, cpus=0))
    world.guest.room = Room(fits=False, needed=1, available=0)
    result = await detached(world, vm, msgspec.structs.replace(ALL, force=True))
    assert any("are lost" in note for note in result.notes)
    assert world.lenders["attic"].held() == []
    assert [loan.state for loan in vm.book] == [AttachmentState.DEGRADED]


@pytest.mark.parametrize("force", [False, True], ids=["asked", "forced"])
async def test_a_guest_that_hangs_does_not_hold_a_detach_up(
    world: FakeVm, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    monkeypatch.setattr("vmcoal.controller.transaction.GRACE", 0.01)
    vm = world.controller()
    await attached(world, vm, msgspec.structs.replace(BOTH, cpus=0))
    assert vm.agent is not None
    vm.agent.silent.add("memory_set")  # type: ignore[attr-defined]
    request = msgspec.structs.replace(ALL, deadline=0.3, force=force)
    if force:  # what was not undone is not undone any more
        assert any("are lost" in note for note in (await detached(world, vm, request)).notes)
        assert vm.operation is None
        assert [loan.state for loan in vm.book] == [AttachmentState.DEGRADED]
        assert vm.journal.open_operations() == []
        return
    with pytest.raises(DeadlineError, match="within 300 ms, it was at: drain 256 MiB") as caught:
        await detach(vm, request, world.report)
    assert "not undone yet: offline-memory" in (caught.value.left or "")
    assert vm.operation == "undo of detach"
    vm.agent.silent.clear()  # type: ignore[attr-defined]
    vm.agent.lose()  # type: ignore[attr-defined]
    async with vm.turn("something else"):
        assert [loan.state for loan in vm.book] == [AttachmentState.ATTACHED]
        assert vm.operation == "something else"


async def test_what_there_is_no_time_for_is_not_begun(world: FakeVm, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = world.controller()
    await attached(world, vm)
    calls = len(world.fuse.calls)
    with pytest.raises(DeadlineError, match=r"^detach did not finish within 0") as caught:
        await detach(vm, msgspec.structs.replace(ALL, deadline=0.0), world.report)
    assert caught.value.left == "2 vCPUs of attic and what comes after it, attached as before"
    assert len(world.fuse.calls) == calls
    assert vm.journal.open_operations() == []


async def test_a_session_that_another_waits_for_does_not_outlast_the_deadline(world: FakeVm) -> None:
    keeper = world.controller().keeper
    lock = keeper._locks.setdefault("attic", asyncio.Lock())
    async with lock:
        with pytest.raises(UnreachableError, match="attic does not answer"):
            await Keeper.session(keeper, "attic", deadline=0.01)
    assert not lock.locked()


async def test_a_lender_that_is_gone_does_not_hold_up_a_detach(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm)
    world.lenders["attic"].reachable = False
    leases = {loan.id for loan in vm.book}
    result = await detached(world, vm)
    assert any("was not told" in note for note in result.notes)
    assert {lease for _, lease, _ in vm.keeper.owed} == leases, "it is told when it answers again"  # type: ignore[attr-defined]
    assert len(vm.book) == 0
    assert world.engine.regions == set()


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (AttachRequest(), UsageError, "nothing to attach"),
        (AttachRequest(cpus=-1), UsageError, "negative"),
        (AttachRequest(memory=-1), UsageError, "negative"),
        (AttachRequest(memory=130 * MIB), UsageError, "no multiple of 128 MiB"),
        (AttachRequest(memory=MIB, style=MemoryStyle.GRANULAR), UsageError, "no multiple of 2 MiB"),
        (AttachRequest(cpus=1, style=MemoryStyle.GRANULAR), UsageError, "--granular"),
        (AttachRequest(cpus=3), ConflictError, "2 of 2 vCPU slots"),
        (AttachRequest(memory=3 * GIB), ConflictError, "headroom"),
        (AttachRequest(memory=3 * GIB, style=MemoryStyle.GRANULAR), ConflictError, "headroom"),
        (AttachRequest(cpus=1, node=9), UsageError, "no far node 9"),
        (AttachRequest(cpus=1, engine=Engine.FAR), PrerequisiteError, "far"),
    ],
)
async def test_bad_requests_change_nothing(
    world: FakeVm, request_: AttachRequest, error: type[VmcoalError], says: str
) -> None:
    vm = world.controller()
    with pytest.raises(error, match=says) as caught:
        await attach(vm, request_, world.report)
    assert caught.value.hint
    assert world.fuse.calls == []


async def test_more_than_the_lender_has(world: FakeVm) -> None:
    world.lenders["attic"] = FakeLender("attic", memory=128 * MIB, cpus=1)
    vm = world.controller()
    with pytest.raises(RefusedError, match="128 MiB free"):
        await attach(vm, BOTH, world.report)
    with pytest.raises(RefusedError, match="1 of 1 CPUs free"):
        await attach(vm, AttachRequest(cpus=2), world.report)
    assert world.fuse.calls == []


async def test_a_lender_on_another_host_lends_no_local_vcpus(world: FakeVm) -> None:
    world.lenders["attic"].same_host = False
    with pytest.raises((RefusedError, PrerequisiteError), match="local"):
        await attach(world.controller(), BOTH, world.report)


async def test_a_lender_that_does_not_answer(world: FakeVm) -> None:
    world.lenders["attic"].reachable = False
    with pytest.raises(UnreachableError, match="does not answer"):
        await attach(world.controller(), BOTH, world.report)


async def test_a_lender_that_is_killed_meanwhile_gets_its_lease_back(world: FakeVm) -> None:
    vm, lender = world.controller(), world.lenders["attic"]

    def killed(call: str, lease: Lease) -> Lease:
        lender.reachable = False
        return lease

    lender.lies = killed
    with pytest.raises(UnreachableError):
        await attach(vm, AttachRequest(memory=GIB, deadline=10.0), world.report)
    assert [name for name, _, _ in vm.keeper.owed] == ["attic"]  # type: ignore[attr-defined]
    assert len(vm.book) == 0


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        (DetachRequest(cpus=3), UsageError, "3 vCPUs are more than the 2 attached"),
        (DetachRequest(memory=GIB), UsageError, "more than"),
        (DetachRequest(memory=128 * MIB), UsageError, "whole"),
        (DetachRequest(cpus=-1), UsageError, "negative"),
        (DetachRequest(lender="cloud"), NotFoundError, "cloud lends nothing"),
    ],
)
async def test_bad_detaches_change_nothing(
    world: FakeVm, request_: DetachRequest, error: type[VmcoalError], says: str
) -> None:
    vm = world.controller()
    await attached(world, vm)
    count = len(world.fuse.calls)
    with pytest.raises(error, match=says) as caught:
        await detach(vm, request_, world.report)
    assert caught.value.hint
    assert len(world.fuse.calls) == count


async def test_detach_of_nothing(world: FakeVm) -> None:
    with pytest.raises(NotFoundError, match="nothing is attached"):
        await detach(world.controller(), ALL, world.report)


async def test_some_of_what_is_attached(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm)
    await attached(world, vm, AttachRequest(memory=128 * MIB))
    result = await detached(world, vm, DetachRequest(cpus=1, memory=128 * MIB))
    [rest] = result.remaining
    assert ([cpu.core for cpu in rest.cpus], [m.size for m in rest.memory]) == ([0], [256 * MIB])


async def test_one_operation_at_a_time(world: FakeVm) -> None:
    vm = world.controller()
    async with vm.turn("attach"):
        with pytest.raises(ConflictError, match="busy: attach"):
            async with vm.turn("detach"):
                pass


def test_the_nearest_sizes_are_named() -> None:
    with pytest.raises(UsageError) as caught:
        check_request(AttachRequest(memory=200 * MIB))
    assert caught.value.hint is not None
    assert "128 MiB" in caught.value.hint
    assert "256 MiB" in caught.value.hint
