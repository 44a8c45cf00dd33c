"""The page engine against real lenders' servers, with a small program in QEMU's place under the preload library."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from framework.lent import entry, lend, memory_servers, pager_engine, region_file
from framework.paged import PagedGuest
from framework.paged_scene import SIZE, Scene
from vmcoal.backends.pager import PagerEngine
from vmcoal.errors import NotFoundError, RefusedError, UnreachableError, VmcoalError
from vmcoal.layout import shm_home, vm_folders
from vmcoal.model.lease import MemoryServer
from vmcoal.model.units import GIB, MIB

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]

MAGIC = (0x7265676170636D76).to_bytes(8, "little")
OLDEST = 2


async def nothing_left(engine: PagerEngine) -> None:
    folders = vm_folders("dev")
    assert await engine._holder.list() == []
    assert await engine._holder.names() == set()
    assert {path.name for path in folders.runtime.iterdir()} <= {"holder.sock"}
    assert {path.name for path in folders.state.iterdir()} <= {"exits.log", "holder.log"}
    assert not (shm_home() / "vm-dev").exists()


async def test_four_times_the_cache_and_the_lender_sees_nothing_of_it() -> None:
    async with Scene() as scene:
        for seed in (1, 2):
            assert await scene.guest.ask(f"fill {seed}") == "filled"
            assert await scene.guest.ask(f"check {seed}") == "wrong 0"
        counters = (await scene.engine.stats()).counters
        assert counters["charged"] <= counters["budget"]
        assert counters["stored-zero"] > 0
        assert counters["invalid"] == 0
        stored = scene.servers.file(scene.entries[0]).read_bytes()
        seen = {stored[at : at + 4096] for at in range(0, len(stored), 4096)} - {b"\0" * 4096}
        plain = [(word + 2) * 0x9E3779B97F4A7C15 & (2**64 - 1) for word in range(512)]
        assert len(seen) > 1000
        assert b"".join(word.to_bytes(8, "little") for word in plain) not in seen
        assert await scene.engine.health(scene.lease) is None
        engine = scene.engine
        await scene.guest.__aexit__(None, None, None)
        await engine.remove(scene.lease, mapped_by=scene.guest.process.pid, deadline=10)
        await nothing_left(engine)


async def test_random_writes_of_several_threads() -> None:
    async with Scene() as scene:
        assert (await scene.guest.ask("stress 4 2")).startswith("wrong 0 ")
        assert await scene.guest.ask("sum") == "wrong 0"


async def test_discarded_pages_are_zeros_and_cost_no_fetch() -> None:
    async with Scene() as scene:
        await scene.guest.ask("fill 5")
        fetched = await scene.counter("fetched")
        assert await scene.guest.ask("zero 0 2048") == "zeroed"
        for page in (0, 1, 1000, 2047):
            assert await scene.guest.ask(f"read {page}") == "value 0"
        assert await scene.counter("fetched") == fetched
        assert await scene.guest.ask("read 2048") != "value 0"
        # The lender is told as well, but for what was touched again before that.
        async with asyncio.timeout(20):
            while scene.servers.file(scene.entries[0]).stat().st_blocks * 512 > SIZE - 1500 * 4096:
                await asyncio.sleep(0.02)
        assert await scene.guest.ask("write 7 77") == "written"
        assert await scene.guest.ask("read 7") == "value 77"


async def test_the_cache_changes_while_it_is_used() -> None:
    async with Scene(cache=SIZE // 2) as scene:
        await scene.guest.ask("fill 6")
        await scene.engine.set_cache(2 * MIB)
        async with asyncio.timeout(20):
            while await scene.counter("charged") > 2 * MIB // 4096:
                await asyncio.sleep(0.02)
        await scene.engine.set_cache(SIZE // 2)
        assert await scene.guest.ask("check 6") == "wrong 0"
        with pytest.raises(RefusedError):
            await scene.engine.set_cache(4096)


async def test_pager_killed_again_and_again_under_load() -> None:
    async with Scene() as scene:
        scene.guest.send("stress 4 4")
        stressed = asyncio.create_task(scene.guest.answer(60))
        killed = 0
        while not stressed.done():
            await asyncio.wait((stressed,), timeout=0.4)
            if not stressed.done():
                before = await scene.pager()
                assert before
                os.kill(before, signal.SIGKILL)
                killed += 1
                async with asyncio.timeout(20):
                    while await scene.pager() in (0, before):
                        await asyncio.sleep(0.02)
        assert killed >= 2
        assert stressed.result().startswith("wrong 0 ")
        assert await scene.guest.ask("sum") == "wrong 0"
        assert (await scene.engine.stats()).regions[scene.lease].lost == 0


def set_version(keeper: int, version: int) -> int:
    """Change the version of the only region's records that a process has (`meta.h`); returns what it was."""
    for descriptor in Path(f"/proc/{keeper}/fd").iterdir():
        if not str(descriptor.readlink()).startswith("/memfd:"):
            continue
        with descriptor.open("r+b", buffering=0) as records:
            if records.read(8) == MAGIC:
                before = int.from_bytes(records.read(4), "little")
                records.seek(8)
                records.write(version.to_bytes(4, "little"))
                return before
    raise AssertionError("there are no records")


