"""Hotplug as the controller does it, against Linux: QEMU's side by vmcoal.machine, the guest's by its agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from framework.idle_machine import region_file
from framework.qemu import qemu_binaries
from vmcoal.errors import RefusedError
from vmcoal.guest.channel import Agent, wait_agent
from vmcoal.guest.images import ensure_default_image
from vmcoal.holding.client import Holder
from vmcoal.layout import VmFolders, vm_folders
from vmcoal.machine import cpu, memory, pci, virtio_mem
from vmcoal.machine.describe import describe
from vmcoal.machine.launch import HolderLauncher
from vmcoal.machine.names import memory_ids
from vmcoal.machine.spec import make_spec
from vmcoal.model.attachment import MemoryStyle
from vmcoal.model.guest import CpuName, GuestCommand, MemorySpan
from vmcoal.model.lease import MemoryRegion
from vmcoal.model.machine import Accel, CpuMode, KernelBoot, MachineSpec, Net
from vmcoal.model.units import GIB, MIB
from vmcoal_qmp import QmpClient

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

BOOT = 120.0
SIZE = 256 * MIB


class Guest:
    """A booted guest from both sides."""

    def __init__(self, spec: MachineSpec, folders: VmFolders, qmp: QmpClient, agent: Agent) -> None:
        self.spec, self.folders, self.qmp, self.agent = spec, folders, qmp, agent

    async def shell(self, script: str) -> str:
        """Run a script in the guest and return its output."""
        out = bytearray()

        async def on_output(_stream: int, data: bytes) -> None:
            out.extend(data)

        end = await self.agent.exec(GuestCommand(argv=("sh", "-c", script)), on_output=on_output, deadline=60)
        assert end.code == 0, out.decode()
        return out.decode()

    def region(self, lease: str, size: int = SIZE) -> MemoryRegion:
        path = region_file(self.folders.runtime / f"{lease}.bytes", size)
        props = {"mem-path": path, "size": size, "share": True}
        return MemoryRegion(lease=lease, size=size, backend="memory-backend-file", props=props, children=())

    async def plug(self, lease: str, node: int) -> MemorySpan:
        """Plug a DIMM and have it online."""
        ids = memory_ids(lease, MemoryStyle.DIMM)
        dimm = await memory.plug_dimm(self.qmp, self.region(lease), node, ids.device, ids.backend, deadline=10)
        span = MemorySpan(dimm.addr, dimm.size)
        assert {block.node for block in await self.agent.memory_set(span, True, deadline=60)} == {node}
        return span

    async def unplug(self, lease: str, deadline: float = 30.0) -> None:
        ids = memory_ids(lease, MemoryStyle.DIMM)
        await memory.unplug_dimm(self.qmp, ids.device, ids.backend, deadline=deadline)


@asynccontextmanager
async def booted(mode: CpuMode) -> AsyncIterator[Guest]:
    image = ensure_default_image()
    spec = make_spec(
        name="hotplug",
        qemu=qemu_binaries()[0],
        accel=Accel.TCG,
        qemu_version=(7, 2),
        boot=KernelBoot(str(image.kernel), str(image.initrd), image.append),
        far_nodes=2,
        far_cpus=2,
        far_memory=GIB,
        net=Net("none"),
    )
    spec = msgspec.structs.replace(spec, cpu_mode=mode)
    folders = vm_folders(spec.name)
    folders.make()
    async with await Holder.start(folders, name=spec.name, deadline=10) as holder:
        launcher = HolderLauncher(holder, folders)
        try:
            qmp = await launcher.launch(spec, deadline=30)
            agent = await wait_agent(folders, deadline=BOOT)
            try:
                yield Guest(spec, folders, qmp, agent)
            finally:
                await agent.close()
                await qmp.close()
        finally:
            await launcher.kill(grace=2)
            await holder.shutdown(grace=2)


async def check_cpus(guest: Guest) -> None:
    for node, core in ((2, 1), (1, 0)):
        await cpu.plug_cpu(guest.qmp, guest.spec, node, core, deadline=10)
    cpus = await guest.agent.cpu_set([CpuName(socket=2, core=1), CpuName(socket=1, core=0)], True, deadline=60)
    assert {(one.node, one.core) for one in cpus} == {(2, 1), (1, 0)}
    assert (await describe(guest.qmp, guest.spec)).cpus == {(2, 1), (1, 0)}
    topology = await guest.agent.topology()
    distances = {node.node: node.distances for node in topology.nodes}
    near, far = (node.distance for node in guest.spec.far_nodes)
    assert distances == {0: {0: 10, 1: near, 2: far}, 1: {0: near, 1: 10, 2: far}, 2: {0: far, 1: far, 2: 10}}


async def check_dimms(guest: Guest) -> None:
    span = await guest.plug("a", 1)
    await guest.agent.memory_set(span, False, deadline=60)
    await guest.unplug("a")
    await guest.plug("b", 2)  # Linux takes an online one offline by itself where it can
    await guest.unplug("b")
    state = await describe(guest.qmp, guest.spec)
    assert (state.devices, state.backends) == (frozenset(), frozenset())


async def check_refusal(guest: Guest) -> None:
    span = await guest.plug("kernel", 1)
    blocks = await guest.agent.memory_set(span, False, deadline=60)
    for block in blocks:
        await guest.shell(f"echo online_kernel > /sys/devices/system/memory/memory{block.number}/state")
    # Page tables, slabs and inodes of node 1: what the kernel holds cannot be moved.
    await guest.shell("mkdir -p /k && mount -t tmpfs k /k && cd /k && numactl -m 1 sh -c 'seq 3000 | xargs mkdir'")
    with pytest.raises(RefusedError, match="the guest refuses to let go of DIMM dimm-kernel") as caught:
        await guest.unplug("kernel")
    assert caught.value.left == "it is plugged as before"
    assert "dimm-kernel" in (await describe(guest.qmp, guest.spec)).devices
    await guest.shell("umount /k; echo 3 > /proc/sys/vm/drop_caches")


async def check_granular(guest: Guest) -> None:
    ids = memory_ids("g", MemoryStyle.GRANULAR)
    far = guest.spec.far_node(2)
    await virtio_mem.plug(guest.qmp, guest.region("g", 512 * MIB), far, ids.device, ids.backend, deadline=10)
    seen: list[int] = []
    for size in (256 * MIB, 384 * MIB, 66 * MIB, 0):
        assert await virtio_mem.resize(guest.qmp, ids.device, size, deadline=60, progress=seen.append) == size
    assert max(seen) == 384 * MIB
    assert await virtio_mem.resize(guest.qmp, ids.device, 130 * MIB, deadline=60) == 130 * MIB
    node = next(node for node in (await guest.agent.topology()).nodes if node.node == 2)
    assert node.memory_total == 130 * MIB


async def check_pci(guest: Guest) -> None:
    rng = {"rng": "/objects/rng"}
    await pci.plug(guest.qmp, guest.spec.far_node(2), "virtio-rng-pci", "rng2", rng, deadline=10)
    find = "until ls /sys/bus/pci/drivers/virtio-pci | grep 0000:4; do sleep 0.1; done"
    address = (await guest.shell(find)).split()[-1]
    await guest.agent.pci_fix_node([address], 2)
    assert (await guest.shell(f"cat /sys/bus/pci/devices/{address}/numa_node")).strip() == "2"
    await guest.agent.pci_power_off(address, deadline=30)
    await pci.unplug(guest.qmp, "rng2", deadline=30)
    assert (await describe(guest.qmp, guest.spec)).pci == ()


async def check_reboot(guest: Guest) -> None:
    """A reboot keeps what is plugged, and the guest comes up with it."""
    before = await describe(guest.qmp, guest.spec)
    boot_id = (await guest.agent.info()).boot_id
    async with guest.qmp.events("RESET") as resets:
        await guest.qmp.execute("system_reset")
        await resets.wait_for(deadline=10)
    await guest.agent.close()
    async with asyncio.timeout(BOOT):
        while True:
            guest.agent = await wait_agent(guest.folders, deadline=BOOT)
            if (await guest.agent.info()).boot_id != boot_id:
                break
            await guest.agent.close()
    after = await describe(guest.qmp, guest.spec)
    assert (after.cpus, after.devices) == (before.cpus, before.devices)
    topology = await guest.agent.topology()
    assert {(one.node, one.core) for one in topology.cpus if one.online} == {(0, 0), (0, 1), (1, 0), (2, 1)}


async def test_linux_lets_everything_come_and_go(surroundings: Path) -> None:
    async with booted(CpuMode.PLUG_PARK) as guest:
        await check_cpus(guest)
        await check_dimms(guest)
        await check_granular(guest)
        await check_refusal(guest)
        await check_pci(guest)
        await check_reboot(guest)
        assert "Kernel panic" not in guest.folders.console_log.read_text(errors="replace")


async def test_parked_machine_boots_with_its_near_cpus(surroundings: Path) -> None:
    async with booted(CpuMode.PARKED) as guest:
        topology = await guest.agent.topology()
        assert [one.number for one in topology.cpus if one.online] == [0, 1]
        assert [node.node for node in topology.nodes] == [0, 1, 2]
        (one,) = await guest.agent.cpu_set([CpuName(socket=2, core=1)], True, deadline=60)
        assert (one.online, one.node) == (True, 2)
        await guest.agent.cpu_set([CpuName(socket=2, core=1)], False, deadline=60)
