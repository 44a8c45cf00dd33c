"""What the tour reads of the guest, and that it ends well only if the guest sees what it shall."""

from __future__ import annotations

from typing import cast

import pytest

from vmcoal.errors import DegradedError, ExecutionError
from vmcoal.lab.channel import Channel, Done
from vmcoal.lab.tour import BORROWER, CHAPTERS, LINKS, Tour, far_nodes
from vmcoal.model.guest import CommandEnd, GuestCommand

pytestmark = pytest.mark.unit

NUMACTL = """available: 3 nodes (0-2)
node 0 cpus: 0
node 0 size: 404 MB
node 0 free: 312 MB
node 1 cpus:
node 1 size: 256 MB
node 1 free: 256 MB
node 2 cpus:
node 2 size: {second} MB
node 2 free: 0 MB
node distances:
node   0   1   2
  0:  10  80  160
  1:  80  10  160
  2:  160  160  10
"""


class Recorder:
    """A narrator that remembers."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, str]] = []
        self.outputs: list[str] = []

    def chapter(self, number: int, of: int, title: str, text: str) -> None:
        raise AssertionError(title)

    def command(self, where: str, command: str) -> None:
        self.commands.append((where, command))

    def output(self, text: str) -> None:
        self.outputs.append(text)


class FakeChannel:
    """A host that prints what it is told; ``window`` is what `vmcoal lend pair` writes to stderr."""

    def __init__(self, printed: str = "", window: tuple[bytes, ...] = ()) -> None:
        self.printed = printed
        self.window = window
        self.given: list[tuple[list[str], bytes]] = []

    async def run(self, argv: list[str], *, stdin: bytes = b"", deadline: float) -> Done:
        self.given.append((argv, stdin))
        return Done(0, None, self.printed.encode(), b"")

    async def stream(self, command: GuestCommand, *, on_output: object, deadline: float) -> CommandEnd:
        for part in self.window:
            await on_output(2, part)  # type: ignore[operator]
        return CommandEnd(code=5)


def tour(**hosts: FakeChannel) -> tuple[Tour, Recorder]:
    recorder = Recorder()
    return Tour("lab", recorder, {name: cast(Channel, host) for name, host in hosts.items()}), recorder


def test_far_nodes_are_those_with_memory() -> None:
    assert far_nodes(NUMACTL.format(second=256)) == {1: 80, 2: 160}
    assert far_nodes(NUMACTL.format(second=0)) == {1: 80}
    assert far_nodes("no NUMA here") == {}


async def test_the_guest_must_see_two_nodes_at_two_distances() -> None:
    look = next(chapter for chapter in CHAPTERS if chapter.title == "What the guest sees")
    good, recorder = tour(host1=FakeChannel(NUMACTL.format(second=256)))
    await look.act(good)
    assert (BORROWER, "vmcoal exec web -- lscpu") in recorder.commands
    bad, _ = tour(host1=FakeChannel(NUMACTL.format(second=0)))
    with pytest.raises(DegradedError, match="as many distances"):
        await look.act(bad)


async def test_pairing_hands_the_code_over() -> None:
    borrower = FakeChannel("paired")
    made, recorder = tour(host1=borrower, host2=FakeChannel(window=(b"waiting\n    co", b"de: 123-456", b"-789\n\n")))
    await made.pair("host2")
    assert borrower.given == [(["vmcoal", "pair", "host2", "--name", "host2", "--code-file", "-"], b"123-456-789")]
    assert "code: 123-456-789" in recorder.outputs


async def test_a_window_without_a_code_is_an_error() -> None:
    made, _ = tour(host1=FakeChannel(), host2=FakeChannel(window=(b"vmcoal: error: no\n",)))
    with pytest.raises(ExecutionError) as caught:
        await made.pair("host2")
    assert "exit code 5" in str(caught.value)
    assert "no" in caught.value.details["stderr"]


def test_the_farther_lender_comes_first() -> None:
    delays = [profile.rtt for profile in LINKS.values()]
    assert delays == sorted(delays, reverse=True)
