"""The FUSE engine against a real lender's server, with real nbdkit and nbdfuse under real holders."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from framework.lent import entry, fuse_engine, lend, memory_servers, region_file
from framework.qemu import BareQemu, bare_qemu, qemu_binary
from vmcoal.backends import mounts
from vmcoal.backends.fuse import FuseEngine
from vmcoal.errors import (
    DeadlineError,
    ExecutionError,
    NotFoundError,
    PrerequisiteError,
    RefusedError,
    UnreachableError,
    VmcoalError,
)
from vmcoal.layout import vm_folders
from vmcoal.model.lease import MemoryServer
from vmcoal.model.units import MIB

pytestmark = pytest.mark.contract
__all__ = ["bare_qemu", "qemu_binary"]  # the fixtures are used by name

HOLD = """
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0):
    print("mapped", flush=True)
    sys.stdin.read()
"""


def write_through(path: Path, data: bytes) -> None:
    """Write ``data`` at the beginning of a mapped file, as a guest would, and have the kernel write it back."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[: len(data)] = data
        memory.flush()


async def nothing_left(engine: FuseEngine) -> None:
    folders = vm_folders("dev")
    assert await engine._holder.list() == []
    assert {path.name for path in folders.runtime.iterdir()} <= {"holder.sock"}
    assert {path.name for path in folders.state.iterdir()} <= {"exits.log", "holder.log"}


async def test_bytes_written_here_are_on_the_lender() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(32 * MIB))
        region = await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        assert region.size == region.props["size"] == 32 * MIB
        assert region_file(region).stat().st_size == 32 * MIB
        pattern = os.urandom(MIB) * 32
        await asyncio.to_thread(write_through, region_file(region), pattern)
        assert servers.file(one).read_bytes() == pattern
        assert await engine.health(one.lease.id) is None
        await engine.relink(one.lease, server, "127.0.0.1", deadline=10)
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        await nothing_left(engine)
        await servers.stop(one)


async def test_discarded_pages_are_given_back_by_the_lender() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(32 * MIB, committed=0))
        region = await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        path = region_file(region)
        await asyncio.to_thread(write_through, path, b"x" * 8 * MIB)
        assert servers.resident(one) >= 8 * MIB
        discard = ["fallocate", "--punch-hole", "--offset", "0", "--length", str(8 * MIB), str(path)]
        await asyncio.to_thread(subprocess.run, discard, check=True)
        assert servers.resident(one) == 0
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        await servers.stop(one)


async def test_a_lenders_server_killed_in_the_middle_of_writes_loses_nothing() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(64 * MIB))
        region = await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        pattern = os.urandom(MIB) * 64
        writing = asyncio.create_task(asyncio.to_thread(write_through, region_file(region), pattern))
        for _ in range(3):
            child = next(c for c in await servers.holder.list() if c.id == f"serve-{one.lease.id}")
            if child.pid:
                with contextlib.suppress(ProcessLookupError):  # it is between two lives
                    os.kill(child.pid, signal.SIGKILL)
            await asyncio.wait((writing,), timeout=0.2)
        await asyncio.wait_for(writing, 60)
        assert servers.file(one).read_bytes() == pattern
        assert await engine.health(one.lease.id) is None
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        await servers.stop(one)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"psk": "00" * 32}, RefusedError),
        ({"export": "m1-1-other"}, RefusedError),
        ({"port": 1}, UnreachableError),
        ({"export": "../../etc"}, RefusedError),
        ({"psk": "not hex"}, RefusedError),
        ({"psk_identity": "a\nb:00"}, RefusedError),
        ({"port": 70000}, RefusedError),
    ],
)
async def test_what_does_not_fit_is_refused_and_leaves_nothing(change: dict[str, object], error: type) -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(2 * MIB))
        with pytest.raises(VmcoalError) as caught:
            await engine.prepare(one.lease, msgspec.structs.replace(server, **change), "127.0.0.1", deadline=10)
        assert type(caught.value) is error
        assert caught.value.host == "den"
        assert server.psk not in str(caught.value.to_wire())
        await nothing_left(engine)
        await servers.stop(one)


async def test_names_and_addresses_of_a_hostile_lender() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(2 * MIB))
        for lease in ("../x", "M1", "", "m" * 40):
            with pytest.raises(RefusedError, match="named a lease"):
                await engine.prepare(msgspec.structs.replace(one.lease, id=lease), server, "127.0.0.1", deadline=10)
        for address in ("-x", "a b", "", "x,y=z"):
            with pytest.raises(RefusedError, match="described"):
                await engine.prepare(one.lease, server, address, deadline=10)
        larger = msgspec.structs.replace(one.lease, amount=4 * MIB)
        with pytest.raises(RefusedError, match="granted"):
            await engine.prepare(larger, server, "127.0.0.1", deadline=10)
        await servers.stop(one)


async def test_not_removed_while_it_is_mapped() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(4 * MIB))
        region = await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        argv = [sys.executable, "-c", HOLD, str(region_file(region))]
        user = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert user.stdout
        assert user.stdin
        assert await user.stdout.readline() == b"mapped\n"
        with pytest.raises(DeadlineError, match="still maps"):
            await engine.remove(one.lease.id, mapped_by=user.pid, deadline=0.1)
        assert await engine.health(one.lease.id) is None
        removing = asyncio.create_task(engine.remove(one.lease.id, mapped_by=user.pid, deadline=20))
        user.stdin.close()
        await user.wait()
        await removing
        await nothing_left(engine)
        await servers.stop(one)


