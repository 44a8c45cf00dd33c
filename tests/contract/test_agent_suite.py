"""What every `Agent` does: the real agent over a fake kernel, and the in-memory fake that other tests use."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.agent_bench import SerialPort, running_agent
from framework.fake_guest import BLOCK, FakeAgent, FakeGuest
from framework.fake_sysfs import Tree
from vmcoal.errors import DeadlineError, RefusedError, UnreachableError, UsageError
from vmcoal.guest.channel import Agent, wait_agent
from vmcoal.layout import VmFolders
from vmcoal.model.guest import CommandEnd, CommandInput, CpuName, GuestCommand, MemorySpan

pytestmark = pytest.mark.contract


@dataclass
class Bench:
    agent: Agent
    guest: Tree | FakeGuest


@contextlib.asynccontextmanager
async def real(folder: Path) -> AsyncIterator[Bench]:
    folders = VmFolders(folder / "r", folder / "s")
    tree = Tree(folder / "t")
    async with SerialPort(folders) as port, running_agent(tree, f"unix:{port.guest_path}"):
        agent = await wait_agent(folders, deadline=20)
        try:
            yield Bench(agent, tree)
        finally:
            await agent.close()


@contextlib.asynccontextmanager
async def fake(folder: Path) -> AsyncIterator[Bench]:
    guest = FakeGuest.booted()
    agent: Agent = FakeAgent(guest)
    yield Bench(agent, guest)
    await agent.close()


@pytest.fixture(params=["real", "fake"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with (real if request.param == "real" else fake)(tmp_path) as bench:
        yield bench


async def test_info_and_ping(bench: Bench) -> None:
    info = await bench.agent.info()
    assert (info.agent, info.agent_version) == (bench.agent.kind, bench.agent.version) == ("vmcoal", "0.1.0")
    assert info.release
    assert info.os
    assert 0 < await bench.agent.ping() < 5


async def test_topology_of_a_booted_guest(bench: Bench) -> None:
    topology = await bench.agent.topology()
    assert [(c.number, c.online, c.socket, c.core, c.node) for c in topology.cpus] == [
        (0, True, 0, 0, 0),
        (1, True, 0, 1, 0),
    ]
    assert [(n.node, n.distances) for n in topology.nodes] == [(0, {0: 10})]
    assert [(b.number, b.state, b.node, b.zone) for b in topology.blocks] == [
        (number, "online", 0, "Normal") for number in range(4)
    ]
    assert topology.block_size == BLOCK


async def test_offline_cpus_are_known_by_socket_and_core(bench: Bench) -> None:
    bench.guest.add_cpu(2, 2, 1)
    cpu = (await bench.agent.topology()).cpus[2]
    assert (cpu.number, cpu.online, cpu.socket, cpu.core, cpu.node) == (2, False, 2, 1, 2)


async def test_cpus_go_online_and_offline(bench: Bench) -> None:
    bench.guest.add_cpu(2, 1, 0)
    bench.guest.add_cpu(3, 1, 1)
    seen: list[tuple[int, int, str | None]] = []
    done = await bench.agent.cpu_set(
        [CpuName(socket=1, core=1), CpuName(number=2)], True, progress=lambda *step: seen.append(step)
    )
    assert {(c.number, c.online, c.socket, c.core) for c in done} == {(3, True, 1, 1), (2, True, 1, 0)}
    assert seen[-1] == (2, 2, None)
    assert all(cpu.online for cpu in (await bench.agent.topology()).cpus)
    again = await bench.agent.cpu_set([CpuName(socket=1, core=1)], True)
    assert [cpu.number for cpu in again] == [3]
    off = await bench.agent.park_far()
    assert sorted(cpu.number for cpu in off) == [2, 3]
    assert [cpu.online for cpu in (await bench.agent.topology()).cpus] == [True, True, False, False]


async def test_no_cpus_is_nothing_to_do(bench: Bench) -> None:
    assert await bench.agent.cpu_set([], True) == ()


async def test_a_cpu_that_appears_late_is_waited_for(bench: Bench) -> None:
    call = asyncio.create_task(bench.agent.cpu_set([CpuName(socket=1, core=0)], True, deadline=10))
    await bench.agent.ping()
    bench.guest.add_cpu(2, 1, 0)
    (cpu,) = await call
    assert (cpu.number, cpu.online) == (2, True)


async def test_a_cpu_that_never_appears(bench: Bench) -> None:
    with pytest.raises(DeadlineError):
        await bench.agent.cpu_set([CpuName(socket=1, core=0)], True, deadline=0.5)


async def test_a_refused_cpu_is_named_and_the_others_are_done(bench: Bench) -> None:
    bench.guest.add_cpu(2, 1, 0)
    bench.guest.add_cpu(3, 1, 1)
    bench.guest.refuse_cpu(2, "EBUSY")
    with pytest.raises(RefusedError, match="EBUSY") as caught:
        await bench.agent.cpu_set([CpuName(number=2), CpuName(number=3)], True)
    assert caught.value.left == "1 of 2 CPUs are online"
    assert caught.value.details["done"] == [3]
    assert list(caught.value.details["failed"]) == ["CPU 2"]


async def test_a_cpu_that_hangs_ends_at_the_deadline(bench: Bench) -> None:
    bench.guest.add_cpu(2, 1, 0)
    bench.guest.hang_cpu(2)
    call = asyncio.create_task(bench.agent.cpu_set([CpuName(number=2)], True, deadline=1.0))
    await bench.agent.ping()
    with pytest.raises(DeadlineError):
        await call
    await bench.agent.ping()


async def test_memory_goes_online_movable_and_offline(bench: Bench) -> None:
    bench.guest.add_block(8, 1)
    bench.guest.add_block(9, 1)
    steps: list[int] = []
    done = await bench.agent.memory_set(
        MemorySpan(8 * BLOCK, 2 * BLOCK), True, progress=lambda done, total, note: steps.append(done)
    )
    assert [(b.number, b.state, b.node, b.zone) for b in done] == [
        (8, "online", 1, "Movable"),
        (9, "online", 1, "Movable"),
    ]
    assert steps == [1, 2]
    assert [node.node for node in (await bench.agent.topology()).nodes] == [0, 1]
    done = await bench.agent.memory_set(1, False)
    assert [(b.number, b.state, b.zone) for b in done] == [(8, "offline", ""), (9, "offline", "")]


async def test_memory_that_went_online_by_itself_is_made_movable(bench: Bench) -> None:
    bench.guest.add_block(8, 1, "online", "Normal")
    (block,) = await bench.agent.memory_set(MemorySpan(8 * BLOCK, BLOCK), True)
    assert block.zone == "Movable"


async def test_memory_that_appears_late_is_waited_for(bench: Bench) -> None:
    bench.guest.add_block(8, 1)
    call = asyncio.create_task(bench.agent.memory_set(MemorySpan(8 * BLOCK, 2 * BLOCK), True, deadline=10))
    await bench.agent.ping()
    bench.guest.add_block(9, 1)
    assert [block.number for block in await call] == [8, 9]


async def test_memory_that_never_appears(bench: Bench) -> None:
    with pytest.raises(DeadlineError, match="0 of 1 blocks have appeared"):
        await bench.agent.memory_set(MemorySpan(8 * BLOCK, BLOCK), True, deadline=4)


async def test_busy_memory_is_tried_again(bench: Bench) -> None:
    bench.guest.add_block(8, 1, "online", "Movable")
    bench.guest.busy_block(8, 2)
    (block,) = await bench.agent.memory_set(MemorySpan(8 * BLOCK, BLOCK), False)
    assert block.state == "offline"


async def test_refused_memory_is_named_and_the_rest_is_done(bench: Bench) -> None:
    bench.guest.add_block(8, 1, "online", "Movable")
    bench.guest.add_block(9, 1, "online", "Movable")
    bench.guest.refuse_block(8, "EBUSY")
    with pytest.raises(RefusedError, match="EBUSY") as caught:
        await bench.agent.memory_set(1, False, deadline=4)
    assert caught.value.left == "1 of 2 memory blocks are offline"
    assert caught.value.details["done"] == [9]
    assert list(caught.value.details["failed"]) == ["block 8"]


async def test_memory_that_hangs_ends_at_the_deadline_with_what_was_done(bench: Bench) -> None:
    bench.guest.add_block(8, 1, "online", "Movable")
    bench.guest.add_block(9, 1, "online", "Movable")
    bench.guest.hang_block(8)
    with pytest.raises(DeadlineError) as caught:
        await bench.agent.memory_set(1, False, deadline=4)
    assert caught.value.details["done"] == [9]
    await bench.agent.ping()


async def test_a_range_that_is_not_made_of_blocks_is_refused(bench: Bench) -> None:
    with pytest.raises(RefusedError, match="whole memory blocks"):
        await bench.agent.memory_set(MemorySpan(4096, BLOCK), True)


async def test_room_and_pressure(bench: Bench) -> None:
    room = await bench.agent.room(1)
    assert room.fits
    assert room.explanation
    pressure = await bench.agent.pressure()
    assert pressure.load == (0.5, 0.25, 0.1)
    assert pressure.memory_total == 1 << 30


async def test_settings(bench: Bench) -> None:
    assert await bench.agent.sysctl("vm.swappiness") == "60"
    assert await bench.agent.sysctl("vm.swappiness", "10") == "10"
    assert await bench.agent.sysctl("vm.swappiness") == "10"
    with pytest.raises(RefusedError, match="not a setting"):
        await bench.agent.sysctl("kernel.core_pattern")


async def test_pci_devices_that_are_not_there(bench: Bench) -> None:
    with pytest.raises(RefusedError, match="no PCI device"):
        await bench.agent.pci_fix_node(["0000:20:00.0"], 1)
    with pytest.raises(RefusedError, match="no hotplug slot"):
        await bench.agent.pci_power_off("0000:21:00.0")


async def run(agent: Agent, *argv: str, stdin: bytes | None = None) -> tuple[CommandEnd, bytes, bytes]:
    streams = {1: bytearray(), 2: bytearray()}

    async def on_output(stream: int, data: bytes) -> None:
        streams[stream] += data

    queue: asyncio.Queue[CommandInput] | None = None
    if stdin is not None:
        queue = asyncio.Queue()
        queue.put_nowait(CommandInput(data=stdin))
        queue.put_nowait(CommandInput(eof=True))
    end = await agent.exec(GuestCommand(argv=argv), on_output=on_output, stdin=queue, deadline=20)
    return end, bytes(streams[1]), bytes(streams[2])


async def test_commands(bench: Bench) -> None:
    assert await run(bench.agent, "echo", "hello", "there") == (CommandEnd(code=0), b"hello there\n", b"")
    assert (await run(bench.agent, "false"))[0].code == 1
    assert (await run(bench.agent, "cat", stdin=b"some input"))[1] == b"some input"
    assert (await run(bench.agent, "cat"))[1] == b""
    with pytest.raises(RefusedError, match="No such file"):
        await run(bench.agent, "no-such-command-anywhere")
    for argv in ((), ("",), ("echo", "a\0b")):
        with pytest.raises(UsageError):
            await run(bench.agent, *argv)


async def test_a_command_that_takes_too_long(bench: Bench) -> None:
    async def on_output(stream: int, data: bytes) -> None:
        pass

    with pytest.raises(DeadlineError):
        await bench.agent.exec(GuestCommand(argv=("sleep", "600")), on_output=on_output, deadline=0.3)


async def test_poweroff(bench: Bench) -> None:
    await bench.agent.poweroff()


async def test_after_close_everything_is_unreachable(bench: Bench) -> None:
    call = asyncio.create_task(bench.agent.cpu_set([CpuName(socket=1, core=0)], True, deadline=20))
    await bench.agent.ping()
    await bench.agent.close()
    call.cancel()
    with pytest.raises((UnreachableError, asyncio.CancelledError)):
        await call
    assert isinstance(await bench.agent.wait_lost(), UnreachableError)
    with pytest.raises(UnreachableError):
        await bench.agent.topology()
