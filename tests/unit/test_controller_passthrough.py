"""Functions of the host in the guest, on fakes: there and back, refusals, and what a killed controller leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from framework.fake_pci import GPU_BARS
from framework.fake_vm import FakeVm, Killed, fake_vm
from vmcoal.controller.api import AttachResult, DetachResult
from vmcoal.controller.attach import attach
from vmcoal.controller.detach import detach
from vmcoal.controller.give_back import give_back
from vmcoal.controller.lifecycle import clean_up
from vmcoal.controller.reconcile import reconcile
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, ExecutionError, NotFoundError, RefusedError, UsageError, VmcoalError
from vmcoal.model.attachment import AttachmentState, AttachRequest, DetachRequest, Plan
from vmcoal.model.machine import CpuMode
from vmcoal.model.pci import GuestFunction
from vmcoal.model.units import MIB
from vmcoal_qmp import QmpCommandError

pytestmark = pytest.mark.unit

GPU, SOUND = "0000:01:00.0", "0000:01:00.1"
THERE, BACK = AttachRequest(pci=GPU, deadline=10.0), DetachRequest(pci=GPU, deadline=10.0)
CPUS = AttachRequest(cpus=1, deadline=10.0)
HOME_DRIVERS = {GPU: "nvidia", SOUND: "snd_hda_intel", "0000:00:02.0": "i915"}


def seen(node: int, *, bars: bool = True) -> GuestFunction:
    sizes = {number: size for number, size, flags in GPU_BARS if bars and not flags & 0x100}
    windows = tuple((0x80000000 if n in sizes else 0, sizes.get(n, 0)) for n in range(6))
    return GuestFunction(address="0000:21:00.0", vendor=0x10DE, device=0x2204, node=node, bars=windows)


def furnish(world: FakeVm) -> None:
    world.tree.add(GPU, driver="nvidia", bars=GPU_BARS)
    world.tree.add(SOUND, pci_class=0x040300, driver="snd_hda_intel")
    world.tree.add("0000:00:02.0", driver="i915", group="2", port="")
    world.functions |= {GPU: seen(1), SOUND: msgspec.structs.replace(seen(1), bars=())}
    world.guest.pci_nodes["0000:21:00.0"] = -1


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FakeVm]:
    with fake_vm(tmp_path, CpuMode.HOTPLUG) as vm:
        furnish(vm)
        yield vm


async def attached(world: FakeVm, vm: Vm, request: AttachRequest = THERE) -> AttachResult:
    result = await attach(vm, request, world.report)
    assert isinstance(result, AttachResult)
    return result


async def detached(world: FakeVm, vm: Vm, request: DetachRequest = BACK) -> DetachResult:
    result = await detach(vm, request, world.report)
    assert isinstance(result, DetachResult)
    return result


async def test_there_and_back(world: FakeVm) -> None:
    vm = world.controller()
    result = await attached(world, vm)
    (gpu,) = result.attachment.gpus
    assert (result.attachment.lender, result.attachment.node, result.gpus_added, result.verified) == (
        "home",
        1,
        1,
        True,
    )
    assert (gpu.host, gpu.address, gpu.engine, gpu.state) == (GPU, "0000:21:00.0", "vfio", AttachmentState.ATTACHED)
    assert world.tree.drivers() == {**HOME_DRIVERS, GPU: "vfio-pci", SOUND: "vfio-pci"}
    assert [device.host for device in world.qemu.devices.values()] == [GPU]
    gone = await detached(world, vm)
    assert (gone.gpus_removed, gone.remaining) == (1, ())
    assert world.tree.drivers() == HOME_DRIVERS
    assert world.leftovers() == []


async def test_the_plan_changes_nothing(world: FakeVm) -> None:
    vm = world.controller()
    there = await attach(vm, msgspec.structs.replace(THERE, dry_run=True), world.report)
    assert isinstance(there, Plan)
    assert "give 0000:01:00.1 (PCI function 10de:2204) to vfio-pci instead of snd_hda_intel" in [
        step.summary for step in there.steps
    ]
    assert world.tree.drivers() == HOME_DRIVERS
    await attached(world, vm)
    back = await detach(vm, msgspec.structs.replace(BACK, dry_run=True), world.report)
    assert isinstance(back, Plan)
    assert [step.name for step in back.steps] == ["unplug GPU", "give back", "give back"]


async def test_a_failure_at_any_call_gives_the_driver_back(tmp_path: Path) -> None:
    for number in range(1, 50):
        with fake_vm(tmp_path / str(number), CpuMode.HOTPLUG) as world:
            furnish(world)
            vm = world.controller()
            world.fuse.arm(number, kill=False)
            try:
                await attach(vm, THERE, world.report)
            except VmcoalError as error:
                assert error.left is None
                assert world.leftovers() == [], f"after {world.fuse.calls}"
                assert world.tree.drivers() == HOME_DRIVERS
                assert (len(vm.book), vm.journal.open_operations()) == (0, [])
            else:
                assert len(world.fuse.calls) < number
                assert number > 8
                return
    pytest.fail("attach never succeeded")


async def test_a_controller_killed_at_any_call_of_an_attach(tmp_path: Path) -> None:
    for number in range(1, 50):
        with fake_vm(tmp_path / str(number), CpuMode.HOTPLUG) as world:
            furnish(world)
            world.fuse.arm(number, kill=True)
            try:
                await attach(world.controller(), THERE, world.report)
            except Killed:
                world.fuse.disarm()
                after = world.controller()
                await reconcile(after)
                assert world.leftovers() == [], f"killed at {world.fuse.calls}"
                assert world.tree.drivers() == HOME_DRIVERS
                await attached(world, after)
                await detached(world, after)
            else:
                return
    pytest.fail("attach never succeeded")


async def test_a_controller_killed_at_any_call_of_a_detach(tmp_path: Path) -> None:
    for number in range(1, 50):
        with fake_vm(tmp_path / str(number), CpuMode.HOTPLUG) as world:
            furnish(world)
            vm = world.controller()
            await attached(world, vm)
            world.fuse.arm(number, kill=True)
            try:
                await detach(vm, BACK, world.report)
            except Killed:
                world.fuse.disarm()
                after = world.controller()
                await reconcile(after)
                plugged = bool(world.qemu.devices)
                assert [loan.state for loan in after.book] == [AttachmentState.ATTACHED] * plugged
                if plugged:
                    await detached(world, after)
                assert world.leftovers() == [], f"killed at {world.fuse.calls}"
                assert world.tree.drivers() == HOME_DRIVERS
            else:
                return
    pytest.fail("detach never succeeded")


async def test_the_end_of_qemu_gives_the_driver_back(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm)
    world.qemu.devices.clear()
    vm.monitor = None
    for loan in vm.book:
        await give_back(vm, loan, qemu_ended=True)
    assert world.tree.drivers() == HOME_DRIVERS
    assert len(vm.book) == 0


async def test_what_cannot_be_given_back_is_remembered(world: FakeVm, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = world.controller()
    await attached(world, vm)
    world.qemu.devices.clear()
    world.fuse.arm(1, kill=False)
    monkeypatch.setattr("vmcoal.controller.lifecycle.sweep", _nothing)
    released, notes = await clean_up(vm)
    assert (released, len(notes)) == ([], 1)
    (loan,) = vm.book
    assert loan.state is AttachmentState.DEGRADED
    assert loan.problem == f"{GPU} could not be given back to this host: broken at write driver_override"
    world.fuse.disarm()
    after = world.controller()
    await clean_up(after)
    assert len(after.book) == 0
    assert world.tree.drivers() == HOME_DRIVERS


async def _nothing(*_: object) -> None:
    pass


async def test_functions_of_one_group_go_and_come_together(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm)
    await attached(world, vm, msgspec.structs.replace(THERE, pci=SOUND))
    assert {loan.host: loan.node for loan in vm.book} == {GPU: 1, SOUND: 1}
    await detached(world, vm)
    assert world.tree.driver(GPU) == "vfio-pci", "the guest still has the group"
    await detached(world, vm, msgspec.structs.replace(BACK, pci=SOUND))
    assert world.tree.drivers() == HOME_DRIVERS


async def test_a_bar_without_an_address_undoes_it(world: FakeVm) -> None:
    world.functions[GPU] = seen(1, bars=False)
    with pytest.raises(ExecutionError, match=r"gave BAR 0 \(16 MiB\), BAR 1 \(256 MiB\), .* no address") as at:
        await attached(world, world.controller())
    assert "--gpu-window 1G" in (at.value.hint or "")
    assert world.tree.drivers() == HOME_DRIVERS
    assert world.leftovers() == []


async def test_a_guest_that_shows_nothing_undoes_it(world: FakeVm) -> None:
    del world.functions[GPU]
    world.functions[GPU] = msgspec.structs.replace(seen(1), vendor=1)
    with pytest.raises(ExecutionError, match="the guest sees 0001:2204 in slot"):
        await attached(world, world.controller())
    assert world.tree.drivers() == HOME_DRIVERS


async def test_what_qemu_refuses_is_undone(world: FakeVm) -> None:
    world.qemu.fail("device_add", QmpCommandError("device_add", None, "GenericError", "group 7 is not viable"))
    with pytest.raises(RefusedError, match="group 7 is not viable"):
        await attached(world, world.controller())
    assert world.tree.drivers() == HOME_DRIVERS
    assert world.leftovers() == []


async def test_borrowed_memory_and_vfio_exclude_each_other(world: FakeVm) -> None:
    vm = world.controller()
    memory = AttachRequest(memory=256 * MIB, deadline=10.0)
    await attached(world, vm, memory)
    with pytest.raises(ConflictError, match="256 MiB of memory through the memory engine fake, and VFIO pins"):
        await attached(world, vm)
    await detached(world, vm, DetachRequest(everything=True, deadline=10.0))
    await attached(world, vm)
    with pytest.raises(ConflictError, match=f"has {GPU} of this host, and VFIO pins every page") as at:
        await attached(world, vm, memory)
    assert at.value.hint == f"first vmcoal detach web --gpu pci:{GPU}; a lender's GPU pins nothing"


async def test_vcpus_of_this_host_share_its_node(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm)
    result = await attached(world, vm, msgspec.structs.replace(CPUS, node=1))
    assert (result.attachment.lender, result.attachment.node) == ("attic", 1)
    assert world.guest.pci_nodes["0000:21:00.0"] == 1, "the guest can know the node now"
    await detached(world, vm, DetachRequest(everything=True, deadline=10.0))
    await attached(world, vm, CPUS)
    node = next(loan.node for loan in vm.book)
    assert (await attached(world, vm, msgspec.structs.replace(THERE, node=node))).attachment.node == node


async def test_bad_requests(world: FakeVm) -> None:
    vm = world.controller()
    for request in (
        msgspec.structs.replace(THERE, cpus=1),
        msgspec.structs.replace(THERE, lender="attic"),
        msgspec.structs.replace(THERE, pci="nonsense"),
    ):
        with pytest.raises(UsageError):
            await attach(vm, request, world.report)
    with pytest.raises(NotFoundError, match=r"no PCI function 0000:09:00.0"):
        await attach(vm, AttachRequest(pci="09:00.0"), world.report)
    await attached(world, vm)
    with pytest.raises(ConflictError, match="is in node 1 already"):
        await attached(world, vm)
    with pytest.raises(NotFoundError, match=f"web has no {SOUND} of this host"):
        await detach(vm, DetachRequest(pci=SOUND), world.report)


async def test_force_does_not_take_it_from_a_guest_that_holds_on(world: FakeVm) -> None:
    vm = world.controller()
    await attached(world, vm)
    world.qemu.fail("device_del", QmpCommandError("device_del", None, "GenericError", "no"), times=9)
    with pytest.raises(RefusedError) as at:
        await detached(world, vm, msgspec.structs.replace(BACK, force=True))
    assert "vmcoal shutdown web --force" in (at.value.hint or "")
    assert world.tree.driver(GPU) == "vfio-pci"


async def test_a_guest_without_an_agent_gets_it_unverified(world: FakeVm) -> None:
    vm = world.controller()
    vm.agent = None
    result = await attached(world, vm)
    assert not result.verified
    assert "plugged, unverified: no agent answers in the guest" in result.notes
    await detached(world, vm)
    assert world.tree.drivers() == HOME_DRIVERS
