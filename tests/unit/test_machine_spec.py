"""Specs from wishes: defaults, limits, and the error for each limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcoal.errors import NotFoundError, PrerequisiteError, UsageError
from vmcoal.machine.firmware import find_uefi
from vmcoal.machine.spec import (
    MAX_FAR_NODES,
    bus_spacing,
    choose_cpu_mode,
    cores_per_socket,
    kernel_release,
    make_spec,
)
from vmcoal.model.machine import Accel, CpuMode, Disk, DiskBoot, KernelBoot, MachineSpec, Net
from vmcoal.model.units import GIB, MIB

pytestmark = pytest.mark.unit


def bzimage(path: Path, release: str = "6.1.0-50-cloud-amd64") -> Path:
    """Write the start of a kernel image that names its release."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x400).to_bytes(2, "little")
    text = f"{release} (builder@host) #1 SMP\0".encode()
    head[0x600 : 0x600 + len(text)] = text
    path.write_bytes(head)
    return path


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return bzimage(tmp_path / "vmlinuz")


def build(kernel: Path, **wishes: Any) -> MachineSpec:
    given: dict[str, Any] = {"name": "demo", "accel": Accel.TCG, "qemu_version": (7, 2)}
    return make_spec(**{**given, "boot": KernelBoot(str(kernel)), **wishes})


def test_defaults(kernel: Path) -> None:
    spec = build(kernel)
    assert (spec.cpus, spec.memory, spec.cpu_model) == (2, GIB, "max")
    assert [(far.node, far.cpus, far.memory, far.bus_nr, far.ports) for far in spec.far_nodes] == [
        (1, 4, 8 * GIB, 32, 1),
        (2, 4, 8 * GIB, 64, 1),
        (3, 4, 8 * GIB, 96, 1),
        (4, 4, 8 * GIB, 128, 1),
    ]
    distances = [far.distance for far in spec.far_nodes]
    assert distances == sorted(set(distances))
    assert spec.boot.release == "6.1.0-50-cloud-amd64"
    assert spec.cpu_mode is CpuMode.PLUG_PARK
    assert len(spec.uuid) == 36
    kvm = build(kernel, accel=Accel.KVM)
    assert (kvm.cpu_model, kvm.far_nodes[0].ports) == ("host", 2)
    assert build(kernel, ports=3).far_nodes[0].ports == 3
    assert cores_per_socket(spec) == 4
    assert cores_per_socket(build(kernel, cpus=6)) == 6


@pytest.mark.parametrize(("nodes", "cores"), [(0, 1), (1, 5), (2, 3), (3, 3), (8, 1)])
def test_small_machines_under_tcg_have_more_than_eight_slots(kernel: Path, nodes: int, cores: int) -> None:
    wishes = {"cpus": 1, "far_nodes": nodes, "far_cpus": 1}
    assert cores_per_socket(build(kernel, **wishes)) == cores
    assert cores_per_socket(build(kernel, accel=Accel.KVM, **wishes)) == 1


@pytest.mark.parametrize(
    ("accel", "release", "mode"),
    [
        (Accel.KVM, None, CpuMode.HOTPLUG),
        (Accel.KVM, "6.12.1", CpuMode.HOTPLUG),
        (Accel.TCG, "6.1.0-50-cloud-amd64", CpuMode.PLUG_PARK),
        (Accel.TCG, "5.10.0", CpuMode.PLUG_PARK),
        (Accel.TCG, "6.2.0", CpuMode.PARKED),
        (Accel.TCG, "6.12.9+deb13-amd64", CpuMode.PARKED),
        (Accel.TCG, "10.0", CpuMode.PARKED),
        (Accel.TCG, "unreadable", CpuMode.PARKED),
        (Accel.TCG, None, CpuMode.PARKED),
    ],
)
def test_cpu_mode(accel: Accel, release: str | None, mode: CpuMode) -> None:
    assert choose_cpu_mode(accel, release) is mode


