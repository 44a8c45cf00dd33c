"""The way of a GPU's calls on one host: pocld in its sandbox, the bridge, the pump, and the guest's relay."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from framework.lent_gpu import device, gpu_entry, gpu_servers
from framework.opencl import opencl_add
from vmcoal.backends import nbd
from vmcoal.errors import NotFoundError
from vmcoal.guest.images import guest_files
from vmcoal.holding.binaries import find_binary
from vmcoal.layout import lender_folders
from vmcoal.model.gpu import GpuServer

pytestmark = pytest.mark.contract

HELLO = bytes([1, 0, 0, 0, 28, 0, 0, 0]) + b"vmcoal-gpu 1" + b"0123456789abcdef"

RELAY = """
import os, socket, sys, time
sys.path.insert(0, sys.argv[1])
import vmcoal_gpu as relay
listener = socket.socket(fileno=int(sys.argv[2]))
fd = listener.accept()[0].detach()
os.set_blocking(fd, False)
relay.LIBRARY = sys.argv[3]
carrier = relay.Relay(fd, relay.listen("gpu-test"))
carrier.greet(time.monotonic() + 20)
relay.show("gpu-test")
print("ready", flush=True)
carrier.run(lambda: False)
carrier.close()
relay.hide("gpu-test")
print("ended:", carrier.why, flush=True)
"""

PROGRAM = opencl_add(1 << 18)


class Way:
    """A pump and a relay in front of a lent GPU, and programs that use it: what a guest would have, without one. They
    live in a mount namespace of their own, because the relay's places are fixed."""

    def __init__(self, tmp_path: Path, server: GpuServer) -> None:
        key = tmp_path / "key"
        nbd.write_psk(key, server.psk_identity, server.psk)
        self.port = tmp_path / "port"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.port))
        self.listener.listen(1)
        self.relay = subprocess.Popen(
            [
                *("unshare", "-m", "sh", "-c"),
                'mount -t tmpfs t /run && mount -t tmpfs t /etc/OpenCL && exec "$@"',
                *("sh", sys.executable, "-B", "-c", RELAY, str(guest_files()), str(self.listener.fileno())),
                str(find_binary("libvmcoal-pocl.so")),
            ],
            pass_fds=[self.listener.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        to = ("--address", "127.0.0.1", "--port", str(server.port))
        self.check = [str(find_binary("vmcoal-gpu")), "check", "--key", str(key), *to]
        argv = [str(find_binary("vmcoal-gpu")), "pump", "--key", str(key), *to, "--socket", str(self.port)]
        self.pump = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        assert self.relay.stdout
        assert self.relay.stdout.readline() == "ready\n"

    def program(self, *arguments: str) -> subprocess.Popen[str]:
        """Start an OpenCL program where the relay is."""
        inside = ["nsenter", "-t", str(self.relay.pid), "-m", "--", *arguments]
        return subprocess.Popen(inside, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> str:
        """Run an OpenCL program to its end and return what it printed."""
        with self.program(*arguments) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        return out

    def close(self) -> None:
        """End everything."""
        self.listener.close()
        for process in (self.pump, self.relay):
            process.kill()
            process.communicate()


@pytest.fixture
def ways() -> Iterator[list[Way]]:
    """Ways that are closed after the test."""
    made: list[Way] = []
    yield made
    for way in made:
        way.close()


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
