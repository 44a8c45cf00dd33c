"""A lender's CUDA device in a real guest: a program that loads libcuda.so.1 computes there, and the library goes with
the device. The lender's driver is the stand-in."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from framework.native import helper
from framework.path import Scene, scene, until
from vmcoal.lending.gpu_server import missing

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

FIRST = "1: vmcoal stand-in, 256 MiB, 8.x\n"


@pytest.fixture(scope="module")
def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
    if why := missing():
        pytest.skip(f"GPUs cannot be lent here: {why}; tools/setup installs what is needed")
    with scene(request) as made:
        made.env["VMCOAL_CUDA_DRIVER"] = str(helper("libvmcoal-cuda-standin.so"))
        made.run("lend", "--name", "attic", "--gpu", "cuda:0", "--memory", "256M", "--listen", "127.0.0.1:0")
        made.pair("attic")
        made.boot("web")
        put = ("sh", "-c", "cat > /tmp/program && chmod 755 /tmp/program")
        made.run("exec", "-i", "web", "--", *put, stdin=helper("cuda-program").read_bytes())
        yield made


async def test_a_program_computes_and_the_library_goes(shed: Scene) -> None:
    result = shed.attach("--gpu")
    (gpu,) = result.attachment.gpus
    assert gpu.gpu.name == "vmcoal stand-in"
    assert gpu.gpu.id == "cuda:0"
    assert shed.exec("/tmp/program", "vadd", "errors") == f"{FIRST}right\nright\n"
    (seen,) = shed.status().gpus
    assert seen.calls > sum(seen.latency) > 5  # a launch has no answer, and no time of its own
    assert seen.failed
    assert seen.busy > 0
    assert shed.shell("ls /etc/OpenCL/vendors 2>/dev/null; true") == ""
    assert shed.detach("--gpu").gpus_removed == 1
    assert "libcuda.so.1: cannot open shared object" in shed.shell("/tmp/program vadd 2>&1; true")
    assert shed.lender("attic").offer.gpus_free == 1


@pytest.mark.soak
async def test_a_program_gets_an_error_when_the_lender_is_lost(shed: Scene) -> None:
    shed.attach("--gpu")
    with shed.spawn("exec", "web", "--", "/tmp/program", "forever") as program:
        assert program.stdout
        assert program.stdout.readline() == FIRST.encode()
        os.kill(shed.pid("vmcoal-gpu serve"), signal.SIGKILL)
        out, _ = program.communicate(timeout=60)
    assert b"CUDA_ERROR_DEVICE_UNAVAILABLE" in out
    until(lambda: [line for line in shed.status().degraded if "is lost" in line], "the loss being told")
    shed.attach("--gpu")
    assert shed.exec("/tmp/program", "vadd") == f"{FIRST}right\n"
    shed.detach("--gpu")
