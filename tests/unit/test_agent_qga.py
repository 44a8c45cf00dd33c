"""qemu-guest-agent as vmcoal uses it, against a scripted one; the real one is in tests/contract/test_agent_qga.py."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from framework.hostile_guest import Peer, guest_on
from vmcoal.errors import DeadlineError, RefusedError, UnreachableError, UsageError
from vmcoal.guest.channel import QgaAgent, VmcoalAgent, connect_agent, wait_agent
from vmcoal.layout import VmFolders
from vmcoal.model.guest import CommandEnd, CommandInput, CpuName, GuestCommand, MemorySpan

pytestmark = pytest.mark.unit
BLOCK = 128 << 20
Handler = Callable[[dict[str, Any]], Any]


class RefusalError(Exception):
    """Raised by a handler: what qemu-guest-agent answers as an error."""


class Qga:
    """A guest with three CPUs and four memory blocks; ``handlers`` replaces answers, ``calls`` records."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.cpus = {0: True, 1: True, 2: False}
        self.blocks = {0: True, 1: True, 8: False, 9: False}
        self.status: list[dict[str, Any]] = [{"exited": False}, {"exited": True, "exitcode": 0, "out-data": "aGk="}]
        self.handlers: dict[str, Handler] = {}

    def answer(self, command: str, args: dict[str, Any]) -> Any:
        if command in self.handlers:
            return self.handlers[command](args)
        if command == "guest-info":
            return {"version": "7.2.22"}
        if command == "guest-get-osinfo":
            return {"kernel-release": "6.1.0", "pretty-name": "Debian"}
        if command == "guest-get-vcpus":
            return [{"logical-id": n, "online": on, "can-offline": n > 0} for n, on in self.cpus.items()]
        if command == "guest-set-vcpus":
            for vcpu in args["vcpus"]:
                self.cpus[vcpu["logical-id"]] = vcpu["online"]
            return len(args["vcpus"])
        if command == "guest-get-memory-block-info":
            return {"size": BLOCK}
        if command == "guest-get-memory-blocks":
            return [{"phys-index": n, "online": on, "can-offline": True} for n, on in self.blocks.items()]
        if command == "guest-set-memory-blocks":
            for block in args["mem-blks"]:
                self.blocks[block["phys-index"]] = block["online"]
            return [{"phys-index": block["phys-index"], "response": "success"} for block in args["mem-blks"]]
        if command == "guest-exec":
            return {"pid": 77}
        if command == "guest-exec-status":
            return self.status.pop(0) if len(self.status) > 1 else self.status[0]
        return {}

    async def serve(self, peer: Peer) -> None:
        while True:
            request = await peer.frame()
            command, args = request["execute"], request.get("arguments", {})
            if command == "guest-sync-delimited":
                await peer.send(b'{"return": "stale"}\n\xff', {"return": args["id"]})
                continue
            self.calls.append((command, args))
            try:
                answer = self.answer(command, args)
            except RefusalError as error:
                await peer.send({"error": {"class": "GenericError", "desc": str(error)}})
                continue
            if answer is not None:
                await peer.send({"return": answer})


@pytest.fixture
def folders(tmp_path: Path) -> VmFolders:
    return VmFolders(tmp_path / "r", tmp_path / "s")


@pytest.fixture
async def guest(folders: VmFolders) -> AsyncIterator[tuple[Qga, QgaAgent]]:
    qga = Qga()
    async with guest_on(folders.qga_socket, qga.serve):
        agent = await wait_agent(folders, deadline=10, prefer=0.01)
        assert isinstance(agent, QgaAgent)
        yield qga, agent
        await agent.close()


Guest = tuple[Qga, QgaAgent]


async def test_info(guest: Guest) -> None:
    info = await guest[1].info()
    assert (info.agent, info.agent_version, info.release, info.os) == ("qemu-guest-agent", "7.2.22", "6.1.0", "Debian")
    assert guest[1].limits
    assert await guest[1].ping() > 0


