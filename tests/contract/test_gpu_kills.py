"""Who carries a GPU's calls is killed at any moment, again and again: errors, no hang, nothing left at the lender."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.cuda import cuda_device
from framework.cuda import program as cuda_program
from framework.gpu_way import Way
from framework.lent_gpu import device, gpu_entry, gpu_servers
from framework.opencl import opencl_add
from vmcoal.holding.children import ChildState
from vmcoal.model.gpu import GpuDevice

pytestmark = [
    pytest.mark.contract,
    pytest.mark.soak,  # of each kind of kill, test_gpu_path.py and test_cuda_path.py have one
    pytest.mark.timeout(1800),
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root: run as root"),
]

PROGRAM = opencl_add(1 << 16)
PATIENCE = 60
"""Seconds in which a program has its error, on however loaded a machine."""

VICTIMS = ("program", "pump", "bridge", "server")


@dataclass(frozen=True)
class Api:
    """How a lent device is used: a program that goes on for ever and says ``first`` once it has the device, one that
    ends with ``right``, what an ``error`` looks like, and how the id of the lender's ``server`` begins."""

    device: GpuDevice
    forever: list[str]
    once: list[str]
    first: str
    error: str
    server: str


async def opencl(_: pytest.MonkeyPatch) -> Api:
    """Return what OpenCL needs."""
    program = [sys.executable, "-c", PROGRAM]
    return Api(await device(), [*program, "forever"], program, "right\n", "error -", "pocld")


async def cuda(monkeypatch: pytest.MonkeyPatch) -> Api:
    """Return what CUDA needs, on the driver of the tests."""
    found = await cuda_device(monkeypatch)
    first = "1: vmcoal stand-in, 256 MiB, 8.x\n"
    return Api(found, cuda_program("forever"), cuda_program("vadd"), first, "CUDA_ERROR_", "cuda")


def resident(pid: int) -> int:
    """Return the bytes that a process and those below it have in memory."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * 4096
            waiting += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except OSError:
            continue
    return total


def kill_at_work(api: Api, way: Way, victim: str, pids: dict[str, int], rng: random.Random) -> float:
    """Kill ``victim`` at a random moment of a program's life; returns the seconds until the program had its error."""
    with contextlib.ExitStack() as stack:
        program = way.program(*api.forever)
        stack.callback(program.communicate)
        stack.callback(program.kill)
        if victim == "server":  # one that is not connected yet uses the next server, and has no error
            assert program.stdout
            assert program.stdout.readline() == api.first
        # The moment is the point, and is anywhere from the program's start to the middle of its work.
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(rng.uniform(0, 2))
        assert program.poll() is None
        os.kill((pids | {"program": program.pid, "pump": way.pump.pid})[victim], signal.SIGKILL)
        began = time.monotonic()
        said = "".join(program.communicate(timeout=PATIENCE))
        took = time.monotonic() - began
    assert victim == "program" or api.error in said, said
    return took


async def kills(api: Api, tmp_path: Path, victims: list[str], rng: random.Random) -> tuple[list[float], list[int]]:
    """Kill one after the other, each time with the GPU attached anew. Returns the seconds until each program had its
    error, and what the lender's server has in memory then, after one program more and after two."""
    took, used = [], []
    async with gpu_servers() as servers:
        entry = gpu_entry(api.device)
        server = await servers.start(entry)

        async def pids() -> dict[str, int]:
            names = {"bridge": f"serve-{entry.lease.id}", "server": f"{api.server}-{entry.lease.id}"}
            async with asyncio.timeout(PATIENCE):
                while True:  # what was killed may still wait for its restart
                    listed = await servers.holder.list()
                    found = {child.id: child.pid for child in listed if child.state is ChildState.RUNNING and child.pid}
                    if found.keys() >= set(names.values()):
                        return {victim: found[name] for victim, name in names.items()}

        for number, victim in enumerate(victims):
            folder = tmp_path / str(number)
            folder.mkdir(parents=True)
            way = Way(folder, server)
            try:
                took.append(kill_at_work(api, way, victim, await pids(), rng))
            finally:
                way.close()
        folder = tmp_path / "last"
        folder.mkdir()
        way = Way(folder, server)
        try:
            for _ in range(2):
                assert way.run(*api.once).endswith("right\n")
                used.append(resident((await pids())["server"]))
        finally:
            way.close()
        await servers.stop(entry)
    return took, used


@pytest.mark.parametrize("how", [opencl, cuda])
async def test_fifty_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[pytest.MonkeyPatch], Awaitable[Api]]
) -> None:
    rng, api = random.Random(2), await how(monkeypatch)
    took, _ = await kills(api, tmp_path, [rng.choice(VICTIMS) for _ in range(50)], rng)
    took.sort()
    print(  # noqa: T201
        f"{len(took)} kills: the error came after {took[len(took) // 2]:.3f} s, {took[-1]:.3f} s at most"
    )
    # The server lives through these, so what it does not give back adds up.
    _, before = await kills(api, tmp_path / "few", ["program"] * 3, rng)
    _, after = await kills(api, tmp_path / "many", ["program"] * 40, rng)
    print(  # noqa: T201
        f"server: {before[-1] >> 20} MiB after 3 programs that were killed, {after[-1] >> 20} MiB after 40"
    )
    # PoCL's compiler alone is about 100 MiB, and a server loads it only when a kernel is not in the cache as a whole.
    assert after[-1] < before[-1] + (160 << 20)
