"""A lender's OpenCL device in a real guest, through the command line: attach, use, lose, detach."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from framework.lent_gpu import device
from framework.opencl import opencl_add
from framework.path import Scene, scene, until
from vmcoal.model.attachment import AttachmentState

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

KERNEL = opencl_add(1 << 16)


@pytest.fixture(scope="module")
def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request) as made:
        made.run("lend", "--name", "attic", "--gpu", "auto", "--memory", "256M", "--listen", "127.0.0.1:0")
        made.pair("attic")
        made.boot("web")
        yield made


async def test_a_gpu_comes_computes_and_goes(shed: Scene) -> None:
    await device()
    result = shed.attach("--memory", "128M", "--gpu")
    (gpu,) = result.attachment.gpus
    assert result.verified
    assert gpu.state is AttachmentState.ATTACHED
    assert shed.shell("lspci -nn -s 0000:" + gpu.address.partition(":")[2]).split("[")[1].startswith("0380]")
    assert shed.shell(f"cat /sys/bus/pci/devices/{gpu.address}/numa_node") == f"{result.attachment.node}\n"
    assert gpu.gpu.name in shed.exec("clinfo", "-l")
    assert shed.python(KERNEL) == "right\n"
    (offer,) = (status.offer for status in [shed.lender("attic")])
    assert (offer.gpus_free, offer.gpus_total) == (0, 1)
    assert gpu.gpu.name in shed.run("status", "web").out
    assert shed.detach("--gpu").gpus_removed == 1
    assert "0380" not in shed.shell("lspci -nn")
    assert shed.shell("ls /etc/OpenCL/vendors") == ""
    assert shed.lender("attic").offer.gpus_free == 1
    assert not shed.open_operations()


async def test_a_program_gets_an_error_when_the_lender_is_lost(shed: Scene) -> None:
    await device()
    shed.attach("--gpu")
    with shed.spawn("exec", "web", "--", "python3", "-c", KERNEL, "forever") as program:
        assert program.stdout
        assert program.stdout.readline() == b"right\n"
        os.kill(shed.pid("vmcoal-gpu serve"), signal.SIGKILL)
        _, err = program.communicate(timeout=60)
    assert b"error -" in err
    told = until(lambda: [line for line in shed.status().degraded if "is lost" in line], "the loss being told")
    assert "it was unplugged" in told[0]
    assert "0380" not in shed.shell("lspci -nn")
    shed.attach("--gpu")
    assert not shed.status().degraded
    assert shed.python(KERNEL) == "right\n"
    shed.detach("--gpu")
