"""The guided tour of a lab: three hosts, two links, and a guest on the first that grows by memory of the other two.

What is said and done is a list of `Chapter`; whoever runs the tour shows it through a `Narrator`. Everything a chapter
runs, a user could type.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

from vmcoal.errors import DegradedError, ExecutionError
from vmcoal.lab.channel import Channel
from vmcoal.lab.lab import lab_host, lab_link
from vmcoal.lab.links import PROFILES, describe_link
from vmcoal.model.guest import GuestCommand

BORROWER = "host1"
LINKS = {"host3": PROFILES["wifi"], "host2": PROFILES["lan"]}
"""The lenders, and what the borrower's link to each is like. The farther comes first: should the emulation be so slow
that both links fit the same node, it is the farther lender's."""
GUEST = "web"

_COMMAND = 180.0
_BOOT = 300.0
_CODE = re.compile(rb"code: (\S+)")
_CHECK = """
import mmap
size = 4 << 20
memory = mmap.mmap(-1, size)
for at in range(0, size, 4096):
    memory[at : at + 4096] = at.to_bytes(8, "little") * 512
bad = sum(memory[at : at + 4096] != at.to_bytes(8, "little") * 512 for at in range(0, size, 4096))
print(f"{size >> 20} MiB written and read back, {bad} wrong pages")
raise SystemExit(bad != 0)
"""


class Narrator(Protocol):
    """Shows the tour to somebody."""

    def chapter(self, number: int, of: int, title: str, text: str) -> None:
        """A chapter begins: what is done, and why."""

    def command(self, where: str, command: str) -> None:
        """A command is run; ``where`` is a host, or empty for this machine."""

    def output(self, text: str) -> None:
        """What the command printed."""


@dataclass
class Tour:
    """The tour of lab ``lab`` while it runs: ways into its hosts, and who sees it."""

    lab: str
    narrator: Narrator
    channels: dict[str, Channel] = field(default_factory=dict)

    async def run(self, host: str, *argv: str, deadline: float = _COMMAND, hide: tuple[str, ...] = ()) -> str:
        """Run ``vmcoal ARGV`` on a host, show it and what it prints but lines that begin with one of ``hide``, and
        return all of it."""
        self.narrator.command(host, shlex.join(("vmcoal", *_shortened(argv))))
        done = await self.channels[host].run(["vmcoal", *argv], deadline=deadline)
        if lines := [line for line in done.text.splitlines() if not hide or not line.startswith(hide)]:
            self.narrator.output("\n".join(lines))
        return done.text

    async def pair(self, lender: str) -> None:
        """Pair the borrower with a lender by the code that the lender shows."""
        code: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        said = bytearray()

        async def listen(stream: int, data: bytes) -> None:
            said.extend(data)
            match = _CODE.search(said)
            if match and said.endswith(b"\n") and not code.done():
                code.set_result(match[1])

        self.narrator.command(lender, "vmcoal lend pair")
        window = asyncio.create_task(
            self.channels[lender].stream(
                GuestCommand(argv=("vmcoal", "lend", "pair")), on_output=listen, deadline=_COMMAND
            )
        )
        try:
            window.add_done_callback(lambda _: code.cancel())
            await asyncio.wait({code})
            if code.cancelled():
                end = await window
                raise ExecutionError(
                    f"vmcoal lend pair ended with exit code {end.code} and showed no code",
                    host=lender,
                    stderr=said.decode(errors="replace"),
                )
            self.narrator.output(f"code: {code.result().decode(errors='replace')}")
            self.narrator.command(BORROWER, f"vmcoal pair {lender} --name {lender}")
            done = await self.channels[BORROWER].run(
                ["vmcoal", "pair", lender, "--name", lender, "--code-file", "-"], stdin=code.result(), deadline=_COMMAND
            )
            self.narrator.output(done.text)
            await window
        finally:
            window.cancel()
            await asyncio.gather(window, return_exceptions=True)


@dataclass(frozen=True)
class Chapter:
    """One step of the tour: its title, what it is about, and what it does."""

    title: str
    text: str
    act: Callable[[Tour], Awaitable[None]]


def _shortened(argv: Sequence[str]) -> list[str]:
    return [word if "\n" not in word else "…" for word in argv]


async def _set_links(tour: Tour) -> None:
    for lender, profile in LINKS.items():
        tour.narrator.command("", f"vmcoal lab link {BORROWER} {lender} {profile.name}")
        await lab_link(tour.lab, BORROWER, lender, profile)
        tour.narrator.output(describe_link(profile))
        done = await tour.channels[BORROWER].run(["ping", "-q", "-c", "5", "-i", "0.2", lender], deadline=_COMMAND)
        tour.narrator.command(BORROWER, f"ping -c 5 {lender}")
        tour.narrator.output(done.text.splitlines()[-1])


async def _lend(tour: Tour) -> None:
    for lender in LINKS:
        await tour.run(lender, "lend", "--name", lender, "--memory", "512M", "--listen", "0.0.0.0")  # noqa: S104


