"""Plugging, describing and unplugging against the real QEMU, with no operating system in the guest.

What a guest does with it is tested in tests/guest; here nobody answers an unplug request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from framework.idle_machine import SPEC, idle_machine, region_file
from framework.qemu import qemu_binary
from vmcoal.errors import ConflictError, DeadlineError, NotFoundError, RefusedError, UsageError
from vmcoal.machine import cpu, memory, pci, virtio_mem
from vmcoal.machine.describe import describe
from vmcoal.machine.names import memory_ids
from vmcoal.machine.unplug import Clock
from vmcoal.model.attachment import MemoryStyle
from vmcoal.model.lease import MemoryRegion
from vmcoal.model.machine import CpuMode
from vmcoal.model.units import GIB, MIB
from vmcoal_qmp import QmpClient, commands

__all__ = ["qemu_binary"]

pytestmark = pytest.mark.contract

DIMM = memory_ids("l1", MemoryStyle.DIMM)
GRANULAR = memory_ids("g1", MemoryStyle.GRANULAR)
FAR = SPEC.far_node(1)


@pytest.fixture
async def machine(qemu_binary: str) -> AsyncIterator[QmpClient]:
    async with idle_machine(qemu_binary) as client:
        yield client


@pytest.fixture
def region(tmp_path: Path) -> MemoryRegion:
    path = region_file(tmp_path / "l1", 128 * MIB)
    props = {"mem-path": path, "size": 128 * MIB, "share": True}
    return MemoryRegion(lease="l1", size=128 * MIB, backend="memory-backend-file", props=props, children=())


def ram(size: int) -> MemoryRegion:
    return MemoryRegion(lease="g1", size=size, backend="memory-backend-ram", props={"size": size}, children=())


async def test_cpu_is_plugged_once(machine: QmpClient) -> None:
    assert await cpu.plugged_cores(machine, 1) == frozenset()
    assert await cpu.plug_cpu(machine, SPEC, 1, 2, deadline=10) == "far1-cpu2"
    assert await cpu.plug_cpu(machine, SPEC, 1, 2, deadline=10) == "far1-cpu2"
    assert await cpu.plug_cpu(machine, SPEC, 2, 0, deadline=10) == "far2-cpu0"
    assert await cpu.plugged_cores(machine, 1) == {2}
    state = await describe(machine, SPEC)
    assert state.cpus == {(1, 2), (2, 0)}
    assert state.cores(2) == {0}


async def test_the_plan_of_a_cpu_is_what_is_done(machine: QmpClient) -> None:
    (planned,) = cpu.plan_plug(SPEC, 1, 0)
    await machine.execute(planned["execute"], planned["arguments"])
    assert await cpu.plugged_cores(machine, 1) == {0}


@pytest.mark.parametrize(("node", "core"), [(1, 4), (2, 1), (2, 7)])
async def test_a_place_that_is_not_offered(machine: QmpClient, node: int, core: int) -> None:
    with pytest.raises(ConflictError, match=f"node {node} has no place for vCPU {core}"):
        await cpu.plug_cpu(machine, SPEC, node, core, deadline=10)


async def test_parked_machine_has_what_is_offered(qemu_binary: str) -> None:
    spec = msgspec.structs.replace(SPEC, cpu_mode=CpuMode.PARKED)
    async with idle_machine(qemu_binary, spec) as machine:
        state = await describe(machine, spec)
        assert state.cpus == {(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)}
        assert len(await commands.query_cpus_fast(machine)) == 7
        assert await cpu.plug_cpu(machine, spec, 1, 0, deadline=10) == "far1-cpu0"


async def test_dimm_is_plugged_and_described(machine: QmpClient, region: MemoryRegion) -> None:
    with pytest.raises(NotFoundError):
        await memory.find_dimm(machine, DIMM.device)
    dimm = await memory.plug_dimm(machine, region, 2, DIMM.device, DIMM.backend, deadline=10)
    assert (dimm.node, dimm.size, dimm.id) == (2, 128 * MIB, "dimm-l1")
    assert await memory.find_dimm(machine, DIMM.device) == dimm
    assert await memory.has_device(machine, DIMM.device)
    state = await describe(machine, SPEC)
    (found,) = state.memory
    assert (found.device, found.backend, found.style, found.node) == ("dimm-l1", "mem-l1", MemoryStyle.DIMM, 2)
    assert (found.address, found.size, found.capacity) == (dimm.addr, 128 * MIB, 128 * MIB)
    assert state.devices == {"dimm-l1"}
    assert state.orphans == frozenset()


async def test_nobody_lets_a_dimm_go(machine: QmpClient, region: MemoryRegion) -> None:
    await memory.plug_dimm(machine, region, 1, DIMM.device, DIMM.backend, deadline=10)
    for _again in range(2):
        with pytest.raises(DeadlineError, match="did not let go of DIMM dimm-l1") as caught:
            await memory.unplug_dimm(machine, DIMM.device, DIMM.backend, deadline=1.5)
        assert "still plugged" in (caught.value.left or "")
    assert (await describe(machine, SPEC)).devices == {"dimm-l1"}


async def test_what_is_gone_is_unplugged(machine: QmpClient, region: MemoryRegion) -> None:
    await memory.unplug_dimm(machine, DIMM.device, DIMM.backend, deadline=5)
    await memory.add_backend(machine, region, DIMM.backend, Clock(10))
    assert (await describe(machine, SPEC)).orphans == {"mem-l1"}
    await memory.ensure_unplugged(machine, DIMM.device, DIMM.backend, deadline=5)
    assert (await describe(machine, SPEC)).backends == frozenset()
    await cpu.ensure_unplugged(machine, 1, 0, deadline=5)
    await pci.unplug(machine, "nothing", deadline=5)
    await virtio_mem.ensure_unplugged(machine, GRANULAR.device, GRANULAR.backend, deadline=5)


async def test_a_refused_dimm_leaves_no_backend(machine: QmpClient, region: MemoryRegion) -> None:
    with pytest.raises(RefusedError, match="plug DIMM dimm-l1 into node 9"):
        await memory.plug_dimm(machine, region, 9, DIMM.device, DIMM.backend, deadline=10)
    assert (await describe(machine, SPEC)).backends == frozenset()
    missing = msgspec.structs.replace(region, props={**region.props, "mem-path": "/nowhere/file"})
    with pytest.raises(RefusedError, match="map the 128 MiB of lease l1") as caught:
        await memory.plug_dimm(machine, missing, 1, DIMM.device, DIMM.backend, deadline=10)
    assert "lender" in (caught.value.hint or "")


async def test_slots_and_headroom_end_with_a_hint(machine: QmpClient) -> None:
    with pytest.raises(RefusedError) as caught:
        await memory.plug_dimm(machine, ram(5 * GIB), 1, "dimm-big", "mem-big", deadline=10)
    assert "--far-memory" in (caught.value.hint or "")
    for number in range(SPEC.dimm_slots):
        await memory.plug_dimm(machine, ram(128 * MIB), 1, f"dimm-{number}", f"mem-{number}", deadline=10)
    with pytest.raises(RefusedError) as caught:
        await memory.plug_dimm(machine, ram(128 * MIB), 1, "dimm-x", "mem-x", deadline=10)
    assert "slots" in (caught.value.hint or "")
    assert len((await describe(machine, SPEC)).backends) == SPEC.dimm_slots
    with pytest.raises(RefusedError) as caught:
        await memory.plug_dimm(machine, ram(128 * MIB), 1, "dimm-0", "mem-0", deadline=10)
    assert "already" in (caught.value.hint or "")


async def test_granular_device(machine: QmpClient) -> None:
    await virtio_mem.plug(machine, ram(GIB), FAR, GRANULAR.device, GRANULAR.backend, deadline=10)
    device = await virtio_mem.find(machine, GRANULAR.device)
    assert (device.node, device.size, device.max_size, device.block_size) == (1, 0, GIB, 2 * MIB)
    state = await describe(machine, SPEC)
    (found,) = state.memory
    assert (found.style, found.size, found.capacity, found.requested) == (MemoryStyle.GRANULAR, 0, GIB, 0)
    assert await pci.behind(machine, "far1-mem") == [GRANULAR.device]
    with pytest.raises(ConflictError, match="node 1 has a granular memory device"):
        await virtio_mem.plug(machine, ram(GIB), FAR, "vmem-g2", "mem-g2", deadline=10)
    assert (await describe(machine, SPEC)).backends == {GRANULAR.backend}
    seen: list[int] = []
    reached = await virtio_mem.resize(machine, GRANULAR.device, 256 * MIB, deadline=1.5, progress=seen.append)
    assert reached == 0  # no driver takes it
    assert set(seen) == {0}
    assert (await describe(machine, SPEC)).memory[0].requested == 256 * MIB
    assert await virtio_mem.resize(machine, GRANULAR.device, 0, deadline=5) == 0
    for wrong in (2 * GIB, MIB, -1):
        with pytest.raises(UsageError):
            await virtio_mem.resize(machine, GRANULAR.device, wrong, deadline=5)
    with pytest.raises(NotFoundError):
        await virtio_mem.resize(machine, "nothing", 0, deadline=5)


async def test_granular_device_stays(machine: QmpClient) -> None:
    await virtio_mem.plug(machine, ram(GIB), FAR, GRANULAR.device, GRANULAR.backend, deadline=10)
    with pytest.raises((RefusedError, DeadlineError)) as caught:
        await virtio_mem.ensure_unplugged(machine, GRANULAR.device, GRANULAR.backend, deadline=3)
    assert "plugged" in (caught.value.left or "")
    assert (await describe(machine, SPEC)).devices == {GRANULAR.device}


async def test_the_plan_of_memory_is_what_is_done(machine: QmpClient, region: MemoryRegion) -> None:
    granular = virtio_mem.plan_plug(ram(GIB), FAR, "g1", 0)
    for planned in [*memory.plan_plug(region, 2, "l1"), *granular, *virtio_mem.plan_resize(GRANULAR.device, 2 * MIB)]:
        await machine.execute(planned["execute"], planned["arguments"])
    assert (await describe(machine, SPEC)).devices == {DIMM.device, GRANULAR.device}


async def test_refused_granular_device_leaves_no_backend(machine: QmpClient) -> None:
    with pytest.raises(RefusedError):
        await virtio_mem.plug(machine, ram(3 * MIB), FAR, GRANULAR.device, GRANULAR.backend, deadline=10)
    assert (await describe(machine, SPEC)).backends == frozenset()


async def test_pci_ports_run_out(machine: QmpClient) -> None:
    assert await pci.plug(machine, FAR, "virtio-rng-pci", "rng1", {"rng": "/objects/rng"}, deadline=10) == "far1-port0"
    assert await pci.plug(machine, FAR, "virtio-rng-pci", "rng2", {"rng": "/objects/rng"}, deadline=10) == "far1-port1"
    with pytest.raises(ConflictError, match="all 2 PCI ports of node 1"):
        await pci.plug(machine, FAR, "virtio-rng-pci", "rng3", {"rng": "/objects/rng"}, deadline=10)
    assert [(x.device, x.node, x.port) for x in (await describe(machine, SPEC)).pci] == [("rng1", 1, 0), ("rng2", 1, 1)]
    with pytest.raises(RefusedError, match="no-such-device"):
        await pci.plug(machine, SPEC.far_node(2), "no-such-device", "x", {}, deadline=10)


async def test_cancelled_plug_leaves_nothing_that_the_undo_does_not_find(
    machine: QmpClient, region: MemoryRegion
) -> None:
    for turns in range(6):
        plug = asyncio.create_task(memory.plug_dimm(machine, region, 1, DIMM.device, DIMM.backend, deadline=10))
        for _turn in range(turns):
            await asyncio.sleep(0)
        plug.cancel()
        await asyncio.gather(plug, return_exceptions=True)
        state = await describe(machine, SPEC)
        assert state.devices <= {DIMM.device}
        if state.devices:
            return  # it came that far: nobody in there lets it go again
        await memory.ensure_unplugged(machine, DIMM.device, DIMM.backend, deadline=5)
        assert (await describe(machine, SPEC)).backends == frozenset()
