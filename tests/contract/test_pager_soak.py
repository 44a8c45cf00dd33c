"""Lenders and the pager killed and stopped at random moments under write load, again and again: no wrong byte."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time

import pytest

from framework.paged_scene import Scene

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]

ROUNDS = int(os.environ.get("VMCOAL_SOAK_ROUNDS", "200"))


async def test_kills_and_stalls_at_random_moments() -> None:
    chance = random.Random(7)
    async with Scene(replicas=2, request_deadline=0.3) as scene:
        await scene.until(1, links=6)
        slowest = 0.0
        for _ in range(ROUNDS):
            scene.guest.send("stress 4 0.5")
            begun = time.monotonic()
            stressed = asyncio.create_task(scene.guest.answer(120))
            await asyncio.wait((stressed,), timeout=chance.random() * 0.4)
            victim = chance.choice(("first", "second", "pager", "stopped"))
            number = int(victim == "second")
            pid = await (scene.pager() if victim == "pager" else scene.child(number))
            if pid:
                os.kill(pid, signal.SIGSTOP if victim == "stopped" else signal.SIGKILL)
            assert (await stressed).startswith("wrong 0 "), victim
            slowest = max(slowest, time.monotonic() - begun - 0.5)
            if pid and victim == "stopped":
                os.kill(pid, signal.SIGCONT)
            for store in (0, 1):
                await scene.until(store, links=6, behind=0)
            assert (await scene.engine.stats()).regions[scene.lease].lost == 0
        assert await scene.guest.ask("sum") == "wrong 0"
        print(f"{ROUNDS} rounds, longest pause {slowest:.2f} s")  # noqa: T201
