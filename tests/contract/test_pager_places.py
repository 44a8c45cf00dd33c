"""Where a region's pages are, on the real pager and real servers: a second place, another one, home and away again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from framework.lent import entry, lend
from framework.paged_scene import SIZE, Scene
from vmcoal.errors import ConflictError
from vmcoal.lending.entry import Entry
from vmcoal.model.paging import PagedRegion

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]


async def look(scene: Scene) -> PagedRegion:
    seen = await scene.engine.region(scene.lease)
    assert seen is not None
    return seen


async def another(scene: Scene, number: int, *, home: bool = False) -> Entry:
    """Have the region at one more lender, with every page; one that is ``home`` leaves it then."""
    other, server = await lend(scene.servers, entry(SIZE))
    await scene.engine.store(scene.lease, number, other.lease, server, "127.0.0.1", deadline=10)
    if home:
        await scene.engine.home(scene.lease, False)
    async with asyncio.timeout(20):
        while (copy := (await look(scene)).copy(number)) is None or copy.behind or not copy.connected:
            await asyncio.sleep(0.02)
    return other


async def test_what_a_region_says() -> None:
    async with Scene() as scene:
        await scene.guest.ask("fill 1")
        seen = await look(scene)
        assert (seen.size, seen.mapped, seen.home, seen.lost) == (SIZE, True, False, 0)
        assert seen.away > 0
        (copy,) = seen.copies
        assert (copy.number, copy.connected, copy.refused) == (0, True, False)


def kernel_asks(port: int) -> list[bool]:
    """Return for each connection to a local port whether the kernel asks a silent peer if it is still there."""
    lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    found = [words for words in lines if words[2].endswith(f":{port:04X}") and words[3] == "01"]
    return [words[5].startswith("02:") for words in found]  # Documentation/networking/proc_net_tcp.rst


async def test_the_kernel_asks_a_lender_of_whom_nothing_is_wanted() -> None:
    """Else a guest that does nothing would never hear that a place of its pages is gone."""
    async with Scene() as scene:
        await scene.guest.ask("fill 1")
        async with asyncio.timeout(
            30
        ):  # while bytes are on their way, the kernel's timer is that of sending them again
            while not (asks := kernel_asks(scene.port)) or not all(asks):
                await asyncio.sleep(0.05)


async def test_from_lender_to_lender_home_and_away_again_under_load() -> None:
    async with Scene() as scene:
        scene.guest.send("stress 4 6")
        stressed = asyncio.create_task(scene.guest.answer())
        async with asyncio.timeout(30):
            while not (await look(scene)).away:  # until then no lender has anything that is not here
                await asyncio.sleep(0.02)
        other = await another(scene, 1)
        await scene.engine.unstore(scene.lease, 0)
        await scene.servers.stop(scene.entries[0])
        with pytest.raises(ConflictError):
            await scene.engine.unstore(scene.lease, 1)
        await scene.engine.home(scene.lease, True)
        async with asyncio.timeout(30):
            while (await look(scene)).away:
                await asyncio.sleep(0.02)
        await scene.engine.unstore(scene.lease, 1)
        await scene.servers.stop(other)
        third = await another(scene, 0, home=True)
        assert (await stressed).startswith("wrong 0 ")
        assert await scene.guest.ask("sum") == "wrong 0"
        seen = await look(scene)
        assert seen.here <= scene.engine.cache
        await scene.guest.__aexit__(None, None, None)
        await scene.engine.remove(scene.lease, mapped_by=None, deadline=10)
        await scene.servers.stop(third)
