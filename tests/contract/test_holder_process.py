"""What the real holder does with processes: how they start, how they die, what becomes of their output."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from framework.holder import DEADLINE, foreground_holder, process_gone
from vmcoal.errors import ConflictError, DeadlineError, PrerequisiteError, UnreachableError
from vmcoal.holding.client import ChildSpec, ChildState, ExitEvent, Holder, Restart, read_exits
from vmcoal.layout import VmFolders, vm_folders

pytestmark = pytest.mark.contract

RUNS = ("sleep", "1000")


@pytest.fixture
def folders() -> VmFolders:
    folders = vm_folders("process")
    folders.make()
    return folders


@pytest.fixture
async def holder(folders: VmFolders) -> AsyncIterator[Holder]:
    holder = await Holder.start(folders, name="process", deadline=DEADLINE)
    yield holder
    with suppress(UnreachableError):
        await holder.shutdown(grace=0)
    await holder.close()


def script(source: str, **options: object) -> ChildSpec:
    """A child that runs Python source without the site module: 20 ms to start."""
    return replace(ChildSpec(id="a", argv=(sys.executable, "-ISc", source)), **options)  # type: ignore[arg-type]


FACTS = """
import json, os, resource, signal
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "env": dict(os.environ), "cwd": os.getcwd(), "group": os.getpgid(0) == os.getpid(),
    "session": os.getsid(0) == os.getppid(),
    "fds": {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if
            os.path.exists(f"/proc/self/fd/{fd}")},
    "core": resource.getrlimit(resource.RLIMIT_CORE), "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "blocked": status["SigBlk"], "ignored": status["SigIgn"], "umask": status["Umask"],
}))
"""


async def test_a_child_has_what_it_was_given_and_nothing_else(holder: Holder, folders: VmFolders) -> None:
    log = folders.state / "out"
    descriptors = [os.open(folders.state, os.O_RDONLY), os.open("/", os.O_RDONLY)]
    # Crossed on purpose: each target is the other's number on this side.
    spec = script(FACTS, env={"A": "b=c"}, cwd=Path("/usr"), stdout=log, fds={200: descriptors[0], 3: descriptors[1]})
    await holder.spawn(spec)
    assert (await holder.wait("a", DEADLINE)).ok
    facts = json.loads(log.read_text())
    facts["fds"].pop("4", None)  # the listing of /proc/self/fd itself
    assert facts["env"] == {"A": "b=c"} | ({"LC_CTYPE": "C.UTF-8"} if "LC_CTYPE" in facts["env"] else {})
    assert facts["cwd"] == "/usr"
    assert facts["group"]
    assert facts["session"]
    assert facts["fds"].pop("1").startswith("pipe:")
    assert facts["fds"] == {"0": "/dev/null", "2": "/dev/null", "3": "/", "200": str(folders.state)}
    assert facts["core"] == [0, 0]
    assert facts["blocked"] == "0000000000000000"
    # Python itself ignores SIGPIPE and SIGXFSZ; 32 and 33 are libc's own, and it lets nobody change them.
    libcs = 0b11 << 31
    assert int(facts["ignored"], 16) & ~libcs == 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert facts["umask"] == "0077"
    for descriptor in descriptors:
        os.close(descriptor)


async def test_the_program_is_looked_up_in_the_childs_path(holder: Holder, folders: VmFolders) -> None:
    program = folders.state / "hello"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o700)
    log = folders.state / "out"
    await holder.spawn(ChildSpec(id="a", argv=("hello",), env={"PATH": str(folders.state)}, stdout=log))
    assert (await holder.wait("a", DEADLINE)).ok
    assert log.read_text() == "hello\n"
    with pytest.raises(PrerequisiteError, match="cannot execute hello: No such file"):
        await holder.spawn(ChildSpec(id="b", argv=("hello",), env={"PATH": "/usr/bin"}))


async def test_each_step_that_fails_is_named(holder: Holder, folders: VmFolders) -> None:
    (folders.state / "data").write_text("no program")
    (folders.state / "fifo").unlink(missing_ok=True)
    os.mkfifo(folders.state / "fifo")
    base = ChildSpec(id="a", argv=RUNS)
    for spec, message in (
        (replace(base, cwd=Path("/nowhere")), "cannot enter folder /nowhere: No such file or directory"),
        (replace(base, cgroup=Path("/nowhere")), "cannot enter cgroup /nowhere: No such file or directory"),
        (replace(base, argv=(str(folders.state / "data"),)), "Permission denied"),
        (replace(base, argv=("/usr",)), "cannot execute /usr: Permission denied"),
        (replace(base, stdout=Path("/nowhere/log")), "cannot write log /nowhere/log: No such file or directory"),
    ):
        with pytest.raises(PrerequisiteError, match=message):
            await holder.spawn(spec)
    assert await holder.list() == []


async def test_output_is_complete_when_the_exit_is_told(holder: Holder, folders: VmFolders) -> None:
    log = folders.state / "out"
    seen = asyncio.get_running_loop().create_future()
    await holder.watch(lambda event: seen.set_result(log.stat().st_size))
    await holder.spawn(script("import os; [os.write(1, b'x' * 1000) for _ in range(2000)]", stdout=log))
    assert await asyncio.wait_for(seen, DEADLINE) == 2_000_000


async def test_one_log_for_both_streams_keeps_their_order(holder: Holder, folders: VmFolders) -> None:
    both = folders.state / "both"
    source = "import os; [os.write(1 + i % 2, b'%d\\n' % i) for i in range(100)]"
    await holder.spawn(script(source, stdout=both, stderr=both))
    await holder.wait("a", DEADLINE)
    assert both.read_text() == "".join(f"{i}\n" for i in range(100))
    assert both.stat().st_mode & 0o777 == 0o600


async def test_logs_are_bounded(holder: Holder, folders: VmFolders) -> None:
    log = folders.state / "err"
    source = "import os; [os.write(2, b'%06d\\n' % i) for i in range(5000)]"
    await holder.spawn(script(source, stderr=log, log_limit=8192))
    await holder.wait("a", DEADLINE)
    parts = (folders.state / "err.1").read_text(), log.read_text()
    assert all(0 < len(part) <= 8192 for part in parts)
    lines = "".join(parts).splitlines()
    assert lines == [f"{i:06}" for i in range(5000 - len(lines), 5000)], "whole lines, the newest ones, none missing"
    assert sorted(path.name for path in folders.state.glob("err*")) == ["err", "err.1"]


async def test_what_a_child_leaves_behind_is_ended_with_it(holder: Holder) -> None:
    reading, writing = os.pipe()
    # The grandchild holds the pipe's other end until it dies.
    await holder.spawn(ChildSpec(id="a", argv=("sh", "-c", "sleep 1000 & exit 0"), fds={3: writing}))
    os.close(writing)
    assert (await holder.wait("a", DEADLINE)).ok
    assert await asyncio.wait_for(asyncio.to_thread(os.read, reading, 1), DEADLINE) == b""
    os.close(reading)


async def test_orphans_become_the_holders_and_are_reaped(holder: Holder, folders: VmFolders) -> None:
    reading, writing = os.pipe()
    source = "setsid sh -c 'echo $PPID >&3; read x </dev/null; exec sleep 0.05' & wait"
    await holder.spawn(ChildSpec(id="a", argv=("sh", "-c", source), fds={3: writing}))
    os.close(writing)
    await holder.wait("a", DEADLINE)
    assert await asyncio.wait_for(asyncio.to_thread(os.read, reading, 64), DEADLINE)
    os.close(reading)
    children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children")
    assert children.read_text() == ""


async def test_every_exit_is_written_down(holder: Holder, folders: VmFolders) -> None:
    first = await holder.spawn(
        ChildSpec(id="a", argv=("sh", "-c", "exit 3"), restart=Restart.ON_FAILURE, restart_max=1)
    )
    await holder.wait("a", DEADLINE)
    second = await holder.spawn(ChildSpec(id="b", argv=RUNS))
    await holder.stop("b")
    records = read_exits(folders.exits)
    assert [(record.id, record.state, record.code) for record in records] == [
        ("a", ChildState.EXITED, 3),
        ("a", ChildState.EXITED, 3),
        ("b", ChildState.SIGNALED, signal.SIGTERM),
    ]
    assert records[0].pid == first
    assert records[2].pid == second
    assert records == sorted(records, key=lambda record: record.at)


async def test_a_program_that_vanished_fails_its_restart(holder: Holder, folders: VmFolders) -> None:
    program = folders.state / "once"
    program.write_text('#!/bin/sh\nrm "$0"\nexit 1\n')
    program.chmod(0o700)
    events: list[ExitEvent] = []
    await holder.watch(events.append)
    await holder.spawn(ChildSpec(id="a", argv=(str(program),), restart=Restart.ON_FAILURE, restart_max=1))
    status = await holder.wait("a", DEADLINE)
    assert (status.state, status.code) == (ChildState.FAILED, 2)
    assert [(event.state, event.restarting) for event in events] == [
        (ChildState.EXITED, True),
        (ChildState.FAILED, False),
    ]
    assert read_exits(folders.exits)[-1].state is ChildState.FAILED


@pytest.mark.soak
async def test_thirty_seconds_of_life_begin_a_new_row_of_restarts(holder: Holder) -> None:
    long = ChildSpec(id="a", argv=("sh", "-c", "sleep 30.5; exit 1"), restart=Restart.ON_FAILURE, restart_max=1)
    ends: asyncio.Queue[ExitEvent] = asyncio.Queue()
    await holder.watch(ends.put_nowait)
    await holder.spawn(long)
    for _ in range(3):
        assert (await asyncio.wait_for(ends.get(), 40)).restarting


async def test_a_stopped_process_still_obeys_a_stop(holder: Holder) -> None:
    await holder.spawn(ChildSpec(id="a", argv=RUNS))
    await holder.signal("a", signal.SIGSTOP)
    assert (await holder.stop("a", 60)).signal == signal.SIGTERM


@pytest.mark.skipif(
    not shutil.which("nbdkit") or not shutil.which("nbdinfo"), reason="no nbdkit, nbdinfo: run tools/setup"
)
async def test_a_socket_activated_server_keeps_its_socket_over_a_crash(holder: Holder, folders: VmFolders) -> None:
    path = folders.runtime / "nbd.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        await holder.spawn(
            ChildSpec(
                id="nbd",
                argv=("nbdkit", "-f", "memory", "1M"),
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LISTEN_FDS": "1"},
                stderr=folders.state / "nbd.log",
                fds={3: listener.fileno()},
                restart=Restart.ON_FAILURE,
            )
        )
    size = ("nbdinfo", "--size", f"nbd+unix:///?socket={path}")
    for _ in range(3):
        # While nbdkit is down the connection waits in the socket's backlog.
        result = await asyncio.to_thread(subprocess.run, size, capture_output=True, text=True, timeout=DEADLINE)
        assert (result.stdout, result.stderr) == ("1048576\n", "")
        await holder.signal("nbd", signal.SIGKILL)
    assert (folders.state / "nbd.log").read_text() == ""
    path.unlink()


async def test_children_die_with_the_holder(holder: Holder, folders: VmFolders) -> None:
    pids = [await holder.spawn(ChildSpec(id=f"c{i}", argv=RUNS)) for i in range(3)]
    pidfds = [os.pidfd_open(pid) for pid in pids]
    waiting = asyncio.ensure_future(holder.wait("c0", DEADLINE))
    os.kill(holder.pid, signal.SIGKILL)
    with pytest.raises(UnreachableError):
        await waiting
    await holder.wait_lost()
    for pidfd in pidfds:
        assert process_gone(pidfd)
    folders.holder_socket.unlink()


async def test_a_killed_holder_is_replaced_in_the_same_folders(folders: VmFolders) -> None:
    async with await Holder.start(folders, name="one", deadline=DEADLINE) as first:
        gone = os.pidfd_open(first.pid)
        os.kill(first.pid, signal.SIGKILL)
        assert process_gone(gone)
        assert folders.holder_socket.exists()
        with pytest.raises(UnreachableError, match="Connection refused"):
            await Holder.connect(folders.holder_socket, deadline=1)
    async with await Holder.start(folders, name="two", deadline=DEADLINE) as second:
        assert second.name == "two"
        await second.shutdown(0)


async def test_one_holder_a_folder(holder: Holder, folders: VmFolders) -> None:
    with pytest.raises(ConflictError, match="another holder serves folder"):
        await Holder.start(folders, name="process", deadline=DEADLINE)
    assert await holder.list() == []
    async with await Holder.connect(folders.holder_socket, deadline=DEADLINE) as again:
        assert (again.pid, again.name) == (holder.pid, "process")


async def test_a_late_start_leaves_nothing(folders: VmFolders) -> None:
    for deadline in (0.0, 0.001, 0.002, 0.004, 0.006, 0.008):
        try:
            holder = await Holder.start(folders, name="late", deadline=deadline)
        except (DeadlineError, ConflictError):
            continue  # Conflict: the one before is still ending.
        await holder.shutdown(0)
    # The surroundings fixture looks for survivors.


STARTER = """
import asyncio, os, sys
from vmcoal.holding.client import ChildSpec, Holder
from vmcoal.layout import vm_folders