async def test_topology(guest: Guest) -> None:
    topology = await guest[1].topology()
    assert [(cpu.number, cpu.online) for cpu in topology.cpus] == [(0, True), (1, True), (2, False)]
    assert {cpu.socket for cpu in topology.cpus} == {None}
    assert [(block.number, block.state) for block in topology.blocks][-1] == (9, "offline")

    def none(_: dict[str, Any]) -> Any:
        raise RefusalError("this feature or command is not currently supported")

    guest[0].handlers["guest-get-memory-block-info"] = none
    assert (await guest[1].topology()).blocks == ()


async def test_cpus_by_number(guest: Guest) -> None:
    qga, agent = guest
    done = await agent.cpu_set([CpuName(number=2), CpuName(number=1)], True)
    assert [(cpu.number, cpu.online) for cpu in done] == [(1, True), (2, True)]
    assert qga.calls[-1] == ("guest-set-vcpus", {"vcpus": [{"logical-id": 2, "online": True}]})
    with pytest.raises(RefusedError, match="needs the vmcoal agent"):
        await agent.cpu_set([CpuName(socket=1, core=0)], True)
    with pytest.raises(DeadlineError, match="CPU 7 has not appeared"):
        await agent.cpu_set([CpuName(number=7)], True, deadline=0.3)
    qga.handlers["guest-set-vcpus"] = lambda args: 1
    with pytest.raises(RefusedError, match="refuses CPU 2") as caught:
        await agent.cpu_set([CpuName(number=1), CpuName(number=2)], False)
    assert caught.value.left == "1 of 2 CPUs are offline"


async def test_memory_by_range(guest: Guest) -> None:
    qga, agent = guest
    blocks = await agent.memory_set(MemorySpan(8 * BLOCK, 2 * BLOCK), True)
    assert [(block.number, block.state) for block in blocks] == [(8, "online"), (9, "online")]
    assert qga.blocks[9]
    with pytest.raises(RefusedError, match="needs the vmcoal agent"):
        await agent.memory_set(1, True)
    with pytest.raises(UsageError):
        await agent.memory_set(MemorySpan(1, BLOCK), True)
    with pytest.raises(DeadlineError, match="1 of 2 memory blocks"):
        await agent.memory_set(MemorySpan(9 * BLOCK, 2 * BLOCK), True, deadline=0.3)
    qga.handlers["guest-set-memory-blocks"] = lambda args: [
        {"phys-index": 8, "response": "success"},
        {"phys-index": 9, "response": "operation-failed", "error-code": 16},
    ]
    with pytest.raises(RefusedError, match="refuses 1 of 2") as caught:
        await agent.memory_set(MemorySpan(8 * BLOCK, 2 * BLOCK), False)
    assert caught.value.left == "1 memory blocks are offline"


async def collect(agent: QgaAgent, command: GuestCommand, stdin: bytes | None = None) -> tuple[CommandEnd, bytes]:
    out = bytearray()

    async def on_output(stream: int, data: bytes) -> None:
        out.extend(data)

    queue: asyncio.Queue[CommandInput] | None = None
    if stdin is not None:
        queue = asyncio.Queue()
        queue.put_nowait(CommandInput(data=stdin, eof=True))
    return await agent.exec(command, on_output=on_output, stdin=queue, deadline=10), bytes(out)


async def test_commands(guest: Guest) -> None:
    qga, agent = guest
    command = GuestCommand(argv=("cat", "-n"), env={"A": "b"}, cwd="/tmp")
    assert await collect(agent, command, b"input") == (CommandEnd(code=0), b"hi")
    started = dict(qga.calls)["guest-exec"]
    assert started["path"] == "/bin/sh"
    assert started["arg"][-3:] == ["/tmp", "cat", "-n"]
    assert started["env"] == ["A=b"]
    assert base64.b64decode(started["input-data"]) == b"input"
    with pytest.raises(RefusedError, match="a terminal needs the vmcoal agent"):
        await collect(agent, GuestCommand(argv=("sh",), tty=True))
    with pytest.raises(RefusedError, match="standard input"):
        await collect(agent, GuestCommand(argv=("cat",)), bytes(2 << 20))
    qga.status = [{"exited": True, "signal": 9}]
    assert (await collect(agent, GuestCommand(argv=("true",))))[0] == CommandEnd(code=None, signal=9)


