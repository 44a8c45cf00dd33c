"""A lender's OpenCL device in a real guest, through the command line: attach, use, lose, detach."""

from __future__ import annotations

import contextlib
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
    (seen,) = shed.status().gpus
    assert seen.calls > 5
    assert min(seen.bytes_in, seen.bytes_out) >= 4 << 16  # the numbers, there and back
    assert 0 < sum(seen.latency) < seen.calls  # greetings have no time
    assert f'vmcoal_gpu_calls_total{{gpu="{gpu.gpu.name}"' in shed.run("metrics", "web").out
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


async def test_two_lenders_at_once_and_one_of_them_goes(shed: Scene) -> None:
    await device()
    shed.run("lend", "--name", "cellar", "--gpu", "auto", "--listen", "127.0.0.1:0")
    shed.pair("cellar")
    for lender in ("attic", "cellar"):
        shed.attach("--from", lender, "--gpu")
    # The client lists them by the names of their ports.
    first, second = sorted((gpu.device, at.lender) for at in shed.status().attachments for gpu in at.gpus)
    both = [opencl_add(1 << 12, number) for number in range(2)]
    assert [shed.python(program) for program in both] == ["right\n"] * 2
    with contextlib.ExitStack() as stack:
        loser, keeper = (
            stack.enter_context(shed.spawn("exec", "web", "--", "python3", "-c", program, "forever"))
            for program in both
        )
        for program in (loser, keeper):
            assert program.stdout
            assert program.stdout.readline() == b"right\n"
        shed.detach("--gpu", "--from", first[1])
        _, err = loser.communicate(timeout=60)
        assert b"error -" in err
        assert keeper.poll() is None
        (left,) = [gpu.device for at in shed.status().attachments for gpu in at.gpus]
        assert left == second[0]
        calls = shed.status().gpus[0].calls
        until(lambda: shed.status().gpus[0].calls > calls, "the other program going on")
        assert keeper.poll() is None
        keeper.kill()
        keeper.communicate()
    assert shed.python(both[0]) == "right\n"
    shed.detach("--gpu", "--from", second[1])
