"""CUDA devices among a host's devices, the generated calls, and what shows a guest's programs the library."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vmcoal.errors import PrerequisiteError, UsageError
from vmcoal.guest.images import guest_files
from vmcoal.host.cuda import CudaDevice, driver, join
from vmcoal.host.opencl import choose
from vmcoal.lending import gpu_server
from vmcoal.lending.gpu_server import bridge_argv, cuda_argv, sandboxed, servable
from vmcoal.model.gpu import GpuDevice, GpuKind
from vmcoal.model.units import GIB

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent
CPU = GpuDevice(name="EPYC", kind=GpuKind.CPU, memory=GIB)


def on_opencl(index: int, address: str = "") -> GpuDevice:
    return GpuDevice(name="NVIDIA T4", kind=GpuKind.GPU, memory=16 * GIB, platform=1, index=index, address=address)


def on_cuda(index: int, bus: str) -> CudaDevice:
    return CudaDevice(index, "NVIDIA T4", bus, 16 * GIB, "12.4", "7.5")


def test_a_gpu_of_both_is_one_device() -> None:
    found = [CPU, on_opencl(0, "0000:3b:00.0"), on_opencl(1, "0000:01:00.0")]
    joined = join(found, [on_cuda(0, "0000:01:00.0"), on_cuda(1, "0000:3B:00.0")])
    assert [(device.id, device.cuda) for device in joined] == [("0:0", None), ("1:0", 1), ("1:1", 0)]


def test_without_addresses_gpus_of_one_name_keep_their_order() -> None:
    joined = join([on_opencl(0), on_opencl(1)], [on_cuda(0, "0000:01:00.0"), on_cuda(1, "0000:3B:00.0")])
    assert [device.cuda for device in joined] == [0, 1]


def test_a_gpu_that_only_cuda_knows_is_chosen_by_its_number() -> None:
    joined = join([CPU], [on_cuda(0, "0000:01:00.0")])
    assert [(device.id, device.opencl, device.address) for device in joined[1:]] == [("cuda:0", False, "0000:01:00.0")]
    assert [device.id for device in choose(joined, "auto")] == ["cuda:0"]
    assert [device.id for device in choose(joined, "cuda:0,0:0")] == ["cuda:0", "0:0"]
    with pytest.raises(PrerequisiteError, match="no device cuda:1"):
        choose(joined, "cuda:1")
    with pytest.raises(UsageError):
        choose(joined, "cuda:x")


def test_each_way_has_its_own_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (only,) = join([], [on_cuda(2, "0000:01:00.0")])
    (both,) = join([on_opencl(0)], [on_cuda(0, "0000:01:00.0")])
    assert [word for word in bridge_argv(tmp_path / "key", tmp_path, only) if word.startswith("--")][2:] == ["--cuda"]
    assert "--command" in bridge_argv(tmp_path / "key", tmp_path, both)
    assert cuda_argv(only, "libcuda.so.1")[-8:-2] == ["--device", "2", "--memory", str(16 * GIB), "--clients", "32"]
    assert cuda_argv(only, "/opt/libcuda.so")[-1] == "/driver"
    words = sandboxed(["/bin/true"], only, "/opt/libcuda.so")
    assert words[words.index("/opt/libcuda.so") + 1] == "/driver"
    monkeypatch.setenv("VMCOAL_CUDA_DRIVER", "libcuda.so.2")
    assert driver() == "libcuda.so.1"
    monkeypatch.setenv("VMCOAL_CUDA_DRIVER", "/opt/libcuda.so")
    assert driver() == "/opt/libcuda.so"


def test_the_generated_calls_are_up_to_date() -> None:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.cuda_runtime") is None:
        pytest.skip("cuda.h is not here: pip install the nvidia-cuda-runtime-cu12 that pyproject.toml pins")
    argv = [sys.executable, str(ROOT / "tools/generate-cuda"), "--check"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_without_pocl_what_cuda_knows_can_be_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> Path:
        if name == "pocld":
            raise PrerequisiteError("pocld was not built")
        return Path(f"/bin/{name}")

    monkeypatch.setattr(gpu_server, "find_binary", find)
    monkeypatch.setattr(gpu_server.shutil, "which", lambda _: "/bin/bwrap")
    both = GpuDevice(name="T4", kind=GpuKind.GPU, memory=1, platform=1, index=2, cuda=3)
    cpu = GpuDevice(name="EPYC", kind=GpuKind.CPU, memory=1)
    assert [device.id for device in servable([cpu, both])] == ["cuda:3"]
    with pytest.raises(PrerequisiteError, match="pocld was not built"):
        servable([cpu])
    monkeypatch.setattr(gpu_server, "find_binary", lambda name: Path(f"/bin/{name}"))
    assert servable([cpu, both]) == [cpu, both]


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The guest's relay, whose places are in ``tmp_path``."""
    spec = importlib.util.spec_from_file_location("vmcoal_gpu_under_test", guest_files() / "vmcoal_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, folder in (
        ("RUN", "run"),
        ("DEVICES", "run/opencl.d"),
        ("CUDA_DEVICES", "run/cuda.d"),
        ("VENDORS", "icd"),
    ):
        monkeypatch.setattr(module, name, str(tmp_path / folder))
    monkeypatch.setattr(module, "ICD", str(tmp_path / "icd/vmcoal.icd"))
    monkeypatch.setattr(module, "LINKER", str(tmp_path / "ld.so.conf.d/000-vmcoal-gpu.conf"))
    monkeypatch.setattr(module, "here", lambda name: str(tmp_path / "gpu" / name))
    (tmp_path / "libraries").mkdir()
    monkeypatch.setattr(module, "LIBRARIES", (str(tmp_path / "none"), str(tmp_path / "libraries")))
    return module


def test_the_linker_is_told_and_the_last_gpu_takes_it_back(
    relay: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LDCONFIG", ("/bin/true",))
    for name in ("gpu-a", "gpu-b"):
        relay.show(name, relay.CUDA)
    assert Path(relay.LINKER).read_text() == f"{tmp_path}/gpu/lib\n"
    assert (tmp_path / "gpu/lib/libcuda.so.1").readlink() == tmp_path / "gpu/libvmcoal-cuda.so"
    assert (tmp_path / "run/cuda.d/gpu-b").read_text() == f"{tmp_path}/run/gpu-b.3\n"
    assert not Path(relay.ICD).exists()
    relay.hide("gpu-a")
    assert Path(relay.LINKER).exists()
    relay.hide("gpu-b")
    relay.hide("gpu-b")
    assert not Path(relay.LINKER).exists()


def test_without_ldconfig_a_link_leads_there_and_a_driver_of_the_guests_stays(
    relay: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "LDCONFIG", ())
    own = tmp_path / "libraries/libcuda.so"
    own.write_text("the guest's own")
    relay.show("gpu-a", relay.OPENCL + relay.CUDA)
    assert (tmp_path / "libraries/libcuda.so.1").readlink() == tmp_path / "gpu/libvmcoal-cuda.so"
    assert Path(relay.ICD).exists()
    relay.hide("gpu-a")
    assert [path.name for path in (tmp_path / "libraries").iterdir()] == ["libcuda.so"]
    assert own.read_text() == "the guest's own"
    assert not Path(relay.ICD).exists()
