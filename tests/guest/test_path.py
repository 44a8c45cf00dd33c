"""The whole path on a real guest, through the command line: lend, pair, boot, attach, use, detach."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.delay_link import delay_link
from framework.path import Scene, needs_pager, scene, until
from vmcoal.controller.api import AttachResult
from vmcoal.model.attachment import AttachedMemory, AttachmentState, MemoryStyle
from vmcoal.model.engine import MemoryEngineName
from vmcoal.model.lease import LeaseState
from vmcoal.model.units import MIB

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

PAGE = bytes.fromhex("c0a1e5ce") * 1024
"""One page of the pattern."""

WRITE = f"""
import mmap, sys
size = {{size}} << 20
memory = mmap.mmap(-1, size)
page = bytes.fromhex("{PAGE[:4].hex()}") * 1024
for at in range(0, size, 4096):
    memory[at : at + 4096] = page
print("written", flush=True)
sys.stdin.read()
print(sum(memory[at : at + 4096] != page for at in range(0, size, 4096)), "wrong pages")
"""
"""Fills memory with the pattern, and checks it when its standard input ends."""


@pytest.fixture(scope="module")
def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
    needs_pager()
    with scene(request) as made:
        made.lend("attic")
        status = made.boot("web")
        assert status.memory_engine is not None
        assert status.memory_engine.name is MemoryEngineName.PAGER
        yield made


def memory_of(result: AttachResult) -> AttachedMemory:
    (found,) = result.attachment.memory
    return found


def distances(shed: Scene) -> dict[int, int]:
    """Return the distance to node 0 of each node that has CPUs or memory, as ``numactl -H`` in the guest prints it. A
    node whose vCPUs are parked is listed there too, empty."""
    text = shed.exec("numactl", "-H")
    used = {int(node) for node in re.findall(r"^node (\d+) (?:cpus: \d|size: [1-9])", text, re.MULTILINE)}
    nodes = re.search(r"^node +((?:\d+ *)+)$", text, re.MULTILINE)
    row = re.search(r"^ +0: +((?:\d+ *)+)$", text, re.MULTILINE)
    assert nodes is not None, text
    assert row is not None, text
    found = zip(map(int, nodes[1].split()), map(int, row[1].split()), strict=True)
    return {node: distance for node, distance in found if node in used}


def write_pattern(shed: Scene, node: int, size: int) -> subprocess.Popen[bytes]:
    """Fill ``size`` MiB of ``node`` in the guest; `check_pattern` on the process reads it back."""
    process = shed.spawn(
        *("exec", "-i", shed.vm, "--", "numactl", f"--membind={node}", "python3", "-c", WRITE.format(size=size))
    )
    assert process.stdout
    assert process.stdout.readline() == b"written\n"
    return process


def check_sealed(shed: Scene, lease: str, size: int) -> None:
    """Wait until the lender has ``size`` bytes of what the guest wrote, and see that it can read none of it."""
    pages = until(lambda: len(seen := shed.lent_pages(lease)) >= size // 4096 and seen, "the pages being stored")
    assert not [page for page in pages if PAGE[:16] in page]
    assert len(set(pages)) == len(pages), "pages with the same bytes look alike"


def check_pattern(process: subprocess.Popen[bytes]) -> None:
    out, err = process.communicate(b"", timeout=60)
    assert out == b"0 wrong pages\n", err.decode()


def test_memory_and_vcpus_come_and_go(shed: Scene) -> None:
    result = shed.attach("--cpus", "2", "--memory", "256M", "--cache", "16M")
    node, lease = result.attachment.node, memory_of(result).lease
    assert result.verified
    assert distances(shed) == {0: 10, node: result.attachment.distance}
    cpus = shed.shell(f"lscpu -p=CPU,NODE | grep ',{node}$'").split()
    assert len(cpus) == 2
    assert f"NUMA node{node} CPU(s):" in shed.exec("lscpu")
    assert int(shed.shell(f"numactl -H | sed -n 's/^node {node} size: \\([0-9]*\\) MB/\\1/p'")) == 256
    seen = {status.node: status for status in shed.status().nodes}[node]
    assert (seen.lender, seen.cpus_online, seen.memory_online) == ("attic", 2, 256 * MIB)

    process = write_pattern(shed, node, 64)
    check_sealed(shed, lease, (64 - 16) * MIB)
    check_pattern(process)

    gone = shed.detach("--from", "attic")
    assert (gone.cpus_removed, gone.memory_removed, gone.remaining) == (2, 256 * MIB, ())
    assert set(distances(shed)) == {0}
    assert_nothing_is_left(shed)


def assert_nothing_is_left(shed: Scene) -> None:
    assert shed.status().attachments == ()
    assert shed.lender("attic").leases == ()
    assert shed.pids("nbd") == []
    assert shed.pids("vmcoal-pager") == []
    assert list(shed.shm.iterdir()) == []
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{shed.home}/" in line]
    assert {path.name for path in shed.folders.runtime.iterdir() if not path.is_socket()} == set()
    assert shed.open_operations() == []


def test_granular_memory_grows_and_shrinks_in_grains(shed: Scene) -> None:
    first = shed.attach("--memory", "256M", "--granular")
    memory, node = memory_of(first), first.attachment.node
    assert (memory.style, memory.size) == (MemoryStyle.GRANULAR, 256 * MIB)
    assert online(shed, node) == 256 * MIB
    grown = memory_of(shed.attach("--memory", "66M", "--granular"))
    assert (grown.lease, grown.size) == (memory.lease, 322 * MIB)
    assert online(shed, node) == 322 * MIB
    assert shed.lender("attic").leases[0].committed == 322 * MIB
    check_pattern(write_pattern(shed, node, 128))

    part = shed.detach("--memory", "130M")
    (rest,) = part.remaining[0].memory
    assert (part.memory_removed, rest.size, rest.lease_state) == (130 * MIB, 192 * MIB, LeaseState.ACTIVE)
    assert online(shed, node) == 192 * MIB
    assert shed.lent_file(memory.lease).stat().st_blocks * 512 <= 192 * MIB

    gone = shed.detach()
    assert online(shed, node) == 0
    if gone.remaining:
        until(lambda: shed.lent_file(memory.lease).stat().st_blocks == 0, "the lender having its memory back")
    if gone.remaining:  # QEMU before 8.2 cannot unplug it; it is used again
        assert [each.state for each in gone.remaining[0].memory] == [AttachmentState.PARKED]
        again = memory_of(shed.attach("--memory", "128M", "--granular"))
        assert (again.lease, again.size, again.state) == (memory.lease, 128 * MIB, AttachmentState.ATTACHED)
        assert online(shed, node) == 128 * MIB
        check_pattern(write_pattern(shed, node, 64))
        shed.detach()


def online(shed: Scene, node: int) -> int:
    """Return the bytes of a node that the guest's kernel has."""
    return int(shed.shell(f"awk '/MemTotal/ {{print $4}}' /sys/devices/system/node/node{node}/meminfo || echo 0")) << 10


@pytest.mark.root
def test_each_lender_is_as_far_as_its_link(shed: Scene) -> None:
    with delay_link(0.004) as link:
        shed.lend("barn", listen=f"{link.there}:0", prefix=link.command())
        try:
            near = shed.attach("--from", "attic", "--cpus", "1").attachment
            far = shed.attach("--from", "barn", "--memory", "128M", "--cache", "16M")
            assert far.attachment.link is not None
            assert near.link is not None
            assert far.attachment.link.rtt > 0.004 > near.link.rtt
            assert far.attachment.distance > near.distance
            assert distances(shed) == {0: 10, near.node: near.distance, far.attachment.node: far.attachment.distance}
            check_pattern(write_pattern(shed, far.attachment.node, 48))
            shed.detach("--all")
        finally:
            shed.run("lend", "stop", "--name", "barn", "--deadline", "5s", code=None)
            shed.run("unpair", "barn", code=None)
