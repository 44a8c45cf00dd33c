"""What a user does with the page engine on a real guest: cache, moves, copies, and lenders that go away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from framework.path import Scene, kill, scene, until
from vmcoal.controller.api import MoveResult, Tuning
from vmcoal.model.paging import Compression
from vmcoal.model.status import VmStatus
from vmcoal.model.units import MIB

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]

FILL = """
import mmap, sys
size = {size} << 20
memory = mmap.mmap(-1, size)
for at in range(0, size, 4096):
    memory[at : at + 8] = at.to_bytes(8, "little")
print("written", flush=True)
sys.stdin.read()
print(sum(memory[at : at + 8] != at.to_bytes(8, "little") for at in range(0, size, 4096)), "wrong pages")
"""
"""Makes every page another one, and checks them when its standard input ends."""


READ_DISK = """
import ctypes, glob, mmap, os, sys
libc, mask = ctypes.CDLL(None), ctypes.c_ulong(1 << {node})
libc.syscall(238, 2, ctypes.byref(mask), 64)
memory = mmap.mmap(-1, {size} << 20)
for at in range(0, len(memory), 4096):
    memory[at] = 1
libc.syscall(238, 0, None, 0)
print("written", flush=True)
sys.stdin.readline()
(disk,) = [path for path in glob.glob("/sys/block/vd*") if int(open(path + "/size").read()) == {sectors}]
file = os.open("/dev/" + os.path.basename(disk), os.O_RDONLY | os.O_DIRECT)
print("reading", flush=True)
count = os.preadv(file, [memoryview(memory)[: {sectors} * 512]], 0)
print(count, sum(memory[at] != 7 for at in range(count)), "wrong bytes")
"""
"""Fills memory of a node (set_mempolicy(2), MPOL_BIND), and on a line of input reads the disk into its oldest part."""

DISK = 4 * MIB


@pytest.fixture(scope="module")
def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request) as made:
        made.lend("attic")
        made.lend("cellar")
        disk = made.home / "disk.raw"
        disk.write_bytes(b"\7" * DISK)
        made.boot("web", "--disk", f"{disk},ro,format=raw")
        yield made


def fill(shed: Scene, node: int, size: int) -> subprocess.Popen[bytes]:
    """Fill ``size`` MiB of ``node`` in the guest; `check` on the process reads it back."""
    process = shed.spawn(
        *("exec", "-i", shed.vm, "--", "numactl", f"--membind={node}", "python3", "-c", FILL.format(size=size))
    )
    assert process.stdout
    assert process.stdout.readline() == b"written\n"
    return process


def check(process: subprocess.Popen[bytes]) -> None:
    out, err = process.communicate(b"", timeout=120)
    assert out == b"0 wrong pages\n", err.decode()


def waiting(shed: Scene) -> VmStatus | None:
    """Return the VM's status if something waits for its memory."""
    status = shed.status()
    waits = status.paging is not None and any(region.waiting for region in status.paging.regions.values())
    return status if waits else None


def leases(shed: Scene, name: str) -> int:
    """Return how many bytes lender ``name`` lends."""
    return sum(lease.amount for lease in shed.lender(name).leases)


def test_memory_moves_while_the_guest_uses_it(shed: Scene) -> None:
    attached = shed.attach("--from", "attic", "--memory", "256M", "--cache", "64M", "--compress", "on")
    told = shed.json(Tuning, "tune", shed.vm)
    assert (told.cache, told.compress) == (64 * MIB, Compression.ON)
    filled = fill(shed, attached.attachment.node, 160)
    paging = shed.status().paging
    assert paging
    assert paging.compressed
    assert (paging.compression or 0) > 2, "its pages are nearly empty"
    for source, target in (("attic", "cellar"), ("cellar", "home"), ("home", "attic")):
        moved = shed.json(MoveResult, "move", shed.vm, "--from", source, "--to", target)
        assert moved.memory_moved == 256 * MIB
        assert [at.lender for at in shed.status().attachments] == [target]
        assert (leases(shed, "attic"), leases(shed, "cellar")) == (
            256 * MIB if target == "attic" else 0,
            256 * MIB if target == "cellar" else 0,
        )
    shed.run("tune", shed.vm, "--cache", "128M", "--compress", "off")
    paging = shed.status().paging
    assert paging
    assert not any(region.compress for region in paging.regions.values())
    check(filled)
    assert shed.status().degraded == ()
    assert shed.detach().memory_removed == 256 * MIB
    assert shed.open_operations() == []


