"""A real QEMU without a guest: started with ``-S``, spoken to over QMP, ended for certain.

    from framework.qemu import BareQemu, bare_qemu, qemu_binary

    __all__ = ["bare_qemu", "qemu_binary"]  # the fixtures are used by name

    async def test_something(bare_qemu: BareQemu) -> None:
        await bare_qemu.client.execute("query-status")

The fixture runs a test once for each binary in VMCOAL_QEMU_BINARIES (separated by colons), or for the one on PATH.
What QEMU wrote to stderr and what was said over QMP is added to the report of a test that fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from vmcoal_qmp import QmpClient, Transcript

MIB = 1 << 20
GIB = 1 << 30
NEAR_MEMORY = 256 * MIB
FAR_NODES = (1, 2, 3)
CORES = 2
SLOTS = 3
MAXMEM = 8 * GIB
DISTANCES = (10, 20, 40, 80)
"""Distance of each node to node 0."""

_START_DEADLINE = 30.0
_TAIL = 4000


def qemu_binaries() -> list[str]:
    """Return the QEMU binaries to test with; empty if there is none."""
    named = os.environ.get("VMCOAL_QEMU_BINARIES", "")
    if named:
        return [path for path in named.split(":") if path]
    found = shutil.which("qemu-system-x86_64")
    return [found] if found else []


def qemu_version(binary: str) -> str:
    """Return major.minor of ``binary``."""
    out = subprocess.run([binary, "--version"], check=True, capture_output=True, text=True, timeout=20).stdout
    return ".".join(out.split()[3].split(".")[:2])


def topology() -> list[str]:
    """Return the arguments of a machine with near node 0 and empty far nodes 1 to 3, each with a socket of two cores, a
    PCI expander and two root ports; and one root port, ``port01``, near."""
    nodes = range(len(DISTANCES))
    far = [(a, b, max(DISTANCES[a], DISTANCES[b])) for a in nodes for b in nodes if a != b]
    sockets = len(DISTANCES)
    argv = [
        *("-machine", "q35", "-accel", "tcg", "-cpu", "max"),
        *("-smp", f"{CORES},sockets={sockets},dies=1,cores={CORES},threads=1,maxcpus={CORES * sockets}"),
        *("-m", f"{NEAR_MEMORY // MIB}M,slots={SLOTS},maxmem={MAXMEM // MIB}M"),
        *("-object", f"memory-backend-ram,id=near,size={NEAR_MEMORY}", "-numa", "node,nodeid=0,memdev=near"),
    ]
    for node in FAR_NODES:
        argv += ["-numa", f"node,nodeid={node}"]
    for node in nodes:
        argv += ["-numa", f"cpu,node-id={node},socket-id={node}"]
    for a, b, distance in far:
        argv += ["-numa", f"dist,src={a},dst={b},val={distance}"]
    # Without bus=pcie.0 QEMU takes the last expander.
    argv += ["-device", "pcie-root-port,id=port01,bus=pcie.0,chassis=10,slot=1"]
    for node in FAR_NODES:
        argv += ["-device", f"pxb-pcie,id=pxb{node},bus=pcie.0,bus_nr={32 * node},numa_node={node}"]
        for port in (1, 2):
            argv += ["-device", f"pcie-root-port,id=port{node}{port},bus=pxb{node},chassis={node},slot={port}"]
    return argv


@dataclass
class BareQemu:
    """A running QEMU. ``client`` holds its only monitor; ``folder`` is the test's to put files into."""

    binary: str
    argv: list[str]
    folder: Path
    socket: Path
    stderr: Path
    transcript: Path
    process: subprocess.Popen[bytes]
    pidfd: int
    client: QmpClient = field(init=False)

    async def exited(self, deadline: float = 30.0) -> int:
        """Return the exit code (negative: the signal) once QEMU has ended."""
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        loop.add_reader(self.pidfd, gone.set)
        try:
            async with asyncio.timeout(deadline):
                await gone.wait()
        finally:
            loop.remove_reader(self.pidfd)
        return self.process.wait()

    def kill(self) -> None:
        """End QEMU at once."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """End QEMU, for a caller that did not get to talk to it."""
        self.kill()
        self.process.wait()
        os.close(self.pidfd)

    def evidence(self) -> list[tuple[str, str]]:
        """Return what to show of a failure, as titles and texts."""
        texts = [("argv", " ".join(self.argv))]
        for title, path in (("stderr", self.stderr), ("QMP", self.transcript)):
            with contextlib.suppress(OSError):
                texts.append((title, path.read_text(errors="replace")[-_TAIL:]))
        return texts


def _in_child() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run leaves no QEMU
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def spawn(binary: str, folder: Path, arguments: Sequence[str], fds: Sequence[int] = ()) -> BareQemu:
    """Start QEMU with a listening monitor socket handed to it as a descriptor, and ``fds`` under their own numbers;
    nobody is connected yet."""
    folder.mkdir(parents=True, exist_ok=True)
    path, stderr = folder / "qmp.sock", folder / "qemu.log"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        fd = listener.fileno()
        argv = [
            *(binary, "-S", "-nodefaults", "-no-user-config", "-display", "none", *arguments),
            *("-chardev", f"socket,id=qmp,fd={fd},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        ]
        with stderr.open("wb") as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[fd, *fds],
                preexec_fn=_in_child,  # one thread only here
            )
    return BareQemu(binary, argv, folder, path, stderr, folder / "qmp.log", process, os.pidfd_open(process.pid))


@asynccontextmanager
async def running_qemu(
    binary: str,
    folder: Path,
    arguments: Sequence[str] | None = None,
    *,
    transcript: Transcript | None = None,
    fds: Sequence[int] = (),
) -> AsyncIterator[BareQemu]:
    """Run QEMU with ``arguments`` (the far-node `topology` if none are given) until the context ends."""
    qemu = spawn(binary, folder, topology() if arguments is None else arguments, fds)
    transcript = transcript or Transcript(qemu.transcript)
    try:
        try:
            qemu.client = await QmpClient.connect(qemu.socket, transcript=transcript, deadline=_START_DEADLINE)
        except Exception as error:
            qemu.kill()
            raise AssertionError(f"QEMU did not start: {qemu.stderr.read_text(errors='replace')}") from error
        async with qemu.client:
            yield qemu
    finally:
        qemu.close()
        transcript.close()


def show(request: pytest.FixtureRequest, qemu: BareQemu) -> None:
    """Add QEMU's evidence to the report, where it shows if the test failed."""
    for title, text in qemu.evidence():
        request.node.add_report_section("teardown", f"QEMU {title}", text)


def _parameters() -> list[object]:
    binaries = qemu_binaries()
    if not binaries:
        why = pytest.mark.skip(reason="no qemu-system-x86_64: install qemu-system-x86 or set VMCOAL_QEMU_BINARIES")
        return [pytest.param("", marks=why, id="none")]
    return [pytest.param(binary, id=qemu_version(binary)) for binary in binaries]


@pytest.fixture(params=_parameters())
def qemu_binary(request: pytest.FixtureRequest) -> str:
    """Each QEMU binary to test with."""
    return str(request.param)


@pytest.fixture
async def bare_qemu(request: pytest.FixtureRequest, qemu_binary: str, surroundings: Path) -> AsyncIterator[BareQemu]:
    """A QEMU with the far-node topology, stopped before its first instruction."""
    async with running_qemu(qemu_binary, surroundings / "s" / "qemu") as qemu:
        yield qemu
    show(request, qemu)
