"""The GPUs of this host as NVIDIA's driver lists them, through its management library (nvidia-ml-py).

``python -m vmcoal.host.nvidia`` prints them as JSON, or why there are none: a driver that hangs takes that process with
it, not the one that asks.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from vmcoal.errors import UNREADABLE, PrerequisiteError
from vmcoal.host.opencl import asked, pci_address
from vmcoal.model.gpu import NvidiaGpu

_TEXT_MAX = 128


class Answer(msgspec.Struct, frozen=True):
    """What the driver says: its GPUs, or why it says nothing."""

    gpus: tuple[NvidiaGpu, ...] = ()
    why: str = ""


async def find_nvidia() -> tuple[NvidiaGpu, ...]:
    """Return every GPU of NVIDIA's driver; raises `PrerequisiteError` with the reason where it cannot be asked."""
    try:
        answer = await asked("vmcoal.host.nvidia", Answer)
    except (TimeoutError, *UNREADABLE):
        raise PrerequisiteError("NVIDIA's driver does not answer", hint="nvidia-smi; dmesg | grep -i nvrm") from None
    if answer.why:
        raise PrerequisiteError(answer.why, hint="apt install nvidia-driver, of the component non-free; nvidia-smi")
    return answer.gpus


def _probe() -> Answer:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Answer(why=f"NVIDIA's driver cannot be asked: {_words(error)}")
    try:
        driver, version = _words(pynvml.nvmlSystemGetDriverVersion()), pynvml.nvmlSystemGetCudaDriverVersion_v2()
        cuda = f"{version // 1000}.{version % 1000 // 10}"
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return Answer(gpus=tuple(_gpu(pynvml, handle, driver, cuda) for handle in handles))
    except pynvml.NVMLError as error:
        return Answer(why=f"NVIDIA's driver failed: {_words(error)}")
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any, driver: str, cuda: str) -> NvidiaGpu:
    memory, pci = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetPciInfo(handle)
    try:
        use = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
    except nvml.NVMLError:  # a vGPU or a part of a GPU (MIG) does not have it
        use = None
    return NvidiaGpu(
        name=_words(nvml.nvmlDeviceGetName(handle)),
        uuid=_words(nvml.nvmlDeviceGetUUID(handle)),
        address=pci_address(pci.domain, pci.bus, pci.device, 0),
        driver=driver,
        memory=int(memory.total),
        used=int(memory.used),
        use=use,
        cuda=cuda,
    )


def _words(text: object) -> str:
    """Return what the library says as printable text; its older versions give bytes."""
    said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return "".join(c if c.isprintable() else " " for c in said)[:_TEXT_MAX]


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(_probe()))
