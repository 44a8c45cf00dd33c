"""Pages on standby: used again without a fetch, and as safe as any other where a lender or the pager ends meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from framework.lent import entry, lend
from framework.paged_scene import SIZE, Scene
from vmcoal.backends.pager_client import PagerStats, home, order, unstore

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]

PAGES = SIZE // 4096
CACHE = 2 << 20
STANDBY = CACHE // 4096 // 16


async def settled(scene: Scene, reached: Callable[[PagerStats], bool]) -> PagerStats:
    """Wait until the pager's counters are as wanted."""
    async with asyncio.timeout(60):
        while not reached(stats := await scene.engine.stats()):
            await asyncio.sleep(0.02)
    return stats


def touched(path: Path, count: int) -> Path:
    """Write a trace that touches pages singly, with none beside another, so that nothing is fetched ahead."""
    # Steps that never come twice are no stride.
    pages = [page * page * 7 % PAGES for page in range(1, 4 * count)]
    path.write_bytes(b"".join(page.to_bytes(4, "little") for page in list(dict.fromkeys(pages))[:count]))
    return path


async def filled(scene: Scene, tmp_path: Path) -> PagerStats:
    """Fill the memory, and use many single pages, so that some of them are on standby."""
    assert await scene.guest.ask("fill 7") == "filled"
    assert (await scene.guest.ask(f"play {touched(tmp_path / 'trace', 900)}")).startswith("uses 900 ")
    return await settled(scene, lambda stats: stats.counters["state-standby"] > STANDBY // 2)


async def test_pages_that_left_a_moment_ago_are_used_again_without_a_fetch(tmp_path: Path) -> None:
    async with Scene(cache=CACHE) as scene:
        stats = await filled(scene, tmp_path)
        assert stats.counters["state-standby"] <= STANDBY
        assert stats.counters["charged"] <= stats.counters["budget"]
        # The last of those that were used left last: backwards from there they are on standby.
        pages = touched(tmp_path / "again", 900).read_bytes()
        backwards = b"".join(pages[at : at + 4] for at in range(len(pages) - 4, -4, -4))
        (tmp_path / "again").write_bytes(backwards)
        for _ in range(3):
            assert (await scene.guest.ask(f"play {tmp_path / 'again'}")).startswith("uses 900 ")
        counters = (await scene.engine.stats()).counters
        assert 0 < counters["standby-used"] <= counters["standby"]
        assert await scene.guest.ask("check 7") == "wrong 0"


async def test_a_smaller_cache_has_fewer_on_standby_and_home_none(tmp_path: Path) -> None:
    async with Scene(cache=CACHE) as scene:
        await filled(scene, tmp_path)
        await order(scene.engine.socket, "cache", ("size", CACHE // 4), deadline=10)
        stats = await settled(scene, lambda stats: stats.counters["charged"] <= stats.counters["budget"])
        assert stats.counters["state-standby"] <= 16
        await order(scene.engine.socket, "cache", ("size", CACHE), deadline=10)
        assert (await scene.guest.ask(f"play {tmp_path / 'trace'}")).startswith("uses 900 ")
        await home(scene.engine.socket, scene.lease, on=True, deadline=10)
        stats = await settled(scene, lambda stats: not stats.regions[scene.lease].away)
        assert stats.counters["state-standby"] == 0
        await unstore(scene.engine.socket, scene.lease, 0, deadline=10)
        assert await scene.guest.ask("check 7") == "wrong 0"


async def test_what_only_standby_has_goes_to_the_lender_that_takes_the_place_of_another(tmp_path: Path) -> None:
    async with Scene(cache=CACHE, replicas=2) as scene:
        await scene.until(1, links=6)
        await filled(scene, tmp_path)
        for number in (0, 1):
            await scene.servers.stop(scene.entries[number])
            scene.entries[number], server = await lend(scene.servers, entry(SIZE))
            await scene.engine.store(scene.lease, number, scene.entries[number].lease, server, "127.0.0.1", deadline=20)
            await scene.until(number, links=6, behind=0)
        assert (await scene.engine.stats()).regions[scene.lease].lost == 0
        assert await scene.guest.ask("check 7") == "wrong 0"
        for one in scene.entries:
            await scene.servers.stop(one)


async def test_a_discarded_page_that_was_on_standby_is_zeros(tmp_path: Path) -> None:
    async with Scene(cache=CACHE) as scene:
        await filled(scene, tmp_path)
        assert await scene.guest.ask(f"zero 0 {PAGES}") == "zeroed"
        assert await scene.counter("state-standby") == 0
        assert await scene.guest.ask("read 1") == "value 0"
        assert await scene.guest.ask("sum") == "wrong 0"


async def test_a_pager_that_is_killed_takes_nothing_of_standby_with_it(tmp_path: Path) -> None:
    async with Scene(cache=CACHE, replicas=2) as scene:
        await scene.until(1, links=6)
        for turn in range(4):
            await filled(scene, tmp_path)
            scene.guest.send(f"play {tmp_path / 'trace'}")
            before = await scene.pager()
            os.kill(before, signal.SIGKILL)
            assert (await scene.guest.answer()).startswith("uses 900 ")
            assert await scene.guest.ask("check 7") == "wrong 0", turn
            assert (await scene.engine.stats()).regions[scene.lease].lost == 0