async def test_records_of_another_version_are_read_or_left_alone() -> None:
    async with Scene() as scene:
        log = vm_folders("dev").state / "pager.log"
        stat = Path(f"/proc/{await scene.pager()}/stat").read_text()
        holder = int(stat.rpartition(")")[2].split()[1])

        async def leave(version: int) -> int:
            """Have the pager killed and another one find records of ``version``; returns of which they were."""
            before, lines = await scene.pager(), log.read_text().count("taken over")
            was = set_version(holder, version)
            os.kill(before, signal.SIGKILL)
            async with asyncio.timeout(20):
                while log.read_text().count("taken over") == lines:
                    await asyncio.sleep(0.02)
            return was

        assert await scene.guest.ask("fill 1") == "filled"
        current = await leave(OLDEST)
        assert await scene.guest.ask("check 1") == "wrong 0"
        assert await leave(current + 1) == current
        assert f"its records are not of version {OLDEST} to {current}" in log.read_text()
        for told in (scene.engine.set_compression(scene.lease, True), scene.engine.home(scene.lease, True)):
            with pytest.raises(VmcoalError, match="was left by a vmcoal-pager of another version"):
                await told
        # Who needs its pages waits for a pager that can read them, and finds them.
        scene.guest.send("check 1")
        assert await leave(current) == current + 1
        assert await scene.guest.answer() == "wrong 0"
        assert (await scene.engine.stats()).regions[scene.lease].lost == 0


async def test_a_lenders_server_killed_under_load_comes_back_and_nothing_is_lost() -> None:
    async with Scene() as scene:
        scene.guest.send("stress 4 2")
        for _ in range(2):
            before = await scene.child(0)
            assert before
            os.kill(before, signal.SIGKILL)
            async with asyncio.timeout(20):
                while await scene.child(0) in (0, before):
                    await asyncio.sleep(0.02)
            await scene.until(0, links=6)
        assert (await scene.guest.answer()).startswith("wrong 0 ")
        assert await scene.guest.ask("sum") == "wrong 0"


async def test_a_stopped_lender_stalls_its_pages_and_nothing_else() -> None:
    async with Scene(request_deadline=0.3) as scene:
        await scene.guest.ask("fill 9")
        server = await scene.child(0)
        os.kill(server, signal.SIGSTOP)
        scene.guest.send("check 9")
        reading = asyncio.create_task(scene.guest.answer())
        await scene.until(0, links=0)
        assert not reading.done()
        assert "does not answer" in (await scene.engine.health(scene.lease) or "")
        os.kill(server, signal.SIGCONT)
        assert await reading == "wrong 0"
        assert await scene.engine.health(scene.lease) is None


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_one_of_two_lenders_lost_under_load(how: str) -> None:
    async with Scene(replicas=2, request_deadline=0.3) as scene:
        await scene.until(1, links=6)
        scene.guest.send("stress 4 3")
        stressed = asyncio.create_task(scene.guest.answer())
        await asyncio.wait((stressed,), timeout=0.5)
        server = await scene.child(0)
        if how == "kill":
            await scene.servers.stop(scene.entries[0])
        else:
            os.kill(server, signal.SIGSTOP)
        assert (await stressed).startswith("wrong 0 ")
        assert await scene.guest.ask("sum") == "wrong 0"
        assert "one of its lenders" in (await scene.engine.health(scene.lease) or "")
        if how == "stop":
            os.kill(server, signal.SIGCONT)
            # It missed pages, and gets them by itself.
            await scene.until(0, links=6, behind=0)
            await scene.servers.stop(scene.entries[1])
            assert await scene.guest.ask("sum") == "wrong 0"


async def test_a_second_lender_gets_the_pages_that_exist() -> None:
    async with Scene() as scene:
        await scene.guest.ask("fill 3")
        other, second = await lend(scene.servers, entry(SIZE))
        await scene.engine.store(scene.lease, 1, other.lease, second, "127.0.0.1", deadline=10)
        await scene.until(1, links=6, behind=0)
        await scene.servers.stop(scene.entries[0])
        assert await scene.guest.ask("check 3") == "wrong 0"
        await scene.servers.stop(other)


