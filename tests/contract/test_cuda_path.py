"""The way of a GPU's CUDA calls on one host: vmcoal-cuda in its sandbox over a driver that stands in for NVIDIA's, the
bridge, the pump, the guest's relay and libcuda.so.1."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.cuda import cuda_device, program
from framework.cuda_server import Server
from framework.gpu_way import Way
from framework.lent_gpu import gpu_entry, gpu_servers
from vmcoal.backends import nbd
from vmcoal.holding.binaries import find_binary

pytestmark = pytest.mark.contract

TWO = """
import ctypes, sys
cu, U, Z = ctypes.CDLL(sys.argv[1]), ctypes.c_uint64, ctypes.c_size_t
def good(code):
    if code:
        sys.exit(f"error {code}")
good(cu.cuInit(0))
count, found = ctypes.c_int(), []
good(cu.cuDeviceGetCount(ctypes.byref(count)))
for device in range(count.value):
    context, memory = U(), U()
    good(cu.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    good(cu.cuCtxSetCurrent(context))
    good(cu.cuMemAlloc_v2(ctypes.byref(memory), Z(4096)))
    good(cu.cuMemsetD8_v2(memory, device + 1, Z(4096)))
    found.append((context, memory))
for context, memory in found:
    back = (ctypes.c_ubyte * 4096)()
    good(cu.cuCtxSetCurrent(context))
    good(cu.cuMemcpyDtoH_v2(back, memory, Z(4096)))
    print(back[0], back[4095])
stream = U()
good(cu.cuStreamCreate(ctypes.byref(stream), 1))
good(cu.cuCtxSetCurrent(found[0][0]))
print("of another", cu.cuStreamSynchronize(stream), flush=True)
sys.stdin.readline()
print("lost", cu.cuCtxSynchronize())
good(cu.cuCtxSetCurrent(found[1][0]))
good(cu.cuCtxSynchronize())
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root: run as root")
FIRST = "1: vmcoal stand-in, 256 MiB, 8.x\n"
LOST = "CUDA_ERROR_DEVICE_UNAVAILABLE"


@pytest.fixture
def ways() -> Iterator[list[Way]]:
    """Ways that are closed after the test."""
    made: list[Way] = []
    yield made
    for way in made:
        way.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    yield made
    made.close()


def hello(text: bytes = b"vmcoal-cuda 2\0", sequence: int = 1) -> bytes:
    body = struct.pack("<Q", len(text)) + text
    return struct.pack("<IHHQII", len(body), 0, 1, 0, sequence, 0) + body


@pytest.mark.parametrize("what", ["vadd", "errors", "large", "threads", "bad-address"])
def test_a_program_gets_what_cuda_would_give_it(server: Server, what: str) -> None:
    done = server.run(what)
    assert (done.returncode, done.stdout) == (0, f"{FIRST}right\n"), done.stderr


def test_what_is_not_supported_is_counted_by_name(server: Server) -> None:
    with server.start("errors") as one:
        out, err = one.communicate(timeout=60)
    assert out == f"{FIRST}right\n", err
    server.run("vadd")
    while "not supported: cuMemCreate 1" not in (text := server.log.read_text()):
        assert server.run("vadd").returncode == 0
    assert "calls, " in text


def test_a_kernel_that_never_ends_ends_with_its_program(server: Server) -> None:
    with server.start("endless") as one:
        assert one.stdout
        assert one.stdout.readline() == FIRST
        assert one.stdout.readline() == "launched\n"
        one.kill()
        one.communicate(timeout=30)
    for _ in range(300):
        if "a client ended" in server.log.read_text():
            break
        assert server.run("vadd").returncode == 0
    assert "a client ended" in server.log.read_text()


def test_a_crash_of_the_driver_is_the_programs_own(server: Server) -> None:
    with server.start("forever") as other:
        assert other.stdout
        assert other.stdout.readline() == FIRST
        done = server.run("crash")
        assert done.returncode == 1
        assert LOST in done.stdout
        assert other.poll() is None
        other.kill()


def test_the_lender_is_lost_to_all_programs(server: Server) -> None:
    programs = [server.start(what) for what in ("forever", "endless")]
    for one, lines in zip(programs, (1, 2), strict=True):
        assert one.stdout
        for _ in range(lines):
            assert one.stdout.readline()
    server.process.kill()
    for one in programs:
        out, _ = one.communicate(timeout=30)
        assert one.returncode == 1
        assert LOST in out


def test_a_lease_has_only_so_much_memory(tmp_path: Path) -> None:
    server = Server(tmp_path, memory=8 << 20)
    try:
        assert server.run("vadd").stdout == "1: vmcoal stand-in, 8 MiB, 8.x\nright\n"
        done = server.run("large")
        assert done.returncode == 1
        assert "cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY" in done.stdout
        assert server.run("vadd").returncode == 0
    finally:
        server.close()


@pytest.mark.parametrize(
    "garbage",
    [
        hello(b"vmcoal-cuda 9\0"),
        hello(sequence=2),
        hello() + hello(sequence=2),
        b"\xff" * 4096,
        struct.pack("<IHHQII", 1 << 31, 0, 1, 0, 1, 0),
        struct.pack("<IHHQII", 8, 60, 1, 0, 1, 0) + bytes(8),
    ],
)
def test_garbage_ends_the_connection_and_nothing_else(server: Server, garbage: bytes) -> None:
    with server.connect() as client:
        client.sendall(garbage)
        client.shutdown(socket.SHUT_WR) if len(garbage) < 24 else None
        try:
            while client.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert server.run("vadd").returncode == 0


def test_an_answer_that_is_none_is_an_error_to_the_program(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "cuda"))
        listener.listen(1)
        (tmp_path / "cuda.d").mkdir()
        (tmp_path / "cuda.d/gpu-1").write_text(f"{tmp_path}/cuda\n")
        env = {**os.environ, "VMCOAL_CUDA_FOLDER": str(tmp_path / "cuda.d")}
        with subprocess.Popen(program("vadd"), env=env, stdout=subprocess.PIPE, text=True) as one:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(struct.pack("<IIiI16x", 8, 1, 0, 0) + struct.pack("<Q", 12090))
                peer.recv(4096)
                peer.sendall(struct.pack("<IIiI16x", 1 << 30, 2, 0, 0) + bytes(64))
                out, _ = one.communicate(timeout=60)
    assert one.returncode == 1
    assert LOST in out


