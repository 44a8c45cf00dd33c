"""The way of a GPU's calls on one host: pocld in its sandbox, the bridge, the pump, and the guest's relay."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from framework.gpu_way import Way
from framework.lent_gpu import device, gpu_entry, gpu_servers
from framework.opencl import opencl_add
from vmcoal.backends import nbd
from vmcoal.errors import NotFoundError
from vmcoal.holding.binaries import find_binary
from vmcoal.layout import lender_folders
from vmcoal.lending.gpu_server import sandboxed
from vmcoal.model.gpu import GpuLimits

pytestmark = pytest.mark.contract

HELLO = bytes([1, 0, 0, 0, 28, 0, 0, 0]) + b"vmcoal-gpu 2" + b"0123456789abcdef"

PROGRAM = opencl_add(1 << 18)


@pytest.fixture
def ways() -> Iterator[list[Way]]:
    """Ways that are closed after the test."""
    made: list[Way] = []
    yield made
    for way in made:
        way.close()


async def test_what_a_borrowers_kernel_sees_of_the_lender() -> None:
    gpu = await device()
    find = shutil.which("find")
    assert find is not None
    argv = sandboxed([find, "/sys", "/etc", "/proc", "/tmp", "/dev/shm", "-maxdepth", "1"], gpu)
    code, out, err = await nbd.run(argv, deadline=30)
    assert code == 0, err
    seen: dict[Path, set[str]] = {}
    for path in map(Path, out.decode().split()):
        seen.setdefault(path.parent, set()).add(path.name)
    assert seen[Path("/sys")] <= {"bus", "class", "dev", "devices", "module"}
    assert seen.get(Path("/etc"), set()) <= {"OpenCL", "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"}
    assert {name for name in seen[Path("/proc")] if name.isdigit()} <= {"1", "2"}
    assert not {Path("/tmp"), Path("/dev/shm")} & seen.keys(), seen


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root: run as root")


@pytest.mark.root
@needs_root
async def test_a_program_finds_the_device_and_computes(tmp_path: Path, ways: list[Way]) -> None:
    async with gpu_servers() as servers:
        entry = gpu_entry(await device())
        server = await servers.start(entry)
        ways.append(way := Way(tmp_path, server))
        assert entry.gpu is not None
        assert entry.gpu.name in way.run("clinfo", "-l")
        assert way.run(sys.executable, "-c", PROGRAM) == "right\n"
        await servers.stop(entry)
        await servers.stop(entry)
        assert way.pump.wait(10) == 1
        assert "the lender is lost" in way.pump.stderr.read()  # type: ignore[union-attr]
        assert "the host closed the port" in way.relay.communicate(timeout=10)[0]
        assert not list(lender_folders("den").runtime.glob("g*"))


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("victim", ["bridge", "server", "pump"])
async def test_whoever_is_killed_a_program_gets_an_error(tmp_path: Path, ways: list[Way], victim: str) -> None:
    async with gpu_servers() as servers:
        entry = gpu_entry(await device())
        ways.append(way := Way(tmp_path, await servers.start(entry)))
        with way.program(sys.executable, "-c", PROGRAM, "forever") as program:
            assert program.stdout
            assert program.stdout.readline() == "right\n"
            children = {child.id: child.pid for child in await servers.holder.list()}
            lease = entry.lease.id
            pid = {"bridge": children[f"serve-{lease}"], "server": children[f"pocld-{lease}"], "pump": way.pump.pid}
            os.kill(pid[victim], signal.SIGKILL)
            _, err = program.communicate(timeout=20)
            assert program.returncode == 1
            assert "error -" in err
        if victim == "server":  # it is started again, and the way still stands
            assert way.run(sys.executable, "-c", PROGRAM) == "right\n"
        await servers.stop(entry)


HOARD = """
import ctypes, sys
cl = ctypes.CDLL("libOpenCL.so.1")
P, U, Z, I = ctypes.c_void_p, ctypes.c_uint, ctypes.c_size_t, ctypes.c_uint64
for name in ("Context", "CommandQueue", "Buffer"):
    getattr(cl, "clCreate" + name).restype = P
