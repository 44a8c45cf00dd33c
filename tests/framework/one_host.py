"""One host of the lab, with real KVM in it, for tests that need no other host.

from framework.one_host import OneHost, lasting, one_host

@pytest.fixture(scope="module", params=["12", "13"])
def hosts(request: pytest.FixtureRequest) -> Iterator[Callable[[], OneHost]]:
    with lasting(lambda: one_host(request, request.param)) as give:
        yield give

@pytest.fixture
def host(hosts: Callable[[], OneHost]) -> OneHost:
    return hosts()
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from framework import evidence
from framework.labs import ground
from framework.leaks import Surroundings
from vmcoal.errors import PrerequisiteError, VmcoalError
from vmcoal.host.facts import Host as ThisMachine
from vmcoal.lab.channel import Done
from vmcoal.lab.host import Host
from vmcoal.lab.image import ensure_image, make_host_spec
from vmcoal.lab.lab_checks import choose_accel
from vmcoal.layout import LabHostFolders
from vmcoal.model.units import MIB, format_size

T = TypeVar("T")

PATIENCE = 300.0
"""Seconds that a command in an emulated host may take on a busy machine."""

VM, LENDER, LENDER_ADDRESS = "web", "attic", "127.0.0.1:4747"
LENT = ("--cpus", "2", "--memory", "384M")
_OWN = 512  # MiB of QEMU itself, and of what runs beside it
QEMU = "qemu-system-x86_64"
_STATE = "/root/.local/state/vmcoal"


class OneHost:
    """A host that has booted. Every method blocks."""

    def __init__(self, runner: asyncio.Runner, host: Host) -> None:
        self._runner = runner
        self.host = host
        self._ground = ""

    def wait(self, task: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the host's."""
        return self._runner.run(task)

    def run(self, *argv: str, stdin: bytes = b"", code: int | None = 0) -> Done:
        """Run a program; a code that is not ``code`` fails the test."""
        done = self.wait(self.host.exec(argv, stdin=stdin, deadline=PATIENCE))
        if code is not None and done.code != code:
            words = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
            pytest.fail(f"{' '.join(argv)} ended with {done.code} (signal {done.signal})\n{words}")
        return done

    def shell(self, script: str, code: int | None = 0) -> str:
        """Run a shell script and return its stdout."""
        return self.run("/bin/bash", "-c", script, code=code).text

    def vmcoal(self, *arguments: str, code: int | None = 0) -> str:
        """Run ``vmcoal ARGUMENTS`` in the host and return its stdout."""
        return self.run("vmcoal", *arguments, code=code).text

    def read(self, *arguments: str) -> Any:
        """Run a command of vmcoal that has ``-o json`` and return what it says."""
        return json.loads(self.vmcoal(*arguments, "-o", "json"))

    def guest(self, vm: str, *argv: str, code: int | None = 0) -> str:
        """Run a program in the guest of ``vm``, a VM of this host."""
        return self.vmcoal("exec", vm, "--", *argv, code=code)

    def until(self, script: str, deadline: float = PATIENCE) -> None:
        """Wait until a shell script in the host ends with 0."""
        loop = f"until {script}; do sleep 0.5; done"
        self.wait(self.host.run(["/bin/bash", "-c", loop], deadline=deadline))

    def lend(self, name: str, *options: str) -> None:
        """Start a lender at `LENDER_ADDRESS` of the host and pair the host with it."""
        self.vmcoal("lend", "--name", name, "--listen", LENDER_ADDRESS, *options)
        self.shell(
            "set -e; fifo=$(mktemp -u); mkfifo $fifo; "
            f"vmcoal lend pair --name {name} --grant memory --grant cpu 2>&1 | sed -un 's/^ *code: //p' >$fifo & "
            "read -r code <$fifo; rm $fifo; "
            f'vmcoal pair {LENDER_ADDRESS} --name {name} --code-file - <<< "$code"; wait'
        )

    def where(self) -> str:
        """Return what runs here, for people (`framework.labs.ground`)."""
        if not self._ground:
            system = self.shell("uname -r; qemu-system-x86_64 --version")
            self._ground = ground(self.host.spec.flavor, self.host.spec.accel, system)
        return self._ground

    def keep_evidence(self, home: Path) -> None:
        """Copy the logs of the host's VMs and lenders beside the host's own."""
        with suppress(VmcoalError):
            target = home / "s" / "inside.txt"
            script = f"cd {_STATE} && tail -c 60000 vm/*/*.log lend/*/*.log; dmesg | tail -50; ps aux; free -m"
            target.write_text(self.shell(script, code=None))

    def left(self) -> list[str]:
        """Return what vmcoal left in the host: processes, mounts, lent bytes, sockets. What init has yet to reap
        has ended."""
        return self.shell(
            "ps -eo pid=,args= | grep -E 'qemu-system|nbdkit|nbdfuse|vmcoal-(holder|pager)|-m vmcoal' | "
            "grep -v -e grep -e '<defunct>'; "
            "grep -E ' fuse' /proc/mounts; ls /dev/shm/vmcoal-0 2>/dev/null; find /run/vmcoal -type s 2>/dev/null",
            code=None,
        ).splitlines()