@pytest.mark.parametrize(
    ("wishes", "error", "says"),
    [
        ({"name": "Demo"}, UsageError, "cannot be a VM name"),
        ({"qemu_version": (6, 2)}, PrerequisiteError, "needs 7.2"),
        ({"cpus": 0}, UsageError, "at least one vCPU"),
        ({"memory": 64 * MIB}, UsageError, "memory of node 0"),
        ({"memory": GIB + 1}, UsageError, "memory of node 0"),
        ({"far_nodes": -1}, UsageError, "0 to 15 far nodes"),
        ({"far_nodes": MAX_FAR_NODES + 1}, UsageError, "0 to 15 far nodes"),
        ({"far_cpus": -1}, UsageError, "-1 vCPU slots"),
        ({"far_memory": 100 * MIB}, UsageError, "headroom"),
        ({"far_memory": -GIB}, UsageError, "headroom"),
        ({"dimm_slots": 257}, UsageError, "DIMM slots"),
        ({"ports": 0}, UsageError, "1 to 8 PCI ports"),
        ({"ports": 9}, UsageError, "1 to 8 PCI ports"),
        ({"dimm_slots": 0}, UsageError, "DIMM slots"),
        ({"distances": (20, 30)}, UsageError, "2 distances"),
        ({"distances": (20, 30, 40, 255)}, UsageError, "11 to 254"),
        ({"distances": (10, 30, 40, 50)}, UsageError, "11 to 254"),
        ({"cpus": 64}, UsageError, "APIC ID"),
        ({"far_nodes": 15, "far_cpus": 17}, UsageError, "APIC ID"),
        ({"far_memory": 256 * GIB}, UsageError, "40 address bits"),
        ({"gpu_window": 256 * GIB}, UsageError, "1 TiB of windows for GPUs do not fit"),
        ({"gpu_window": 3 * GIB}, UsageError, "3 GiB cannot be the window"),
        ({"gpu_window": 1024 * GIB}, UsageError, "1 TiB cannot be the window"),
        ({"gpu_window": -1}, UsageError, "0 B cannot be the window"),
        ({"net": Net("wifi")}, UsageError, "network mode"),
        ({"net": Net("tap")}, UsageError, "network device"),
        ({"net": Net("tap", "a,b=c")}, UsageError, "network device"),
        ({"net": Net("user", "tap0")}, UsageError, "takes no device"),
        ({"net": Net(ssh_port=0)}, UsageError, "port 0"),
        ({"net": Net("tap", "tap0", 2222)}, UsageError, "port 2222"),
        ({"display": "hologram"}, UsageError, "not a display"),
        ({"cpu_model": "max -m 4"}, UsageError, "CPU model"),
        ({"disks": [Disk("/nowhere")]}, NotFoundError, "disk /nowhere"),
        ({"disks": [Disk("/dev/null")] * 7}, UsageError, "7 extra disks"),
        ({"boot": KernelBoot("/nowhere")}, NotFoundError, "kernel /nowhere"),
        ({"boot": DiskBoot("/nowhere", "raw")}, NotFoundError, "image /nowhere"),
        ({"boot": DiskBoot("/dev/null", "vmdk")}, UsageError, "qcow2 or raw"),
        ({"boot": DiskBoot("/dev/null", "raw", "coreboot")}, UsageError, "bios or uefi"),
    ],
)
def test_limits(kernel: Path, wishes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        build(kernel, **wishes)
    assert getattr(caught.value, "hint", None)


@given(far=st.integers(0, MAX_FAR_NODES), ports=st.integers(1, 8))
def test_every_count_of_far_nodes_has_its_buses(far: int, ports: int) -> None:
    spacing = bus_spacing(far)
    assert (far + 1) * spacing <= 256
    assert 1 + ports <= spacing
    assert spacing == 32 if far <= 7 else spacing == 16


def test_files_become_absolute(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kernel.parent)
    spec = build(Path(kernel.name), disks=[Disk(kernel.name)])
    assert isinstance(spec.boot, KernelBoot)
    assert spec.boot.kernel == spec.disks[0].path == str(kernel)


def test_a_file_that_is_no_kernel_has_no_release(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    assert kernel_release(tmp_path / "text") is None
    assert kernel_release(tmp_path / "missing") is None
    assert kernel_release(bzimage(tmp_path / "odd", "garbage")) is None


def descriptor(folder: Path, name: str, **changes: Any) -> None:
    data: dict[str, Any] = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(folder / "code.fd"), "format": "raw"},
            "nvram-template": {"filename": str(folder / "vars.fd"), "format": "raw"},
        },
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
        "features": ["acpi-s3"],
        **changes,
    }
    (folder / name).write_text(json.dumps(data))


def test_firmware_is_the_first_that_fits(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="no UEFI firmware") as caught:
        find_uefi([tmp_path, tmp_path / "missing"])
    assert "ovmf" in (caught.value.hint or "")
    (tmp_path / "code.fd").touch()
    (tmp_path / "vars.fd").touch()
    (tmp_path / "10-broken.json").write_text("{")
    descriptor(tmp_path, "20-secure.json", features=["requires-smm", "secure-boot"])
    descriptor(tmp_path, "30-arm.json", targets=[{"architecture": "aarch64", "machines": ["virt-*"]}])
    descriptor(tmp_path, "40-memory.json", mapping={"device": "memory", "filename": "x"})
    with pytest.raises(PrerequisiteError):
        find_uefi([tmp_path])
    descriptor(tmp_path, "50-good.json")
    assert find_uefi([tmp_path]).code == str(tmp_path / "code.fd")


def test_uefi_is_looked_up(kernel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "qemu/firmware"
    folder.mkdir(parents=True)
    (folder / "code.fd").touch()
    (folder / "vars.fd").touch()
    descriptor(folder, "00-mine.json")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    spec = build(kernel, boot=DiskBoot(str(kernel), "raw", "uefi"))
    assert isinstance(spec.boot, DiskBoot)
    assert (spec.boot.uefi_code, spec.boot.uefi_vars) == (str(folder / "code.fd"), str(folder / "vars.fd"))
    assert spec.cpu_mode is CpuMode.PARKED
