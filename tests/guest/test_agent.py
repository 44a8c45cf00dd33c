"""The real agent in a real guest: virtio-serial, the kernel's own sysfs, hot-plugged CPUs and memory."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from framework.qemu import BareQemu, qemu_binaries, running_qemu
from vmcoal.errors import DeadlineError, RefusedError, UnreachableError
from vmcoal.guest.channel import Agent, VmcoalAgent, connect_agent, wait_agent
from vmcoal.guest.images import ensure_default_image
from vmcoal.layout import VmFolders
from vmcoal.model.guest import CommandEnd, CommandInput, CpuName, GuestCommand, MemorySpan

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

MIB = 1 << 20
CORES = 3  # times three sockets is more than eight: with up to eight possible CPUs Linux addresses interrupts
# logically, and QEMU's own APIC (TCG) loses those to CPUs beyond an absent one
DISTANCES = (10, 20, 40)


def arguments(folders: VmFolders) -> list[str]:
    """A machine with two near CPUs, two empty far nodes and a PCI expander in far node 1."""
    image = ensure_default_image()
    sockets = len(DISTANCES)
    argv = [
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"),
        *("-smp", f"2,sockets={sockets},dies=1,cores={CORES},threads=1,maxcpus={CORES * sockets}"),
        *("-m", "768M,slots=4,maxmem=4G", "-object", "memory-backend-ram,id=near,size=768M"),
        *("-numa", "node,nodeid=0,memdev=near", "-numa", "node,nodeid=1", "-numa", "node,nodeid=2"),
    ]
    for node, distance in enumerate(DISTANCES):
        argv += ["-numa", f"cpu,node-id={node},socket-id={node}"]
        for other in range(sockets):
            if other != node:
                argv += ["-numa", f"dist,src={node},dst={other},val={max(distance, DISTANCES[other])}"]
    argv += ["-device", "pxb-pcie,id=pxb1,bus=pcie.0,bus_nr=32,numa_node=1"]
    argv += ["-device", "pcie-root-port,id=port1,bus=pxb1,chassis=1,slot=1"]
    argv += ["-device", "virtio-serial-pci,id=ports,bus=pcie.0"]
    for number, (name, path) in enumerate(
        {"org.vmcoal.agent.0": folders.agent_socket, "org.qemu.guest_agent.0": folders.qga_socket}.items(), 1
    ):
        argv += ["-chardev", f"socket,id=port-{number},path={path},server=on,wait=off"]
        argv += ["-device", f"virtserialport,bus=ports.0,nr={number},chardev=port-{number},name={name}"]
    argv += ["-chardev", f"file,id=console,path={folders.console_log}", "-serial", "chardev:console"]
    append = f"console=ttyS0 memhp_default_state=offline {image.append}"
    return [*argv, "-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", append]


@contextlib.asynccontextmanager
async def booted(folder: Path) -> AsyncIterator[tuple[BareQemu, VmFolders]]:
    folders = VmFolders(folder / "r", folder / "s")
    for path in (folders.runtime, folders.state):
        path.mkdir(parents=True, exist_ok=True)
    binary = qemu_binaries()[0]
    async with running_qemu(binary, folder / "q", arguments(folders)) as qemu:
        await qemu.client.execute("cont")
        try:
            yield qemu, folders
        except BaseException:
            sys.stderr.write(folders.console_log.read_text(errors="replace")[-3000:])
            raise


async def run(agent: Agent, *argv: str) -> str:
    out = bytearray()

    async def on_output(stream: int, data: bytes) -> None:
        out.extend(data)

    assert await agent.exec(GuestCommand(argv=argv), on_output=on_output, deadline=60) == CommandEnd(code=0)
    return out.decode()


async def check_facts(agent: Agent) -> None:
    info = await agent.info()
    assert info.agent == "vmcoal"
    assert info.boot_id == (await run(agent, "cat", "/proc/sys/kernel/random/boot_id")).strip()
    topology = await agent.topology()
    assert [(c.number, c.online, c.socket, c.core, c.node) for c in topology.cpus] == [
        (0, True, 0, 0, 0),
        (1, True, 0, 1, 0),
    ]
    assert [node.node for node in topology.nodes] == [0]
    assert topology.block_size == 128 * MIB
    pressure = await agent.pressure()
    assert pressure.memory_total > 400 * MIB
    assert int(await agent.sysctl("vm.swappiness")) > 0


async def check_cpus(agent: Agent, qemu: BareQemu) -> None:
    for node, core in ((2, 1), (1, 0)):
        place = {"socket-id": node, "die-id": 0, "core-id": core, "thread-id": 0}
        await qemu.client.execute("device_add", {"driver": "max-x86_64-cpu", "id": f"cpu-{node}-{core}", **place})
    cpus = await agent.cpu_set([CpuName(socket=2, core=1), CpuName(socket=1, core=0)], True, deadline=60)
    assert {(cpu.online, cpu.socket, cpu.core, cpu.node) for cpu in cpus} == {(True, 2, 1, 2), (True, 1, 0, 1)}
    topology = await agent.topology()
    assert [node.node for node in topology.nodes] == [0, 1, 2]
    assert topology.nodes[0].distances == {0: 10, 1: 20, 2: 40}
    parked = await agent.park_far(deadline=60)
    assert {(cpu.socket, cpu.core) for cpu in parked} == {(2, 1), (1, 0)}
    # Parked CPUs have no topology folder any more; the firmware's tables still tell who they are.
    offline = [cpu for cpu in (await agent.topology()).cpus if not cpu.online]
    assert {(cpu.socket, cpu.core, cpu.node) for cpu in offline} == {(2, 1, 2), (1, 0, 1)}
    (cpu,) = await agent.cpu_set([CpuName(socket=1, core=0)], True, deadline=60)
    assert cpu.online
    with pytest.raises(RefusedError, match="cannot go offline"):
        await agent.cpu_set([CpuName(number=0)], False)
    with pytest.raises(DeadlineError, match="has not appeared"):
        await agent.cpu_set([CpuName(socket=2, core=0)], True, deadline=10)


async def check_memory(agent: Agent, qemu: BareQemu) -> None:
    await qemu.client.execute("object-add", {"qom-type": "memory-backend-ram", "id": "far", "size": 256 * MIB})
    await qemu.client.execute("device_add", {"driver": "pc-dimm", "id": "dimm", "memdev": "far", "node": 1})
    (device,) = await qemu.client.execute("query-memory-devices")
    span = MemorySpan(device["data"]["addr"], device["data"]["size"])
    blocks = await agent.memory_set(span, True, deadline=60)
    assert [(block.state, block.node, block.zone) for block in blocks] == [("online", 1, "Movable")] * 2
    assert await agent.memory_set(1, True) == blocks
    topology = await agent.topology()
    assert topology.nodes[1].memory_total == 256 * MIB
    assert blocks[0].number * topology.block_size == span.start

    room = await agent.room(span)
    assert room.fits, room.explanation
    assert (await agent.room(0)).needed > 32 * MIB  # node 0 holds the whole system

    # Something must live there, else going offline has nothing to move.
    await run(agent, "numactl", "-m", "1", "dd", "if=/dev/zero", "of=/dev/shm/far", "bs=1M", "count=64")
    used = (await agent.topology()).nodes[1]
    assert used.memory_total - used.memory_free > 60 * MIB
    assert (await agent.room(1)).needed > 60 * MIB
    blocks = await agent.memory_set(span, False, deadline=120)
    assert {block.state for block in blocks} == {"offline"}
    await run(agent, "rm", "/dev/shm/far")

    # A kernel that brings memory online by itself puts it into the Normal zone. No CPU of the node may use it then.
    await agent.park_far(deadline=60)
    await run(agent, "sh", "-c", f"echo online_kernel > /sys/devices/system/memory/memory{blocks[0].number}/state")
    assert {block.zone for block in await agent.memory_set(span, True, deadline=60)} == {"Movable"}
    with pytest.raises(RefusedError):
        await agent.memory_set(0, False, deadline=5)
    await agent.memory_set(span, False, deadline=60)
    await qemu.client.execute("device_del", {"id": "dimm"})


async def check_pci(agent: Agent, qemu: BareQemu) -> None:
    await qemu.client.execute("device_add", {"driver": "virtio-rng-pci", "id": "rng", "bus": "port1"})
    script = "until grep -q . /sys/bus/pci/devices/0000:21:00.0/class; do sleep 0.1; done"
    await run(agent, "sh", "-c", script)
    fixed = await agent.pci_fix_node(["0000:20:00.0"], 1)
    assert "0000:21:00.0" in fixed
    assert await run(agent, "cat", "/sys/bus/pci/devices/0000:21:00.0/numa_node") == "1\n"
    await agent.pci_power_off("0000:21:00.0", deadline=30)
    await run(agent, "test", "!", "-e", "/sys/bus/pci/devices/0000:21:00.0")


async def check_commands(agent: Agent) -> None:
    size = 4 << 20
    count = 0

    async def on_output(stream: int, data: bytes) -> None:
        nonlocal count
        count += len(data)
        await agent.ping()  # the flood holds nobody up

    command = GuestCommand(argv=("head", "-c", str(size), "/dev/zero"))
    assert await agent.exec(command, on_output=on_output, deadline=120) == CommandEnd(code=0)
    assert count == size

    queue: asyncio.Queue[CommandInput] = asyncio.Queue()
    queue.put_nowait(CommandInput(data=b"tty; stty size; exit 7\n"))
    out = bytearray()

    async def collect(stream: int, data: bytes) -> None:
        out.extend(data)

    command = GuestCommand(argv=("sh",), tty=True, rows=33, columns=77)
    assert await agent.exec(command, on_output=collect, stdin=queue, deadline=60) == CommandEnd(code=7)
    assert b"/dev/pts/" in out
    assert b"33 77" in out


async def check_idle(agent: Agent, folders: VmFolders) -> None:
    """A port whose host is gone polls as ready for ever: the agent must not spin on it. Closes ``agent``."""
    script = """
        agent=$PPID
        sleep 1; set -- $(cat /proc/$agent/stat); before=$((${14} + ${15}))
        sleep 3; set -- $(cat /proc/$agent/stat); after=$((${14} + ${15}))
        echo "idle ticks: $((after - before))." >/dev/ttyS0
    """
    await agent.exec(GuestCommand(argv=("sh", "-c", f"({script}) &")), on_output=_ignore, deadline=30)
    await agent.close()
    async with asyncio.timeout(60):
        while not (found := re.search(r"idle ticks: (\d+)\.", folders.console_log.read_text(errors="replace"))):
            await asyncio.sleep(0.1)
    assert int(found[1]) < 60  # of 300


async def test_the_agent_in_a_guest(surroundings: Path) -> None:
    async with booted(surroundings / "s") as (qemu, folders):
        agent = await wait_agent(folders, deadline=180)
        assert isinstance(agent, VmcoalAgent)
        await check_facts(agent)
        await check_cpus(agent, qemu)
        await check_memory(agent, qemu)
        await check_pci(agent, qemu)
        await check_commands(agent)

        await check_idle(agent, folders)
        agent = await connect_agent(folders, deadline=30)

        # A host that goes ends its commands; the next one finds the agent at once.
        await agent.exec(GuestCommand(argv=("sh", "-c", "sleep 3600 & exit")), on_output=_ignore, deadline=30)
        sleeper = asyncio.create_task(agent.exec(GuestCommand(argv=("sleep", "3601")), on_output=_ignore))
        await run(agent, "sh", "-c", "until pgrep -f 'sleep 3601' >/dev/null; do sleep 0.1; done")
        await agent.close()
        with pytest.raises(UnreachableError):
            await sleeper
        agent = await connect_agent(folders, deadline=30)
        await run(agent, "sh", "-c", "while pgrep -fx 'sleep 3601' >/dev/null; do sleep 0.1; done")
        await agent.poweroff()
        assert await qemu.exited(60) == 0


async def _ignore(stream: int, data: bytes) -> None:
    pass
