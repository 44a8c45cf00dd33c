"""Pages that are compressed before they are sealed: fewer bytes on the link, and no wrong one."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from framework.lent import entry, lend
from framework.paged_scene import SIZE, Scene
from vmcoal.backends.pager_client import RegionStats, StoreStats

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]


async def compressed(scene: Scene) -> None:
    await scene.engine.set_compression(scene.lease, True)


async def region(scene: Scene) -> RegionStats:
    return (await scene.engine.stats()).regions[scene.lease]


async def store(scene: Scene, number: int = 0) -> StoreStats:
    return (await region(scene)).stores[number]


def lie(kind: str, data: bytes, older: bytes) -> bytes:
    """Do with a lender's bytes what a lender can do."""
    if kind == "replayed":
        return older
    forged = bytearray(data)
    for at in range(100, len(forged), 4096):
        forged[at] ^= 1
    return bytes(forged)


async def test_pages_that_shrink_and_pages_that_do_not() -> None:
    """``fill`` writes what looks like noise, and zeros; ``stream w`` numbers in a row."""
    async with Scene() as scene:
        assert await scene.guest.ask("fill 1") == "filled"
        seen = await store(scene)
        assert not (await region(scene)).compress
        assert (seen.plain_out, seen.plain_in) == (seen.bytes_out, seen.bytes_in)
        await compressed(scene)
        assert (await region(scene)).compress
        # What is with the lender in full length is read as before, and noise stays as it is.
        assert await scene.guest.ask("check 1") == "wrong 0"
        assert await scene.guest.ask("fill 2") == "filled"
        assert await scene.guest.ask("check 2") == "wrong 0"
        seen = await store(scene)
        assert 0.95 * seen.plain_out < seen.bytes_out <= seen.plain_out
        assert (await scene.guest.ask("stream w")).startswith("MB/s ")
        before = await store(scene)
        assert (await scene.guest.ask("stream r")).startswith("MB/s ")
        seen = await store(scene)
        assert seen.plain_in - before.plain_in > 2 * (seen.bytes_in - before.bytes_in) > 0
        assert await scene.counter("invalid") == 0
        # And back: what is compressed is read as it was written.
        await scene.engine.set_compression(scene.lease, False)
        assert await scene.guest.ask("read 5000") == f"value {5000 + 1}"
        assert await scene.guest.ask("read 17") == f"value {17 + 1}"
        assert await scene.guest.ask("fill 3") == "filled"
        assert await scene.guest.ask("check 3") == "wrong 0"


async def test_a_pager_that_is_killed_knows_every_length() -> None:
    async with Scene() as scene:
        await compressed(scene)
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
                # One that takes over goes on as its predecessor did; pages of both kinds are there.
                assert (await region(scene)).compress is bool(killed % 2)
                await scene.engine.set_compression(scene.lease, not killed % 2)
        assert killed >= 2
        assert stressed.result().startswith("wrong 0 ")
        assert await scene.guest.ask("sum") == "wrong 0"
        assert (await region(scene)).lost == 0


@pytest.mark.parametrize("kind", ["forged", "replayed"])
async def test_a_lender_that_lies_is_found_out(kind: str) -> None:
    async with Scene() as scene:
        await compressed(scene)
        await scene.guest.ask("stream w")
        older = scene.servers.file(scene.entries[0]).read_bytes()
        await scene.guest.ask("stream w")
        mend = await scene.spoil(0, lambda data: lie(kind, data, older))
        scene.guest.send("stream r")
        reading = asyncio.create_task(scene.guest.answer())
        async with asyncio.timeout(60):
            while not (await region(scene)).lost:
                await asyncio.sleep(0.02)
        assert not reading.done(), "no wrong byte is shown; the reader waits"
        await mend()
        server = scene.servers.describe(scene.entries[0])
        assert server
        await scene.engine.relink(scene.entries[0].lease, server, "127.0.0.1", deadline=20)
        assert (await reading).startswith("MB/s ")
        for page in range(0, SIZE // 4096, 509):
            assert await scene.guest.ask(f"read {page}") == f"value {page + 1}"


async def test_a_lender_that_missed_pages_gets_them_in_their_lengths() -> None:
    async with Scene(replicas=2, request_deadline=0.3) as scene:
        await scene.until(1, links=6)
        await compressed(scene)
        scene.guest.send("stress 4 3")
        stressed = asyncio.create_task(scene.guest.answer())
        await asyncio.wait((stressed,), timeout=0.5)
        server = await scene.child(0)
        os.kill(server, signal.SIGSTOP)
        assert (await stressed).startswith("wrong 0 ")
        # What the other one has alone is longer by now, and then all of it is brought up to date.
        await scene.engine.set_compression(scene.lease, False)
        assert (await scene.guest.ask("stress 4 0.5")).startswith("wrong 0 ")
        await scene.engine.set_compression(scene.lease, True)
        os.kill(server, signal.SIGCONT)
        await scene.until(0, links=6, behind=0)
        await scene.servers.stop(scene.entries[1])
        assert await scene.guest.ask("sum") == "wrong 0"


async def test_a_second_lender_and_the_way_home() -> None:
    async with Scene() as scene:
        await compressed(scene)
        await scene.guest.ask("stream w")
        other, server = await lend(scene.servers, entry(SIZE))
        await scene.engine.store(scene.lease, 1, other.lease, server, "127.0.0.1", deadline=20)
        await scene.until(1, links=6, behind=0)
        await scene.servers.stop(scene.entries[0])
        await scene.engine.unstore(scene.lease, 0)
        await scene.engine.home(scene.lease, True)
        async with asyncio.timeout(60):
            while (await region(scene)).away:
                await asyncio.sleep(0.02)
        assert (await store(scene, 1)).bytes_in * 2 < (await store(scene, 1)).plain_in
        await scene.engine.unstore(scene.lease, 1)
        await scene.servers.stop(other)
        for page in range(0, SIZE // 4096, 509):
            assert await scene.guest.ask(f"read {page}") == f"value {page + 1}"
