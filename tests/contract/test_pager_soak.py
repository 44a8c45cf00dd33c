"""Lenders and the pager killed, stopped and lost at random moments under write load, again and again: no wrong byte.

VMCOAL_SOAK_ROUNDS=200 pytest -s -m soak tests/contract/test_pager_soak.py      # prints a table
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from dataclasses import dataclass

import pytest

from framework.lent import entry, lend
from framework.paged_scene import SIZE, Scene

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]

ROUNDS = int(os.environ.get("VMCOAL_SOAK_ROUNDS", "200"))
# So many of them are of this kind, in percent.
KINDS = {"server killed": 60, "host lost": 15, "server stopped": 15, "pager killed": 10}
SUM_EVERY = 10


@dataclass
class Tally:
    """What the rounds of one kind came to: pages used, wrong words, the longest use of a page in ms."""

    rounds: int = 0
    used: int = 0
    wrong: int = 0
    longest: float = 0.0


async def end_one(scene: Scene, kind: str, number: int) -> int:
    """Do it; returns the process that is to go on afterwards, or 0."""
    if kind == "host lost":
        await scene.servers.stop(scene.entries[number])
        return 0
    pid = await (scene.pager() if kind == "pager killed" else scene.child(number))
    if pid:
        os.kill(pid, signal.SIGSTOP if kind == "server stopped" else signal.SIGKILL)
    return pid if kind == "server stopped" else 0


async def replace_lost(scene: Scene, number: int) -> None:
    """Lend the region other bytes in place of those that are gone."""
    scene.entries[number], server = await lend(scene.servers, entry(SIZE))
    await scene.engine.store(scene.lease, number, scene.entries[number].lease, server, "127.0.0.1", deadline=20)


async def test_one_of_two_lenders_ends_at_random_moments() -> None:
    chance = random.Random(7)
    tallies = {kind: Tally() for kind in KINDS}
    async with Scene(replicas=2, request_deadline=0.3) as scene:
        lease = scene.lease
        await scene.until(1, links=6)
        for turn in range(ROUNDS):
            scene.guest.send("stress 4 0.5")
            stressed = asyncio.create_task(scene.guest.answer(120))
            await asyncio.wait((stressed,), timeout=chance.random() * 0.4)
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            number = chance.randrange(2)
            stopped = await end_one(scene, kind, number)
            said = (await stressed).split()
            tally = tallies[kind]
            tally.rounds += 1
            tally.wrong += int(said[1])
            tally.used += int(said[3])
            tally.longest = max(tally.longest, int(said[5]) / 1000)
            if stopped:
                os.kill(stopped, signal.SIGCONT)
            if kind == "host lost":
                await replace_lost(scene, number)
            for store in (0, 1):
                await scene.until(store, links=6, behind=0)
            assert (await scene.engine.stats()).regions[lease].lost == 0, (turn, kind)
            if turn % SUM_EVERY == SUM_EVERY - 1:
                assert await scene.guest.ask("sum") == "wrong 0", (turn, kind)
        assert await scene.guest.ask("sum") == "wrong 0"
        for one in scene.entries:
            await scene.servers.stop(one)
    print("\n| what ended | rounds | pages used | wrong | longest wait |\n|---|---|---|---|---|")  # noqa: T201
    for kind, tally in tallies.items():
        print(f"| {kind} | {tally.rounds} | {tally.used} | {tally.wrong} | {tally.longest:.0f} ms |")  # noqa: T201
    assert not any(tally.wrong for tally in tallies.values())
