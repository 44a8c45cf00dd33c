"""Hotplug with a machine in memory: what guests and QEMU answer, and what is left after each failure."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from framework.fake_machine import FakeGuest
from framework.fake_monitor import FakeMonitor
from vmcoal.errors import (
    DeadlineError,
    InternalError,
    RefusedError,
    UnreachableError,
    UsageError,
    VmcoalError,
)
from vmcoal.machine import cpu, memory, pci, virtio_mem
from vmcoal.machine.describe import describe
from vmcoal.machine.names import is_backend_id, memory_ids
from vmcoal.machine.qmp_errors import translated
from vmcoal.model.attachment import MemoryStyle
from vmcoal.model.lease import MemoryRegion
from vmcoal.model.machine import Accel, FarNode, KernelBoot, MachineSpec
from vmcoal.model.units import GIB, MIB
from vmcoal_qmp import (
    QmpCommandError,
    QmpDisconnectedError,
    QmpError,
    QmpProtocolError,
    QmpTimeoutError,
)

pytestmark = pytest.mark.unit

SPEC = MachineSpec(
    name="demo",
    uuid="6f0e1a52-7a4e-4f6e-8f35-0d4c1f2b3a49",
    accel=Accel.KVM,
    cpus=2,
    memory=256 * MIB,
    far_nodes=tuple(FarNode(node, 2, 2 * GIB, 20 * node, 32 * node) for node in (1, 2, 3)),
    boot=KernelBoot("/vmlinuz"),
)
REGION = MemoryRegion(lease="l1", size=128 * MIB, backend="memory-backend-ram", props={"size": 128 * MIB}, children=())
BIG = MemoryRegion(lease="g1", size=GIB, backend="memory-backend-ram", props={"size": GIB}, children=())
DIMM = memory_ids("l1", MemoryStyle.DIMM)
GRANULAR = memory_ids("g1", MemoryStyle.GRANULAR)


@pytest.fixture
def monitor() -> FakeMonitor:
    return FakeMonitor(accel="kvm", guest=FakeGuest(booted=True))


async def plug(monitor: FakeMonitor) -> None:
    await memory.plug_dimm(monitor, REGION, 1, DIMM.device, DIMM.backend, deadline=1)


async def unplug(monitor: FakeMonitor, deadline: float = 1.0) -> None:
    await memory.unplug_dimm(monitor, DIMM.device, DIMM.backend, deadline=deadline)


def command_error(desc: str, qmp_class: str = "GenericError") -> QmpCommandError:
    return QmpCommandError("device_del", None, qmp_class, desc)


async def test_dimm_comes_and_goes(monitor: FakeMonitor) -> None:
    await plug(monitor)
    assert (await describe(monitor, SPEC)).devices == {"dimm-l1"}
    await unplug(monitor)
    state = await describe(monitor, SPEC)
    assert (state.devices, state.backends) == (frozenset(), frozenset())
    assert [
        name for name, _ in monitor.executed if name in ("object-add", "device_add", "device_del", "object-del")
    ] == [
        "object-add",
        "device_add",
        "device_del",
        "object-del",
    ]
    await unplug(monitor)


async def test_guest_refuses_a_dimm(monitor: FakeMonitor) -> None:
    await plug(monitor)
    monitor.guest.unplug["dimm-l1"] = "refuse"
    with pytest.raises(RefusedError, match="refuses to let go of DIMM dimm-l1: it is in use and could not") as caught:
        await unplug(monitor)
    assert caught.value.left == "it is plugged as before"
    assert caught.value.details == {"status": 130}
    assert monitor.sent("object-del") == []
    monitor.guest.unplug.clear()
    await unplug(monitor)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("MEM_UNPLUG_ERROR", {"device": "dimm-l1", "msg": "pages are pinned"}, "pages are pinned"),
        ("DEVICE_UNPLUG_GUEST_ERROR", {"device": "dimm-l1", "path": "/x"}, "it gave no reason"),
        (
            "ACPI_DEVICE_OST",
            {"info": {"device": "dimm-l1", "slot": "0", "slot-type": "DIMM", "source": 3, "status": 200}},
            "ACPI status 0xc8",
        ),
    ],
)
async def test_every_dialect_of_no(monitor: FakeMonitor, name: str, data: dict[str, Any], says: str) -> None:
    await plug(monitor)
    monitor.guest.default = "ignore"
    task = asyncio.create_task(unplug(monitor, deadline=5))
    while not monitor.sent("device_del"):
        await asyncio.sleep(0)
    monitor.emit(name, **(data | {"device": "other"} if "device" in data else {"info": {"device": "other"}}))
    monitor.emit(
        "ACPI_DEVICE_OST", info={"device": "dimm-l1", "slot": "0", "slot-type": "DIMM", "source": 3, "status": 132}
    )
    monitor.emit(name, **data)
    with pytest.raises(RefusedError, match=says):
        await task


async def test_guest_says_nothing(monitor: FakeMonitor) -> None:
    await plug(monitor)
    monitor.guest.default = "ignore"
    with pytest.raises(DeadlineError, match=r"within 0\.05 s") as caught:
        await unplug(monitor, 0.05)
    assert "still plugged" in (caught.value.left or "")
    monitor.guest.default = "release"
    await unplug(monitor)


async def test_the_event_may_come_before_the_answer(monitor: FakeMonitor) -> None:
    await plug(monitor)
    held = monitor.hold("device_del")
    task = asyncio.create_task(unplug(monitor, 5))
    await held.reached.wait()
    while "dimm-l1" in monitor.devices:
        await asyncio.sleep(0)
    held.release()
    await task


async def test_busy_is_tried_again(monitor: FakeMonitor) -> None:
    await plug(monitor)
    monitor.fail("device_del", command_error("Hot-unplug failed: guest is busy (power indicator blinking)"), times=2)
    monitor.fail("object-del", command_error("object 'mem-l1' is in use, can not be deleted"))
    await unplug(monitor, 5)
    assert len(monitor.sent("device_del")) == 3
    assert len(monitor.sent("object-del")) == 2


async def test_busy_to_the_end(monitor: FakeMonitor) -> None:
    await plug(monitor)
    monitor.fail("device_del", command_error("guest is busy"), times=99)
    with pytest.raises(RefusedError, match="guest is busy") as caught:
        await unplug(monitor, 0.05)
    assert caught.value.left == "it is plugged as before"


async def test_a_guest_that_did_not_hear_is_asked_again(monitor: FakeMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcoal.machine.unplug._AGAIN", 0.01)
    await cpu.plug_cpu(monitor, SPEC, 3, 1, deadline=30)
    monitor.guest.default = "ignore"
    task = asyncio.create_task(cpu.unplug_cpu(monitor, 3, 1, deadline=60))
    async with asyncio.timeout(60):
        while len(monitor.sent("device_del")) < 3:
            await asyncio.sleep(0)
        monitor.guest.default = "release"
        await task
    assert await cpu.plugged_cores(monitor, 3) == frozenset()


async def test_a_guest_that_gave_a_sign_is_not_asked_again(
    monitor: FakeMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcoal.machine.unplug._AGAIN", 0.01)
    await plug(monitor)
    monitor.guest.default = "ignore"
    held = monitor.hold("device_del")
    task = asyncio.create_task(unplug(monitor, deadline=0.2))
    await held.reached.wait()
    under_way = {"device": "dimm-l1", "slot": "0", "slot-type": "DIMM", "source": 3, "status": 132}
    monitor.emit("ACPI_DEVICE_OST", info=under_way)
    held.release()
    with pytest.raises(DeadlineError):
        await task
    assert len(monitor.sent("device_del")) == 1


async def test_the_button_of_a_pci_slot_is_pressed_once(monitor: FakeMonitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcoal.machine.unplug._AGAIN", 0.01)
    await pci.plug(monitor, SPEC.far_node(1), "virtio-rng-pci", "rng1", {}, deadline=30)
    monitor.guest.default = "ignore"
    with pytest.raises(DeadlineError):
        await pci.unplug(monitor, "rng1", deadline=0.2)
    assert len(monitor.sent("device_del")) == 1


async def test_removal_that_is_under_way_is_waited_for(monitor: FakeMonitor) -> None:
    await plug(monitor)
    pending = command_error("Device dimm-l1 is already in the process of unplug")
    monitor.fail("device_del", pending, carried_out=True)
    await unplug(monitor)


@pytest.mark.parametrize("carried_out", [False, True])
async def test_refused_plug_deletes_the_backend(monitor: FakeMonitor, carried_out: bool) -> None:
    monitor.fail("device_add", command_error("no free slots available"), carried_out=carried_out)
    with pytest.raises(RefusedError) as caught:
        await plug(monitor)
    assert "more slots" in (caught.value.hint or "")
    if carried_out:  # it never is, but an undo must cope
        await memory.ensure_unplugged(monitor, DIMM.device, DIMM.backend, deadline=1)
    state = await describe(monitor, SPEC)
    assert (state.devices, state.backends) == (frozenset(), frozenset())


@pytest.mark.parametrize("command", ["object-add", "device_add"])
async def test_lost_answer_of_a_plug_is_undone(monitor: FakeMonitor, command: str) -> None:
    monitor.fail(command, QmpTimeoutError(command, 1.0), carried_out=True)
    with pytest.raises(DeadlineError, match="no answer") as caught:
        await plug(monitor)
    assert "may still do it" in (caught.value.left or "")
    await memory.ensure_unplugged(monitor, DIMM.device, DIMM.backend, deadline=1)
    state = await describe(monitor, SPEC)
    assert (state.devices, state.backends) == (frozenset(), frozenset())


@pytest.mark.parametrize("command", ["object-add", "device_add", "query-memory-devices"])
async def test_cancelled_plug_is_undone(monitor: FakeMonitor, command: str) -> None:
    held = monitor.hold(command)
    task = asyncio.create_task(plug(monitor))
    await held.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.release()
    await memory.ensure_unplugged(monitor, DIMM.device, DIMM.backend, deadline=1)
    state = await describe(monitor, SPEC)
    assert (state.devices, state.backends) == (frozenset(), frozenset())


async def test_qemu_dies_under_every_step(monitor: FakeMonitor) -> None:
    for command in ("object-add", "device_add"):
        lost = FakeMonitor(guest=FakeGuest(booted=True))
        lost.fail(command, QmpDisconnectedError(command))
        with pytest.raises(UnreachableError):
            await plug(lost)
    await plug(monitor)
    monitor.guest.default = "ignore"
    task = asyncio.create_task(unplug(monitor, 30))
    while not monitor.sent("device_del"):
        await asyncio.sleep(0)
    monitor.disconnect()
    with pytest.raises(UnreachableError):
        await task
    for question in (describe(monitor, SPEC), memory.has_device(monitor, "x"), cpu.plugged_cores(monitor, 1)):
        with pytest.raises(UnreachableError):
            await question


async def test_cpu_comes_and_goes_under_kvm(monitor: FakeMonitor) -> None:
    assert await cpu.plug_cpu(monitor, SPEC, 3, 1, deadline=1) == "far3-cpu1"
    assert (await describe(monitor, SPEC)).cpus == {(3, 1)}
    monitor.guest.unplug["far3-cpu1"] = "refuse"
    with pytest.raises(RefusedError, match="vCPU 1 of node 3"):
        await cpu.unplug_cpu(monitor, 3, 1, deadline=1)
    monitor.guest.unplug.clear()
    await cpu.unplug_cpu(monitor, 3, 1, deadline=1)
    await cpu.ensure_unplugged(monitor, 3, 1, deadline=1)
    assert await cpu.plugged_cores(monitor, 3) == frozenset()
    (planned,) = cpu.plan_unplug(3, 1)
    assert planned == {"execute": "device_del", "arguments": {"id": "far3-cpu1"}}


async def test_granular_memory_grows_and_shrinks(monitor: FakeMonitor) -> None:
    far = SPEC.far_node(2)
    await virtio_mem.plug(monitor, BIG, far, GRANULAR.device, GRANULAR.backend, deadline=1)
    assert await virtio_mem.resize(monitor, GRANULAR.device, 512 * MIB, deadline=1) == 512 * MIB
    monitor.guest.stuck[GRANULAR.device] = 100 * MIB
    seen: list[int] = []
    assert await virtio_mem.resize(monitor, GRANULAR.device, 0, deadline=0.1, progress=seen.append) == 100 * MIB
    assert seen[-1] == 100 * MIB
    with pytest.raises(RefusedError, match="guest keeps 100 MiB") as caught:
        await virtio_mem.ensure_unplugged(monitor, GRANULAR.device, GRANULAR.backend, deadline=0.1)
    assert "stays plugged" in (caught.value.left or "")
    state = await describe(monitor, SPEC)
    assert [(one.size, one.requested, one.capacity) for one in state.memory] == [(100 * MIB, 0, GIB)]


@pytest.mark.parametrize(("version", "removable"), [((7, 2), False), ((9, 0), True)])
async def test_granular_device_leaves_where_qemu_can(version: tuple[int, int], removable: bool) -> None:
    monitor = FakeMonitor(version=version, guest=FakeGuest(booted=True))
    await virtio_mem.plug(monitor, BIG, SPEC.far_node(1), GRANULAR.device, GRANULAR.backend, deadline=1)
    await virtio_mem.resize(monitor, GRANULAR.device, 256 * MIB, deadline=1)
    if removable:
        await virtio_mem.ensure_unplugged(monitor, GRANULAR.device, GRANULAR.backend, deadline=1)
        assert (await describe(monitor, SPEC)).backends == frozenset()
    else:
        with pytest.raises(RefusedError, match="cannot be unplugged"):
            await virtio_mem.ensure_unplugged(monitor, GRANULAR.device, GRANULAR.backend, deadline=1)
        assert (await virtio_mem.find(monitor, GRANULAR.device)).size == 0


async def test_pci_port_that_is_busy(monitor: FakeMonitor) -> None:
    busy = QmpCommandError("device_add", None, "GenericError", "Hot-plug failed: guest is busy")
    monitor.fail("device_add", busy, times=2)
    assert await pci.plug(monitor, SPEC.far_node(1), "virtio-rng-pci", "rng1", {}, deadline=5) == "far1-port0"
    assert await pci.behind(monitor, "far1-port0") == ["rng1"]
    assert await pci.free_port(monitor, SPEC.far_node(1)) == "far1-port1"
    await pci.unplug(monitor, "rng1", deadline=1)
    assert await pci.behind(monitor, "far1-port0") == []
    monitor.fail("device_add", busy, times=99)
    with pytest.raises(RefusedError, match="busy"):
        await pci.plug(monitor, SPEC.far_node(1), "virtio-rng-pci", "rng1", {}, deadline=0.05)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (command_error("no"), RefusedError),
        (QmpTimeoutError("device_add", 3.0), DeadlineError),
        (QmpDisconnectedError("device_add"), UnreachableError),
        (QmpProtocolError("device_add", "odd"), InternalError),
    ],
)
def test_errors_of_the_monitor(error: QmpError, kind: type[VmcoalError]) -> None:
    with pytest.raises(kind, match=r"QEMU .*dance") as caught, translated("dance", left="a mess"):
        raise error
    assert caught.value.__cause__ is error


def test_lease_ids_that_cannot_be_part_of_an_id() -> None:
    for wrong in ("", "a b", "../x", "A", "x" * 65):
        with pytest.raises(UsageError):
            memory_ids(wrong, MemoryStyle.DIMM)
    assert is_backend_id(DIMM.backend)
    assert not is_backend_id("near-ram")
