"""Writes that a lender does late, or in another order, and lenders that fail in every other way: no wrong byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
import pytest

from framework.held_link import HeldLink
from framework.paged_scene import SIZE, Scene
from vmcoal.backends.pager_client import order

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]


async def hold_writes(scene: Scene, link: HeldLink) -> list[asyncio.Event]:
    """Have the link hold what is sent, while everything is written, until there are writes among it that were given up.
    Returns what to set then."""
    held = []
    filling: asyncio.Task[str] | None = None
    async with asyncio.timeout(60):
        while not (await scene.engine.stats()).regions[scene.lease].stores[0].unsettled:
            if filling is None or filling.done():
                filling = asyncio.create_task(scene.guest.ask("fill 2"))
            # Perhaps nothing is under way just now: then it is the turn of the connections that are made meanwhile.
            held.append(link.hold())
            await asyncio.wait((filling,), timeout=0.6)
        assert filling
        assert await filling == "filled"
    return held


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
            held = await hold_writes(scene, link)
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
                await scene.engine.store(scene.lease, 1, one.lease, through, "127.0.0.1", deadline=10)
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
        assert stats.counters["hedge-won"] <= stats.counters["hedged"]
        assert [store.links for store in stats.regions[scene.lease].stores.values()] == [6, 6]
        assert await scene.guest.ask("check 1") == "wrong 0"


async def test_a_page_that_is_discarded_while_it_turns_out_to_be_lost_is_zeros() -> None:
    async with Scene(request_deadline=30) as scene:
        await scene.guest.ask("fill 1")
        # Few pages are on standby, and not those that left first; and nothing is left to write, or the reader would
        # wait for room.
        await scene.engine.set_cache(SIZE // 32)
        async with asyncio.timeout(60):
            while (said := (await scene.engine.stats()).counters)["state-write"] or said["charged"] >= said["budget"]:
                await asyncio.sleep(0.02)
        await scene.spoil(0, lambda data: bytes(len(data)))
        async with scene.stopped(0):
            scene.guest.send("read 0")
            async with asyncio.timeout(20):
                while not await scene.counter("state-fetch"):
                    await asyncio.sleep(0.01)
            faults = await scene.counter("faults")
            await order(
                scene.engine.socket, "discard", ("id", scene.lease), ("offset", 0), ("length", 4096), deadline=5
            )
            # The reader is woken, and waits again: what comes is not for it.
            async with asyncio.timeout(20):
                while await scene.counter("faults") == faults:
                    await asyncio.sleep(0.01)
        assert await scene.guest.answer() == "value 0"
        assert await scene.counter("invalid")


@contextlib.asynccontextmanager
async def other_server(scene: Scene, *filters: str) -> AsyncIterator[int]:
    """The lender's bytes by a server that goes wrong, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        argv = [
            "nbdkit",
            "--foreground",
            "--exit-with-parent",
            *(f"--filter={one}" for one in filters if "=" not in one),
        ]
        argv += ["file", str(scene.servers.file(scene.entries[0])), *(one for one in filters if "=" in one)]
        # systemd's way to hand over a listening socket: as descriptor 3, and to this process alone.
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0', "sh", *argv, stdin=listener.fileno()
        )
        try:
            yield listener.getsockname()[1]
        finally:
            process.kill()
            await process.wait()


async def use(scene: Scene, port: int) -> None:
    """Point the region's store to a server without TLS that says it is the same."""
    server = scene.servers.describe(scene.entries[0])
    assert server
    fields = {"id": scene.lease, "number": 0, "address": "127.0.0.1", "port": port, "export": server.export}
    await order(scene.engine.socket, "store", *fields.items(), deadline=5)


@pytest.mark.parametrize(
    "filters",
    [
        ("error", "error-pread-rate=20%", "error-pwrite-rate=20%"),
        ("delay", "rdelay=100ms", "wdelay=150ms"),
        ("error", "error-rate=5%", "delay", "rdelay=20ms", "wdelay=20ms"),
    ],
    ids=["errors", "slow", "both"],
)
async def test_a_lender_whose_server_goes_wrong(filters: tuple[str, ...]) -> None:
    async with Scene() as scene, other_server(scene, *filters) as port:
        assert (await scene.guest.ask("stress 4 0.5")).startswith("wrong 0 ")
        await use(scene, port)
        assert (await scene.guest.ask("stress 4 2", 90)).startswith("wrong 0 ")
        server = scene.servers.describe(scene.entries[0])
        assert server
        await scene.engine.relink(scene.entries[0].lease, server, "127.0.0.1", deadline=10)
        assert await scene.guest.ask("sum") == "wrong 0"
        stats = await scene.engine.stats()
        assert stats.regions[scene.lease].lost == 0
        assert stats.counters["invalid"] == 0


async def test_a_lender_whose_connections_end_anywhere() -> None:
    async with Scene() as scene:
        server = scene.servers.describe(scene.entries[0])
        assert server
        async with HeldLink(server.port, cut=1 << 20) as link:
            assert (await scene.guest.ask("stress 4 0.5")).startswith("wrong 0 ")
            through = msgspec.structs.replace(server, port=link.port)
            await scene.engine._store(scene.lease, 0, through, "127.0.0.1", 5)
            assert (await scene.guest.ask("stress 4 3", 90)).startswith("wrong 0 ")
            await scene.engine.relink(scene.entries[0].lease, server, "127.0.0.1", deadline=10)
        assert await scene.guest.ask("sum") == "wrong 0"
        assert (await scene.engine.stats()).regions[scene.lease].lost == 0


@pytest.mark.parametrize("by", [-4096, 4096])
async def test_a_lender_that_lies_about_its_size(by: int) -> None:
    async with Scene() as scene, other_server(scene, "truncate", f"truncate={SIZE + by}") as port:
        await scene.guest.ask("fill 1")
        await use(scene, port)
        await scene.until(0, links=0, refused=True)
        server = scene.servers.describe(scene.entries[0])
        assert server
        await scene.engine.relink(scene.entries[0].lease, server, "127.0.0.1", deadline=10)
        assert await scene.guest.ask("check 1") == "wrong 0"
