"""The whole path as a user has it: a VM, lenders and the command line, each as processes of their own.

    from framework.path import Scene, scene

    @pytest.fixture(scope="module")
    def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
        with scene(request) as made:
            made.lend("attic")
            made.boot("web")
            yield made

A scene has folders of its own, whatever the scope of its fixture; when it ends, everything in it is stopped, and
whatever survives that fails the test (or the module). Commands run as ``python -m vmcoal``, so nothing of a scene
depends on the environment of the test process.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from framework import evidence
from framework.command import Done
from framework.leaks import Surroundings
from vmcoal.backends.probe import engine_facts
from vmcoal.controller.api import AttachResult, DetachResult
from vmcoal.errors import VmcoalError
from vmcoal.holding.binaries import find_binary
from vmcoal.layout import LenderFolders, VmFolders
from vmcoal.lending.api import LenderStatus
from vmcoal.model.status import VmStatus
from vmcoal.policy.engine import pager_obstacle

T = TypeVar("T")

_ZEROS = bytes(4096)

PATIENCE = 150.0
"""Seconds that a command may take before the test gives up: a boot on two busy cores without KVM."""


class Scene:
    """Folders, and what runs in them. ``home`` has ``s`` (state), ``r`` (runtime) and ``c`` (config)."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.shm = Path("/dev/shm") / home.name
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        self.env = os.environ | {
            "XDG_STATE_HOME": str(home / "s"),
            "XDG_RUNTIME_DIR": str(home / "r"),
            "XDG_CONFIG_HOME": str(home / "c"),
            "XDG_CACHE_HOME": cache,
            "VMCOAL_TEST": home.name,
            "VMCOAL_SHM_DIR": str(self.shm),
        }
        for folder in "src":
            (home / folder).mkdir(mode=0o700, exist_ok=True)
        self.vm = ""

    # Commands

    def spawn(self, *arguments: str, prefix: Sequence[str] = (), **kwargs: Any) -> subprocess.Popen[bytes]:
        """Start ``vmcoal ARGUMENTS``, behind ``prefix``; stdin, stdout and stderr are pipes unless given."""
        options: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | kwargs
        return subprocess.Popen(
            [*prefix, sys.executable, "-P", "-m", "vmcoal.cli.main", *arguments], env=self.env, cwd="/", **options
        )

    def run(self, *arguments: str, code: int | None = 0, stdin: bytes = b"", prefix: Sequence[str] = ()) -> Done:
        """Run ``vmcoal ARGUMENTS`` to its end, which must be ``code`` (``None``: any), and without a traceback."""
        with self.spawn(*arguments, prefix=prefix) as process:
            try:
                out, err = process.communicate(stdin, timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"vmcoal {' '.join(arguments)} did not end in {PATIENCE:g} s") from None
        done = Done(process.returncode, out.decode(), err.decode())
        assert "Traceback" not in done.err, done.err
        assert code is None or done.code == code, f"vmcoal {' '.join(arguments)}: exit {done.code}\n{done.err}"
        return done

    def json(self, result: type[T], *arguments: str) -> T:
        """Run ``vmcoal ARGUMENTS -o json`` and return what it prints."""
        return msgspec.json.decode(self.run(*arguments, "-o", "json").out, type=result)

    # Lenders

    def lend(
        self, name: str, *, cpus: int = 2, memory: str = "1G", listen: str = "127.0.0.1:0", prefix: Sequence[str] = ()
    ) -> LenderStatus:
        """Start lender ``name`` and pair with it, code and all."""
        options = ("--cpus", str(cpus), "--memory", memory, "--listen", listen)
        self.run("lend", "--name", name, *options, prefix=prefix)
        self.pair(name)
        return self.lender(name)

    def pair(self, name: str) -> None:
        """Pair with lender ``name`` of this scene."""
        (address,) = self.lender(name).addresses
        with self.spawn("lend", "pair", "--name", name) as window:
            assert window.stderr
            while b"code: " not in (line := window.stderr.readline()):
                assert line, "the window ended without a code"
            self.run("pair", address, "--name", name, "--code-file", "-", stdin=line.split()[1])
            window.communicate(timeout=PATIENCE)
            assert window.returncode == 0

    def lender(self, name: str) -> LenderStatus:
        """Return the status of lender ``name``; it must run."""
        (status,) = self.json(list[LenderStatus], "lend", "status", "--name", name)
        return status

    def lender_folders(self, name: str) -> LenderFolders:
        """Return the folders of lender ``name``."""
        return LenderFolders(self.home / "r" / "vmcoal" / "lend" / name, self.home / "s" / "vmcoal" / "lend" / name)

    def lent_file(self, lease: str) -> Path:
        """Return the one tmpfs file that holds the bytes of ``lease``."""
        (file,) = self.shm.glob(f"*-{lease}-*.mem")
        return file

    # The VM

    def boot(self, name: str, *options: str) -> VmStatus:
        """Boot VM ``name``, which further calls mean."""
        self.vm = name
        sizes = ("--cpus", "2", "--memory", "768M", "--far-nodes", "3", "--far-cpus", "2", "--far-memory", "1G")
        return self.json(VmStatus, "boot", name, "--accel", "tcg", "--net", "none", *sizes, *options)

    @property
    def folders(self) -> VmFolders:
        """The folders of the VM."""
        return VmFolders(self.home / "r" / "vmcoal" / "vm" / self.vm, self.home / "s" / "vmcoal" / "vm" / self.vm)

    def status(self) -> VmStatus:
        """Return the VM's status."""
        return self.json(VmStatus, "status", self.vm)

    def attach(self, *options: str) -> AttachResult:
        """Attach to the VM."""
        return self.json(AttachResult, "attach", self.vm, *options)

    def detach(self, *options: str) -> DetachResult:
        """Detach from the VM."""
        return self.json(DetachResult, "detach", self.vm, *options)

    def exec(self, *argv: str, code: int | None = 0) -> str:
        """Run a command in the guest and return what it printed."""
        out: str = self.run("exec", self.vm, "--", *argv, code=code).out
        return out

    def shell(self, script: str) -> str:
        """Run a script in the guest and return what it printed."""
        return self.exec("sh", "-c", script)

    def python(self, script: str) -> str:
        """Run a Python script in the guest and return what it printed."""
        return self.exec("python3", "-c", script)

    def open_operations(self) -> list[int]:
        """Return the operations in the VM's journal that have no end."""
        with contextlib.closing(sqlite3.connect(f"file:{self.folders.journal}?mode=ro", uri=True)) as journal:
            rows = journal.execute(
                "select op from events where op > 0 group by op having not sum(kind = 'end') order by op"
            )
            return [op for (op,) in rows]

    def region(self, lease: str) -> Path:
        """Return the file of the FUSE engine on this host that stands for the bytes of ``lease``."""
        return self.folders.mount(lease) / "memory"

    def lent_pages(self, lease: str) -> list[bytes]:
        """Return the pages that the lender has of ``lease`` and that are not zeros."""
        lent = self.lent_file(lease).read_bytes()
        return [page for at in range(0, len(lent), 4096) if (page := lent[at : at + 4096]) != _ZEROS]

    # Processes

    def pids(self, *words: str) -> list[int]:
        """Return the processes of this scene whose command line has all of ``words``."""
        mark, found = f"VMCOAL_TEST={self.home.name}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                ours = mark in (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if ours and command and all(word in command for word in words):
                found.append(int(folder.name))
        return sorted(found)

    def pid(self, *words: str) -> int:
        """Return the one process of this scene whose command line has all of ``words``."""
        (pid,) = self.pids(*words)
        return pid

    def lender_pid(self, name: str) -> int:
        """Return the process of lender ``name``."""
        return self.pid("vmcoal.lending", f" {name} ")


