"""The real qemu-guest-agent, on this machine and with everything that changes it forbidden."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmcoal.errors import DeadlineError, RefusedError
from vmcoal.guest.channel import QgaAgent, connect_agent
from vmcoal.layout import VmFolders
from vmcoal.model.guest import CommandEnd, CommandInput, GuestCommand

QEMU_GA = os.environ.get("VMCOAL_QEMU_GA") or shutil.which("qemu-ga")
pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(QEMU_GA is None, reason="no qemu-ga: install qemu-guest-agent or set VMCOAL_QEMU_GA"),
]
FORBIDDEN = "guest-shutdown,guest-suspend-ram,guest-suspend-disk,guest-set-vcpus,guest-set-memory-blocks,guest-set-time"


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[QgaAgent]:
    folders = VmFolders(tmp_path / "r", tmp_path / "s")
    folders.runtime.mkdir()
    argv = [str(QEMU_GA), "-m", "unix-listen", "-p", str(folders.qga_socket), "-t", str(tmp_path), "-b", FORBIDDEN]
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.DEVNULL)
    try:
        agent = await connect_agent(folders, deadline=20)
        assert isinstance(agent, QgaAgent)
        yield agent
        await agent.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_facts(agent: QgaAgent) -> None:
    info = await agent.info()
    assert info.release == os.uname().release
    assert info.agent_version
    topology = await agent.topology()
    assert sum(cpu.online for cpu in topology.cpus) == os.cpu_count()
    assert await agent.ping() > 0


async def test_commands(agent: QgaAgent) -> None:
    streams = {1: b"", 2: b""}

    async def on_output(stream: int, data: bytes) -> None:
        streams[stream] += data

    stdin: asyncio.Queue[CommandInput] = asyncio.Queue()
    stdin.put_nowait(CommandInput(data=b"hello", eof=True))
    command = GuestCommand(
        argv=("sh", "-c", 'cat; echo "$COLOUR" >&2; pwd; exit 3'), env={"COLOUR": "blue"}, cwd="/usr"
    )
    assert await agent.exec(command, on_output=on_output, stdin=stdin, deadline=20) == CommandEnd(code=3)
    assert streams == {1: b"hello/usr\n", 2: b"blue\n"}
    with pytest.raises(RefusedError, match="no-such-command"):
        await agent.exec(GuestCommand(argv=("no-such-command",)), on_output=on_output, deadline=20)
    with pytest.raises(DeadlineError):
        await agent.exec(GuestCommand(argv=("sleep", "600")), on_output=on_output, deadline=0.5)


async def test_a_forbidden_command_is_a_refusal(agent: QgaAgent) -> None:
    with pytest.raises(RefusedError, match="guest-shutdown"):
        await agent.poweroff()