def lie(kind: str, data: bytes, older: bytes) -> bytes:
    """Do with a lender's bytes what a lender can do."""
    if kind == "replayed":
        return older
    if kind == "swapped":
        return data[SIZE // 2 :] + data[: SIZE // 2]
    if kind == "empty":
        return bytes(SIZE)
    forged = bytearray(data)
    for at in range(100, len(forged), 4096):
        forged[at] ^= 1
    return bytes(forged)


@pytest.mark.parametrize("kind", ["forged", "replayed", "swapped", "empty"])
async def test_a_lender_that_lies_is_found_out(kind: str) -> None:
    async with Scene() as scene:
        await scene.guest.ask("fill 1")
        older = scene.servers.file(scene.entries[0]).read_bytes()
        await scene.guest.ask("fill 2")
        mend = await scene.spoil(0, lambda data: lie(kind, data, older))
        scene.guest.send("check 2")
        reading = asyncio.create_task(scene.guest.answer())
        async with asyncio.timeout(20):
            while not (await scene.engine.stats()).regions[scene.lease].lost:
                await asyncio.sleep(0.02)
        assert not reading.done(), "no wrong byte is shown; the reader waits"
        assert "lost" in (await scene.engine.health(scene.lease) or "")
        # A lender that finds its bytes again: the pages are tried again when it is linked again.
        await mend()
        server = scene.servers.describe(scene.entries[0])
        assert server
        await scene.engine.relink(scene.entries[0].lease, server, "127.0.0.1", deadline=10)
        assert await reading == "wrong 0"


async def test_one_of_two_lenders_lies() -> None:
    async with Scene(replicas=2) as scene:
        await scene.until(1, links=6)
        await scene.guest.ask("fill 2")
        await scene.spoil(0, lambda data: lie("forged", data, b""))
        assert await scene.guest.ask("check 2") == "wrong 0"
        assert await scene.counter("invalid") > 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"psk": "00" * 32}, RefusedError),
        ({"export": "m1-1-other"}, RefusedError),
        ({"port": 1}, UnreachableError),
        ({"export": "../../etc"}, RefusedError),
    ],
)
async def test_what_does_not_fit_is_refused_and_leaves_nothing(change: dict[str, object], error: type) -> None:
    async with memory_servers() as servers, pager_engine(8 * MIB) as engine:
        one, server = await lend(servers, entry(2 * MIB))
        with pytest.raises(VmcoalError) as caught:
            await engine.prepare(one.lease, msgspec.structs.replace(server, **change), "127.0.0.1", deadline=10)
        assert isinstance(caught.value, error)
        await nothing_left(engine)
        await servers.stop(one)


async def test_two_regions_come_and_go_and_the_pager_with_the_last() -> None:
    async with memory_servers() as servers, pager_engine(8 * MIB) as engine, AsyncExitStack() as stack:
        lent = [await lend(servers, entry(8 * MIB)) for _ in range(2)]
        guests = []
        for one, server in lent:
            region = await engine.prepare(one.lease, server, "127.0.0.1", deadline=10)
            assert engine.plan(one.lease.id, 8 * MIB)[0] == region
            guests.append(await stack.enter_async_context(PagedGuest(region_file(region), engine.environment())))
        for number, guest in enumerate(guests):
            await guest.ask(f"fill {number}")
        for number, guest in enumerate(guests):
            assert await guest.ask(f"check {number}") == "wrong 0"
        for number, guest in enumerate(guests):
            await guest.__aexit__(None, None, None)
            await engine.remove(lent[number][0].lease.id, mapped_by=guest.process.pid, deadline=10)
            await engine.remove(lent[number][0].lease.id, mapped_by=None, deadline=10)
            await servers.stop(lent[number][0])
        await nothing_left(engine)


async def test_more_than_one_request_can_carry_is_discarded_in_one_piece() -> None:
    """As QEMU empties a virtio-mem device; lengths of NBD requests have 32 bits."""
    size, last = 5 * GIB, 5 * GIB // 4096 - 1
    async with memory_servers() as servers, pager_engine(8 * MIB) as engine:
        assert engine.traits.largest_granular is None
        one, server = await lend(servers, entry(size, 0))
        region = await engine.prepare(one.lease, server, "127.0.0.1", deadline=20)
        async with PagedGuest(region_file(region), engine.environment()) as guest:
            for page in (0, last):
                assert await guest.ask(f"write {page} 7") == "written"
            assert await guest.ask(f"zero 0 {last + 1}") == "zeroed"
            for page in (0, last):
                assert await guest.ask(f"read {page}") == "value 0"
        await engine.remove(one.lease.id, mapped_by=None, deadline=10)
        await servers.stop(one)


async def test_relink_needs_a_region() -> None:
    async with pager_engine(8 * MIB) as engine:
        server = MemoryServer(port=1, export="m1", psk_identity="m1", psk="00" * 32)
        with pytest.raises(NotFoundError):
            await engine.relink(entry(MIB).lease, server, "127.0.0.1", deadline=5)
