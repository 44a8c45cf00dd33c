"""Logs on a full disk, and placement in cgroups: both need root to set up."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from framework.holder import DEADLINE
from vmcoal.errors import RefusedError, UnreachableError
from vmcoal.holding.client import ChildSpec, ExitStatus, Holder, read_exits
from vmcoal.layout import Folders, make_private, runtime_home, vm_folders

pytestmark = [pytest.mark.contract, pytest.mark.root]


@pytest.fixture
def disk(surroundings: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = make_private(surroundings / "disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "vmcoal-test", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
async def holder(disk: Path) -> AsyncIterator[Holder]:
    make_private(runtime_home())
    folders = Folders(make_private(runtime_home() / "disk"), disk)
    holder = await Holder.start(folders, name="disk", deadline=DEADLINE)
    yield holder
    with suppress(UnreachableError):
        await holder.shutdown(grace=0)
    await holder.close()


async def run(holder: Holder, source: str, log: Path) -> ExitStatus:
    spec = ChildSpec(id="a", argv=(sys.executable, "-ISc", source), stdout=log, stderr=log, log_limit=1 << 20)
    await holder.spawn(spec)
    return await holder.wait("a", DEADLINE)


async def test_a_full_disk_costs_output_and_nothing_else(holder: Holder, disk: Path) -> None:
    log = disk / "log"
    lines = "import os; [os.write(1, b'%07d\\n' % i) for i in range(100_000)]"
    assert (await run(holder, lines, log)).ok, "the child is not blocked"
    (child,) = await holder.list()
    kept = log.stat().st_size
    assert 4096 <= kept <= 65536
    assert kept + child.dropped == 800_000
    assert log.read_bytes() == b"".join(b"%07d\n" % i for i in range(100_000))[:kept]
    await holder.forget("a")

    # The exits file is on the same disk: what does not fit is missed, what follows is written again.
    with suppress(RefusedError):
        await run(holder, "pass", disk / "other")
        await holder.forget("a")
    log.unlink()
    assert (await run(holder, "print('again')", log)).ok
    assert log.read_text() == "again\n"
    assert read_exits(disk / "exits.log")[-1].id == "a"


async def test_room_that_comes_back_is_used_and_the_gap_is_told(holder: Holder, disk: Path) -> None:
    log, ballast = disk / "log", disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    reading, writing = os.pipe()
    told, tell = os.pipe()
    source = """
import os
os.write(1, b"x" * 10_000)
os.write(3, b"!")
os.read(4, 1)
os.write(1, b"room again\\n")
"""
    ballast.write_bytes(bytes(ballast.stat().st_size - 4096))
    argv = (sys.executable, "-ISc", source)
    await holder.spawn(ChildSpec(id="a", argv=argv, stdout=log, fds={3: tell, 4: reading}))
    assert os.read(told, 1) == b"!"
    # The holder takes the output before it answers what was asked after it; twice, as one event is handled a turn.
    await holder.list()
    await holder.list()
    ballast.unlink()
    os.write(writing, b"!")
    assert (await holder.wait("a", DEADLINE)).ok
    for descriptor in (reading, writing, told, tell):
        os.close(descriptor)
    text = log.read_text()
    (child,) = await holder.list()
    assert child.dropped > 0
    assert text.endswith(f"x\n[vmcoal-holder: {child.dropped} bytes lost here]\nroom again\n")


def _cgroup_mount() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup2" and "ro" not in options.split(","):
            return Path(mount)
    return None


async def test_a_child_starts_in_its_cgroup() -> None:
    mount = _cgroup_mount()
    if mount is None:
        pytest.skip("no writable cgroup2 mount: mount -t cgroup2 none /sys/fs/cgroup")
    group = mount / f"vmcoal-test-{os.getpid()}"
    group.mkdir()
    folders = vm_folders("cgroup")
    folders.make()
    try:
        async with await Holder.start(folders, name="cgroup", deadline=DEADLINE) as holder:
            pid = await holder.spawn(ChildSpec(id="a", argv=("sleep", "1000"), cgroup=group))
            assert f"0::/{group.name}\n" in Path(f"/proc/{pid}/cgroup").read_text()
            assert (group / "cgroup.procs").read_text() == f"{pid}\n"
            await holder.stop("a")
            await holder.shutdown(0)
    finally:
        group.rmdir()
