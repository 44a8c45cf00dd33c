"""What hotplug relies on QEMU for, each fact checked on the real one, on recorded ones, and on the model in memory."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from framework.qemu import CORES, DISTANCES, MAXMEM, MIB, NEAR_MEMORY, SLOTS
from framework.qmp_subject import Subject, nothing_changes, subject
from vmcoal_qmp import QmpCommandError, QmpDisconnectedError, QmpTimeoutError, commands, types
from vmcoal_qmp.types import Dimm, VirtioMem, decode_event

__all__ = ["subject"]
pytestmark = pytest.mark.contract

DIMM = 128 * MIB
GRAIN = 2 * MIB


async def refused(attempt: Awaitable[Any], text: str, qmp_class: str = "GenericError") -> QmpCommandError:
    """Check that QEMU refuses ``attempt`` with error ``qmp_class`` and says ``text``."""
    with pytest.raises(QmpCommandError) as caught:
        await attempt
    assert (caught.value.qmp_class, text in caught.value.desc) == (qmp_class, True), caught.value
    return caught.value


async def ram(subject: Subject, object_id: str, size: int = DIMM) -> None:
    await commands.object_add(subject.monitor, "memory-backend-ram", object_id, {"size": size})


async def file_backed(subject: Subject, object_id: str, name: str, size: int = DIMM) -> None:
    path = subject.folder / name
    props = {"size": size, "mem-path": str(path), "share": True}
    await commands.object_add(subject.monitor, "memory-backend-file", object_id, props)


async def dimm(subject: Subject, device_id: str, memdev: str, node: int = 1, **more: int) -> None:
    await commands.device_add(subject.monitor, "pc-dimm", device_id, {"memdev": memdev, "node": node, **more})


async def virtio_mem(
    subject: Subject, device_id: str, memdev: str, bus: str, node: int = 1, requested: int = 0
) -> None:
    props = {"memdev": memdev, "node": node, "bus": bus, "addr": "0", "requested-size": requested}
    await commands.device_add(subject.monitor, "virtio-mem-pci", device_id, props)


async def cpu(subject: Subject, device_id: str, **place: int) -> None:
    props = {f"{level}-id": number for level, number in place.items()}
    await commands.device_add(subject.monitor, "max-x86_64-cpu", device_id, props)


async def memory(subject: Subject) -> dict[str | None, Any]:
    devices = await commands.query_memory_devices(subject.monitor)
    return {device.id: device for device in devices if not isinstance(device, types.OtherMemoryDevice)}


async def test_status_version_and_accelerator(subject: Subject) -> None:
    qmp = subject.monitor
    assert (await commands.query_version(qmp)).triple[:2] == subject.version
    assert await commands.query_status(qmp) == types.Status(running=False, status="prelaunch")
    assert (await commands.query_kvm(qmp)).enabled is False


async def test_errors_of_the_protocol(subject: Subject) -> None:
    qmp = subject.monitor
    await refused(qmp.execute("no-such-command"), "has not been found", "CommandNotFound")
    await refused(qmp.execute("object-del", {}), "'id' is missing")
    await refused(qmp.execute("query-status", {"surprise": 1}), "'surprise' is unexpected")
    assert not (await commands.query_status(qmp)).running


# vCPUs.


async def test_every_place_for_a_vcpu_is_listed_from_the_start(subject: Subject) -> None:
    places = await commands.query_hotpluggable_cpus(subject.monitor)
    found = [
        (place.props.node_id, place.props.socket_id, place.props.core_id, place.props.thread_id) for place in places
    ]
    expected = [(node, node, core, 0) for node in range(len(DISTANCES)) for core in range(CORES)]
    assert found == expected[::-1]
    assert {place.type for place in places} == {"max-x86_64-cpu"}
    assert [place.props.node_id for place in places if place.qom_path] == [0] * CORES
    present = await commands.query_cpus_fast(subject.monitor)
    assert [(one.cpu_index, one.props.node_id) for one in present] == [(0, 0), (1, 0)]


async def test_a_plugged_vcpu_shows_where_it_is(subject: Subject) -> None:
    qmp = subject.monitor
    [empty] = [
        place
        for place in await commands.query_hotpluggable_cpus(qmp)
        if (place.props.socket_id, place.props.core_id) == (2, 1)
    ]
    await commands.device_add(qmp, empty.type, "far2-cpu1", empty.props.arguments())
    [taken] = [place for place in await commands.query_hotpluggable_cpus(qmp) if place.props == empty.props]
    assert taken.qom_path == "/machine/peripheral/far2-cpu1"
    [new] = [one for one in await commands.query_cpus_fast(qmp) if one.qom_path == taken.qom_path]
    assert (new.props.node_id, new.props.socket_id, new.props.core_id) == (2, 2, 1)
    # The index is that of the place, not of arrival; only the guest numbers by arrival.
    assert new.cpu_index == 5
    assert await commands.qom_get(qmp, "far2-cpu1", "hotplugged") is True


async def test_a_vcpu_that_does_not_fit_is_refused(subject: Subject) -> None:
    await cpu(subject, "one", socket=1, core=0, thread=0)
    async with nothing_changes(subject):
        await refused(cpu(subject, "two", socket=1, core=0, thread=0), "CPU[2] with APIC ID 2 exists")
        await refused(cpu(subject, "one", socket=1, core=1, thread=0), "Duplicate device ID 'one'")
        await refused(cpu(subject, "two", socket=1, core=1), "thread-id is not set")
        await refused(cpu(subject, "two", socket=1, thread=0), "core-id is not set")
        await refused(cpu(subject, "two", socket=9, core=0, thread=0), "Invalid CPU socket-id: 9 must be in range 0:3")
        await refused(cpu(subject, "two", socket=1, core=9, thread=0), "Invalid CPU core-id: 9 must be in range 0:1")
        await refused(cpu(subject, "two", node=2, socket=1, core=1, thread=0), "invalid node-id, must be 1")
        other = {"socket-id": 1, "core-id": 1, "thread-id": 0}
        await refused(
            commands.device_add(subject.monitor, "qemu64-x86_64-cpu", "two", other),
            "Invalid CPU type, expected cpu type: 'max-x86_64-cpu'",
        )


async def test_a_vcpu_cannot_be_unplugged_before_the_guest_took_over_its_controller(subject: Subject) -> None:
    await cpu(subject, "one", socket=1, core=0, thread=0)
    async with nothing_changes(subject):
        await refused(commands.device_del(subject.monitor, "one"), "unplug request for not supported device type")
        await refused(commands.device_del(subject.monitor, "/machine/unattached/device[0]"), "Boot CPU is unpluggable")


# Backends.


async def test_a_backend_lives_until_it_is_deleted(subject: Subject) -> None:
    qmp = subject.monitor
    await ram(subject, "bytes")
    assert "bytes" in await commands.object_ids(qmp)
    [backend] = [one for one in await commands.query_memdev(qmp) if one.id == "bytes"]
    assert (backend.size, backend.share) == (DIMM, False)
    await commands.object_del(qmp, "bytes")
    assert "bytes" not in await commands.object_ids(qmp)
    await refused(commands.object_del(qmp, "bytes"), "object 'bytes' not found")


async def test_a_backend_that_cannot_be_is_refused(subject: Subject) -> None:
    qmp = subject.monitor
    await ram(subject, "bytes")
    async with nothing_changes(subject):
        await refused(ram(subject, "bytes"), "attempt to add duplicate property 'bytes'")
        await refused(qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "b"}), "'size' is missing")
        await refused(
            qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "b", "size": 0}),
            "doesn't take value '0'",
        )
        await refused(
            qmp.execute("object-add", {"qom-type": "memory-backend-ram", "id": "b", "size": "128M"}), "expects uint64"
        )
        await refused(ram(subject, "b", 1 << 62), "Cannot allocate memory")
        await refused(ram(subject, "1 b"), "expects an identifier")
        await refused(commands.object_add(qmp, "memory-backend-none", "b", {"size": DIMM}), "does not accept value")
        await refused(
            commands.object_add(qmp, "memory-backend-ram", "b", {"size": DIMM, "surprise": 1}), "is unexpected"
        )
        # Properties in an object of their own were the form until 5.2.
        await refused(
            commands.object_add(qmp, "memory-backend-ram", "b", {"props": {"size": DIMM}}), "'size' is missing"
        )


async def test_a_negative_size_never_reaches_qemu(subject: Subject) -> None:
    # It would end QEMU: see test_qmp_process.
    with pytest.raises(ValueError, match="size"):
        await ram(subject, "b", -1)
    assert "b" not in await commands.object_ids(subject.monitor)


async def test_a_plain_file_can_back_a_dimm(subject: Subject) -> None:
    qmp = subject.monitor
    with (subject.folder / "lease").open("wb") as file:
        file.truncate(DIMM)
    await file_backed(subject, "bytes", "lease")
    await dimm(subject, "far", "bytes")
    [backend] = [one for one in await commands.query_memdev(qmp) if one.id == "bytes"]
    assert backend.share is True
    await refused(commands.object_del(qmp, "bytes"), "object 'bytes' is in use, can not be deleted")


async def test_a_file_of_the_wrong_size(subject: Subject) -> None:
    path = subject.folder / "lease"
    with path.open("wb") as file:
        file.truncate(DIMM // 2)
    async with nothing_changes(subject):
        await refused(file_backed(subject, "bytes", "lease"), "backing store size 0x4000000")
    await file_backed(subject, "smaller", "lease", DIMM // 4)
    assert path.stat().st_size == DIMM // 2
    await refused(file_backed(subject, "lost", "no/such/folder"), "No such file or directory")


async def test_a_missing_or_empty_file_is_made_silently(subject: Subject) -> None:
    # Check the size of the file first: a typo in its path does not fail, it gives local memory.
    (subject.folder / "empty").touch()
    await file_backed(subject, "grown", "empty")
    await file_backed(subject, "made", "absent")
    if subject.qemu:
        assert (subject.folder / "empty").stat().st_size == DIMM
        assert (subject.folder / "absent").stat().st_size == DIMM
    await commands.object_del(subject.monitor, "made")
    if subject.qemu:
        assert (subject.folder / "absent").exists()


# DIMMs.


async def test_a_plugged_dimm_shows_where_it_is(subject: Subject) -> None:
    qmp = subject.monitor
    await ram(subject, "bytes1")
    await ram(subject, "bytes3", 2 * DIMM)
    await dimm(subject, "far1", "bytes1", node=1)
    await dimm(subject, "far3", "bytes3", node=3)
    first, second = await commands.query_memory_devices(qmp)
    assert first == Dimm(
        id="far1",
        size=DIMM,
        addr=4 << 30,
        slot=0,
        node=1,
        memdev="/objects/bytes1",
        hotplugged=True,
        hotpluggable=True,
    )
    assert isinstance(second, Dimm)
    assert (second.slot, second.node, second.size, second.addr) == (1, 3, 2 * DIMM, (4 << 30) + DIMM)
    assert await commands.query_memory_size_summary(qmp) == types.MemorySummary(
        base_memory=NEAR_MEMORY, plugged_memory=3 * DIMM
    )
    assert {"far1", "far3"} <= await commands.device_ids(qmp)


async def test_a_dimm_that_does_not_fit_is_refused_and_its_backend_stays(subject: Subject) -> None:
    qmp = subject.monitor
    for name, size in (("bytes", DIMM), ("more", DIMM), ("odd", DIMM + MIB), ("huge", MAXMEM)):
        await ram(subject, name, size)
    await dimm(subject, "far", "bytes")
    async with nothing_changes(subject):
        await refused(dimm(subject, "two", "odd"), "backend memory size must be multiple of 0x200000")
        await refused(dimm(subject, "two", "huge"), "not enough space")
        await refused(dimm(subject, "far", "more"), "Duplicate device ID 'far'")
        await refused(dimm(subject, "two", "bytes"), "can't use already busy memdev: bytes")
        await refused(dimm(subject, "two", "absent"), "Device 'absent' not found", "DeviceNotFound")
        await refused(dimm(subject, "two", "port11"), "Invalid parameter type for 'memdev'")
        await refused(dimm(subject, "two", "more", node=9), "exceeds the number of numa nodes: 4")
        await refused(dimm(subject, "two", "more", slot=0), "slot 0 is busy")
        await refused(dimm(subject, "two", "more", slot=99), "invalid slot number 99, valid range is [0-2]")
        await refused(dimm(subject, "two", "more", addr=4 << 30), "address range conflicts")
        await refused(dimm(subject, "two", "more", addr=(5 << 30) + 4096), "address must be aligned to 0x200000")
        await refused(commands.device_add(qmp, "pc-dimm", "two", {"node": 1}), "'memdev' property must be set")
        await refused(dimm(subject, "two", "more", surprise=1), "Property 'pc-dimm.surprise' not found")
        if subject.version < (9, 2):
            await refused(dimm(subject, "2 two", "more"), "expects an identifier")
    for name in ("more", "odd", "huge"):
        await commands.object_del(qmp, name)
    assert await commands.object_ids(qmp) == {"near", "bytes"}


async def test_there_are_as_many_dimms_as_slots(subject: Subject) -> None:
    for number in range(SLOTS + 1):
        await ram(subject, f"bytes{number}")
    for number in range(SLOTS):
        await dimm(subject, f"far{number}", f"bytes{number}")
    async with nothing_changes(subject):
        await refused(dimm(subject, "over", f"bytes{SLOTS}"), "no free slots available")


async def test_unplugging_a_dimm_from_a_guest_that_does_not_answer(subject: Subject) -> None:
    qmp = subject.monitor
    await ram(subject, "bytes")
    await dimm(subject, "far", "bytes")
    async with qmp.events() as events, nothing_changes(subject):
        await commands.device_del(qmp, "far")
        await commands.device_del(qmp, "far")
        await refused(commands.object_del(qmp, "bytes"), "is in use")
        with pytest.raises(QmpTimeoutError):
            await events.wait_for(deadline=0.2)
    await refused(commands.device_del(qmp, "absent"), "Device 'absent' not found", "DeviceNotFound")


# virtio-mem.


async def test_virtio_mem_is_plugged_behind_a_far_root_port(subject: Subject) -> None:
    qmp = subject.monitor
    await ram(subject, "bytes", 2 * DIMM)
    await virtio_mem(subject, "grains", "bytes", "port11")
    assert (await memory(subject))["grains"] == VirtioMem(
        id="grains",
        size=0,
        requested_size=0,
        max_size=2 * DIMM,
        block_size=GRAIN,
        node=1,
        memdev="/objects/bytes",
        memaddr=4 << 30,
    )
    # What it has plugged counts, not what it could have.
    assert (await commands.query_memory_size_summary(qmp)).plugged_memory == 0
    await refused(commands.object_del(qmp, "bytes"), "is in use")


async def test_requested_size_is_a_wish_in_whole_grains(subject: Subject) -> None:
    qmp = subject.monitor
    await ram(subject, "bytes", 2 * DIMM)
    await virtio_mem(subject, "grains", "bytes", "port11")
    await commands.qom_set(qmp, "grains", "requested-size", DIMM)
    device = (await memory(subject))["grains"]
    assert (device.requested_size, device.size) == (DIMM, 0)
    async with nothing_changes(subject):
        for size in (DIMM + 1, DIMM + MIB, -1):
            await refused(
                commands.qom_set(qmp, "grains", "requested-size", size), "has to be multiples of 'block-size'"
            )
        await refused(
            commands.qom_set(qmp, "grains", "requested-size", 3 * DIMM), "cannot exceed the memory backend size"
        )
        await refused(commands.qom_set(qmp, "grains", "requested-size", "64M"), "expects uint64")
        await refused(commands.qom_set(qmp, "grains", "size", DIMM), "is not writable")
        await refused(commands.qom_set(qmp, "grains", "surprise", 1), "'virtio-mem-pci.surprise' not found")
    assert await commands.qom_get(qmp, "/machine/peripheral/grains", "requested-size") == DIMM
    assert await commands.qom_get(qmp, "grains", "size") == 0
    await refused(commands.qom_get(qmp, "absent", "size"), "Device 'absent' not found", "DeviceNotFound")


async def test_virtio_mem_that_does_not_fit_is_refused(subject: Subject) -> None:
    await ram(subject, "bytes", DIMM)
    await ram(subject, "odd", DIMM + MIB)
    await virtio_mem(subject, "grains", "bytes", "port11")
    await ram(subject, "more", DIMM)
    async with nothing_changes(subject):
        await refused(virtio_mem(subject, "two", "more", "port11"), "slot 0 function 0 not available")
        await refused(virtio_mem(subject, "two", "more", "absent"), "Bus 'absent' not found")
        await refused(virtio_mem(subject, "two", "bytes", "port12"), "busy memdev: bytes")
        await refused(virtio_mem(subject, "two", "odd", "port12"), "backend memory size must be multiple of 0x200000")
        await refused(virtio_mem(subject, "two", "more", "port12", node=9), "the number of numa nodes: 4")
        await refused(
            virtio_mem(subject, "two", "more", "port12", requested=MIB), "has to be multiples of 'block-size'"
        )


async def test_nothing_checks_that_node_and_port_belong_together(subject: Subject) -> None:
    await ram(subject, "bytes")
    await virtio_mem(subject, "grains", "bytes", "port31", node=2, requested=2 * DIMM)
    device = (await memory(subject))["grains"]
    # Nor that the backend is large enough for what is asked at plug: only qom-set does.
    assert (device.node, device.requested_size, device.max_size) == (2, 2 * DIMM, DIMM)


async def test_unplugging_virtio_mem(subject: Subject) -> None:
    qmp = subject.monitor
    await ram(subject, "bytes")
    await virtio_mem(subject, "grains", "bytes", "port11")
    if subject.version < (8, 2):
        async with nothing_changes(subject):
            await refused(commands.device_del(qmp, "grains"), "virtio based memory devices cannot be unplugged")
        return
    async with qmp.events("DEVICE_DELETED") as events:
        await commands.qom_set(qmp, "grains", "requested-size", GRAIN)
        await refused(commands.device_del(qmp, "grains"), "requested-size")
        await commands.qom_set(qmp, "grains", "requested-size", 0)
        await commands.device_del(qmp, "grains")
        gone = [decode_event(await events.wait_for(deadline=5)) for _ in range(2)]
    # The first is a part of the device and carries no id: match on the id, never on the name alone.
    assert gone == [
        types.DeviceDeleted(path="/machine/peripheral/grains/virtio-backend"),
        types.DeviceDeleted(path="/machine/peripheral/grains", device="grains"),
    ]
    await commands.object_del(qmp, "bytes")


# PCI.


async def test_pci_devices_come_and_go_behind_a_far_root_port(subject: Subject) -> None:
    qmp = subject.monitor
    await commands.device_add(qmp, "virtio-rng-pci", "rng", {"bus": "port21", "addr": "0"})
    async with nothing_changes(subject):
        again = commands.device_add(qmp, "virtio-rng-pci", "two", {"bus": "port21", "addr": "0"})
        await refused(again, "slot 0 function 0 not available for virtio-rng-pci, in use by virtio-rng-pci,id=rng")
        await refused(commands.device_add(qmp, "virtio-rng-pci", "two", {"bus": "pcie.0"}), "does not support hotplug")
        await refused(commands.device_add(qmp, "virtio-rng-pci", "two"), "does not support hotplug")
        await refused(commands.device_add(qmp, "surprise", "two"), "is not a valid device model name")
        await refused(commands.device_del(qmp, "pxb2"), "does not support hotplug")
    # The slot has no power before the guest gives it some, so that QEMU need not ask.
    async with qmp.events("DEVICE_DELETED", match=lambda event: event.data.get("device") == "rng") as events:
        await commands.device_del(qmp, "rng")
        await events.wait_for(deadline=5)
    assert "rng" not in await commands.device_ids(qmp)


async def test_without_an_address_a_taken_port_may_take_a_device_that_no_guest_finds(subject: Subject) -> None:
    qmp = subject.monitor
    await commands.device_add(qmp, "virtio-rng-pci", "one", {"bus": "port21"})
    assert await commands.qom_get(qmp, "one", "addr") == 0
    second = commands.device_add(qmp, "virtio-rng-pci", "two", {"bus": "port21"})
    if subject.version < (8, 0):
        await second
        assert await commands.qom_get(qmp, "two", "addr") == 8  # slot 1, which a root port has not
    else:
        await refused(second, "slot 0 function 0 already occupied by virtio-rng-pci")


# The machine.


async def test_running_and_stopping_are_announced(subject: Subject) -> None:
    qmp = subject.monitor
    async with qmp.events("STOP", "RESUME", "RESET", "POWERDOWN") as events:
        await commands.stop(qmp)
        await commands.cont(qmp)
        assert (await commands.query_status(qmp)).running
        await commands.system_powerdown(qmp)
        await commands.stop(qmp)
        assert await commands.query_status(qmp) == types.Status(running=False, status="paused")
        await commands.stop(qmp)
        names = [(await events.wait_for(deadline=5)).name for _ in range(3)]
    assert names == ["RESUME", "POWERDOWN", "STOP"]


async def test_quit_answers_announces_and_hangs_up(subject: Subject) -> None:
    qmp = subject.monitor
    async with qmp.events() as events:
        await commands.quit_(qmp)
        event = await events.wait_for(deadline=5)
        assert decode_event(event) == types.Shutdown(guest=False, reason="host-qmp-quit")
        with pytest.raises(QmpDisconnectedError):
            await events.wait_for(deadline=10)
    with pytest.raises(QmpDisconnectedError):
        await commands.query_status(qmp)
    if subject.qemu:
        assert await subject.qemu.exited() == 0
