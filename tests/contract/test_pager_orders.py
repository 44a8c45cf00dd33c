"""The orders of the page engine against real lenders' servers: what they answer, and what they bring about."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from framework.lent import entry, lend
from framework.paged_scene import SIZE, Scene
from vmcoal.backends.pager_client import RegionStats, Sample, home, order, sample, unstore
from vmcoal.errors import ConflictError, NotFoundError, RefusedError, UnreachableError

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]

PAGES = SIZE // 4096


async def test_stats_say_where_the_pages_are_and_how_long_a_store_took() -> None:
    async with Scene() as scene:
        await scene.guest.ask("fill 1")
        assert (await scene.guest.ask("faults 200 1")).startswith("p50 ")
        stats = await scene.engine.stats()
        region = stats.regions[scene.lease]
        zeros = stats.counters["state-zero"] + stats.counters["state-write-drop"]
        assert region.pages == PAGES
        assert region.away + region.here + zeros == PAGES
        assert region.away > PAGES // 2
        assert region.waiting == region.lost == 0
        store = region.stores[0]
        assert store.bytes_out >= region.away * 4096
        assert store.bytes_in >= 100 * 4096
        assert 100 <= sum(store.latency) <= store.bytes_in // 4096
        assert store.latency[-1]


async def test_a_stream_tells_how_many_guesses_were_right() -> None:
    async with Scene() as scene:
        await scene.guest.ask("fill 1")
        await scene.guest.ask("check 1")
        counters = (await scene.engine.stats()).counters
        assert counters["found"] > 0
        assert 0 < counters["prefetch-used"] <= counters["prefetched"]


async def test_what_waits_for_a_stopped_lender_is_counted() -> None:
    async with Scene(request_deadline=0.3) as scene:
        await scene.guest.ask("fill 9")
        server = await scene.child(0)
        os.kill(server, signal.SIGSTOP)
        scene.guest.send("check 9")
        async with asyncio.timeout(20):
            while not (await scene.engine.stats()).regions[scene.lease].waiting:
                await asyncio.sleep(0.02)
        os.kill(server, signal.SIGCONT)
        assert await scene.guest.answer() == "wrong 0"
        assert (await scene.engine.stats()).regions[scene.lease].waiting == 0


async def come_home(scene: Scene) -> RegionStats:
    await home(scene.engine.socket, scene.lease, True, deadline=5)
    async with asyncio.timeout(30):
        while (region := (await scene.engine.stats()).regions[scene.lease]).away:
            await asyncio.sleep(0.02)
    return region


async def test_a_region_comes_home_under_load_and_works_without_any_lender() -> None:
    async with Scene() as scene:
        with pytest.raises(NotFoundError):
            await home(scene.engine.socket, "other", True, deadline=5)
        assert await scene.guest.ask("stress 4 1") != ""
        with pytest.raises(ConflictError):
            await unstore(scene.engine.socket, scene.lease, 0, deadline=5)
        scene.guest.send("stress 4 2")
        region = await come_home(scene)
        assert region.home
        await unstore(scene.engine.socket, scene.lease, 0, deadline=5)
        await scene.servers.stop(scene.entries[0])
        assert (await scene.guest.answer()).startswith("wrong 0 ")
        assert (await scene.guest.ask("stress 4 1")).startswith("wrong 0 ")
        assert await scene.guest.ask("sum") == "wrong 0"
        region = (await scene.engine.stats()).regions[scene.lease]
        assert region.stores == {}
        assert region.away == region.lost == 0


async def test_home_outlives_the_pager() -> None:
    async with Scene() as scene:
        await scene.guest.ask("fill 4")
        await home(scene.engine.socket, scene.lease, True, deadline=5)
        before = await scene.pager()
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(20):
            while await scene.pager() in (0, before):
                await asyncio.sleep(0.02)
        await come_home(scene)
        await unstore(scene.engine.socket, scene.lease, 0, deadline=5)
        before = await scene.pager()
        os.kill(before, signal.SIGKILL)
        assert await scene.guest.ask("check 4") == "wrong 0"


async def test_home_and_back() -> None:
    async with Scene() as scene:
        await scene.guest.ask("fill 4")
        charged = await scene.counter("charged")
        assert charged
        region = await come_home(scene)
        assert await scene.counter("charged") == 0
        assert region.here * 4096 > SIZE // 2
        scene.guest.send("stress 4 1")
        await home(scene.engine.socket, scene.lease, False, deadline=5)
        await scene.guest.answer()
        async with asyncio.timeout(20):
            while (counters := (await scene.engine.stats()).counters)["charged"] > counters["budget"]:
                await asyncio.sleep(0.02)
        assert (await scene.engine.stats()).regions[scene.lease].away
        # Nothing but the pages that stress wrote over has changed.
        await scene.guest.ask("fill 5")
        assert await scene.guest.ask("check 5") == "wrong 0"


async def test_the_only_store_replaced_gets_what_is_here_and_home_brings_the_rest_first() -> None:
    async with Scene() as scene:
        await scene.guest.ask("fill 6")
        await come_home(scene)
        other, second = await lend(scene.servers, entry(SIZE))
        await scene.engine.store(scene.lease, 1, other.lease, second, "127.0.0.1", deadline=10)
        await unstore(scene.engine.socket, scene.lease, 0, deadline=5)
        await scene.servers.stop(scene.entries[0])
        await home(scene.engine.socket, scene.lease, False, deadline=5)
        await scene.until(1, links=6, behind=0)
        assert (await scene.engine.stats()).regions[scene.lease].away
        assert await scene.guest.ask("check 6") == "wrong 0"
        await scene.servers.stop(other)


async def test_a_sample_says_how_long_a_store_takes() -> None:
    async with Scene(request_deadline=0.3) as scene:
        path, lease = scene.engine.socket, scene.lease
        # Before anything was written there is nothing to read, but it takes as long.
        assert (await sample(path, lease, 0, 3, deadline=20)).pages == 3
        await scene.guest.ask("fill 4")
        taken = await sample(path, lease, 0, 100, deadline=20)
        assert taken.pages == 100
        assert 0 < taken.p50 <= taken.p99
        taken_together = await asyncio.gather(
            *(sample(path, lease, 0, 1000, deadline=20) for _ in range(4)), return_exceptions=True
        )
        assert {type(one) for one in taken_together} == {Sample, ConflictError}
        for number, error in ((1, NotFoundError), (2, RefusedError)):
            with pytest.raises(error):
                await sample(path, lease, number, 1, deadline=20)
        with pytest.raises(RefusedError):
            await sample(path, lease, 0, 1001, deadline=20)
        server = await scene.child(0)
        os.kill(server, signal.SIGSTOP)
        assert (await sample(path, lease, 0, 1000, deadline=20)).pages < 1000
        await scene.until(0, links=0)
        with pytest.raises(UnreachableError):
            await sample(path, lease, 0, 1, deadline=20)
        os.kill(server, signal.SIGCONT)


async def test_a_sample_that_nobody_waits_for_ends() -> None:
    async with Scene() as scene:
        path, lease = scene.engine.socket, scene.lease
        running = asyncio.create_task(sample(path, lease, 0, 1000, deadline=20))
        await asyncio.sleep(0)
        running.cancel()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert (await sample(path, lease, 0, 10, deadline=20)).pages == 10
                    break
                except ConflictError:
                    await asyncio.sleep(0.01)


async def loss(path: Path, region: str, policy: str, *, deadline: float) -> None:
    """Say what a touch of a lost page of a region gives: it waits (``stall``), or gets SIGBUS (``poison``)."""
    await order(path, "loss", ("id", region), ("policy", policy), deadline=deadline)


FLIPPED = bytes(value ^ 1 for value in range(256))


async def test_lost_pages_are_poisoned_and_heal_when_a_store_has_them_again() -> None:
    # What a pager that is killed had sent is waited for by the next one for a tenth of the deadline.
    async with Scene(request_deadline=5) as scene:
        path, lease = scene.engine.socket, scene.lease
        with pytest.raises(RefusedError):
            await loss(path, lease, "panic", deadline=5)
        await scene.guest.ask("fill 3")
        mend = await scene.spoil(0, lambda data: data.translate(FLIPPED))
        scene.guest.send("probe")
        async with asyncio.timeout(20):
            while not (await scene.engine.stats()).regions[lease].waiting:
                await asyncio.sleep(0.02)
        # Who waits for a lost page is woken, and later ones do not wait at all.
        await loss(path, lease, "poison", deadline=5)
        broken = int((await scene.guest.answer()).split()[1])
        stats = await scene.engine.stats()
        region = stats.regions[lease]
        assert broken > PAGES // 2
        assert region.policy == "poison"
        # Those on the border were fetched ahead of the reader, and were lost before it came.
        assert region.lost >= broken
        assert region.waiting == 0
        assert stats.counters["poisoned"] == region.lost
        # A new pager knows which they are.
        before = await scene.pager()
        os.kill(before, signal.SIGKILL)
        async with asyncio.timeout(20):
            while await scene.pager() in (0, before):
                await asyncio.sleep(0.02)
        # What was on standby was only with the store, but for the bytes that the old pager still had.
        assert int((await scene.guest.ask("probe")).split()[1]) >= broken
        # What the guest gives back is zeros, and whole.
        assert await scene.guest.ask(f"zero 0 {PAGES // 8}") == "zeroed"
        assert await scene.guest.ask("read 1") == "value 0"
        assert await scene.guest.ask("write 1 5") == "written"
        assert await scene.guest.ask("read 1") == "value 5"
        await mend()
        server = scene.servers.describe(scene.entries[0])
        assert server
        await scene.engine.relink(scene.entries[0].lease, server, "127.0.0.1", deadline=10)
        async with asyncio.timeout(20):
            while (region := (await scene.engine.stats()).regions[lease]).lost:
                await asyncio.sleep(0.02)
        assert await scene.guest.ask("probe") == "broken 0"
        assert await scene.guest.ask(f"zero 0 {PAGES // 8}") == "zeroed"
        assert await scene.guest.ask("fill 4") == "filled"
        assert await scene.guest.ask("check 4") == "wrong 0"


@pytest.mark.parametrize("policy", ["stall", "poison"])
async def test_a_store_that_is_given_up(policy: str) -> None:
    async with Scene() as scene:
        path, lease = scene.engine.socket, scene.lease
        await loss(path, lease, policy, deadline=5)
        await scene.guest.ask("fill 3")
        await scene.servers.stop(scene.entries[0])
        scene.guest.send("probe")
        async with asyncio.timeout(20):
            while not (await scene.engine.stats()).regions[lease].waiting:
                await asyncio.sleep(0.02)
        assert not (await scene.engine.stats()).regions[lease].lost, "it may come back"
        with pytest.raises(ConflictError):
            await unstore(path, lease, 0, deadline=5)
        await unstore(path, lease, 0, gone=True, deadline=5)
        async with asyncio.timeout(20):
            while not (await scene.engine.stats()).regions[lease].lost:
                await asyncio.sleep(0.02)
        if policy == "poison":
            assert int((await scene.guest.answer()).split()[1]) > PAGES // 2
            assert (await scene.engine.stats()).regions[lease].waiting == 0
            return
        assert (await scene.engine.stats()).regions[lease].waiting == 1
        # The reader would wait for ever, unless what it waits for is discarded.
        await order(path, "discard", ("id", lease), ("offset", 0), ("length", SIZE), deadline=20)
        assert await scene.guest.answer() == "broken 0"


async def test_a_lender_that_began_anew_has_lost_everything() -> None:
    async with Scene() as scene:
        path, lease = scene.engine.socket, scene.lease
        await loss(path, lease, "poison", deadline=5)
        await scene.guest.ask("fill 3")
        server = scene.servers.describe(scene.entries[0])
        assert server
        fields = {"address": "127.0.0.1", "port": server.port, "export": "another", "identity": server.psk_identity}
        psk = scene.engine._psk(lease)
        await order(path, "store", ("id", lease), ("number", 0), *fields.items(), ("psk-file", str(psk)), deadline=5)
        assert int((await scene.guest.ask("probe")).split()[1]) > PAGES // 2
        assert (await scene.engine.stats()).regions[lease].stores[0].refused