async def _pair(tour: Tour) -> None:
    for lender in LINKS:
        await tour.pair(lender)
    await tour.run(BORROWER, "lenders")


async def _boot(tour: Tour) -> None:
    sizes = ("--cpus", "1", "--memory", "512M", "--far-nodes", "7", "--far-cpus", "1", "--far-memory", "512M")
    await tour.run(BORROWER, "boot", GUEST, "--net", "none", *sizes, deadline=_BOOT)
    await tour.run(BORROWER, "exec", GUEST, "--", "numactl", "-H")


async def _attach(tour: Tour) -> None:
    for lender in LINKS:
        await tour.run(BORROWER, "attach", GUEST, "--from", lender, "--memory", "256M")


async def _look(tour: Tour) -> None:
    await tour.run(BORROWER, "exec", GUEST, "--", "lscpu", hide=("Flags:", "Vulnerability"))
    text = await tour.run(BORROWER, "exec", GUEST, "--", "numactl", "-H")
    await tour.run(BORROWER, "status", GUEST)
    found = far_nodes(text)
    if len(found) != len(LINKS) or len(set(found.values())) != len(LINKS):
        raise DegradedError(
            f"the guest shall have memory in {len(LINKS)} far nodes at as many distances, and has it at {found}",
            hint="vmcoal lab tour --keep leaves the lab as it is, to look at",
        )


async def _use(tour: Tour) -> None:
    text = await tour.channels[BORROWER].run(["vmcoal", "exec", GUEST, "--", "numactl", "-H"], deadline=_COMMAND)
    node = min(far_nodes(text.text))
    await tour.run(BORROWER, "exec", GUEST, "--", "numactl", f"--membind={node}", "python3", "-c", _CHECK)


async def _leave(tour: Tour) -> None:
    for lender in LINKS:
        await tour.run(BORROWER, "detach", GUEST, "--from", lender)
    await tour.run(BORROWER, "exec", GUEST, "--", "numactl", "-H")
    await tour.run(BORROWER, "shutdown", GUEST)
    for lender in LINKS:
        await tour.run(lender, "lend", "stop")


CHAPTERS: tuple[Chapter, ...] = (
    Chapter(
        "Two links",
        'netem in the hosts makes one link a typical Wi-Fi, with the latency of table 1 of "Coalescent Computing", and '
        "one a LAN. Where the hosts are emulated, that adds some milliseconds of its own.",
        _set_links,
    ),
    Chapter(
        "Two lenders",
        "host2 and host3 lend memory. It is filled when it is granted: lending is a promise.",
        _lend,
    ),
    Chapter(
        "Pairing",
        "A lender shows a short code, the borrower gives it back, and from then on each knows the other by its key. "
        "The code is of no use to somebody who listens on the link.",
        _pair,
    ),
    Chapter(
        "A guest that can grow",
        "host1 boots a guest under its own KVM, with seven empty NUMA nodes at fixed distances. Nothing in the guest "
        "is modified; its kernel reads the distances once, at boot.",
        _boot,
    ),
    Chapter(
        "Memory of two other hosts",
        "Each attach measures its link and takes the free node whose distance fits it best. It is a transaction: what "
        "fails is undone on both hosts.",
        _attach,
    ),
    Chapter(
        "Used",
        "A program in the guest is bound to the nearer of the two nodes and fills pages there. "
        "They cross the link when host1 needs the room that they have in its cache.",
        _use,
    ),
    Chapter("What the guest sees", "An ordinary guest kernel treats what is far as far.", _look),
    Chapter("Leaving", "The nodes are drained, unplugged and given back; then everything ends.", _leave),
)


def far_nodes(numactl: str) -> dict[int, int]:
    """Return the far nodes that have memory, with their distance from node 0, of what ``numactl -H`` printed."""
    filled = {int(node) for node in re.findall(r"^node (\d+) size: [1-9]", numactl, re.MULTILINE)}
    nodes = re.search(r"^node +((?:\d+ *)+)$", numactl, re.MULTILINE)
    row = re.search(r"^ +0: +((?:\d+ *)+)$", numactl, re.MULTILINE)
    if nodes is None or row is None:
        return {}
    pairs = zip(map(int, nodes[1].split()), map(int, row[1].split()), strict=False)
    return {node: distance for node, distance in pairs if node in filled and node != 0}


async def take_tour(lab: str, narrator: Narrator, *, first: int = 1, of: int | None = None) -> None:
    """Run the chapters in a lab that is up; ``first`` and ``of`` number them. Raises what a chapter fails with."""
    async with AsyncExitStack() as stack:
        tour = Tour(lab, narrator)
        for host in (BORROWER, *LINKS):
            found = await stack.enter_async_context(lab_host(lab, host))
            tour.channels[host] = await found.channel()
        for number, chapter in enumerate(CHAPTERS, first):
            narrator.chapter(number, of or len(CHAPTERS), chapter.title, chapter.text)
            await chapter.act(tour)
