"""A copy of borrowed memory on this host's disk, on the real pager and a real nbdkit."""

from __future__ import annotations

import asyncio
import os

import msgspec
import pytest

from framework.paged_scene import SIZE, Scene
from vmcoal.backends.local_copy import ADDRESS, LocalCopies
from vmcoal.errors import RefusedError
from vmcoal.layout import vm_folders

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]


async def test_a_lender_may_die_when_its_pages_are_on_the_disk_too() -> None:
    async with Scene() as scene:
        copies = LocalCopies(scene.engine._holder, vm_folders("dev"))
        await scene.guest.ask("fill 1")
        server = await copies.start(scene.lease, SIZE)
        file = vm_folders("dev").local_copy(scene.lease)
        assert file.stat().st_blocks * 512 >= SIZE
        lease = msgspec.structs.replace(scene.entries[0].lease, lender="local")
        await scene.engine.store(scene.lease, 1, lease, server, ADDRESS, deadline=10)
        await scene.until(1, behind=0)
        await scene.servers.stop(scene.entries[0])
        assert await scene.guest.ask("check 1") == "wrong 0"
        await copies.sweep([scene.lease])
        assert file.exists()
        # What was written since is in one place only, so the region is ended before the copy is.
        await scene.guest.__aexit__(None, None, None)
        await scene.engine.remove(scene.lease, mapped_by=None, deadline=10)
        await copies.sweep([])
        assert not file.exists()
        async with asyncio.timeout(10):
            assert await scene.engine._holder.list() == []


async def test_a_disk_without_room_is_told_before() -> None:
    async with Scene() as scene:
        copies = LocalCopies(scene.engine._holder, vm_folders("dev"))
        with pytest.raises(RefusedError, match="do not fit on the disk"):
            await copies.start(scene.lease, 1 << 50)
        assert not vm_folders("dev").local_copy(scene.lease).exists()
