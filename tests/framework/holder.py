"""A holder in the foreground, and a client that may send it anything."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import select
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmcoal.holding.binaries import find_binary
from vmcoal.layout import Folders, vm_folders

DEADLINE = 30.0


class RawClient:
    """A connection that sends packets as they are given."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(os.fspath(path))

    def send(self, packet: bytes, fds: Sequence[int] = ()) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([packet], control)

    def receive(self) -> list[str]:
        """Return the fields of the next packet; none at the end of the connection."""
        return self.socket.recv(1 << 16).decode(errors="replace").split("\0")[:-1]

    def ask(self, *fields: str, fds: Sequence[int] = ()) -> list[str]:
        self.send("".join(f"{field}\0" for field in fields).encode(), fds)
        return self.receive()

    def hung_up(self) -> bool:
        """Return whether the next thing that comes is the end of the connection."""
        try:
            return self.socket.recv(1 << 16) == b""
        except ConnectionResetError:
            return True

    def served(self) -> bool:
        """Return whether it is answered, and not hung up on."""
        try:
            return self.ask("list")[:1] == ["ok"]
        except (BrokenPipeError, ConnectionResetError):
            return False

    def close(self) -> None:
        self.socket.close()


@dataclass
class ForegroundHolder:
    """A holder that is this process's child."""

    folders: Folders
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    @contextlib.contextmanager
    def client(self) -> Iterator[RawClient]:
        client = RawClient(self.folders.holder_socket)
        try:
            yield client
        finally:
            client.close()

    def fds(self) -> int:
        """Return the number of its open descriptors once it has seen every connection that was closed before."""
        with self.client() as client:
            assert client.ask("list")[0] == "ok"
            return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    @property
    def sanitized(self) -> bool:
        """Whether it was built with the address sanitizer."""
        return b"__asan_init" in Path(f"/proc/{self.pid}/exe").read_bytes()

    def resident(self) -> int:
        """Return its resident memory in bytes."""
        return self.stat(24) * resource.getpagesize()

    def stat(self, field: int) -> int:
        """Return a field of /proc/PID/stat, numbered as in proc(5)."""
        return int(Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[field - 3])


@contextlib.contextmanager
def foreground_holder(
    name: str = "raw", *options: str, limits: tuple[str, ...] = (), clean: bool = True
) -> Iterator[ForegroundHolder]:
    """Start a holder and end it with SIGTERM; it must exit with 0 and say nothing (a sanitizer would), unless not
    ``clean``. ``limits`` is a command to run it under."""
    folders = vm_folders(name)
    folders.make()
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [
            *limits,
            *(find_binary("vmcoal-holder"), "--socket", folders.holder_socket, "--exits", folders.exits),
            *("--name", name, "--ready-fd", str(writing), *options),
        ],
        pass_fds=[writing],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    try:
        assert select.select([reading], [], [], DEADLINE)[0]
        assert os.read(reading, 2) == b"\0", process.communicate()[1]
        assert os.read(reading, 1) == b"", "the descriptor is closed"
        yield ForegroundHolder(folders, process)
    finally:
        os.close(reading)
        process.terminate()
        try:
            stderr = process.communicate(timeout=DEADLINE)[1].decode()
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
    if clean:
        assert (process.returncode, stderr) == (0, "")
        assert not folders.holder_socket.exists()


def process_gone(pidfd: int) -> bool:
    """Wait for the end of a process and close its descriptor."""
    try:
        return bool(select.select([pidfd], [], [], DEADLINE)[0])
    finally:
        os.close(pidfd)
