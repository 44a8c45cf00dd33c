"""A program in the guest that uses memory of one node, and can say whether a byte of it is wrong."""

from __future__ import annotations

import select
import subprocess

from framework.path import Scene

_PROGRAM = """
import hashlib, mmap, os, sys
size, round = {size} << 20, 0
memory = mmap.mmap(-1, size)
def page(at):
    return hashlib.sha256(b"%d %d" % (round, at)).digest() * 128
def write():
    for at in range(0, size, 4096):
        memory[at : at + 4096] = page(at)
    return "written"
def check():
    return sum(memory[at : at + 4096] != page(at) for at in range(0, size, 4096))
print(write(), flush=True)
for line in sys.stdin:
    if line == "write\\n":
        round += 1
        print(write(), flush=True)
    elif line == "read disk\\n":
        disk = os.open("/dev/vda", os.O_RDONLY | os.O_DIRECT)
        count = os.preadv(disk, [memoryview(memory)[: 1 << 20]], 0)
        print(hashlib.sha256(memory[:count]).hexdigest(), flush=True)
    else:
        print(check(), flush=True)
"""


class Holding:
    """Fills ``size`` MiB of ``node`` with pages that are all different; ended by `end`."""

    def __init__(self, shed: Scene, node: int, size: int) -> None:
        argv = ("numactl", f"--membind={node}", "python3", "-c", _PROGRAM.format(size=size))
        self._process = shed.spawn("exec", "-i", shed.vm, "--", *argv, stderr=subprocess.DEVNULL)
        assert self.line() == "written"

    def line(self) -> str:
        """Wait for the answer to what was asked."""
        assert self._process.stdout
        return self._process.stdout.readline().decode().strip()

    def ask(self, what: str = "check") -> None:
        """Ask for something: ``check``, ``write`` (other pages) or ``read disk`` (its first MiB, into this memory)."""
        assert self._process.stdin
        self._process.stdin.write(f"{what}\n".encode())
        self._process.stdin.flush()

    def answers(self) -> bool:
        """Return whether there is an answer now."""
        assert self._process.stdout
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def wrong_pages(self) -> int:
        """Return how many pages are not as they were written."""
        self.ask()
        return int(self.line())

    def write(self) -> None:
        """Write other pages."""
        self.ask("write")
        assert self.line() == "written"

    def end(self) -> None:
        """End the program."""
        self._process.communicate(timeout=60)