@contextmanager
def one_host(request: pytest.FixtureRequest, flavor: str, memory: int = 1536, **options: Any) -> Iterator[OneHost]:
    """Boot a host of ``flavor`` with ``memory`` MiB and end it; evidence is kept if a test fails meanwhile."""
    needed = (memory + _OWN) * MIB
    if (free := ThisMachine().memory_available()) < needed:
        pytest.skip(f"a lab host needs {format_size(needed)}, and {format_size(free // MIB * MIB)} are available")
    try:
        image = ensure_image(flavor)
    except PrerequisiteError as error:
        pytest.skip(f"no image of Debian {flavor} can be made here: {error}: {error.hint}")
    home = Path(tempfile.mkdtemp(prefix="vc-"))
    request.addfinalizer(lambda: shutil.rmtree(home, ignore_errors=True))
    before = Surroundings.look(home, Path("/dev/shm") / home.name)
    name, failures = f"kvm{flavor}", set(evidence.failed)
    folders = LabHostFolders(home / "r" / "lab" / name, home / "s" / "lab" / name)
    for folder in "rs":
        (home / folder).mkdir(mode=0o700)
    accel, _ = choose_accel(QEMU, None)
    spec = make_host_spec(name, image, qemu=QEMU, accel=accel, memory=memory * MIB, **options)
    with asyncio.Runner() as runner:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VMCOAL_TEST", home.name)
            host = runner.run(Host.start(spec, folders, deadline=120))
        made = OneHost(runner, host)
        try:
            made.wait(host.wait_ready(PATIENCE))
            yield made
        finally:
            if evidence.failed - failures:
                made.keep_evidence(home)
                evidence.keep(f"{request.node.name}-{flavor}", home)
            made.wait(host.kill())
    survivors = before.survivors()
    assert not survivors, "survived the host: " + "; ".join(survivors)


@contextmanager
def lasting(make: Callable[[], AbstractContextManager[T]]) -> Iterator[Callable[[], T]]:
    """Yield what gives the host of ``make`` to one test after the other, and a new one after each failure.

    What failed may have left anything in the host, up to a kernel that has panicked; a second try would meet that.
    """
    with ExitStack() as stack:
        made: list[T] = []
        failures = 0

        def give() -> T:
            nonlocal failures
            if not made or failures != evidence.failures:
                stack.close()
                failures = evidence.failures
                made[:] = [stack.enter_context(make())]
            return made[0]

        yield give


class Borrower:
    """The VM `VM` of a host, which borrows from a lender `LENDER` on the same host."""

    def __init__(self, host: OneHost) -> None:
        self.host = host

    def guest(self, *argv: str, code: int | None = 0) -> str:
        """Run a program in the guest."""
        return self.host.guest(VM, *argv, code=code)

    def cpus(self) -> dict[int, int]:
        """Return how many CPUs each node of the guest has online, as its own kernel sees it."""
        found: dict[int, int] = {}
        for line in self.guest("lscpu", "-p=CPU,NODE").splitlines():
            if not line.startswith("#"):
                node = int(line.split(",")[1] or 0)
                found[node] = found.get(node, 0) + 1
        return found

    def attach(self, *what: str) -> int:
        """Attach from the lender and return the far node."""
        answer = json.loads(self.host.vmcoal("attach", VM, "--from", LENDER, "--deadline", "240s", *what, "-o", "json"))
        return int(answer["attachment"]["node"])

    def detach(self, *what: str) -> None:
        """Detach from the lender: everything, or ``what``."""
        self.host.vmcoal("detach", VM, "--from", LENDER, "--deadline", "240s", *what)

    def give_back(self) -> None:
        """Detach what is still attached."""
        if self.host.read("status", VM)["attachments"]:
            self.detach()
        assert self.cpus() == {0: 1}


@contextmanager
def borrower(request: pytest.FixtureRequest, flavor: str) -> Iterator[Borrower]:
    """Boot a host with a lender on itself and a VM that has borrowed nothing yet."""
    with one_host(request, flavor, memory=1792) as host:
        host.lend(LENDER, *LENT)
        host.vmcoal("boot", VM, "--accel", "kvm", "--cpus", "1", "--memory", "384M", "--far-memory", "1G")
        yield Borrower(host)
