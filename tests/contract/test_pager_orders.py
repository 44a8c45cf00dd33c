"""The orders of the page engine against real lenders' servers: what they answer, and what they bring about."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from framework.paged_scene import SIZE, Scene

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
        await scene.guest.ask("stream w")
        await scene.guest.ask("stream r")
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
