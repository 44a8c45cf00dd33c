"""What dies, hangs or refuses while a guest uses borrowed memory: nothing is lost, and what is wrong is told."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from framework.held_memory import Holding
from framework.path import Scene, kill, needs_pager, scene, until
from vmcoal.model.lease import LeaseState
from vmcoal.model.units import MIB

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
    needs_pager()
    with scene(request) as made:
        made.lend("attic")
        made.boot("web")
        yield made


@pytest.fixture
def attached(shed: Scene) -> Iterator[tuple[Scene, str, int]]:
    """The VM with 256 MiB attached, most of them away; its lease and node. Detached afterwards, with nothing left."""
    result = shed.attach("--memory", "256M", "--cache", "16M")
    yield shed, result.attachment.memory[0].lease, result.attachment.node
    if shed.status().attachments:
        shed.detach()
    settled(shed)


def settled(shed: Scene) -> None:
    assert shed.status().attachments == ()
    assert shed.lender("attic").leases == ()
    assert list(shed.shm.iterdir()) == []
    assert shed.open_operations() == []


def step_reached(process: subprocess.Popen[bytes], word: bytes) -> None:
    """Return when a command says on stderr that it is at the step with ``word``."""
    assert process.stderr
    while word not in (line := process.stderr.readline()):
        assert line, "the command ended before"


def test_more_than_is_attached(attached: tuple[Scene, str, int]) -> None:
    shed, lease, _ = attached
    for amount in (("--memory", "512M"), ("--cpus", "1")):
        error = shed.run("detach", shed.vm, *amount, code=2).err
        assert "more than" in error
        assert "hint:" in error
    assert [each.lease for each in shed.status().attachments[0].memory] == [lease]


# The controller


def test_a_controller_killed_while_memory_is_in_use(attached: tuple[Scene, str, int]) -> None:
    shed, lease, _ = attached
    uptime = float(shed.shell("cut -d' ' -f1 /proc/uptime"))
    kill(shed.status().controller_pid or 0)
    assert shed.pids("vmcoal.controller") == []
    status = shed.status()
    assert (status.state, status.degraded) == ("running", ())
    assert status.attachments[0].memory[0].lease == lease
    assert float(shed.shell("cut -d' ' -f1 /proc/uptime")) > uptime
    assert shed.open_operations() == []


@pytest.mark.parametrize("word", [b"lease", b"plug", b"online"])
def test_a_controller_killed_in_the_middle_of_an_attach(shed: Scene, word: bytes) -> None:
    pid = shed.status().controller_pid or 0
    command = shed.spawn("attach", shed.vm, "--memory", "256M", "--cpus", "1")
    step_reached(command, word)
    kill(pid)
    command.communicate(timeout=60)
    assert command.returncode in (0, 7)
    shed.status()
    until(lambda: not shed.status().operation, "the end of the recovery")
    if shed.status().attachments:  # it was done when it was killed
        shed.detach()
    settled(shed)
    assert shed.pids("nbd") == []


@pytest.mark.parametrize("word", [b"drain", b"unplug"])
def test_a_controller_killed_in_the_middle_of_a_detach(attached: tuple[Scene, str, int], word: bytes) -> None:
    shed, lease, node = attached
    command = shed.spawn("detach", shed.vm)
    step_reached(command, word)
    kill(shed.pid("vmcoal.controller"))
    command.communicate(timeout=60)
    status = shed.status()
    assert status.state == "running"
    assert shed.open_operations() == []
    for attachment in status.attachments:  # put back into use
        assert [(each.lease, each.state) for each in attachment.memory] == [(lease, "attached")]
        assert {each.node: each.memory_online for each in status.nodes}[node] == 256 * MIB


# The lender


def test_a_lender_killed_while_its_memory_is_in_use(attached: tuple[Scene, str, int]) -> None:
    shed, lease, node = attached
    program = Holding(shed, node, 64)
    address = shed.lender("attic").addresses[0]
    kill(shed.lender_pid("attic"))
    assert program.wrong_pages() == 0
    down = until(lambda: shed.status().degraded, "the VM being degraded")
    assert re.search(r"lender attic has been unreachable for .*; bring it back", down[0])
    shed.run("lend", "--name", "attic", "--cpus", "2", "--memory", "1G", "--listen", address)
    until(lambda: not shed.status().degraded, "the lender being back")
    (kept,) = shed.lender("attic").leases
    assert (kept.id, kept.state) == (lease, LeaseState.ACTIVE)
    assert program.wrong_pages() == 0
    program.end()


def test_a_memory_server_killed_while_its_memory_is_in_use(attached: tuple[Scene, str, int]) -> None:
    shed, lease, node = attached
    program = Holding(shed, node, 64)
    server = shed.pid("nbdkit", f"exportname={lease}")
    kill(server)
    until(lambda: shed.pids("nbdkit", f"exportname={lease}"), "a new server")
    assert shed.pids("nbdkit", f"exportname={lease}") != [server]
    assert program.wrong_pages() == 0
    program.end()
    assert shed.status().degraded == ()


def test_the_lenders_holder_killed_while_its_memory_is_in_use(attached: tuple[Scene, str, int]) -> None:
    shed, lease, node = attached
    program = Holding(shed, node, 64)
    before = shed.lender("attic").holder_pid or 0
    kill(before)
    until(lambda: shed.lender("attic").holder_pid != before, "a new holder")
    until(lambda: shed.pids("nbdkit", f"exportname={lease}"), "a new server")
    assert program.wrong_pages() == 0
    program.end()
    assert shed.lender("attic").degraded == ()


def test_a_memory_server_that_hangs_stalls_the_guest_but_not_qemu(attached: tuple[Scene, str, int]) -> None:
    shed, lease, node = attached
    server, lender = shed.pid("nbdkit", f"exportname={lease}"), shed.lender_pid("attic")
    program = Holding(shed, node, 64)

    def degraded() -> list[str]:
        return [line for line in shed.status().degraded if "lender attic has been unreachable" in line]

    kill(lender, signal.SIGSTOP)
    kill(server, signal.SIGSTOP)
    try:
        program.ask()
        (told,) = until(degraded, "the VM being degraded", 40)
        assert "bring it back, or end the VM: vmcoal shutdown web --force" in told
        status = shed.status()
        # the state comes from query-status, which has 2 s to answer
        assert status.state == "running"
        assert not [line for line in status.degraded if "QEMU does not answer" in line]
        assert not program.answers()
    finally:
        kill(server, signal.SIGCONT)
        kill(lender, signal.SIGCONT)
    assert int(program.line()) == 0
    program.end()
    until(lambda: not shed.status().degraded, "all being well", 40)


# The guest


def test_a_guest_without_room_keeps_the_memory(attached: tuple[Scene, str, int]) -> None:
    shed, lease, node = attached
    program = Holding(shed, node, 160)
    filler = Holding(shed, 0, 380)
    error = shed.run("detach", shed.vm, "--deadline", "20s", code=6).err
    assert "are in use there" in error
    assert "it is attached as before" in error
    (memory,) = shed.status().attachments[0].memory
    assert (memory.lease, memory.state, memory.lease_state) == (lease, "attached", "active")
    assert program.wrong_pages() == 0
    filler.end()
    program.end()


PIN = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
memory = mmap.mmap(-1, 65536)
memory[:] = b"x" * 65536
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
vector = Vector(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 65536)
_, pipe = os.pipe()
assert libc.vmsplice(pipe, ctypes.byref(vector), 1, 0) > 0
print("written", flush=True)
sys.stdin.read()
"""
"""Pages that are lent to a pipe have references that nothing can move (vmsplice(2))."""


