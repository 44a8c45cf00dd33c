"""What a Linux guest makes of hotplug, as QMP tells it: real ones, recorded ones, and the model's guest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from framework.fake_machine import FakeGuest
from framework.linux import UNWILLING, WILLING, running_linux
from framework.qemu import MIB, qemu_version, show
from framework.qmp_subject import Subject, model, pair, parameters, recording, replayed
from vmcoal_qmp import EventStream, QmpCommandError, QmpTimeoutError, commands
from vmcoal_qmp.types import AcpiDeviceOst, DeviceDeleted, MemoryDeviceSizeChange, OstStatus, VirtioMem, decode_event

DIMM = 256 * MIB
SLOW = 60.0


async def at_once(_word: str) -> None:
    """Stand for a guest without a console: what is due happens now."""
    for _ in range(3):
        await asyncio.sleep(0)


@dataclass
class Guest(Subject):
    """A machine with a guest that has booted; ``says`` waits for a word on its console."""

    says: Callable[[str], Awaitable[None]] = at_once


@asynccontextmanager
async def booted(request: pytest.FixtureRequest, folder: Path, mood: str) -> AsyncIterator[Guest]:
    kind, which = request.param
    folder.mkdir()
    if kind == "real":
        with recording(request, qemu_version(which), folder) as transcript:
            async with running_linux(which, folder, mood, transcript=transcript) as (qemu, console):
                await commands.cont(qemu.client)
                await console.until("QMP-READY")
                version = qemu.client.version.triple[:2]
                yield Guest(qemu.client, version, folder, qemu, says=console.until)
        show(request, qemu)
    elif kind == "replay":
        async with replayed(request, which, folder) as made:
            await commands.cont(made.monitor)
            yield Guest(made.monitor, made.version, folder)
    else:
        there = FakeGuest(booted=True, default="release" if mood == WILLING else "refuse")
        yield Guest(model(pair(which), there), pair(which), folder)


@pytest.fixture(params=parameters(pytest.mark.guest))
async def guest(request: pytest.FixtureRequest, surroundings: Path) -> AsyncIterator[Guest]:
    async with booted(request, surroundings / "s" / "qemu", WILLING) as made:
        yield made


@pytest.fixture(params=parameters(pytest.mark.guest))
async def unwilling(request: pytest.FixtureRequest, surroundings: Path) -> AsyncIterator[Guest]:
    async with booted(request, surroundings / "s" / "qemu", UNWILLING) as made:
        yield made


async def next_events(events: EventStream, count: int) -> list[Any]:
    return [decode_event(await events.wait_for(deadline=SLOW)) for _ in range(count)]


async def plug_dimm(guest: Guest, events: EventStream) -> None:
    await commands.object_add(guest.monitor, "memory-backend-ram", "bytes", {"size": DIMM})
    await commands.device_add(guest.monitor, "pc-dimm", "far", {"memdev": "bytes", "node": 2})
    assert await next_events(events, 1) == [ost(OstStatus.SUCCESS, source=1)]


def ost(status: int, source: int = OstStatus.SOURCE_EJECT_REQUEST, device: str | None = "far") -> AcpiDeviceOst:
    return AcpiDeviceOst(slot="0", slot_type="DIMM", source=source, status=status, device=device)


async def plug_virtio_mem(guest: Guest, bus: str) -> None:
    await commands.object_add(guest.monitor, "memory-backend-ram", "grainy", {"size": DIMM})
    props = {"memdev": "grainy", "node": 1, "bus": bus, "addr": "0", "requested-size": 0}
    await commands.device_add(guest.monitor, "virtio-mem-pci", "grains", props)
    await guest.says("QMP-GRAINS")


async def grows_to(events: EventStream, size: int) -> list[int]:
    """Wait until the guest has ``size`` bytes of virtio-mem plugged, and return the sizes told on the way."""
    sizes: list[int] = []
    while not sizes or sizes[-1] != size:
        event = decode_event(await events.wait_for(lambda e: e.name == "MEMORY_DEVICE_SIZE_CHANGE", deadline=SLOW))
        assert isinstance(event, MemoryDeviceSizeChange)
        assert (event.id, event.qom_path) == ("grains", "/machine/peripheral/grains")
        sizes.append(event.size)
    return sizes


async def test_a_plugged_vcpu_is_acknowledged(guest: Guest) -> None:
    place = {"socket-id": 1, "core-id": 0, "thread-id": 0}
    async with guest.monitor.events("ACPI_DEVICE_OST") as events:
        await commands.device_add(guest.monitor, "max-x86_64-cpu", "one", place)
        assert await next_events(events, 1) == [
            AcpiDeviceOst(slot="2", slot_type="CPU", source=1, status=OstStatus.SUCCESS, device="one")
        ]


async def test_a_dimm_comes_and_goes(guest: Guest) -> None:
    qmp = guest.monitor
    async with qmp.events("ACPI_DEVICE_OST", "DEVICE_DELETED") as events:
        await plug_dimm(guest, events)
        await commands.device_del(qmp, "far")
        assert await next_events(events, 3) == [
            ost(OstStatus.IN_PROGRESS),
            DeviceDeleted(path="/machine/peripheral/far", device="far"),
            ost(OstStatus.SUCCESS, device=None),  # it has no id any more
        ]
    assert await commands.query_memory_devices(qmp) == []
    await commands.object_del(qmp, "bytes")


async def test_a_dimm_that_the_kernel_keeps_data_in_stays(unwilling: Guest) -> None:
    guest, qmp = unwilling, unwilling.monitor
    async with qmp.events("ACPI_DEVICE_OST", "DEVICE_DELETED") as events:
        await plug_dimm(guest, events)
        await guest.says("QMP-PINNED")
        for _ in range(2):
            await commands.device_del(qmp, "far")
            assert await next_events(events, 2) == [ost(OstStatus.IN_PROGRESS), ost(OstStatus.DEVICE_BUSY)]
    assert len(await commands.query_memory_devices(qmp)) == 1


async def test_virtio_mem_follows_what_is_asked(guest: Guest) -> None:
    qmp = guest.monitor
    await plug_virtio_mem(guest, "port01")
    async with qmp.events() as events:
        await commands.qom_set(qmp, "grains", "requested-size", DIMM)
        sizes = await grows_to(events, DIMM)
        assert sizes == sorted(sizes)
        await commands.qom_set(qmp, "grains", "requested-size", 2 * MIB)
        assert await grows_to(events, 2 * MIB)
        [device] = await commands.query_memory_devices(qmp)
        assert isinstance(device, VirtioMem)
        assert (device.requested_size, device.size) == (2 * MIB, 2 * MIB)
        assert (await commands.query_memory_size_summary(qmp)).plugged_memory == 2 * MIB


async def test_virtio_mem_behind_an_expander_needs_a_newer_qemu(guest: Guest) -> None:
    # 7.2 gives virtio-mem no MSI-X, and legacy interrupts from behind a pxb never arrive: the guest sees the size that
    # is requested when its driver starts, and hears of no other.
    qmp = guest.monitor
    await plug_virtio_mem(guest, "port11")
    async with qmp.events("MEMORY_DEVICE_SIZE_CHANGE") as events:
        await commands.qom_set(qmp, "grains", "requested-size", DIMM)
        if guest.version < (8, 0):
            with pytest.raises(QmpTimeoutError):
                await events.wait_for(deadline=2 if guest.qemu else 0.2)
        else:
            await grows_to(events, DIMM)


async def test_a_pci_device_comes_and_goes(guest: Guest) -> None:
    qmp = guest.monitor
    await commands.device_add(qmp, "virtio-rng-pci", "rng", {"bus": "port21", "addr": "0"})
    await guest.says("QMP-RNG")
    async with qmp.events("DEVICE_DELETED") as events:
        while True:
            try:
                await commands.device_del(qmp, "rng")
                break
            except QmpCommandError as error:  # it is being powered up, and nothing announces when that is done
                assert "guest is busy" in error.desc
                await asyncio.sleep(0.1)
        with pytest.raises(QmpCommandError, match=r"in the process of unplug|guest is busy"):
            await commands.device_del(qmp, "rng")
        assert await next_events(events, 2) == [
            DeviceDeleted(path="/machine/peripheral/rng/virtio-backend"),
            DeviceDeleted(path="/machine/peripheral/rng", device="rng"),
        ]
