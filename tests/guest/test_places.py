"""What a user does with the page engine on a real guest: cache, moves, copies, and lenders that go away."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from framework.path import Scene, scene
from vmcoal.controller.api import MoveResult, Tuning
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


@pytest.fixture(scope="module")
def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request) as made:
        made.lend("attic")
        made.lend("cellar")
        made.boot("web")
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


def leases(shed: Scene, name: str) -> int:
    """Return how many bytes lender ``name`` lends."""
    return sum(lease.amount for lease in shed.lender(name).leases)


def test_memory_moves_while_the_guest_uses_it(shed: Scene) -> None:
    attached = shed.attach("--from", "attic", "--memory", "256M", "--cache", "64M")
    assert shed.json(Tuning, "tune", shed.vm).cache == 64 * MIB
    filled = fill(shed, attached.attachment.node, 160)
    for source, target in (("attic", "cellar"), ("cellar", "home"), ("home", "attic")):
        moved = shed.json(MoveResult, "move", shed.vm, "--from", source, "--to", target)
        assert moved.memory_moved == 256 * MIB
        assert [at.lender for at in shed.status().attachments] == [target]
        assert (leases(shed, "attic"), leases(shed, "cellar")) == (
            256 * MIB if target == "attic" else 0,
            256 * MIB if target == "cellar" else 0,
        )
    shed.run("tune", shed.vm, "--cache", "128M")
    check(filled)
    assert shed.status().degraded == ()
    assert shed.detach().memory_removed == 256 * MIB
    assert shed.open_operations() == []