async def test_removed_although_the_lender_is_gone_and_pages_wait() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(4 * MIB))
        region = await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        await servers.stop(one)
        reading = asyncio.create_task(asyncio.to_thread(region_file(region).read_bytes))
        await asyncio.wait((reading,), timeout=0.3)
        assert not reading.done(), "a lost lender is a stall, not an error"
        with pytest.raises((UnreachableError, RefusedError)):
            await engine.relink(one.lease, server, "127.0.0.1", deadline=10)
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        with pytest.raises(OSError):
            await asyncio.wait_for(reading, 10)
        await nothing_left(engine)


async def test_qemu_maps_it_as_a_dimm_and_lets_go(bare_qemu: BareQemu) -> None:
    client, pid = bare_qemu.client, bare_qemu.process.pid
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(128 * MIB))
        region = await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        backend = {"qom-type": region.backend, "id": "b1", **region.props}
        await client.execute("object-add", backend)
        await client.execute("device_add", {"driver": "pc-dimm", "id": "d1", "memdev": "b1", "node": 1})
        assert mounts.maps_below(pid, vm_folders("dev").mount(one.lease.id))
        with pytest.raises(DeadlineError):
            await engine.remove(one.lease.id, mapped_by=pid, deadline=0.05)
        # Without a guest a DIMM is never unplugged; a second region's backend alone shows that QEMU lets go.
        two, server = await lend(servers, entry(128 * MIB))
        second = await engine.prepare(two.lease, server, "127.0.0.1", deadline=20)
        await client.execute("object-add", {"qom-type": second.backend, "id": "b2", **second.props})
        await client.execute("object-del", {"id": "b2"})
        await engine.remove(two.lease.id, mapped_by=pid, deadline=20)
        assert await engine.health(one.lease.id) is None
        await servers.stop(two)
        await client.execute("quit")
        await engine.remove(one.lease.id, mapped_by=pid, deadline=20)
        await nothing_left(engine)
        await servers.stop(one)


@pytest.mark.parametrize("victim", ["proxy", "fuse"])
async def test_health_tells_and_what_is_left_is_removed(victim: str) -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(4 * MIB))
        await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        await engine._holder.stop(f"{one.lease.id}.{victim}", grace=0)
        assert "memory is lost" in (await engine.health(one.lease.id) or "")
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        await nothing_left(engine)
        await servers.stop(one)


async def test_what_a_killed_holder_left_is_removed() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(4 * MIB))
        await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        os.kill(engine._holder.pid, signal.SIGKILL)
        await engine._holder.wait_lost()
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        folders = vm_folders("dev")
        assert mounts.device_of(folders.mount(one.lease.id)) is None
        assert {path.name for path in folders.runtime.iterdir()} <= {"holder.sock"}
        folders.holder_socket.unlink()
        await servers.stop(one)


async def test_prepared_again_after_a_controller_died_half_way() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(4 * MIB))
        await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        region = await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        assert region_file(region).stat().st_size == 4 * MIB
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        await nothing_left(engine)
        await servers.stop(one)


async def test_a_moved_server_cannot_be_followed() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(4 * MIB))
        with pytest.raises(NotFoundError):
            await engine.relink(one.lease, server, "127.0.0.1", deadline=10)
        await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        moved = msgspec.structs.replace(server, port=server.port + 1)
        with pytest.raises(ExecutionError, match="moved"):
            await engine.relink(one.lease, moved, "127.0.0.1", deadline=10)
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        await servers.stop(one)


async def test_cancelled_in_the_middle_leaves_nothing() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(4 * MIB))
        for delay in (0.0, 0.01, 0.03, 0.05):
            preparing = asyncio.create_task(engine.prepare(one.lease, server, "127.0.0.1", deadline=20))
            await asyncio.wait((preparing,), timeout=delay)
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)
            await engine.remove(one.lease.id, mapped_by=None, deadline=10)
            await nothing_left(engine)
        await servers.stop(one)


async def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with fuse_engine() as engine:
        monkeypatch.setenv("PATH", str(tmp_path))
        assert engine.traits.missing == "nbdfuse is not installed"
        one = entry(2 * MIB)
        server = MemoryServer(port=1, export="m1", psk_identity="m1", psk="00" * 32)
        with pytest.raises(PrerequisiteError, match="nbdfuse"):
            await engine.prepare(one.lease, server, "127.0.0.1", deadline=10)


async def test_plan_changes_nothing_and_tells_the_same_file() -> None:
    async with memory_servers() as servers, fuse_engine() as engine:
        one, server = await lend(servers, entry(2 * MIB))
        planned, commands = engine.plan(one.lease.id, 2 * MIB)
        await nothing_left(engine)
        assert [argv[0] for argv in commands] == ["nbdkit", "nbdfuse"]
        assert await engine.prepare(one.lease, server, "127.0.0.1", deadline=20) == planned
        assert mounts.device_of(vm_folders("dev").mount(one.lease.id))
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        await servers.stop(one)
