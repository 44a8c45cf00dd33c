"""What the page engine costs its host while nothing happens, and what it does where there is no memory left."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.lent import entry, lend, memory_servers, pager_engine, region_file
from framework.paged import PagedGuest
from framework.paged_scene import SIZE, Scene
from vmcoal.backends.pager import PagerEngine
from vmcoal.model.lease import Lease, MemoryServer
from vmcoal.model.units import MIB

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]

# epoll_wait and epoll_pwait, of x86-64 and of the architectures with the common table.
WAITS = {"232", "281", "22"}
FOR_EVER = {"0xffffffff", "0xffffffffffffffff"}


def sleeps_for_ever(thread: Path) -> bool:
    """Whether a thread waits for events and has no deadline (proc_pid_syscall(5))."""
    words = (thread / "syscall").read_text().split()
    return words[0] in WAITS and words[4] in FOR_EVER


async def test_nothing_wakes_an_idle_pager() -> None:
    async with Scene() as scene:
        assert await scene.guest.ask("fill 3") == "filled"
        assert await scene.guest.ask("check 3") == "wrong 0"
        threads = list(Path(f"/proc/{await scene.pager()}/task").iterdir())
        assert len(threads) == 3
        async with asyncio.timeout(20):
            while not all(map(sleeps_for_ever, threads)):
                await asyncio.sleep(0.02)


async def test_memory_that_was_never_used_needs_no_records() -> None:
    async with Scene() as scene:
        await scene.until(0, links=6, behind=0)
        for descriptor in Path(f"/proc/{await scene.pager()}/fd").iterdir():
            if descriptor.readlink().name.startswith(f"memfd:{scene.lease}"):
                records = descriptor.stat()
                break
        assert records.st_size > SIZE // 4096 * 24
        assert records.st_blocks * 512 < records.st_size // 4
        assert await scene.guest.ask("fill 3") == "filled"
        assert descriptor.stat().st_blocks * 512 > records.st_size // 2


def mount(*options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", *options], check=True)


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mount("-o", "size=256m,mode=700", "none", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def fill_more_than_there_is(engine: PagerEngine, lease: Lease, server: MemoryServer, folder: Path) -> None:
    region = await engine.prepare(lease, server, "127.0.0.1", deadline=10)
    mount("-o", "remount,size=4m", "none", str(folder))
    async with PagedGuest(region_file(region), engine.environment()) as guest:
        guest.send("fill 1")
        async with asyncio.timeout(20):
            # It waits, and does not fault again and again.
            while not ((said := (await engine.stats()).counters)["starved"] and said["deferred-now"]):
                await asyncio.sleep(0.02)
        await engine.set_cache(2 * MIB)
        assert await guest.answer() == "filled"
        assert await guest.ask("check 1") == "wrong 0"
    await engine.remove(lease.id, mapped_by=guest.process.pid, deadline=10)


async def test_a_host_without_memory_is_waited_for(tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with memory_servers() as servers, pager_engine(16 * MIB) as engine:
        one, server = await lend(servers, entry(16 * MIB))
        try:
            with monkeypatch.context() as patch:
                patch.setenv("VMCOAL_SHM_DIR", str(tmpfs))
                await fill_more_than_there_is(engine, one.lease, server, tmpfs)
        finally:
            await servers.stop(one)
