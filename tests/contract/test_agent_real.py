"""The real agent as a process: commands, terminals, floods, cancelling, sessions, bad frames, what it does to /sys."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import tty
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.agent_bench import SerialPort, running_agent
from framework.fake_sysfs import BLOCK, Tree, put
from vmcoal.errors import DeadlineError, RefusedError, UnreachableError
from vmcoal.guest.agent_link import AgentError, Link, open_link
from vmcoal.guest.channel import VmcoalAgent, connect_agent, wait_agent
from vmcoal.layout import VmFolders
from vmcoal.model.guest import CommandEnd, CommandInput, CpuName, GuestCommand, MemorySpan

pytestmark = pytest.mark.contract


@dataclass
class Bench:
    folders: VmFolders
    tree: Tree
    port: SerialPort
    process: asyncio.subprocess.Process
    agent: VmcoalAgent

    @property
    def link(self) -> Link:
        return self.agent._link

    async def again(self) -> VmcoalAgent:
        """Connect as the next host does, after the one before has gone."""
        await self.agent.close()
        agent = await connect_agent(self.folders, deadline=20)
        assert isinstance(agent, VmcoalAgent)
        self.agent = agent
        return agent


@contextlib.asynccontextmanager
async def benched(folder: Path, python: str = sys.executable, poweroff: str = "/bin/true") -> AsyncIterator[Bench]:
    folders = VmFolders(folder / "r", folder / "s")
    tree = Tree(folder / "t")
    async with (
        SerialPort(folders) as port,
        running_agent(tree, f"unix:{port.guest_path}", python=python, poweroff=poweroff) as process,
    ):
        agent = await wait_agent(folders, deadline=20)
        assert isinstance(agent, VmcoalAgent)
        bench = Bench(folders, tree, port, process, agent)
        try:
            yield bench
        finally:
            await bench.agent.close()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with benched(tmp_path) as bench:
        yield bench


class Sink:
    """Takes output; `gate` holds it up, `seen` waits for a text."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.streams: set[int] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self._more = asyncio.Condition()

    async def __call__(self, stream: int, data: bytes) -> None:
        self.streams.add(stream)
        self.data += data
        async with self._more:
            self._more.notify_all()
        await self.gate.wait()

    async def seen(self, text: bytes) -> None:
        async with asyncio.timeout(20), self._more:
            await self._more.wait_for(lambda: text in self.data)


def shell(script: str, **options: object) -> GuestCommand:
    return GuestCommand(argv=("sh", "-c", script), **options)  # type: ignore[arg-type]


async def gone(pid: int) -> None:
    """Wait until a process has ended; it is not ours, so look."""
    async with asyncio.timeout(20):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                return
            if state in "ZX":
                return
            await asyncio.sleep(0.01)


# -- commands


async def test_streams_are_told_apart_and_the_exit_is_told(bench: Bench) -> None:
    sink = Sink()
    end = await bench.agent.exec(shell("echo out; echo err >&2; exit 42"), on_output=sink)
    assert end == CommandEnd(code=42)
    assert sink.streams == {1, 2}
    assert sorted(sink.data.split()) == [b"err", b"out"]
    assert await bench.agent.exec(shell("kill -9 $$"), on_output=sink) == CommandEnd(code=None, signal=9)


async def test_environment_and_folder(bench: Bench, tmp_path: Path) -> None:
    sink = Sink()
    command = shell('echo "$PWD $COLOUR $PATH"', env={"COLOUR": "blau grün"}, cwd=str(tmp_path))
    await bench.agent.exec(command, on_output=sink)
    folder, rest = sink.data.decode().split(" ", 1)
    assert Path(folder).samefile(tmp_path)
    assert rest.startswith("blau grün /")
    with pytest.raises(RefusedError, match=r"/no/such/folder: No such file"):
        await bench.agent.exec(shell("true", cwd="/no/such/folder"), on_output=sink)
    (tmp_path / "plain").touch(mode=0o644)
    with pytest.raises(RefusedError, match="Permission denied") as caught:
        await bench.agent.exec(GuestCommand(argv=(str(tmp_path / "plain"),)), on_output=sink)
    assert caught.value.details["code"] == "EACCES"