def test_the_monitor_answers_while_a_disk_waits_for_a_page_of_a_stopped_lender(shed: Scene) -> None:
    """The promise is that query-status answers within 2 s, which is the deadline that status gives it."""
    attached = shed.attach("--from", "attic", "--memory", "256M", "--cache", "16M")
    (memory,) = attached.attachment.memory
    script = READ_DISK.format(node=attached.attachment.node, size=128, sectors=DISK // 512)
    with shed.spawn("exec", "-i", shed.vm, "--", "python3", "-c", script) as reader:
        assert reader.stdin
        assert reader.stdout
        assert reader.stdout.readline() == b"written\n"
        server = shed.pid("nbdkit", f"exportname={memory.lease}")
        kill(server, signal.SIGSTOP)
        try:
            reader.stdin.write(b"go\n")
            reader.stdin.flush()
            assert reader.stdout.readline() == b"reading\n"
            status = until(lambda: waiting(shed), "the disk's wait")
            assert status.state == "running"
            assert "QEMU does not answer" not in str(status.degraded)
        finally:
            kill(server, signal.SIGCONT)
        out, err = reader.communicate(timeout=120)
        assert out.decode() == f"{DISK} 0 wrong bytes\n", err.decode()
    shed.detach()


def test_a_lost_lender_costs_nothing_and_is_replaced(shed: Scene) -> None:
    attached = shed.attach("--from", "attic", "--memory", "256M", "--cache", "64M")
    (memory,) = attached.attachment.memory
    filled = fill(shed, attached.attachment.node, 160)
    # The copy comes while the memory is in use, and has every page when the command returns.
    told = shed.json(Tuning, "tune", shed.vm, "--replicas", "2")
    assert told.places == {memory.device: ("attic", "cellar")}
    shed.lend("barn")
    holder = shed.lender("attic").holder_pid
    assert holder
    kill(shed.lender_pid("attic"))
    kill(holder)
    for pid in shed.pids("nbdkit", f"exportname={memory.lease}"):
        kill(pid)
    shed.lent_file(memory.lease).unlink()
    until(lambda: "attic" in str(shed.status().degraded), "a degraded VM")
    shed.run("lend", "--name", "attic")  # it comes back without the bytes

    def others() -> list[str]:
        found = shed.status().attachments
        return [m.lease for at in found for m in at.memory if m.lease != memory.lease]

    until(lambda: len(others()) == 2, "a new copy", 60.0)
    until(lambda: shed.status().degraded == (), "its last page", 60.0)
    check(filled)
    shed.detach("--all")
    assert [leases(shed, name) for name in ("attic", "cellar", "barn")] == [0, 0, 0]
    assert shed.open_operations() == []


def test_a_drained_lender_is_left_while_its_memory_is_in_use(shed: Scene) -> None:
    attached = shed.attach("--from", "cellar", "--memory", "256M", "--cache", "32M")
    filled = fill(shed, attached.attachment.node, 128)
    shed.run("drain", "--name", "cellar", "--deadline", "100s")
    assert leases(shed, "cellar") == 0
    until(lambda: shed.status().attachments == (), "an empty book")
    shed.run("uncordon", "--name", "cellar")
    check(filled)
    assert shed.open_operations() == []


def test_a_second_place_on_this_hosts_disk(shed: Scene) -> None:
    attached = shed.attach("--from", "cellar", "--memory", "128M", "--replica-on", "local", "--cache", "32M")
    (memory,) = attached.attachment.memory
    copy = shed.folders.local_copy(memory.lease)
    assert copy.stat().st_blocks * 512 >= 128 * MIB
    filled = fill(shed, attached.attachment.node, 64)
    check(filled)
    shed.detach("--from", "cellar")
    assert not copy.exists()