platform, device, code, total = P(), P(), ctypes.c_int(), I()
cl.clGetPlatformIDs(1, ctypes.byref(platform), None)
if cl.clGetDeviceIDs(platform, I(0xFFFFFFFF), 1, ctypes.byref(device), None):
    sys.exit("no device")
cl.clGetDeviceInfo(device, U(0x101F), Z(8), ctypes.byref(total), None)
context = P(cl.clCreateContext(None, 1, ctypes.byref(device), None, None, None))
queue = P(cl.clCreateCommandQueue(context, device, I(0), None))
def used(size):
    buffer = P(cl.clCreateBuffer(context, I(1), Z(size), None, ctypes.byref(code)))
    result = code.value or cl.clEnqueueFillBuffer(queue, buffer, b"1", Z(1), Z(0), Z(size), U(0), None, None)
    return result or cl.clFinish(queue), buffer
results, kept = [], []
for _ in range(3):
    result, buffer = used(24 << 20)
    results.append(bool(result))
    kept.append(buffer)
cl.clReleaseMemObject(kept[0])
results.append(bool(used(24 << 20)[0]))
print(total.value >> 20, results, flush=True)
sys.stdin.readline()
"""


@pytest.mark.root
@needs_root
async def test_a_lease_has_its_memory_and_its_programs_and_no_more(tmp_path: Path, ways: list[Way]) -> None:
    async with gpu_servers() as servers:
        entry = gpu_entry(GpuLimits(64 << 20, 2).apply(await device()))
        ways.append(way := Way(tmp_path, await servers.start(entry)))
        with way.program(sys.executable, "-c", HOARD) as first:
            assert first.stdout
            assert first.stdout.readline() == "64 [False, False, True, False]\n"
            with way.program(sys.executable, "-c", HOARD) as second:  # the first one has 48 MiB
                assert second.stdout
                assert second.stdout.readline() == "64 [True, True, True, True]\n"
                with way.program(sys.executable, "-c", HOARD) as third:
                    assert "no device" in third.communicate(timeout=60)[1]
                second.communicate("\n", timeout=60)
            first.communicate("\n", timeout=60)
        assert way.run(sys.executable, "-c", PROGRAM) == "right\n"  # what they had is free again
        await servers.stop(entry)


async def test_only_the_key_opens_the_way(tmp_path: Path) -> None:
    async with gpu_servers() as servers:
        entry = gpu_entry(await device())
        server = await servers.start(entry)
        assert servers.describe(entry) is not None
        for identity, psk, good in (
            (server.psk_identity, server.psk, True),
            (server.psk_identity, secrets.token_hex(32), False),
            ("somebody", server.psk, False),
        ):
            key = tmp_path / "key"
            nbd.write_psk(key, identity, psk)
            argv = [str(find_binary("vmcoal-gpu")), "check", "--key", str(key)]
            code, _, _ = await nbd.run([*argv, "--address", "127.0.0.1", "--port", str(server.port)], deadline=20)
            assert (code == 0) == good
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            plain.sendall(HELLO)
            plain.settimeout(20)
            with contextlib.suppress(ConnectionResetError):
                assert HELLO not in plain.recv(4096)
        granted = msgspec.structs.replace(entry, port=server.port)
        assert await servers.find(granted) == server
        await servers.stop(entry)
        assert servers.describe(entry) is None
        with pytest.raises(NotFoundError):
            await servers.find(granted)


async def test_pocld_sees_no_network_and_no_user(tmp_path: Path) -> None:
    async with gpu_servers() as servers:
        entry = gpu_entry(await device())
        await servers.start(entry)
        (outer,) = [child.pid for child in await servers.holder.list() if child.id.startswith("pocld-")]
        inner = next(
            int(pid)
            for pid in Path("/proc").glob("[0-9]*")
            for pid in [pid.name]
            if _parent(int(pid)) == outer or _parent(_parent(int(pid))) == outer
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"/server")
        )
        root = Path(f"/proc/{inner}/root")
        interfaces = Path(f"/proc/{inner}/net/dev").read_text().splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
        assert not (root / "home").exists()
        assert not (root / "etc/passwd").exists()
        assert not (root / "root").exists()
        await servers.stop(entry)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0
