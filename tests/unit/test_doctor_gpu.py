"""What ``vmcoal doctor gpu`` says, and how NVIDIA's driver is asked."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest

from framework.command import vmcoal
from framework.fake_pci import HIGH, PciTree
from vmcoal.cli import doctor_gpu
from vmcoal.cli.output import device_words
from vmcoal.errors import PrerequisiteError
from vmcoal.host import cuda, nvidia, opencl
from vmcoal.host.checks import Finding, Level
from vmcoal.host.facts import Host
from vmcoal.host.pci import PciBus
from vmcoal.model.gpu import GpuDevice, GpuKind, NvidiaGpu
from vmcoal.model.units import GIB

pytestmark = pytest.mark.unit

CARD = NvidiaGpu(
    name="NVIDIA T4", uuid="GPU-1", address="0000:01:00.0", driver="550.1", memory=16 * GIB, used=GIB, use=0.25,
    cuda="12.4",
)  # fmt: skip
LISTED = GpuDevice(
    name="NVIDIA T4", kind=GpuKind.GPU, memory=16 * GIB, driver="550.1", platform=1, address="0000:01:00.0"
)
CPU = GpuDevice(name="EPYC", kind=GpuKind.CPU, memory=5 * GIB, driver="3.1")


def found(
    monkeypatch: pytest.MonkeyPatch,
    bus: PciBus,
    devices: list[GpuDevice] | Exception,
    cards: list[NvidiaGpu] | Exception,
    on_cuda: tuple[cuda.CudaDevice, ...] = (),
) -> dict[str, Finding]:
    async def say(what: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return what

    monkeypatch.setattr(opencl, "find_devices", lambda: say(devices))
    monkeypatch.setattr(cuda, "find_cuda", lambda: say(on_cuda))
    monkeypatch.setattr(nvidia, "find_nvidia", lambda: say(cards))
    return {finding.id: finding for finding in doctor_gpu.gpu_findings(Host(), bus)}


@pytest.fixture
def tree(tmp_path: Path) -> PciTree:
    return PciTree(tmp_path)


def test_a_card_that_can_be_lent(monkeypatch: pytest.MonkeyPatch, tree: PciTree) -> None:
    tree.add("0000:01:00.0", driver="nvidia")
    seen = found(monkeypatch, tree.bus(), [CPU, LISTED], [CARD])
    assert seen["opencl"].level is Level.OK
    assert "vmcoal lend --gpu 1:0" in seen["opencl-1:0"].found
    assert "EPYC (cpu), 5 GiB, driver 3.1" in seen["opencl-0:0"].found
    assert seen["nvidia"].found == "550.1, for CUDA up to 12.4"
    assert "1 GiB of 16 GiB used, 25 % busy; device 1:0" in seen["nvidia-0000:01:00.0"].found


def test_a_card_that_only_cuda_lists(monkeypatch: pytest.MonkeyPatch, tree: PciTree) -> None:
    tree.add("0000:01:00.0", driver="nvidia")
    on_cuda = cuda.CudaDevice(0, CARD.name, CARD.address, CARD.memory, "12.4", "7.5")
    seen = found(monkeypatch, tree.bus(), [CPU], [CARD], (on_cuda,))
    assert "vmcoal lend --gpu cuda:0" in seen["cuda-0"].found
    assert seen["nvidia-0000:01:00.0"].found.endswith("device cuda:0")


def test_a_card_without_its_opencl_driver(monkeypatch: pytest.MonkeyPatch, tree: PciTree) -> None:
    tree.add("0000:01:00.0", driver="nvidia")
    seen = found(monkeypatch, tree.bus(), [CPU], [CARD])
    assert seen["opencl"].found == "only this host's CPU"
    assert (
        seen["nvidia-0000:01:00.0"].remedy == "install the rest of its driver: apt install libcuda1 nvidia-opencl-icd"
    )


def test_a_card_without_a_driver(monkeypatch: pytest.MonkeyPatch, tree: PciTree) -> None:
    none = PrerequisiteError("NVML Shared Library Not Found", hint="install it")
    broken = found(monkeypatch, tree.bus(), PrerequisiteError("OpenCL does not work", hint="clinfo"), none)
    assert broken["nvidia"].found == "not needed: this host has no NVIDIA GPU"
    assert broken["opencl"].remedy == "clinfo"
    assert broken["pci"].found.startswith("none")
    tree.add("0000:01:00.0")
    seen = found(monkeypatch, tree.bus(), [], none)
    assert (seen["nvidia"].level, seen["nvidia"].remedy) == (Level.WARN, "install it")
    assert "there is no loader" in seen["opencl"].found


def test_whether_a_guest_can_have_a_display(monkeypatch: pytest.MonkeyPatch, tree: PciTree) -> None:
    tree.add("0000:01:00.0", driver="nvidia", group="7")
    tree.add("0000:02:00.0", ids=(0x1002, 0x1), group="8", bars=((1, 32 << 30, HIGH),))
    tree.add("0000:02:00.1", ids=(0x1002, 0x2), pci_class=0x040300, group="8")
    tree.add("0000:03:00.0", pci_class=0x030000, group="9")
    tree.add("0000:04:00.0", ids=(0x8086, 0x3), pci_class=0x020000, driver="e1000e", group="9")
    seen = found(monkeypatch, tree.bus(), [], [])
    assert [name for name in seen if name.startswith("pci-")] == [
        "pci-0000:01:00.0",
        "pci-0000:02:00.0",
        "pci-0000:03:00.0",
    ]
    assert "driver nvidia, IOMMU group 7" in seen["pci-0000:01:00.0"].found
    good = seen["pci-0000:02:00.0"]
    assert good.level is Level.OK
    assert "with 0000:02:00.1" in good.found
    assert "vmcoal attach --gpu pci:0000:02:00.0, of a VM booted with --gpu-window 64G" in good.found
    shared = seen["pci-0000:03:00.0"]
    assert shared.level is Level.WARN
    assert "shares IOMMU group 9 with 0000:04:00.0" in shared.found
    assert "another slot" in (shared.remedy or "")


def test_the_command(monkeypatch: pytest.MonkeyPatch, tree: PciTree) -> None:
    found(monkeypatch, tree.bus(), [LISTED], [])
    done = vmcoal("doctor", "gpu")
    assert done.code == 0
    assert "OpenCL device 1:0" in done.out
    findings = msgspec.json.decode(vmcoal("doctor", "gpu", "-o", "json").out, type=list[Finding])
    assert [finding.id for finding in findings][:2] == ["opencl", "opencl-1:0"]


def test_words_of_a_device() -> None:
    assert device_words(LISTED) == "NVIDIA T4, 16 GiB, driver 550.1, 0000:01:00.0"


class Nvml(types.ModuleType):
    """NVIDIA's library with one card, which does not tell how busy it is; ``broken`` says at what it fails."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken: str = "") -> None:
        super().__init__("pynvml")
        self._broken = broken

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": b"550.1",
            "nvmlSystemGetCudaDriverVersion_v2": 12040,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": object(),
            "nvmlDeviceGetName": "NVIDIA\x00T4",
            "nvmlDeviceGetUUID": "GPU-1",
            "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=16 * GIB, used=GIB),
            "nvmlDeviceGetPciInfo": types.SimpleNamespace(domain=0, bus=1, device=0),
        }

        def call(*_: Any) -> Any:
            if name == self._broken or name not in answers:
                raise self.NVMLError("Not Supported")
            return answers[name]

        return call


def test_nvml_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    assert nvidia._probe().gpus == (msgspec.structs.replace(CARD, name="NVIDIA T4", use=None),)
    for broken, why in (("nvmlInit", "cannot be asked: Not Supported"), ("nvmlDeviceGetName", "failed: Not Supported")):
        monkeypatch.setitem(sys.modules, "pynvml", Nvml(broken))
        assert nvidia._probe().why == f"NVIDIA's driver {why}"


async def test_a_driver_that_cannot_be_asked_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked(*_: object) -> nvidia.Answer:
        return nvidia.Answer(why="it is not there")

    monkeypatch.setattr(nvidia, "asked", asked)
    with pytest.raises(PrerequisiteError, match="it is not there"):
        await nvidia.find_nvidia()


def test_addresses_are_written_as_in_sysfs() -> None:
    assert opencl.pci_address(0, 0x41, 0, 0) == "0000:41:00.0"