async def test_a_large_output_arrives_whole_and_starves_nobody(bench: Bench) -> None:
    size = 0

    async def on_output(stream: int, data: bytes) -> None:
        nonlocal size
        size += len(data)

    command = asyncio.create_task(bench.agent.exec(shell("head -c 20000000 /dev/zero"), on_output=on_output))
    pings = [await bench.agent.ping() for _ in range(20)]
    assert await command == CommandEnd(code=0)
    assert size == 20_000_000
    assert max(pings) < 2


async def test_a_slow_reader_holds_up_its_command_only(bench: Bench) -> None:
    sink = Sink()
    sink.gate.clear()
    command = asyncio.create_task(bench.agent.exec(GuestCommand(argv=("yes",)), on_output=sink))
    await sink.seen(b"y\n")
    other = Sink()
    assert await bench.agent.exec(shell("echo other"), on_output=other) == CommandEnd(code=0)
    for _ in range(20):
        await bench.agent.ping()
    status = Path(f"/proc/{bench.process.pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0])
    assert resident < 64 << 10
    command.cancel()
    await asyncio.gather(command, return_exceptions=True)


async def test_input_reaches_the_command_byte_by_byte(bench: Bench) -> None:
    data = bytes(range(256)) * 4096
    stdin: asyncio.Queue[CommandInput] = asyncio.Queue()
    for at in range(0, len(data), 100_000):
        stdin.put_nowait(CommandInput(data=data[at : at + 100_000]))
    stdin.put_nowait(CommandInput(eof=True))
    sink = Sink()
    assert await bench.agent.exec(GuestCommand(argv=("cat",)), on_output=sink, stdin=stdin) == CommandEnd(code=0)
    assert sink.data == data


async def test_a_command_need_not_read_its_input(bench: Bench) -> None:
    stdin: asyncio.Queue[CommandInput] = asyncio.Queue()
    stdin.put_nowait(CommandInput(data=bytes(1 << 20)))
    assert await bench.agent.exec(shell("exit 3"), on_output=Sink(), stdin=stdin) == CommandEnd(code=3)


async def test_a_terminal(bench: Bench) -> None:
    stdin: asyncio.Queue[CommandInput] = asyncio.Queue()
    sink = Sink()
    command = shell(
        'stty -echo; tty; stty size; trap "stty size; echo resized" WINCH; trap "echo interrupted; exit 5" INT;'
        "echo ready; while :; do read line; done",
        tty=True,
        rows=33,
        columns=101,
    )
    task = asyncio.create_task(bench.agent.exec(command, on_output=sink, stdin=stdin))
    await sink.seen(b"ready")
    assert b"/dev/pts/" in sink.data
    assert b"33 101" in sink.data
    stdin.put_nowait(CommandInput(rows=50, columns=120))
    stdin.put_nowait(CommandInput(data=b"\n"))
    await sink.seen(b"resized")
    assert b"50 120" in sink.data
    stdin.put_nowait(CommandInput(data=b"\x03"))
    assert await task == CommandEnd(code=5)
    assert sink.streams == {1}


async def test_the_end_of_input_ends_a_terminals_reader(bench: Bench) -> None:
    stdin: asyncio.Queue[CommandInput] = asyncio.Queue()
    stdin.put_nowait(CommandInput(data=b"exit 9", eof=False))
    stdin.put_nowait(CommandInput(data=b"\n", eof=True))
    command = GuestCommand(argv=("sh",), tty=True)
    assert await bench.agent.exec(command, on_output=Sink(), stdin=stdin) == CommandEnd(code=9)


async def test_what_a_command_leaves_behind_is_not_waited_for(bench: Bench) -> None:
    sink = Sink()
    assert await bench.agent.exec(shell("sleep 600 & echo $!"), on_output=sink) == CommandEnd(code=0)
    os.kill(int(sink.data), signal.SIGKILL)


async def test_cancelling_ends_the_command_and_its_children(bench: Bench) -> None:
    sink = Sink()
    script = "trap '' HUP TERM; sleep 600 & echo $$ $!; wait; wait"
    task = asyncio.create_task(bench.agent.exec(shell(script), on_output=sink))
    await sink.seen(b"\n")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for pid in map(int, sink.data.split()):
        await gone(pid)
    await bench.agent.ping()


async def test_the_end_of_the_session_ends_its_commands(bench: Bench) -> None:
    sink = Sink()
    task = asyncio.create_task(bench.agent.exec(shell("echo $$; sleep 600"), on_output=sink))
    await sink.seen(b"\n")
    await bench.again()
    with pytest.raises(UnreachableError):
        await task
    await gone(int(sink.data))
    await bench.agent.ping()


async def test_only_so_many_commands_at_a_time(bench: Bench) -> None:
    started = asyncio.Event()
    count = 0

    async def on_output(stream: int, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == 32:
            started.set()

    commands = [
        asyncio.create_task(bench.agent.exec(shell("echo; exec sleep 600"), on_output=on_output)) for _ in range(32)
    ]
    await asyncio.wait_for(started.wait(), 30)
    with pytest.raises(RefusedError, match="32 commands are running"):
        await bench.agent.exec(shell("true"), on_output=Sink())
    for command in commands:
        command.cancel()
    await asyncio.gather(*commands, return_exceptions=True)
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(RefusedError):
                await bench.agent.exec(shell("true"), on_output=Sink())
                break


# -- sessions and frames


async def test_bad_frames_and_calls_end_nothing(bench: Bench) -> None:
    junk = [
        b"\x00\xff\xfe",
        b"{",
        b"[" * 200_000,
        b"9" * 5000,
        b'{"id":1}',
        b'{"id":"x","call":"ping"}',
        b'{"hello":[]}',
    ]
    junk += [b'{"hello":{"versions":1,"session":"zz"}}', b"x" * (1 << 20), b"\n" * 1000]
    junk += [b'{"id":true,"call":"ping"}']
    for line in junk:
        bench.link._writer.write(line + b"\n")
        await bench.link._writer.drain()
    await bench.agent.ping()
    bad = [
        ("nonsense", {}),
        ("info", {"deadline": -1}),
        ("info", {"deadline": "soon"}),
        ("topology", {"deadline": 1e9}),
        ("cpu_set", {}),
        ("cpu_set", {"cpus": [7], "online": True}),
        ("cpu_set", {"cpus": [{"socket": "0", "core": 0}], "online": 1}),
        ("memory_set", {"node": -1}),
        ("memory_set", {"start": 0}),
        ("memory_set", {"start": 1 << 65, "size": 1}),
        ("exec", {"argv": []}),
        ("exec", {"argv": [1]}),
        ("exec", {"argv": ["true"], "env": {"A=B": "c"}}),
        ("exec", {"argv": ["true"], "window": 0}),
        ("exec", {"argv": ["true"], "cwd": 7}),
        ("exec_input", {"exec": 12345, "data": ""}),
        ("exec_resize", {"exec": 12345, "rows": 1, "columns": 1}),
        ("cancel", {"id": "all"}),
        ("pci_fix_node", {"addresses": ["../../etc"], "node": 1}),
        ("pci_power_off", {"address": "0000:00:00.0/../x"}),
        ("sysctl", {"name": "vm.swappiness/../../kernel/core_pattern"}),
        ("sysctl", {"name": 5}),
        ("migrate", {"pid": 0, "source": [0], "target": [1]}),
    ]
    for call, args in bad:
        with pytest.raises(AgentError):
            await bench.link.call(call, args, deadline=10)
    await bench.agent.ping()


async def test_calls_before_hello_are_refused(bench: Bench) -> None:
    await bench.agent.close()
    link = await open_link(bench.folders.agent_socket)
    link._hello.set_result({"version": 1})
    with pytest.raises(UnreachableError, match="restarted"):
        await link.call("ping", {}, deadline=20)
    await link.close()


async def test_a_hello_that_is_repeated_changes_nothing(bench: Bench) -> None:
    sink = Sink()
    stdin: asyncio.Queue[CommandInput] = asyncio.Queue()
    command = shell("echo ready; read line; exit 4")
    task = asyncio.create_task(bench.agent.exec(command, on_output=sink, stdin=stdin))
    await sink.seen(b"ready")
    await bench.link.hello(wait=1)
    await bench.agent.ping()
    stdin.put_nowait(CommandInput(data=b"\n"))
    assert await task == CommandEnd(code=4)


async def test_another_version_is_refused_politely(bench: Bench) -> None:
    await bench.agent.close()
    reader, writer = await asyncio.open_unix_connection(bench.folders.agent_socket)
    writer.write(b'\n{"hello":{"versions":[99],"session":"00000000deadbeef"}}\n')
    async with asyncio.timeout(20):
        while b"version" not in (line := await reader.readline()):
            assert line
    assert line.startswith(b'{"hello":{"error":"version","versions":[1],"session":"00000000deadbeef"')
    writer.close()
    await writer.wait_closed()


async def test_the_agent_comes_back_when_the_port_does(bench: Bench) -> None:
    bench.port.unplug_guest()
    await bench.again()
    await bench.agent.ping()


async def test_calls_run_side_by_side_and_only_so_many(bench: Bench) -> None:
    for number in range(10, 26):
        bench.tree.add_cpu(number, 1, number)
        bench.tree.hang_cpu(number)
    calls = [
        asyncio.create_task(bench.agent.cpu_set([CpuName(number=number)], True, deadline=60))
        for number in range(10, 26)
    ]
    while len([task for task in calls if not task.done()]) == 16:
        try:
            await bench.agent.info()
        except RefusedError as error:
            assert "16 calls are running" in error.message
            break
    await bench.agent.ping()
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(RefusedError):
                await bench.agent.info()
                break


async def test_a_deadline_tells_what_was_done(bench: Bench) -> None:
    bench.tree.add_cpu(2, 1, 0)
    bench.tree.add_cpu(3, 1, 1)
    bench.tree.hang_cpu(3)
    with pytest.raises(DeadlineError) as caught:
        await bench.agent.cpu_set([CpuName(number=2), CpuName(number=3)], True, deadline=4)
    assert caught.value.left == "1 of 2 CPUs are online"
    assert caught.value.details["done"] == [2]


# -- what it does to the kernel


async def test_sockets_are_found_with_an_uneven_number_of_cores(tmp_path: Path) -> None:
    folders = VmFolders(tmp_path / "r", tmp_path / "s")
    tree = Tree(tmp_path / "t", nodes=4, cores=3)
    async with SerialPort(folders) as port, running_agent(tree, f"unix:{port.guest_path}"):
        agent = await wait_agent(folders, deadline=20)
        tree.add_cpu(7, 3, 2)
        cpu = (await agent.topology()).cpus[-1]
        assert (cpu.number, cpu.socket, cpu.core, cpu.node) == (7, 3, 2, 3)
        await agent.close()


async def test_without_firmware_tables_cpus_go_by_number(bench: Bench) -> None:
    for name in ("APIC", "SRAT"):
        (bench.tree.sys / "firmware/acpi/tables" / name).unlink()
    folders = VmFolders(bench.folders.runtime / "b", bench.folders.state)
    async with SerialPort(folders) as port, running_agent(bench.tree, f"unix:{port.guest_path}"):
        agent = await wait_agent(folders, deadline=20)
        bench.tree.add_cpu(2, 1, 0)
        cpu = (await agent.topology()).cpus[2]
        assert (cpu.number, cpu.online, cpu.socket, cpu.core) == (2, False, None, None)
        (cpu,) = await agent.cpu_set([CpuName(number=2)], True)
        assert (cpu.online, cpu.socket, cpu.core) == (True, 1, 0)
        await agent.close()


async def test_a_cpu_is_known_once_its_files_are_complete(bench: Bench) -> None:
    """Linux makes a CPU's folder first, then its ``online`` file and the link to its firmware node."""
    call = asyncio.create_task(bench.agent.cpu_set([CpuName(socket=1, core=0)], True, deadline=20))
    folder = bench.tree.cpu_dir / "cpu2"
    folder.mkdir()
    for _ in range(5):
        topology = await bench.agent.topology()
        assert (topology.cpus[2].online, topology.cpus[2].socket) == (False, None)
    put(folder / ".place", "1 0")
    put(folder / "firmware_node/path", "\\_SB_.CPUS.C002")
    for _ in range(5):
        assert not (await bench.agent.topology()).cpus[2].online
    put(folder / "online", "0")
    (cpu,) = await call
    assert (cpu.number, cpu.online) == (2, True)


async def test_a_cpu_that_comes_up_elsewhere_is_told(bench: Bench) -> None:
    bench.tree.add_cpu(2, 1, 0)
    put(bench.tree.cpu_dir / "cpu2/.place", "2 0")
    with pytest.raises(RefusedError, match="EXDEV"):
        await bench.agent.cpu_set([CpuName(socket=1, core=0)], True)


async def test_memory_outside_the_movable_zone_is_not_fought_over(bench: Bench) -> None:
    bench.tree.add_block(8, 1, "online", "Normal")
    bench.tree.refuse_block(8, "EBUSY")
    for online in (True, False):
        with pytest.raises(RefusedError, match="in zone Normal"):
            await bench.agent.memory_set(MemorySpan(8 * BLOCK, BLOCK), online, deadline=60)


async def test_notes_tell_what_is_tried_again(bench: Bench) -> None:
    bench.tree.add_block(8, 1, "online", "Movable")
    bench.tree.busy_block(8, 1)
    notes: list[str | None] = []
    await bench.agent.memory_set(1, False, progress=lambda done, total, note: notes.append(note))
    assert notes == ["1 of 1 blocks are busy; trying again", None]


async def test_many_blocks_fit_into_a_frame(bench: Bench) -> None:
    for number in range(100, 1100):
        bench.tree.add_block(number, 1)
    done = await bench.agent.memory_set(MemorySpan(100 * BLOCK, 1000 * BLOCK), True)
    assert len(done) == 1000
    topology = await bench.agent.topology()
    assert [b.zone for b in topology.blocks if b.node == 1] == ["Movable"] * 1000


async def test_room(bench: Bench) -> None:
    tree, page = bench.tree, os.sysconf("SC_PAGE_SIZE")
    (tree.proc / "zoneinfo").unlink()
    pages = BLOCK // page
    tree.zone(0, "Normal", managed=4 * pages, free=2 * pages, high=100)
    tree.zone(1, "Movable", managed=2 * pages, free=pages, cache=pages // 2, high=100)
    for number in (8, 9):
        tree.add_block(number, 1, "online", "Movable")
    room = await bench.agent.room(1)
    assert room.available == 2 * BLOCK - 100 * page
    assert room.needed == BLOCK // 2 + 100 * page  # in use, without the file cache above the watermark
    assert room.fits
    half = await bench.agent.room(MemorySpan(8 * BLOCK, BLOCK))
    assert half.needed == room.needed  # nobody knows in which half the pages are
    assert half.available == 2 * BLOCK - 100 * page + BLOCK - 100 * page
    assert not (await bench.agent.room(0)).fits
    assert (await bench.agent.room(MemorySpan(20 * BLOCK, BLOCK))).needed == 0


async def test_pci(bench: Bench) -> None:
    devices = bench.tree.sys / "bus/pci/devices"
    port = bench.tree.sys / "devices/pci0000:20/0000:20:00.0"
    for folder in (port, port / "0000:21:00.0", port / "0000:21:00.0/0000:22:1f.7", port / "power"):
        put(folder / "numa_node", "-1")
    devices.mkdir(parents=True)
    (devices / "0000:20:00.0").symlink_to(port)
    fixed = await bench.agent.pci_fix_node(["0000:20:00.0"], 1)
    assert fixed == ("0000:20:00.0", "0000:21:00.0", "0000:22:1f.7")
    assert (port / "0000:21:00.0/numa_node").read_text() == "1\n"
    assert (port / "power/numa_node").read_text() == "-1\n"
    put(port / "numa_node.refuse", "EINVAL")
    with pytest.raises(RefusedError, match="numa_node of 0000:20:00"):
        await bench.agent.pci_fix_node(["0000:20:00.0"], 2)
    slot = bench.tree.sys / "bus/pci/slots/5"
    put(slot / "address", "0000:21:00")
    put(slot / "power", "1")
    await bench.agent.pci_power_off("0000:21:00.0")
    assert (slot / "power").read_text() == "0\n"
    await bench.agent.pci_power_off("0000:21:00.0")
    put(slot / "power", "1")
    put(slot / "power.refuse", "EPERM")
    with pytest.raises(RefusedError, match="Operation not permitted"):
        await bench.agent.pci_power_off("0000:21:00.0")


async def test_moving_the_pages_of_a_process(bench: Bench) -> None:
    with contextlib.suppress(RefusedError):  # kernels without NUMA have no such call
        assert await bench.agent.migrate(os.getpid(), [0], [0]) == 0
    with pytest.raises(RefusedError):
        await bench.agent.migrate((1 << 22) - 1, [0], [0])


async def test_poweroff_runs_the_guests_own(tmp_path: Path) -> None:
    program = tmp_path / "poweroff"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/off\nexit ${{1:-0}}\n")
    program.chmod(0o755)
    async with benched(tmp_path, poweroff=str(program)) as bench:
        await bench.agent.poweroff()
        assert (tmp_path / "off").exists()
        program.write_text("#!/bin/sh\nexit 1\n")
        with pytest.raises(RefusedError, match="no way to power off"):
            await bench.agent.poweroff()


# -- where it runs


async def test_a_terminal_can_stand_in_for_the_port(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    tty.setraw(master)
    try:
        async with running_agent(Tree(tmp_path), os.ttyname(slave)):
            loop = asyncio.get_running_loop()
            got = loop.create_future()
            os.write(master, b'\n{"hello":{"versions":[1],"session":"0123456789abcdef"}}\n')
            buffer = bytearray()

            def read() -> None:
                buffer.extend(os.read(master, 4096))
                if b'"version":1' in buffer and not got.done():
                    got.set_result(None)

            loop.add_reader(master, read)
            try:
                await asyncio.wait_for(got, 20)
            finally:
                loop.remove_reader(master)
    finally:
        os.close(master)
        os.close(slave)


def oldest_python() -> str | None:
    """Return Python 3.9, the oldest that the agent runs on, where there is one."""
    path = shutil.which("python3.9")
    if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
        return path
    return None


@pytest.mark.skipif(oldest_python() is None, reason="no python3.9")
async def test_the_agent_runs_on_the_oldest_python(tmp_path: Path) -> None:
    python = oldest_python()
    assert python
    async with benched(tmp_path, python=python) as bench:
        bench.tree.add_cpu(2, 1, 0)
        assert (await bench.agent.cpu_set([CpuName(socket=1, core=0)], True))[0].online
        bench.tree.add_block(8, 1)
        assert (await bench.agent.memory_set(1, True))[0].zone == "Movable"
        await bench.agent.topology()
        await bench.agent.room(1)
        sink = Sink()
        assert await bench.agent.exec(shell("echo hello", tty=True), on_output=sink) == CommandEnd(code=0)
        assert b"hello" in sink.data


async def test_help_and_version() -> None:
    agent = Path(__file__).parents[2] / "guest-agent/vmcoal_agent.py"
    for option, text in (("--version", "0.1.0"), ("--help", "vmcoal guest agent")):
        done = subprocess.run([sys.executable, agent, option], capture_output=True, text=True, check=True, timeout=30)
        assert text in done.stdout
        assert "--sysfs" not in done.stdout
