"""The stand-ins: what a test can make them do. That they are true to QEMU is shown by tests/contract."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from framework.fake_machine import FakeGuest
from framework.fake_monitor import FakeMonitor
from framework.fake_qemu import qmp_server, replay
from vmcoal_qmp import QmpClient, QmpCommandError, QmpDisconnectedError, QmpTimeoutError, commands
from vmcoal_qmp.types import AcpiDeviceOst, DeviceDeleted, MemoryDeviceSizeChange, VirtioMem, decode_event

pytestmark = pytest.mark.unit

SIZE = 128 << 20


async def with_dimm(guest: FakeGuest | None = None, **machine: object) -> FakeMonitor:
    qmp = FakeMonitor(guest=guest or FakeGuest(booted=True), **machine)
    await commands.object_add(qmp, "memory-backend-ram", "bytes", {"size": SIZE})
    await commands.device_add(qmp, "pc-dimm", "far", {"memdev": "bytes", "node": 1})
    return qmp


async def test_a_guest_that_lets_go() -> None:
    qmp = await with_dimm()
    async with qmp.events() as events:
        await commands.device_del(qmp, "far")
        said = [decode_event(await events.wait_for(deadline=5)) for _ in range(4)]
    assert said == [
        AcpiDeviceOst(slot="0", slot_type="DIMM", source=1, status=0, device="far"),
        AcpiDeviceOst(slot="0", slot_type="DIMM", source=3, status=132, device="far"),
        DeviceDeleted(path="/machine/peripheral/far", device="far"),
        AcpiDeviceOst(slot="0", slot_type="DIMM", source=3, status=0),
    ]
    await commands.object_del(qmp, "bytes")


async def test_a_guest_that_refuses() -> None:
    qmp = await with_dimm(FakeGuest(booted=True, unplug={"far": "refuse"}))
    async with qmp.events("ACPI_DEVICE_OST") as events:
        await commands.device_del(qmp, "far")
        said = [decode_event(await events.wait_for(deadline=5)) for _ in range(3)]
    assert [ost.status for ost in said if isinstance(ost, AcpiDeviceOst)] == [0, 132, 130]
    assert "far" in await commands.device_ids(qmp)


async def test_a_guest_that_answers_late() -> None:
    qmp = await with_dimm(FakeGuest(booted=True, delay=0.05))
    async with qmp.events("DEVICE_DELETED") as events:
        await commands.device_del(qmp, "far")
        with pytest.raises(QmpTimeoutError):
            await events.wait_for(deadline=0.01)
        await events.wait_for(deadline=5)


async def test_a_guest_that_follows_virtio_mem_as_far_as_it_can() -> None:
    qmp = FakeMonitor(guest=FakeGuest(booted=True, stuck={"grains": 6 << 20}))
    await commands.object_add(qmp, "memory-backend-ram", "bytes", {"size": SIZE})
    await commands.device_add(qmp, "virtio-mem-pci", "grains", {"memdev": "bytes", "node": 1, "bus": "far1-mem"})
    async with qmp.events("MEMORY_DEVICE_SIZE_CHANGE") as events:
        await commands.qom_set(qmp, "grains", "requested-size", 64 << 20)
        event = decode_event(await events.wait_for(deadline=5))
        assert isinstance(event, MemoryDeviceSizeChange)
        assert (event.id, event.size) == ("grains", 64 << 20)
        await commands.qom_set(qmp, "grains", "requested-size", 0)
        event = decode_event(await events.wait_for(deadline=5))
        assert isinstance(event, MemoryDeviceSizeChange)
        assert event.size == 6 << 20
    [device] = await commands.query_memory_devices(qmp)
    assert isinstance(device, VirtioMem)
    assert (device.requested_size, device.size) == (0, 6 << 20)


@pytest.mark.parametrize("accel", ["kvm", "tcg"])
async def test_unplugging_a_vcpu_kills_qemu_under_tcg_only(accel: str) -> None:
    qmp = FakeMonitor(accel=accel, guest=FakeGuest(booted=True))
    await commands.device_add(qmp, "max-x86_64-cpu", "one", {"socket-id": 1, "core-id": 0, "thread-id": 0})
    async with qmp.events("DEVICE_DELETED") as events:
        await commands.device_del(qmp, "one")
        if accel == "kvm":
            await events.wait_for(deadline=5)
        else:
            with pytest.raises(QmpDisconnectedError):
                await events.wait_for(deadline=5)


async def test_a_command_can_be_made_to_fail() -> None:
    qmp = FakeMonitor()
    qmp.fail("object-add", QmpCommandError("object-add", None, "GenericError", "no"), when=lambda a: a["id"] == "b")
    await commands.object_add(qmp, "memory-backend-ram", "a", {"size": SIZE})
    with pytest.raises(QmpCommandError):
        await commands.object_add(qmp, "memory-backend-ram", "b", {"size": SIZE})
    assert await commands.object_ids(qmp) == {"near", "a"}
    await commands.object_add(qmp, "memory-backend-ram", "b", {"size": SIZE})
    assert [sent["id"] for sent in qmp.sent("object-add")] == ["a", "b", "b"]


async def test_an_answer_can_be_lost() -> None:
    qmp = FakeMonitor()
    qmp.fail("object-add", QmpTimeoutError("object-add", 10), carried_out=True)
    with pytest.raises(QmpTimeoutError):
        await commands.object_add(qmp, "memory-backend-ram", "a", {"size": SIZE})
    assert await commands.object_ids(qmp) == {"near", "a"}


async def test_an_answer_can_be_held_back() -> None:
    qmp = FakeMonitor()
    held = qmp.hold("query-status")
    task = asyncio.create_task(commands.query_status(qmp))
    await held.reached.wait()
    assert not task.done()
    held.release()
    assert not (await task).running
    qmp.hold("query-kvm")
    with pytest.raises(QmpTimeoutError):
        await commands.query_kvm(qmp, deadline=0.01)


async def test_the_connection_can_be_lost() -> None:
    qmp = FakeMonitor()
    held = qmp.hold("query-status")
    async with qmp.events() as events:
        task = asyncio.create_task(commands.query_status(qmp))
        await held.reached.wait()
        qmp.disconnect("QEMU died")
        held.release()
        with pytest.raises(QmpDisconnectedError, match="query-status: QEMU died"):
            await task
        with pytest.raises(QmpDisconnectedError):
            await events.wait_for(deadline=5)


def tape(path: Path) -> Path:
    said = [
        ("in", {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}),
        ("out", {"execute": "qmp_capabilities", "arguments": {}}),
        ("in", {"return": {}, "id": 0}),
        ("out", {"execute": "stop"}),
        ("in", {"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 0}}),
        ("in", {"return": {}, "id": 1}),
    ]
    path.write_text("".join(json.dumps({"dir": way, "msg": message}) + "\n" for way, message in said))
    return path


async def test_a_replay_gives_what_was_recorded(tmp_path: Path) -> None:
    script = replay(tape(tmp_path / "tape"), tmp_path)
    async with (
        qmp_server(tmp_path / "sock", script) as path,
        await QmpClient.connect(path) as qmp,
        qmp.events("STOP") as events,
    ):
        await commands.stop(qmp)
        await events.wait_for(deadline=5)


@pytest.mark.parametrize("command", ["cont", None])
async def test_a_replay_insists_on_what_was_recorded(tmp_path: Path, command: str | None) -> None:
    script = replay(tape(tmp_path / "tape"), tmp_path)

    async def play() -> None:
        async with qmp_server(tmp_path / "sock", script) as path, await QmpClient.connect(path) as qmp:
            if command:
                with pytest.raises(QmpDisconnectedError):
                    await qmp.execute(command)

    with pytest.raises(AssertionError, match=r"recorded client said .*, this one|the client left before"):
        await play()
