"""A lab for tests: three virtual hosts, lenders on all of them, and a guest under KVM on the first.

    def test_something(lab: Lab) -> None:          # tests/lab/conftest.py
        lab.link("host2", "wifi")
        result = lab.attach("--from", "host2", "--memory", "256M")

One lab serves all tests of a run. Between tests nothing is cleaned: `Lab.left` looks whether vmcoal kept its promise to
leave nothing, and a test that left something fails. Everything goes through the command line, as a user has it.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from framework import evidence
from framework.command import Done
from framework.leaks import Surroundings
from framework.path import Scene, until
from vmcoal.controller.api import AttachResult, DetachResult
from vmcoal.errors import VmcoalError
from vmcoal.holding.binaries import find_binary
from vmcoal.host.facts import Host
from vmcoal.lab.lab import LabStatus
from vmcoal.lending.api import LenderStatus
from vmcoal.model.attachment import AttachedMemory, AttachmentState, MemoryStyle
from vmcoal.model.status import VmStatus
from vmcoal.model.units import GIB, MIB, format_size

T = TypeVar("T")

BORROWER, LENDERS = "host1", ("host2", "host3")
GUEST, SELF = "web", "host1"
"""The guest, and the borrower's own lender, which lends vCPUs."""
NEEDED_MEMORY = 6 * GIB
PATIENCE = 300.0
"""Seconds that a command in a host may take before the test gives up: its host is emulated on a busy machine."""

WRITE = """
import mmap, sys
size = {size} << 20
memory = mmap.mmap(-1, size)
page = bytes.fromhex("c0a1e5ce") * 1024
for at in range(0, size, 4096):
    memory[at : at + 4096] = page
print("written", flush=True)
for line in sys.stdin:
    print(sum(memory[at : at + 4096] != page for at in range(0, size, 4096)), "wrong pages", flush=True)
"""


class Program:
    """A program in the guest that holds a pattern in memory of one node, and tells how many of its pages are wrong."""

    def __init__(self, lab: Lab, node: int, size: int) -> None:
        argv = ("exec", "-i", GUEST, "--", "numactl", f"--membind={node}", "python3", "-c", WRITE.format(size=size))
        self._process = lab.spawn(BORROWER, "vmcoal", *argv)
        assert self._line() == "written"

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().decode().strip()

    def ask(self) -> None:
        """Let it look at its pages."""
        assert self._process.stdin
        self._process.stdin.write(b"look\n")
        self._process.stdin.flush()

    def wrong_pages(self) -> int:
        """Return how many of its pages are wrong, once it has seen them all."""
        self.ask()
        return self.told()

    def told(self) -> int:
        """Return what it answers when it was asked."""
        line = self._line()
        assert line.endswith("wrong pages"), line
        return int(line.split()[0])

    def ended(self) -> int:
        """Return its exit code, once it has ended by itself."""
        return self._process.wait(PATIENCE)

    def end(self) -> None:
        """End it."""
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0


class Detached(Program):
    """A program that needs no controller to live on: what is said to it and what it says are files in the guest."""

    def __init__(self, lab: Lab, node: int, size: int) -> None:
        self._lab = lab
        self._lines = 0
        files = "<>ask >told 2>&1 & echo $! >pid"
        start = f'cd /tmp; rm -f ask told; mkfifo ask; setsid numactl --membind={node} python3 -c "$1" {files}'
        lab.exec("sh", "-c", start, "sh", WRITE.format(size=size))
        assert self._line() == "written"

    def _line(self) -> str:
        self._lines += 1
        lines = self._lab.wait(
            lambda: (told := self._lab.exec("cat", "/tmp/told").splitlines())[self._lines - 1 :] and told, "an answer"
        )
        return str(lines[self._lines - 1])

    def ask(self) -> None:
        """Let it look at its pages."""
        self._lab.exec("sh", "-c", "echo look >/tmp/ask")

    def end(self) -> None:
        """End it."""
        self._lab.exec("sh", "-c", "kill $(cat /tmp/pid)")


