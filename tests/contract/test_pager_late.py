"""Writes that a lender does late, or in another order, and lenders that fail in every other way: no wrong byte."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack

import msgspec
import pytest

from framework.held_link import HeldLink
from framework.paged_scene import Scene

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]


async def hold_writes(scene: Scene, link: HeldLink) -> list[asyncio.Event]:
    """Have the link hold what is sent until there are writes among it that were given up. Returns what to set then."""
    held = []
    async with asyncio.timeout(30):
        while True:
            held.append(link.hold())
            # Perhaps nothing was under way: then it is the turn of the connections that are made meanwhile.
            for _ in range(50):
                if (await scene.engine.stats()).regions[scene.lease].stores[0].unsettled:
                    return held
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("replicas", [1, 2])
async def test_writes_that_arrive_after_newer_ones_undo_nothing(replicas: int) -> None:
    async with Scene(replicas=replicas, request_deadline=0.3) as scene:
        server = scene.servers.describe(scene.entries[0])
        assert server
        async with HeldLink(server.port) as link:
            through = msgspec.structs.replace(server, port=link.port)
            await scene.engine.relink(scene.entries[0].lease, through, "127.0.0.1", deadline=10)
            await scene.until(0, links=6, behind=0)
            await scene.guest.ask("fill 1")
            filling = asyncio.create_task(scene.guest.ask("fill 2"))
            held = await hold_writes(scene, link)
            assert await filling == "filled"
            # Every page is written again, on new connections, while the old writes are still to come.
            assert await scene.guest.ask("fill 3") == "filled"
            assert await scene.guest.ask("check 3") == "wrong 0"
            for gate in held:
                gate.set()
            await scene.until(0, links=6, behind=0, unsettled=0)
            assert await scene.guest.ask("check 3") == "wrong 0"
            stats = await scene.engine.stats()
            assert stats.regions[scene.lease].lost == 0
            assert stats.counters["invalid"] == 0


async def test_a_page_is_asked_of_the_other_store_when_the_first_is_late() -> None:
    async with Scene(replicas=2, request_deadline=30) as scene, AsyncExitStack() as stack:
        links = []
        for number, one in enumerate(scene.entries):
            server = scene.servers.describe(one)
            assert server
            links.append(await stack.enter_async_context(HeldLink(server.port)))
            through = msgspec.structs.replace(server, port=links[number].port)
            if number == 0:
                await scene.engine.relink(one.lease, through, "127.0.0.1", deadline=10)
            else:
                await scene.engine.add_replica(scene.lease, through, "127.0.0.1", deadline=10)
            await scene.until(number, links=6, behind=0)
        await scene.guest.ask("fill 1")
        # Read, so that nothing is left to write, and often enough for the links to be known, and to have credit.
        assert await scene.guest.ask("check 1") == "wrong 0"
        assert (await scene.guest.ask("faults 2000 1")).startswith("p50 ")
        for link in links:
            held = link.hold()
            # Long before a deadline ends the link that is stuck.
            assert (await scene.guest.ask("faults 200 1", 20)).startswith("p50 ")
            held.set()
        stats = await scene.engine.stats()
        assert stats.counters["hedge-won"] > 0
        assert stats.counters["hedged"] <= stats.counters["faults"] // 20 + 2 * 32
        assert [store.links for store in stats.regions[scene.lease].stores.values()] == [6, 6]
        assert await scene.guest.ask("check 1") == "wrong 0"