def test_no_gpu_is_said_as_cuda_says_it(tmp_path: Path) -> None:
    env = {**os.environ, "VMCOAL_CUDA_FOLDER": str(tmp_path)}
    done = subprocess.run(program("vadd"), env=env, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "cuInit: CUDA_ERROR_NO_DEVICE\n")


def test_two_lenders_are_two_devices_and_one_may_be_lost(tmp_path: Path) -> None:
    servers = []
    try:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            servers.append(Server(tmp_path / name))
        (tmp_path / "a/cuda.d/gpu-2").write_text(f"{servers[1].path}\n")
        argv = [sys.executable, "-c", TWO, str(find_binary("libvmcoal-cuda.so"))]
        with subprocess.Popen(
            argv, env=servers[0].env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as one:
            assert one.stdout
            assert [one.stdout.readline() for _ in range(3)] == ["1 1\n", "2 2\n", "of another 400\n"]
            servers[0].close()
            out, err = one.communicate("go on\n", timeout=60)
        assert (one.returncode, out) == (0, "lost 46\n"), err
    finally:
        for server in servers:
            server.close()


# The whole way


@pytest.mark.root
@needs_root
async def test_a_program_finds_the_device_and_computes(
    tmp_path: Path, ways: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gpu_servers() as servers:
        entry = gpu_entry(await cuda_device(monkeypatch))
        ways.append(way := Way(tmp_path, await servers.start(entry)))
        assert {child.id for child in await servers.holder.list()} == {
            f"{p}-{entry.lease.id}" for p in ("cuda", "serve")
        }
        for what in ("vadd", "large", "threads"):
            assert way.run(*program(what)) == f"{FIRST}right\n"
        await servers.stop(entry)
        assert not await servers.holder.list()


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("victim", ["serve", "cuda", "pump"])
async def test_whoever_is_killed_a_program_gets_an_error(
    tmp_path: Path, ways: list[Way], monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    async with gpu_servers() as servers:
        entry = gpu_entry(await cuda_device(monkeypatch))
        ways.append(way := Way(tmp_path, await servers.start(entry)))
        with way.program(*program("forever")) as one:
            assert one.stdout
            assert one.stdout.readline() == FIRST
            children = {child.id: child.pid for child in await servers.holder.list()}
            os.kill(way.pump.pid if victim == "pump" else children[f"{victim}-{entry.lease.id}"], signal.SIGKILL)
            out, _ = one.communicate(timeout=60)
        assert one.returncode == 1
        assert LOST in out
        if victim == "cuda":  # it is started again, and the way still stands
            while (done := way.program(*program("vadd"))).wait(timeout=60):
                done.communicate()
            assert "right" in done.communicate()[0]
        await servers.stop(entry)


async def test_the_key_and_the_sandbox_are_those_of_opencl(monkeypatch: pytest.MonkeyPatch) -> None:
    async with gpu_servers() as servers:
        entry = gpu_entry(await cuda_device(monkeypatch))
        server = await servers.start(entry)
        assert server.device.id == "cuda:0"
        key = Path(os.environ["XDG_RUNTIME_DIR"]) / "wrong"
        nbd.write_psk(key, server.psk_identity, "0" * 64)
        argv = [str(find_binary("vmcoal-gpu")), "check", "--key", str(key), "--address", "127.0.0.1"]
        code, _, _ = await nbd.run([*argv, "--port", str(server.port)], deadline=20)
        assert code
        (outer,) = [child.pid for child in await servers.holder.list() if child.id.startswith("cuda-")]
        inner = [
            pid
            for pid in Path("/proc").glob("[0-9]*")
            if _command(pid).startswith(b"/server\0serve") and _is_under(pid, outer)
        ]
        assert inner
        for pid in inner:
            assert not (pid / "root/home").exists()
            assert not (pid / "root/etc/passwd").exists()
        await servers.stop(entry)


def _command(pid: Path) -> bytes:
    try:
        return (pid / "cmdline").read_bytes()
    except OSError:
        return b""


def _is_under(pid: Path, ancestor: int) -> bool:
    for _ in range(6):
        try:
            parent = int((pid / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return False
        if parent == ancestor:
            return True
        pid = Path(f"/proc/{parent}")
    return False