class Lab:
    """The lab of a test run."""

    def __init__(self, home: Path, flavor: str = "12") -> None:
        self.scene = Scene(home)
        self.flavor = flavor
        self.ground = ""

    # This machine

    def run(self, *arguments: str, code: int | None = 0, patience: float = PATIENCE) -> Done:
        """Run ``vmcoal lab ARGUMENTS`` on this machine."""
        with self.scene.spawn("lab", *arguments) as process:
            return self._ended(process, f"vmcoal lab {' '.join(arguments)}", b"", code, patience)

    def _ended(
        self, process: subprocess.Popen[bytes], what: str, stdin: bytes, code: int | None, patience: float = PATIENCE
    ) -> Done:
        try:
            out, err = process.communicate(stdin, timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{what} did not end in {patience:g} s") from None
        done = Done(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
        assert "Traceback" not in done.err, done.err
        assert code is None or done.code == code, f"{what}: exit {done.code}\n{done.out}\n{done.err}"
        return done

    def status(self) -> LabStatus:
        """Return the lab's status."""
        (status,) = msgspec.json.decode(self.run("status", "-o", "json").out, type=list[LabStatus])
        return status

    def link(self, host: str, profile: str) -> None:
        """Give the borrower's link to ``host`` a profile; a cut one is mended."""
        self.run("link", BORROWER, host, profile)

    def new_link(self, host: str, profile: str) -> None:
        """Give the link a profile, and let the guest's controller have no connection from before: the kernel's smallest
        round trip of a connection is that of the last five minutes (net.ipv4.tcp_min_rtt_wlen)."""
        self.link(host, profile)
        self.on(BORROWER, "pkill", "-KILL", "-f", "vmcoal.controller", code=None)
        self.guest()

    def cut(self, host: str) -> None:
        """Cut the borrower's link to ``host``."""
        self.run("cut", BORROWER, host)

    # The hosts

    def spawn(self, host: str, *argv: str, **kwargs: Any) -> subprocess.Popen[bytes]:
        """Start a command in a host; its streams are pipes."""
        return self.scene.spawn("lab", "exec", host, "-i", "--", *argv, **kwargs)

    def on(self, host: str, *argv: str, code: int | None = 0, stdin: bytes = b"") -> Done:
        """Run a command in a host to its end, which must be ``code`` (``None``: any)."""
        with self.spawn(host, *argv) as process:
            return self._ended(process, f"{host}: {' '.join(argv)}", stdin, code)

    def vmcoal(self, host: str, *arguments: str, code: int | None = 0) -> Done:
        """Run ``vmcoal ARGUMENTS`` in a host."""
        return self.on(host, "vmcoal", *arguments, code=code)

    def json(self, host: str, result: type[T], *arguments: str) -> T:
        """Run ``vmcoal ARGUMENTS -o json`` in a host and return what it prints."""
        return msgspec.json.decode(self.vmcoal(host, *arguments, "-o", "json").out, type=result)

    def lender(self, host: str) -> LenderStatus:
        """Return the status of the lender on ``host``; it must run."""
        (status,) = self.json(host, list[LenderStatus], "lend", "status")
        return status

    def lend(self, host: str) -> None:
        """Start the lender of a host, in the place of one that ended."""
        what = ("--cpus", "1", "--memory", "64M") if host == BORROWER else ("--memory", "384M")
        name = SELF if host == BORROWER else host
        self.vmcoal(host, "lend", "--name", name, *what, "--listen", "0.0.0.0:6180")

    def pair(self, host: str) -> None:
        """Pair the borrower with the lender of a host, code and all."""
        name = SELF if host == BORROWER else host
        with self.spawn(host, "vmcoal", "lend", "pair") as window:
            assert window.stderr
            while b"code: " not in (line := window.stderr.readline()):
                assert line, "the window ended without a code"
            code = line.split()[1]
            self.on(BORROWER, "vmcoal", "pair", host, "--name", name, "--code-file", "-", stdin=code)
            window.communicate(timeout=PATIENCE)
            assert window.returncode == 0

    # The guest

    def boot(self) -> VmStatus:
        """Boot the guest, under the KVM of its host."""
        sizes = ("--cpus", "1", "--memory", "512M", "--far-nodes", "7", "--far-cpus", "1", "--far-memory", "512M")
        return self.json(BORROWER, VmStatus, "boot", GUEST, "--net", "none", "--accel", "kvm", *sizes)

    def guest(self) -> VmStatus:
        """Return the guest's status."""
        return self.json(BORROWER, VmStatus, "status", GUEST)

    def attach(self, *options: str) -> AttachResult:
        """Attach to the guest."""
        return self.json(BORROWER, AttachResult, "attach", GUEST, "--deadline", "240s", *options)

    def detach(self, *options: str) -> DetachResult:
        """Detach from the guest."""
        return self.json(BORROWER, DetachResult, "detach", GUEST, "--deadline", "240s", *options)

    def exec(self, *argv: str) -> str:
        """Run a command in the guest and return what it printed."""
        return self.vmcoal(BORROWER, "exec", GUEST, "--", *argv).out

    def hold(self, node: int, size: int = 8) -> Program:
        """Start a program in the guest that holds ``size`` MiB of ``node``."""
        return Program(self, node, size)

    def hold_detached(self, node: int, size: int = 8) -> Detached:
        """As `hold`, for a test that kills the guest's controller, through which all commands in the guest go."""
        return Detached(self, node, size)

    def wait(self, look: Any, what: str, deadline: float = PATIENCE) -> Any:
        """Return what ``look`` returns as soon as it is true."""
        return until(look, what, deadline)

    # Life

    def up(self) -> None:
        """Make the lab: hosts, lenders that are paired, and the guest."""
        self.run("up", "--flavor", self.flavor)
        self.ground = self.where()
        for host in (BORROWER, *LENDERS):
            self.lend(host)
            self.pair(host)
        self.boot()

    def left(self) -> list[str]:
        """Return a line for each thing that a test left behind: what is attached, lent, cut, or does not run."""
        status = self.status()
        found = [f"{host.name} is {host.state}" for host in status.hosts if host.state != "running"]
        found += [f"the link of {link.a} and {link.b} is cut" for link in status.links if link.cut]
        if found:
            return found
        guest = self.guest()
        ends = time.monotonic() + PATIENCE
        while guest.degraded and time.monotonic() < ends:  # on a busy machine the guest's agent is late now and then
            guest = self.guest()
        found += [f"{GUEST} is {guest.state}"] if guest.state != "running" else []
        found += [f"{GUEST} is degraded: {line}" for line in guest.degraded]
        # QEMU before 8.2 keeps an emptied virtio-mem device: its lease and its file stay, and hold nothing.
        kept = {memory.lease for at in guest.attachments for memory in at.memory if emptied(memory)}
        for at in guest.attachments:
            if at.cpus or at.gpus or any(memory.lease not in kept for memory in at.memory):
                found.append(f"{at.lender} is attached to node {at.node}")
        for host in (BORROWER, *LENDERS):
            lender = self.lender(host)
            leases = (lease for lease in lender.leases if lease.id not in kept or lease.committed)
            found += [f"{lender.name} lent {lease.id}, {lease.state}" for lease in leases]
            look = ("find", "/dev/shm/vmcoal-0", "-name", "*.mem", "-printf", "%b %p\\n")
            for line in self.on(host, *look, code=None).out.splitlines():
                blocks, path = line.split(" ", 1)
                if blocks != "0" or not any(f"-{lease}-" in path for lease in kept):
                    found.append(f"lent bytes {path} on {host}")
        return found

    def where(self) -> str:
        """Return what the tests run on, for people."""
        status = self.status()
        system = self.on(BORROWER, "sh", "-c", "uname -r; qemu-system-x86_64 --version").out
        return ground(str(status.flavor), str(status.accel), system)

    def reset(self) -> None:
        """Begin anew after a test that failed or left something."""
        for link in self.status().links:
            if link.cut or link.profile.name != "lan":
                self.run("link", link.a, link.b, "lan", code=None)
        self.run("down")
        self.up()

    def keep_evidence(self, kept: Path) -> None:
        """Write to ``kept`` what the hosts and vmcoal in them say of themselves."""
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "lab.txt").write_text(self.run("status", code=None).out)
        for host in (BORROWER, *LENDERS):
            script = "vmcoal status web; vmcoal lend status; dmesg | tail -50; ps axf; tc -s qdisc"
            (kept / f"{host}.txt").write_text(self.on(host, "sh", "-c", script, code=None).out)
            state = self.spawn(host, "tar", "c", "-C", "/root/.local/state", "--exclude=*.qcow2", "vmcoal")
            (kept / f"{host}-state.tar").write_bytes(state.communicate(timeout=PATIENCE)[0])


def ground(flavor: str, accel: str, system: str) -> str:
    """Return what tests run on; ``system`` is what ``uname -r`` and QEMU say of their versions."""
    release, _, qemu = system.partition("\n")
    version = re.search(r"version ([\d.]+)", qemu)
    assert version is not None, system
    return f"Debian {flavor}: QEMU {version[1]}, Linux {release}; hosts under {accel}"


def emptied(memory: AttachedMemory) -> bool:
    """Return whether it is a virtio-mem device that is empty, and that QEMU cannot remove."""
    return memory.state is AttachmentState.PARKED and memory.style is MemoryStyle.GRANULAR and memory.size == 0


def why_not() -> str | None:
    """Return why this machine cannot run a lab, and what to do about it; ``None`` where it can."""
    if shutil.which("qemu-system-x86_64") is None:
        return "no qemu-system-x86_64: run tools/setup"
    if (free := Host().memory_available()) < NEEDED_MEMORY:
        return f"a lab needs {format_size(NEEDED_MEMORY)}, and {format_size(free // MIB * MIB)} are available"
    try:
        find_binary("vmcoal-holder")
    except VmcoalError as error:
        return f"{error}: {error.hint}"
    return None


@contextmanager
def folders(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Give folders for a lab, for a fixture of any scope; what survives in them at the end is an error."""
    if why := why_not():
        pytest.skip(why)
    home = Path(tempfile.mkdtemp(prefix="vc-"))
    before = Surroundings.look(home, Path("/dev/shm") / home.name)
    made = Lab(home)
    try:
        yield home
    finally:
        with contextlib.suppress(AssertionError):
            made.run("down", "--all")
        survivors = before.survivors()
        if survivors or any(name.startswith(request.node.nodeid) for name in evidence.failed):
            kept = evidence.keep(request.node.name or "lab", home)
            print(f"evidence of {request.node.name or 'the lab'} kept in {kept}")  # noqa: T201
        shutil.rmtree(home, ignore_errors=True)
    assert not survivors, "survived: " + "; ".join(survivors)
