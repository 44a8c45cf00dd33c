"""The real agent behind a stand-in for QEMU's virtio-serial port, for tests of the agent channel."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from vmcoal.layout import VmFolders

from .fake_sysfs import Tree


class SerialPort:
    """Joins the host's socket (agent.sock) and the guest's (guest.sock), one client on each side, as QEMU does.

    What the host sends while no agent is there waits; what the guest sends while no host is there is lost.
    """

    def __init__(self, folders: VmFolders) -> None:
        self.host_path = folders.agent_socket
        self.guest_path = folders.runtime / "guest.sock"
        self._guest: asyncio.StreamWriter | None = None
        self._host: asyncio.StreamWriter | None = None
        self._guest_there = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> SerialPort:
        self.host_path.parent.mkdir(parents=True, exist_ok=True)
        self._servers = [
            await asyncio.start_unix_server(self._on_host, self.host_path),
            await asyncio.start_unix_server(self._on_guest, self.guest_path),
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for path in (self.host_path, self.guest_path):
            path.unlink(missing_ok=True)

    def unplug_guest(self) -> None:
        """Hang up on the guest's side, as the agent sees it when the host goes."""
        if self._guest:
            self._guest.transport.abort()

    async def _on_host(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._track()
        self._host = writer
        try:
            while True:
                await self._guest_there.wait()
                if not (data := await reader.read(65536)):
                    break
                if self._guest:
                    self._guest.write(data)
                    await self._guest.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._host = None
            writer.transport.abort()
            self.unplug_guest()

    async def _on_guest(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._track()
        self._guest = writer
        self._guest_there.set()
        try:
            while data := await reader.read(65536):
                if self._host:
                    self._host.write(data)
                    await self._host.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            if self._guest is writer:
                self._guest = None
                self._guest_there.clear()
            writer.transport.abort()

    def _track(self) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@contextlib.asynccontextmanager
async def running_agent(
    tree: Tree, port: str, *, python: str = sys.executable, poweroff: str = "/bin/true"
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the real agent on ``port`` against ``tree``."""
    program = Path(__file__).with_name("fake_sysfs.py")
    argv = [python, "-B", "-W", "error", str(program), "--port", port]
    argv += ["--sysfs", str(tree.sys), "--procfs", str(tree.proc), "--poweroff", poweroff]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = await asyncio.create_subprocess_exec(*argv, env=environment, stderr=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        assert process.stderr
        said = await asyncio.wait_for(process.stderr.read(), 10)
        await asyncio.wait_for(process.wait(), 10)
        assert b"Traceback" not in said, said.decode()
        sys.stderr.write(said.decode())
