"""What dies, hangs or comes back empty behind paged memory while a guest uses it: no wrong byte, and it is told."""

from __future__ import annotations

import contextlib
import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.held_memory import Holding
from framework.path import Scene, kill, needs_pager, scene, until
from vmcoal.controller.api import PingResult
from vmcoal.model.units import MIB

pytestmark = [pytest.mark.guest, pytest.mark.timeout(400)]

DISK = hashlib.sha256(b"disk").digest() * (MIB // 32)


@pytest.fixture(scope="module")
def shed(request: pytest.FixtureRequest) -> Iterator[Scene]:
    needs_pager()
    with scene(request) as made:
        made.lend("attic")
        disk = made.home / "disk.raw"
        disk.write_bytes(DISK)
        made.boot("web", "--disk", f"{disk},format=raw", "--memory-engine", "pager")
        yield made


@pytest.fixture
def held(shed: Scene) -> Iterator[tuple[Scene, str, Holding]]:
    """256 MiB attached, of which 16 may be here, and a program that uses 64; detached afterwards."""
    result = shed.attach("--memory", "256M", "--cache", "16M")
    program = Holding(shed, result.attachment.node, 64)
    yield shed, result.attachment.memory[0].lease, program
    if shed.status().attachments:
        program.end()
        shed.detach()
        assert list(shed.shm.iterdir()) == []
        assert shed.pids("vmcoal-pager") == []


def server_of(shed: Scene, lease: str) -> int:
    return shed.pid("nbdkit", f"exportname={lease}")


def test_the_pager_is_killed_again_and_again_under_load(held: tuple[Scene, str, Holding]) -> None:
    shed, _, program = held
    for what in ("write", "check", "write", "check"):
        program.ask(what)
        for _ in range(2):
            before = shed.pid("vmcoal-pager")
            kill(before)
            until(lambda: shed.pids("vmcoal-pager") not in ([], [before]), "another pager")  # noqa: B023
        assert program.line() in ("written", "0")
    assert program.wrong_pages() == 0
    until(lambda: not shed.status().degraded, "all being well")
    paging = shed.status().paging
    assert paging is not None
    assert paging.cache == 16 * MIB
    assert paging.lost == 0


def test_what_is_seen_from_outside(held: tuple[Scene, str, Holding]) -> None:
    shed, lease, program = held
    paging = shed.status().paging
    assert paging is not None
    assert paging.used <= paging.cache == 16 * MIB
    assert paging.here <= 20 * MIB
    assert paging.away >= 40 * MIB
    assert [(store.lender, store.region, store.connected) for store in paging.stores] == [("attic", lease, True)]
    assert program.wrong_pages() == 0
    paging = shed.status().paging
    assert paging is not None
    assert paging.hit_ratio is not None
    assert sum(paging.stores[0].latency) > 0
    assert paging.stores[0].bytes_in >= 40 * MIB
    fetch = shed.json(PingResult, "ping", "attic", "--count", "20").fetch
    assert fetch is not None
    assert (fetch.vm, fetch.pages) == ("web", 20)
    assert 0 < fetch.p50 <= fetch.p99
    assert "page fetch into web: p50" in shed.run("ping", "attic").out
    metrics = shed.run("metrics", "web").out
    assert f'vmcoal_paging_copy_up{{lender="attic",region="{lease}",vm="web"}} 1.0' in metrics
    assert 'vmcoal_memory_engine{engine="pager",vm="web"} 1.0' in metrics


def test_disk_and_program_wait_for_a_server_that_hangs_and_qemu_does_not(held: tuple[Scene, str, Holding]) -> None:
    shed, lease, program = held
    program.write()  # what was written first is away now
    server = server_of(shed, lease)
    kill(server, signal.SIGSTOP)
    try:
        program.ask("read disk")
        told = until(
            lambda: [line for line in shed.status().degraded if "the memory server of attic" in line],
            "the VM being degraded",
            40,
        )
        assert "does not answer" in told[0]
        assert "bring attic back, or end the VM: vmcoal shutdown web --force" in told[0]
        status = shed.status()
        # the state comes from query-status, which has 2 s to answer
        assert status.state == "running"
        assert not [line for line in status.degraded if "QEMU does not answer" in line]
        assert not program.answers()
    finally:
        kill(server, signal.SIGCONT)
    assert program.line() == hashlib.sha256(DISK).hexdigest()
    until(lambda: not shed.status().degraded, "all being well", 40)
    program.ask()
    assert int(program.line()) == MIB // 4096, "exactly what was read from the disk differs"


def test_a_server_killed_again_and_again_under_load(held: tuple[Scene, str, Holding]) -> None:
    shed, lease, program = held
    for what in ("write", "check"):
        program.ask(what)
        for _ in range(2):
            before = server_of(shed, lease)
            kill(before)
            until(lambda: shed.pids("nbdkit", f"exportname={lease}") not in ([], [before]), "a server")  # noqa: B023
        assert program.line() in ("written", "0")
    assert program.wrong_pages() == 0


def test_a_lender_that_comes_back_empty_is_told_and_shows_nothing_wrong(held: tuple[Scene, str, Holding]) -> None:
    """As after a power failure of its host. The last one: the memory is lost."""
    shed, lease, program = held
    address = shed.lender("attic").addresses[0]
    holder = shed.lender("attic").holder_pid or 0
    kill(shed.lender_pid("attic"))
    server = server_of(shed, lease)
    kill(holder)
    with contextlib.suppress(ProcessLookupError):  # it ends when its holder does
        kill(server)
    until(lambda: not Path(f"/proc/{server}").exists(), "the end of the server")
    shed.lent_file(lease).unlink()
    shed.run("lend", "--name", "attic", "--cpus", "2", "--memory", "1G", "--listen", address)
    program.ask()
    told = until(lambda: [line for line in shed.status().degraded if "lost" in line], "the loss being told", 60)
    assert "shutdown web --force" in told[0]
    assert shed.status().state == "running"
    assert not program.answers(), "what is lost is waited for"
    shed.run("shutdown", "web", "--force")
    program.end()
    until(lambda: not shed.pids("vmcoal-pager"), "the end of the pager")
    assert not list(shed.shm.glob("vm-*"))