def needs_pager() -> None:
    """Skip what needs the page engine where this host cannot run it."""
    obstacle = pager_obstacle(engine_facts())
    if obstacle is not None:
        pytest.skip(f"the page engine cannot run here: {obstacle.reason}; {obstacle.remedy}")


@contextmanager
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Make a scene for a fixture of any scope; at its end everything is stopped, and survivors are an error."""
    try:
        find_binary("vmcoal-holder")
    except VmcoalError as error:
        pytest.skip(f"{error}: {error.hint}")
    home = Path(tempfile.mkdtemp(prefix="vc-"))
    made = Scene(home)
    before = Surroundings.look(home, made.shm)
    try:
        yield made
    finally:
        stop_all(made)
        survivors = before.survivors()
        failed = any(name.startswith(request.node.nodeid) for name in evidence.failed)
        if failed or survivors:
            kept = evidence.keep(request.node.name, home)
            print(f"evidence of {request.node.name} kept in {kept}")  # noqa: T201
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(made.shm, ignore_errors=True)
    assert not survivors, "survived: " + "; ".join(survivors)


def stop_all(made: Scene) -> None:
    """End the VM and the lenders, whatever state the test left them in."""
    if made.vm and made.folders.holder_socket.exists():
        made.run("shutdown", made.vm, "--force", code=None)
    for folder in sorted((made.home / "s" / "vmcoal" / "lend").glob("*")):
        if made.lender_folders(folder.name).control_socket.exists():
            made.run("lend", "stop", "--name", folder.name, "--deadline", "1s", code=None)


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process; for SIGKILL, return when it has ended."""
    descriptor = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(descriptor, number)
        if number is signal.SIGKILL:
            assert select.select([descriptor], [], [], 10)[0], f"process {pid} outlived SIGKILL"
    finally:
        os.close(descriptor)


def until(look: Callable[[], T], what: str, deadline: float = 60.0) -> T:
    """Return what ``look`` returns as soon as it is true: for ends that nothing announces."""
    ends = time.monotonic() + deadline
    while not (seen := look()):
        assert time.monotonic() < ends, f"{what} did not happen within {deadline:g} s"
        time.sleep(0.05)
    return seen
