"""Windows for GPUs, with a GPU of any size: Linux finds an address for what the rule says fits, and not for more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from framework.fake_gpu import FakeGpu, socket_of
from framework.newer_qemu import newer_qemu
from vmcoal.errors import ConflictError
from vmcoal.guest import pci as guest_pci
from vmcoal.guest.channel import Agent, wait_agent
from vmcoal.guest.images import ensure_default_image
from vmcoal.holding.client import Holder
from vmcoal.layout import vm_folders
from vmcoal.machine import pci
from vmcoal.machine.argv import mmio_reserve
from vmcoal.machine.launch import HolderLauncher
from vmcoal.machine.spec import make_spec
from vmcoal.model.machine import Accel, FarNode, KernelBoot, Net
from vmcoal.model.pci import Bar, GuestFunction, PciFunction
from vmcoal.model.units import GIB, MIB
from vmcoal.policy.passthrough import check_window, window_needed, without_address
from vmcoal_qmp import QmpClient, commands

pytestmark = [pytest.mark.guest, pytest.mark.soak, pytest.mark.timeout(600)]

BOOT = 240.0
IDS = 0x10DE, 0x2330


def bars(vram: int) -> tuple[Bar, ...]:
    """The BARs of a card that shows ``vram`` bytes of memory."""
    wide = [Bar(number=number, size=size, prefetchable=True, wide=True) for number, size in ((1, vram), (3, 32 * MIB))]
    return (Bar(number=0, size=16 * MIB), *wide)


@asynccontextmanager
async def booted(window: int) -> AsyncIterator[tuple[QmpClient, Agent, FarNode]]:
    image = ensure_default_image()
    spec = make_spec(
        name="windows",
        qemu=newer_qemu((10, 1)),
        accel=Accel.TCG,
        qemu_version=(10, 1),
        boot=KernelBoot(str(image.kernel), str(image.initrd), image.append, image.release),
        far_nodes=1,
        far_memory=0,
        gpu_window=window,
        net=Net("none"),
    )
    folders = vm_folders(spec.name)
    folders.make()
    async with await Holder.start(folders, name=spec.name, deadline=30) as holder:
        launcher = HolderLauncher(holder, folders)
        try:
            qmp = await launcher.launch(spec, deadline=60)
            agent = await wait_agent(folders, deadline=BOOT)
            try:
                yield qmp, agent, spec.far_nodes[0]
            finally:
                await agent.close()
                await qmp.close()
        finally:
            await launcher.kill(grace=2)
            await holder.shutdown(grace=2)


async def seen(qmp: QmpClient, agent: Agent, far: FarNode, vram: int, path: Path) -> GuestFunction:
    """Plug a card of ``vram`` bytes, return what the guest makes of it, and take it out again."""
    vendor, device = IDS
    async with FakeGpu(vendor=vendor, device=device, bars=bars(vram)).served(path):
        port = await pci.plug(qmp, far, "vfio-user-pci", "gpu", socket_of(path), deadline=60, slow=True)
        slot = int(await commands.qom_get(qmp, f"/machine/peripheral/{port}", "slot", deadline=10))
        found = await guest_pci.look(agent, slot, deadline=120)
        await agent.pci_power_off(found.address, deadline=60)
        await pci.unplug(qmp, "gpu", deadline=60)
    path.unlink()
    assert (found.vendor, found.device) == IDS
    return found


async def test_a_card_of_32_gib_fits_64_gib_and_one_of_64_gib_does_not(tmp_path: Path) -> None:
    async with booted(64 * GIB) as (qmp, agent, far):
        assert window_needed(bars(32 * GIB)) == far.gpu_window
        small = await seen(qmp, agent, far, 32 * GIB, tmp_path / "gpu")
        assert without_address(bars(32 * GIB), small) == []
        large = await seen(qmp, agent, far, 64 * GIB, tmp_path / "gpu")
        assert [bar.number for bar in without_address(bars(64 * GIB), large)] != []
        function = PciFunction(address="0000:01:00.0", vendor=1, device=1, pci_class=0x030200, bars=bars(64 * GIB))
        with pytest.raises(ConflictError, match="need a window of 128 GiB"):
            check_window(function, far, mmio_reserve(far.ports) * MIB)


async def test_the_default_window_takes_a_card_that_shows_256_mib(tmp_path: Path) -> None:
    async with booted(512 * MIB) as (qmp, agent, far):
        found = await seen(qmp, agent, far, 256 * MIB, tmp_path / "gpu")
        assert without_address(bars(256 * MIB), found) == []
