"""Reading what this host says of a PCI function, and moving it between drivers, on plain files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from framework.fake_pci import GPU_BARS, HIGH, PciTree
from vmcoal.errors import DeadlineError, ExecutionError, NotFoundError, UsageError
from vmcoal.host.pci import PciBus
from vmcoal.model.pci import Bar, HostDriver
from vmcoal.policy.passthrough import before, to_bind

pytestmark = pytest.mark.unit

GPU, SOUND = "0000:01:00.0", "0000:01:00.1"


@pytest.fixture
def tree(tmp_path: Path) -> PciTree:
    made = PciTree(tmp_path)
    made.add("0000:00:01.0", pci_class=0x060400, driver="pcieport", port="")
    made.add(GPU, driver="nvidia", bars=GPU_BARS)
    made.add(SOUND, pci_class=0x040300, driver="snd_hda_intel")
    return made


def test_a_function_as_sysfs_shows_it(tree: PciTree) -> None:
    found = tree.bus().function("01:00.0")
    assert (found.address, found.vendor, found.device, found.pci_class) == (GPU, 0x10DE, 0x2204, 0x030000)
    assert (found.driver, found.override, found.group, found.resets) == ("nvidia", "", "7", ("flr", "bus"))
    assert not found.integrated
    assert found.bars == (
        Bar(number=0, size=16 << 20),
        Bar(number=1, size=256 << 20, prefetchable=True, wide=True),
        Bar(number=3, size=32 << 20, prefetchable=True, wide=True),
        Bar(number=5, size=128, io=True),
    )
    with pytest.raises(NotFoundError, match=r"no PCI function 0000:02:00.0"):
        tree.bus().function("0000:02:00.0")
    with pytest.raises(UsageError):
        tree.bus().function("../../etc")


def test_facts(tree: PciTree) -> None:
    tree.put(tree.proc / "42/limits", "Limit  Soft Limit  Hard Limit  Units\nMax locked memory  65536  8388608  bytes")
    facts = tree.bus().facts(GPU, qemu=42)
    assert [one.address for one in facts.group] == ["0000:00:01.0", GPU, SOUND]
    assert facts.iommu
    assert not facts.unsafe
    assert facts.memlock == 8388608
    assert facts.opens is None, "nobody can open a group whose functions have other drivers"
    tree.put(tree.proc / "42/status", "Name:\tqemu\nCapEff:\t000001ffffffffff")
    assert tree.bus().facts(GPU, qemu=42).memlock is None, "CAP_IPC_LOCK knows no limit"
    tree.put(tree.sys / "kernel/iommu_groups/7/name", "vfio-noiommu")
    assert tree.bus().facts(GPU).unsafe


def test_a_host_without_iommu(tmp_path: Path) -> None:
    tree = PciTree(tmp_path)
    tree.add(GPU, group=None)
    facts = tree.bus().facts(GPU)
    assert not facts.iommu
    assert facts.group == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may open a file of mode 0")
def test_a_group_that_can_be_opened(tree: PciTree) -> None:
    tree.add("0000:05:00.0", driver="vfio-pci", group="9")
    assert tree.bus().facts("0000:05:00.0").opens is None


def test_a_group_that_cannot_be_opened(tree: PciTree) -> None:
    tree.add("0000:05:00.0", driver="vfio-pci", group="9")
    (tree.dev / "vfio/9").unlink()
    (tree.dev / "vfio/9").mkdir()
    assert tree.bus().facts("0000:05:00.0").opens == "Is a directory"
    assert tree.bus().facts("0000:05:00.0", opened=True).opens is None


def test_mounted_disks_swap_and_holders_are_uses(tree: PciTree) -> None:
    folder = tree.add("0000:03:00.0", pci_class=0x010802, driver="nvme", group="3")
    disk = folder / "nvme/nvme0/nvme0n1"
    for name, number in (("", "259:0"), ("/nvme0n1p1", "259:1"), ("/nvme0n1p2", "259:2"), ("/nvme0n1p3", "259:3")):
        tree.put(Path(f"{disk}{name}/dev"), number)
        if name:
            tree.put(Path(f"{disk}{name}/partition"), "1")
    bus = tree.bus()
    assert bus.function("0000:03:00.0").uses == ()
    tree.put(tree.proc / "self/mountinfo", "25 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw")
    tree.put(tree.proc / "swaps", "Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1 0 -2")
    tree.put(disk / "nvme0n1p3/holders/dm-0", "")
    assert bus.function("0000:03:00.0").uses == tuple(
        f"disk nvme0n1p{number} is mounted or in use" for number in (1, 2, 3)
    )


def test_an_interface_that_is_up_is_a_use(tree: PciTree) -> None:
    folder = tree.add("0000:04:00.0", pci_class=0x020000, driver="e1000e", group="4")
    tree.put(folder / "net/eth0/flags", "0x1002")
    assert tree.bus().function("0000:04:00.0").uses == ()
    tree.put(folder / "net/eth0/flags", "0x1003")
    assert tree.bus().function("0000:04:00.0").uses == ("network interface eth0 is up (ip link set eth0 down)",)


def test_a_console_and_whoever_draws_are_uses(tree: PciTree) -> None:
    folder = tree.folder(GPU)
    tree.put(folder / "graphics/fb0/dev", "29:0")
    tree.put(folder / "drm/card0/dev", "226:0")
    console = tree.sys / "class/vtconsole/vtcon1"
    tree.put(console / "name", "(M) frame buffer device")
    tree.put(console / "bind", "1")
    tree.put(tree.proc / "77/comm", "Xorg")
    (tree.proc / "77/fd").mkdir()
    (tree.proc / "77/fd/5").symlink_to("/dev/dri/card0")
    (tree.proc / "77/fd/6").symlink_to("/dev/dri/card1")
    console_use, program = tree.bus().function(GPU).uses
    assert console_use.startswith("its console is on it, fb0 (echo 0 > /sys/class/vtconsole/vtcon1/bind")
    assert program == "Xorg has /dev/dri/card0 open"
    tree.put(console / "bind", "0")
    (tree.proc / "77/fd/5").unlink()
    assert tree.bus().function(GPU).uses == ()


async def test_there_and_back(tree: PciTree) -> None:
    bus, drivers = tree.bus(), tree.drivers()
    functions = to_bind(bus.facts(GPU))
    await bus.take(functions)
    assert tree.drivers() == {"0000:00:01.0": "pcieport", GPU: "vfio-pci", SOUND: "vfio-pci"}
    for _ in range(2):
        await bus.give_back(before(functions))
        assert tree.drivers() == drivers


async def test_what_a_function_had_is_restored_as_it_was(tree: PciTree) -> None:
    tree.add("0000:05:00.0", driver=None, group="9")
    tree.put(tree.folder("0000:05:00.0") / "driver_override", "mine")
    bus = tree.bus()
    functions = (bus.function("0000:05:00.0"),)
    await bus.take(functions)
    assert tree.driver("0000:05:00.0") == "vfio-pci"
    await bus.give_back(before(functions))
    assert tree.driver("0000:05:00.0") is None
    assert tree.override("0000:05:00.0") == "mine"


async def test_a_function_that_is_gone_needs_nothing_back(tree: PciTree) -> None:
    await tree.bus().give_back([HostDriver(address="0000:09:00.0", driver="nvidia")])


async def test_a_driver_that_does_not_take_it(tree: PciTree) -> None:
    bus = tree.bus()
    functions = to_bind(bus.facts(GPU))
    tree.probe = lambda address: None  # type: ignore[method-assign]
    with pytest.raises(ExecutionError, match=r"vfio-pci did not take 0000:01:00.0, which has driver none"):
        await bus.take(functions)


async def test_writes_of_the_real_one(tmp_path: Path) -> None:
    bus = PciBus(str(tmp_path))
    folder = tmp_path / "bus/pci/devices/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "driver_override").write_text("vfio-pci\n")
    await bus.give_back([HostDriver(address=GPU)])
    assert (folder / "driver_override").read_text() == "\n"
    (folder / "driver_override").write_text("vfio-pci\n")
    (tmp_path / "elsewhere").mkdir()
    (folder / "driver").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "elsewhere/unbind")
    with pytest.raises(DeadlineError, match=r"did not write '0000:01:00.0'"):
        await bus.give_back([HostDriver(address=GPU)], deadline=0.2)
    (folder / "driver").unlink()
    (folder / "driver").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ExecutionError, match=r"cannot write '0000:01:00.0' to"):
        await bus.give_back([HostDriver(address=GPU)])


def test_a_wide_bar_is_told_from_a_narrow_one(tree: PciTree) -> None:
    tree.add("0000:06:00.0", bars=((0, 32 << 30, HIGH), (4, 4096, 0x42208)), group="11")
    wide, narrow = tree.bus().function("0000:06:00.0").bars
    assert (wide.wide, wide.prefetchable, wide.size) == (True, True, 32 << 30)
    assert (narrow.wide, narrow.prefetchable) == (False, True)
