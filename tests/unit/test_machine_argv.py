"""The command line of QEMU, word by word; regenerate with ``pytest --regenerate``."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from framework.golden import check_golden
from vmcoal.layout import VmFolders
from vmcoal.machine.argv import CHANNELS, kernel_arguments, mac_address, mmio_reserve, qemu_argv
from vmcoal.machine.spec import MAX_DISKS, MAX_FAR_NODES, bus_spacing
from vmcoal.model.machine import Accel, CpuMode, Disk, DiskBoot, FarNode, KernelBoot, MachineSpec, Net
from vmcoal.model.units import GIB, MIB

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).with_name("golden_machine_argv")
FOLDERS = VmFolders(Path("/run/vmcoal/vm/demo"), Path("/state/vm/demo"))
FDS = {name: 20 + index for index, name in enumerate(CHANNELS)}

KERNEL = MachineSpec(
    name="demo",
    uuid="6f0e1a52-7a4e-4f6e-8f35-0d4c1f2b3a49",
    accel=Accel.TCG,
    cpus=2,
    memory=1 * GIB,
    far_nodes=(FarNode(1, 4, 8 * GIB, 40, 32), FarNode(2, 1, 8 * GIB, 120, 64)),
    boot=KernelBoot("/boot/vmlinuz", "/boot/initrd", "quiet"),
    net=Net(ssh_port=2222),
)
DISK = msgspec.structs.replace(
    KERNEL,
    accel=Accel.KVM,
    cpu_model="host",
    cpu_mode=CpuMode.HOTPLUG,
    boot=DiskBoot(
        "/images/a,b.qcow2", "qcow2", "uefi", seed=True, uefi_code="/ovmf/code.fd", uefi_vars="/ovmf/vars.fd"
    ),
    disks=(Disk("/data.img"), Disk("/iso.img", readonly=True)),
    net=Net("bridge", "br0"),
    display="vnc=127.0.0.1:1",
)
CASES = {
    "kernel-plug-park": KERNEL,
    "kernel-parked": msgspec.structs.replace(KERNEL, cpu_mode=CpuMode.PARKED, cpu_model="max,-vmx"),
    "disk-uefi-bridge-vnc": DISK,
    "disk-bios-tap-spice": msgspec.structs.replace(
        DISK, boot=DiskBoot("/images/d.raw", "raw"), net=Net("tap", "tap0"), display="spice=port=5900", disks=()
    ),
    "no-far-nodes": msgspec.structs.replace(KERNEL, far_nodes=(), net=Net("none"), display="gtk"),
}


def lines(argv: list[str]) -> str:
    """One option a line."""
    text = argv[0]
    for word in argv[1:]:
        text += f"\n{word}" if word.startswith("-") else f" {word}"
    return text + "\n"


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, request: pytest.FixtureRequest) -> None:
    text = lines(qemu_argv(CASES[case], FOLDERS, FDS))
    check_golden(GOLDEN / f"{case}.txt", text, request.config.getoption("--regenerate"))


@pytest.mark.parametrize("case", CASES)
def test_nothing_that_punches_holes_into_paged_memory(case: str) -> None:
    assert "balloon" not in " ".join(qemu_argv(CASES[case], FOLDERS, FDS))


def test_distances_are_an_ultrametric() -> None:
    argv = qemu_argv(KERNEL, FOLDERS, FDS)
    distances = [word for word in argv if word.startswith("dist,")]
    assert "dist,src=0,dst=1,val=40" in distances
    assert "dist,src=1,dst=2,val=120" in distances
    assert len(distances) == 6


def test_every_port_of_a_far_node_has_its_window() -> None:
    far = tuple(FarNode(node, 1, GIB, 20 + node, 32 * node, 2, 64 * GIB) for node in (1, 2))
    argv = qemu_argv(msgspec.structs.replace(KERNEL, far_nodes=far), FOLDERS, FDS)
    assert len([word for word in argv if "mem-reserve=64M,pref64-reserve=65536M" in word]) == 4


def test_unequal_sockets_share_the_larger_count_and_park_only_what_is_offered() -> None:
    argv = qemu_argv(CASES["kernel-parked"], FOLDERS, FDS)
    assert "2,sockets=3,dies=1,cores=4,threads=1,maxcpus=12" in argv
    parked = [word for word in argv if "x86_64-cpu" in word]
    assert len(parked) == 5
    assert parked[-1] == "max-x86_64-cpu,id=far2-cpu0,socket-id=2,die-id=0,core-id=0,thread-id=0"


def test_expanders_never_overlap_and_stay_below_256_buses() -> None:
    for count in range(1, 16):
        spacing = bus_spacing(count)
        assert spacing * count + 2 < 256
        assert spacing >= 16


def test_every_device_of_pcie_0_has_its_own_address() -> None:
    far = tuple(FarNode(node, 1, GIB, 20 + node, 16 * node) for node in range(1, MAX_FAR_NODES + 1))
    spec = msgspec.structs.replace(DISK, far_nodes=far, disks=(Disk("/data.img"),) * MAX_DISKS)
    argv = qemu_argv(spec, FOLDERS, FDS)
    devices = [word for word in argv if ",addr=" in word and ("bus=" not in word or "bus=pcie.0" in word)]
    addresses = [word.partition(",addr=")[2].partition(",")[0] for word in devices]
    assert len(addresses) == 2 * MAX_FAR_NODES + 7 + MAX_DISKS
    normal = {f"{address}.0" if "." not in address else address for address in addresses}
    assert len(normal) == len(addresses)
    assert all(int(address.partition(".")[0], 16) < 0x1F for address in normal)  # 0x1f is the chipset's
    slots = [word.partition(",slot=")[2].partition(",")[0] for word in argv if ",slot=" in word]
    assert len(set(slots)) == len(slots) == 3 * MAX_FAR_NODES


def test_windows_of_all_ports_fit_below_4_gib() -> None:
    for ports in range(1, 31):
        assert ports * mmio_reserve(ports) <= 768
    assert mmio_reserve(8) == 64


def test_mac_address_follows_from_the_uuid() -> None:
    assert mac_address(KERNEL.uuid) == "52:54:00:2b:3a:49"


def test_kernel_arguments_of_the_user_come_last() -> None:
    assert isinstance(KERNEL.boot, KernelBoot)
    assert kernel_arguments(KERNEL, KERNEL.boot).startswith("console=ttyS0 ")
    assert kernel_arguments(KERNEL, KERNEL.boot).endswith(" quiet")
    bare = msgspec.structs.replace(KERNEL, far_nodes=(), memory=512 * MIB)
    assert kernel_arguments(bare, KernelBoot("/boot/vmlinuz")) == "console=ttyS0"


def test_ssh_key_reaches_a_kernel_through_the_firmware_interface() -> None:
    spec = msgspec.structs.replace(KERNEL, ssh_key="ssh-ed25519 AAAA me,here")
    argv = qemu_argv(spec, FOLDERS, FDS)
    assert argv[argv.index("-fw_cfg") + 1] == "name=opt/org.vmcoal/authorized_keys,string=ssh-ed25519 AAAA me,,here"


def test_the_users_arguments_come_before_the_far_nodes_buses() -> None:
    spec = msgspec.structs.replace(KERNEL, qemu_args=("-device", "virtio-balloon-pci"))
    argv = qemu_argv(spec, FOLDERS, FDS)
    at = argv.index("virtio-balloon-pci")
    assert all(at < index for index, word in enumerate(argv) if word.startswith(("pxb-pcie", "pcie-root-port")))
