"""The whole path with the FUSE engine, which is used where a host cannot run the page engine: the smaller set."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from framework.path import Scene, kill, scene, until
from vmcoal.model.engine import EngineChoice, MemoryEngineName
from vmcoal.model.units import MIB

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

WRITE = """
import mmap, sys
memory = mmap.mmap(-1, 64 << 20)
page = bytes.fromhex("c0a1e5ce") * 1024
for at in range(0, 64 << 20, 4096):
    memory[at : at + 4096] = page
print("written", flush=True)
for line in sys.stdin:
    print(sum(memory[at : at + 4096] != page for at in range(0, 64 << 20, 4096)), "wrong pages", flush=True)
"""


@pytest.fixture(scope="module")
def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request) as made:
        made.lend("attic")
        status = made.boot("web", "--memory-engine", "fuse")
        assert status.memory_engine == EngineChoice(name=MemoryEngineName.FUSE, reason="asked for")
        yield made


def test_what_the_guest_writes_is_at_the_lender_also_after_its_server_was_killed(shed: Scene) -> None:
    result = shed.attach("--memory", "256M")
    (memory,) = result.attachment.memory
    assert (memory.engine, memory.size) == ("fuse", 256 * MIB)
    node = f"--membind={result.attachment.node}"
    with shed.spawn("exec", "-i", shed.vm, "--", "numactl", node, "python3", "-c", WRITE) as program:
        assert program.stdin
        assert program.stdout
        assert program.stdout.readline() == b"written\n"
        server = shed.pid("nbdkit", f"exportname={memory.lease}")
        kill(server)
        until(lambda: shed.pids("nbdkit", f"exportname={memory.lease}"), "a new server")
        with shed.region(memory.lease).open("rb") as region:
            os.fsync(region.fileno())  # what the guest wrote is in this host's page cache until then
        assert shed.region(memory.lease).read_bytes() == shed.lent_file(memory.lease).read_bytes()
        program.stdin.write(b"?\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"0 wrong pages\n"
        program.communicate(timeout=60)
    gone = shed.detach()
    assert (gone.memory_removed, gone.remaining) == (256 * MIB, ())
    assert shed.pids("nbd") == []
    assert list(shed.shm.iterdir()) == []


def test_granular_memory_grows_and_shrinks(shed: Scene) -> None:
    shed.attach("--memory", "256M", "--granular")
    (memory,) = shed.attach("--memory", "66M", "--granular").attachment.memory
    assert memory.size == 322 * MIB
    part = shed.detach("--memory", "130M")
    assert [each.size for each in part.remaining[0].memory] == [192 * MIB]
    assert shed.lent_file(memory.lease).stat().st_blocks * 512 <= 192 * MIB
    shed.detach()