async def main():
    holder = await Holder.start(vm_folders("process"), name="process", deadline=10)
    await holder.spawn(ChildSpec(id="a", argv=("sleep", "1000")))
    print("started", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def _adopted(folders: VmFolders) -> None:
    async with await Holder.connect(folders.holder_socket, deadline=DEADLINE) as holder:
        (child,) = await holder.list()
        assert child.live
        assert os.getsid(holder.pid) == holder.pid
        await holder.shutdown(1)


async def test_the_holder_outlives_its_killed_starter(folders: VmFolders) -> None:
    starter = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", STARTER, stdout=subprocess.PIPE)
    assert starter.stdout is not None
    assert await asyncio.wait_for(starter.stdout.readline(), DEADLINE) == b"started\n"
    starter.kill()
    await starter.wait()
    await _adopted(folders)


async def test_the_holder_outlives_its_terminal(folders: VmFolders) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-P", "-c", STARTER])
    with os.fdopen(terminal, "rb", buffering=0) as stream:
        assert b"started" in await asyncio.wait_for(asyncio.to_thread(stream.read, 64), DEADLINE)
    # Closing the terminal's other end hangs up everything that it controls.
    await asyncio.to_thread(os.waitpid, pid, 0)
    await _adopted(folders)


def test_sigterm_ends_the_holder_and_its_children() -> None:
    with foreground_holder() as holder, holder.client() as client:
        answer = client.ask("spawn", "id=a", "arg=sleep", "arg=1000", "env=PATH=/usr/bin:/bin", "main=1")
        child = os.pidfd_open(int(answer[1].removeprefix("pid=")))
        holder.process.terminate()
        assert process_gone(child)
        holder.process.wait(DEADLINE)


def test_an_idle_holder_ends_by_itself() -> None:
    with foreground_holder("raw", "--idle-exit", "0.05") as holder:
        assert holder.process.wait(DEADLINE) == 0


def test_a_connection_a_child_or_a_descriptor_is_reason_to_live() -> None:
    with foreground_holder("raw", "--idle-exit", "0") as holder:
        holder.process.wait(DEADLINE)
    with foreground_holder("raw", "--idle-exit", "0.5") as holder:
        with holder.client() as client, pytest.raises(subprocess.TimeoutExpired):
            assert client.ask("keep", "name=a", fds=[0]) == ["ok"]
            holder.process.wait(1)
        with pytest.raises(subprocess.TimeoutExpired):
            holder.process.wait(1)
        with holder.client() as client:
            assert client.ask("drop", "name=a") == ["ok"]
            spawned = client.ask("spawn", "id=a", "arg=/bin/sleep", "arg=1000")
            assert spawned[0] == "ok"
        with pytest.raises(subprocess.TimeoutExpired):
            holder.process.wait(1)
        with holder.client() as client:
            assert client.ask("signal", "id=a", "sig=9") == ["ok"]
        assert holder.process.wait(DEADLINE) == 0