async def test_a_command_that_takes_too_long_is_killed(guest: Guest) -> None:
    qga, agent = guest
    qga.status = [{"exited": False}]

    async def on_output(stream: int, data: bytes) -> None:
        pass

    with pytest.raises(DeadlineError):
        await agent.exec(GuestCommand(argv=("sleep", "9")), on_output=on_output, deadline=0.3)
    assert qga.calls[-1][1] == {"path": "kill", "arg": ["77"]}


async def test_what_it_cannot_do_says_what_is_missing(guest: Guest) -> None:
    agent = guest[1]
    for call in (
        agent.room(1),
        agent.pressure(),
        agent.park_far(),
        agent.pci_fix_node(["0000:20:00.0"], 1),
        agent.pci_power_off("0000:20:00.0"),
        agent.sysctl("vm.swappiness"),
        agent.migrate(1, [0], [1]),
        agent.poweroff(force=True),
    ):
        with pytest.raises(RefusedError, match="needs the vmcoal agent") as caught:
            await call
        assert "guest-agent/README.md" in (caught.value.hint or "")


async def test_after_a_deadline_both_sides_are_in_step_again(guest: Guest) -> None:
    qga, agent = guest
    qga.handlers["guest-ping"] = lambda args: None
    with pytest.raises(DeadlineError):
        await agent.ping(deadline=0.2)
    assert len((await agent.topology()).cpus) == 3


async def test_poweroff_needs_no_answer(guest: Guest) -> None:
    guest[0].handlers["guest-shutdown"] = lambda args: None
    await guest[1].poweroff(deadline=0.2)
    assert guest[0].calls[-1] == ("guest-shutdown", {"mode": "powerdown"})


@pytest.mark.parametrize("answer", [5, [], {}, "x", [{"logical-id": "a"}]])
async def test_answers_that_make_no_sense(guest: Guest, answer: Any) -> None:
    guest[0].handlers["guest-get-vcpus"] = lambda args: answer
    if answer == []:
        assert (await guest[1].topology()).cpus == ()
    else:
        with pytest.raises(RefusedError, match="makes no sense"):
            await guest[1].topology()


@pytest.mark.parametrize("answer", ["x", -1, 99, None, []])
async def test_a_count_of_cpus_that_makes_no_sense(guest: Guest, answer: Any) -> None:
    guest[0].handlers["guest-set-vcpus"] = lambda args: {"x": 1} if answer is None else answer
    with pytest.raises(RefusedError, match=r"makes no sense|claims that it did"):
        await guest[1].cpu_set([CpuName(number=2)], True)


@pytest.mark.parametrize("end", [{"out-data": "no base64!"}, {"exitcode": -5}, {"signal": 1 << 60}])
async def test_an_end_that_makes_no_sense(guest: Guest, end: dict[str, Any]) -> None:
    guest[0].status = [{"exited": True, "exitcode": 0} | end]
    with pytest.raises(RefusedError, match="makes no sense"):
        await collect(guest[1], GuestCommand(argv=("true",)))


async def test_a_guest_that_hangs_up(folders: VmFolders) -> None:
    async def hang_up(peer: Peer) -> None:
        qga = Qga()
        qga.handlers["guest-get-vcpus"] = lambda args: peer.writer.transport.abort()
        await qga.serve(peer)

    async with guest_on(folders.qga_socket, hang_up):
        agent = await connect_agent(folders, deadline=10)
        with pytest.raises(UnreachableError, match="hung up"):
            await agent.topology()
        assert isinstance(await agent.wait_lost(), UnreachableError)
        await agent.close()


async def test_vmcoals_own_agent_is_preferred_even_if_it_is_later(folders: VmFolders) -> None:
    up = asyncio.Event()
    qga = Qga()

    async def ours(peer: Peer) -> None:
        await up.wait()
        await peer.greet()
        await asyncio.Event().wait()

    async def theirs(peer: Peer) -> None:
        with contextlib.suppress(ConnectionError):
            await qga.serve(peer)

    qga.handlers["guest-info"] = lambda args: (up.set(), {"version": "7"})[1]
    async with guest_on(folders.agent_socket, ours), guest_on(folders.qga_socket, theirs):
        agent = await wait_agent(folders, deadline=20)
        assert isinstance(agent, VmcoalAgent)
        await agent.close()