def test_a_guest_that_pins_its_pages_keeps_the_memory(attached: tuple[Scene, str, int]) -> None:
    shed, lease, node = attached
    with shed.spawn("exec", "-i", shed.vm, "--", "numactl", f"--membind={node}", "python3", "-c", PIN) as program:
        assert program.stdout
        assert program.stdout.readline() == b"written\n"
        done = shed.run("detach", shed.vm, "--deadline", "12s", code=None)
        assert done.code in (6, 8), done.err
        assert "hint:" in done.err
        until(lambda: shed.status().operation is None, "the detach being undone", 60)
        (memory,) = shed.status().attachments[0].memory
        assert (memory.lease, memory.state, memory.lease_state) == (lease, "attached", "active")
        assert {each.node: each.memory_online for each in shed.status().nodes}[node] == 256 * MIB
        program.communicate(timeout=60)
    shed.detach()


AGENT = "$(pgrep -f vmcoal_agent[.]pyc)"


def test_an_agent_that_hangs_is_given_up(attached: tuple[Scene, str, int]) -> None:
    shed, lease, _ = attached
    script = f'a={AGENT}; setsid sh -c "sleep 20; kill -CONT $a" >/dev/null 2>&1 & sleep 1; kill -STOP {AGENT}'
    shed.run("exec", shed.vm, "--deadline", "5s", "--", "sh", "-c", script, code=None)
    began = time.monotonic()
    done = shed.run("detach", shed.vm, "--deadline", "8s", code=None)
    assert done.code in (7, 8), done.err
    assert "hint:" in done.err
    assert time.monotonic() - began < 30
    until(lambda: shed.status().operation is None, "the detach being undone", 60)
    assert [each.lease for each in shed.status().attachments[0].memory] == [lease]
    until(lambda: shed.status().agent == "vmcoal" and not shed.status().degraded, "the agent being back", 60)
    assert shed.open_operations() == []


def test_an_agent_that_is_killed_comes_back(attached: tuple[Scene, str, int]) -> None:
    shed, _, _ = attached
    shed.run("exec", shed.vm, "--", "sh", "-c", f"kill -9 {AGENT}", code=None)
    until(lambda: shed.status().agent == "vmcoal", "the agent being back", 60)
    assert shed.exec("echo", "here") == "here\n"
