"""A measurement that is ended half way takes away what it made."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from framework.native import helper

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(os.geteuid() != 0, reason="userfaultfd for kernel faults needs root"),
]

ROOT = Path(__file__).parents[2]


def made() -> set[Path]:
    return set(Path("/dev/shm").glob("vb-*"))


async def test_bench_memory_leaves_nothing_when_it_is_ended() -> None:
    before = made()
    path = f"{ROOT / 'tests'}:{ROOT}:{ROOT / 'qmp'}"
    built = helper("paged-guest").parents[1]  # now, and not while it is waited for
    environment = os.environ | {"QUICK": "1", "RTTS": "2", "PYTHONPATH": path, "VMCOAL_BINDIR": str(built)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "tools" / "bench-memory"),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(120):
        # The pager of the first scene runs; what outlives the test is found by its fixture.
        while not [log for folder in made() - before for log in folder.rglob("pager.log")]:
            assert process.returncode is None
            await asyncio.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, said = await process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in said
    assert made() <= before
