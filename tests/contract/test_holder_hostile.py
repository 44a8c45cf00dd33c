"""Clients that break the protocol, and too much of everything, never harm the holder."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from framework.holder import DEADLINE, ForegroundHolder, RawClient, foreground_holder, process_gone
from framework.native import sanitized_bindir

pytestmark = pytest.mark.contract


@pytest.fixture(params=["plain", "sanitized"], autouse=True)
def binary(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "sanitized":
        monkeypatch.setenv("VMCOAL_BINDIR", str(sanitized_bindir()))


@pytest.fixture
def holder(binary: None) -> Iterator[ForegroundHolder]:
    with foreground_holder() as holder:
        yield holder


@pytest.fixture
def client(holder: ForegroundHolder) -> Iterator[RawClient]:
    with holder.client() as client:
        yield client


def refused(answer: list[str], errno: str, message: str) -> None:
    assert answer == ["error", f"errno={errno}", f"message={message}"]


def test_every_broken_packet_is_refused_and_the_connection_lives(client: RawClient, holder: ForegroundHolder) -> None:
    before = holder.fds()
    fds = [0] * 32
    for packet, descriptors, errno, message in (
        (b"list", [], "EINVAL", "the packet does not end in NUL"),
        (b"\0", [], "ENOSYS", "unknown verb ''"),
        (b"reboot\0", [], "ENOSYS", "unknown verb 'reboot'"),
        (b"\xff\xfe\n\0", [], "ENOSYS", None),
        (b"list\0x\0", [], "EINVAL", "field 'x' is not key=value"),
        (b"list\0x=1\0", [], "EINVAL", "list knows no key 'x'"),
        (b"hello\0version=2\0", [], "EPROTONOSUPPORT", "only version 1 is spoken here"),
        (b"list\0", fds, "EBADF", "32 descriptors came where 0 were told"),
        (b"keep\0name=a\0", [], "EBADF", "0 descriptors came where 1 were told"),
        (b"list\0" * 13108, [], "EMSGSIZE", "the packet is longer than 65536 bytes"),
        (b"list\0" * 13108, fds, "EMSGSIZE", "the packet is longer than 65536 bytes"),
        (b"list\0", [0] * 33, "E2BIG", "more than 32 descriptors, or no room for them"),
        (b"list\0", [0] * 250, "E2BIG", "more than 32 descriptors, or no room for them"),
        (b"spawn\0id=a\0arg=/bin/true\0fd=3\0fd=4\0", [0], "EBADF", "1 descriptors came where 2 were told"),
        (b"spawn\0id=a\0arg=/nowhere\0fd=3\0", [0], "ENOENT", "cannot execute /nowhere: No such file or directory"),
        (b"spawn\0id=a\0arg=true\0stdout=/dev/null\0", [], "EINVAL", "cannot write log /dev/null: Invalid argument"),
    ):
        client.send(packet, descriptors)
        answer = client.receive()
        refused(answer, errno, message or answer[2].removeprefix("message="))
    assert client.ask("list") == ["ok"]
    assert holder.fds() == before


def test_noise_does_no_harm(client: RawClient, holder: ForegroundHolder) -> None:
    noise = random.Random(1)
    words = [
        b"spawn",
        b"stop",
        b"id=a",
        b"id=",
        b"arg=",
        b"arg=/nowhere",
        b"fd=3",
        b"=",
        b"",
        b"\xff" * 40,
        b"grace-ms=1",
    ]
    before = holder.fds()
    for _ in range(2000):
        if noise.random() < 0.5:
            packet = noise.randbytes(noise.randrange(1, 300))
        else:
            packet = b"\0".join(noise.choices(words, k=noise.randrange(1, 8))) + b"\0" * noise.randrange(2)
        client.send(packet or b"\0", [0] * noise.choice([0, 0, 1, 2]))
        assert client.receive()[0] in ("ok", "error")
    assert client.ask("list") == ["ok"]
    assert holder.fds() == before


def test_an_empty_packet_is_a_hang_up(client: RawClient, holder: ForegroundHolder) -> None:
    before = holder.fds()
    with holder.client() as rude:
        rude.socket.send(b"")
        assert rude.hung_up()
    with holder.client() as rude:
        rude.send(b"", [0, 1])
        assert rude.hung_up()
    assert client.ask("list") == ["ok"]
    assert holder.fds() == before


def test_a_client_killed_within_a_request_does_no_harm(client: RawClient, holder: ForegroundHolder) -> None:
    source = """
import array, os, signal, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
for i in range(50):
    sock.sendmsg([b"watch\\0"])
    sock.sendmsg([b"keep\\0name=k%d\\0" % i], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))])
    sock.sendmsg([b"fetch\\0name=k%d\\0" % i])
    sock.sendmsg([b"drop\\0name=k%d\\0" % i])
os.kill(os.getpid(), signal.SIGKILL)
"""
    before = holder.fds()
    for _ in range(5):
        rude = subprocess.run([sys.executable, "-ISc", source, str(holder.folders.holder_socket)], timeout=DEADLINE)
        assert rude.returncode == -signal.SIGKILL
    # What it asked for before its end may be done or not; nothing else stays.
    for name in client.ask("names")[1:]:
        assert client.ask("drop", name) == ["ok"]
    assert holder.fds() == before


def test_a_watcher_that_does_not_read_is_hung_up_on(client: RawClient, holder: ForegroundHolder) -> None:
    with holder.client() as lazy:
        assert lazy.ask("watch") == ["ok"]
        assert client.ask("watch") == ["ok"]
        gone = select.poll()
        gone.register(lazy.socket, select.POLLHUP)
        told = 0
        while told < 2000:
            told += 1
            client.send(b"spawn\0id=a\0arg=/bin/true\0")
            packets = [client.receive(), client.receive()]
            assert sorted(packet[0] for packet in packets) == ["event", "ok"]
            assert client.ask("forget", "id=a") == ["ok"]
            if any(events & select.POLLHUP for _, events in gone.poll(0)):
                break
        assert 10 < told < 2000, "a watcher may be late, but not for ever"
        # What was sent before is still there to be read.
        assert lazy.receive()[:2] == ["event", "type=exit"]
    assert client.ask("list") == ["ok"]


def test_a_client_that_does_not_read_answers_is_hung_up_on(client: RawClient, holder: ForegroundHolder) -> None:
    with holder.client() as lazy:
        lazy.socket.setblocking(False)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                select.select([], [lazy.socket], [], DEADLINE)
                lazy.socket.send(b"list\0")
    assert client.ask("list") == ["ok"]


def test_connections_are_bounded(client: RawClient, holder: ForegroundHolder) -> None:
    others = [RawClient(holder.folders.holder_socket) for _ in range(31)]
    assert all(other.ask("list") == ["ok"] for other in others)
    with holder.client() as surplus:
        assert surplus.hung_up()
    for other in others:
        other.close()
    # Hanging up is seen in order: after an answer to us the others are gone.
    assert client.ask("list") == ["ok"]
    with holder.client() as again:
        assert again.ask("list") == ["ok"]


def test_children_and_descriptors_are_bounded(client: RawClient, holder: ForegroundHolder) -> None:
    for number in range(256):
        assert client.ask("keep", f"name=k{number}", fds=[0]) == ["ok"]
    refused(client.ask("keep", "name=more", fds=[0]), "ENOSPC", "256 descriptors are kept already")
    assert len(client.ask("names")) == 257
    for number in range(256):
        assert client.ask("spawn", f"id={'x' * 60}-{number}", "arg=/bin/true")[0] == "ok"
    refused(
        client.ask("spawn", "id=more", "arg=/bin/true"), "ENOSPC", "256 children are known: forget those that ended"
    )
    assert len(client.ask("list")) == 257, "the longest list fits its packet"


def test_out_of_descriptors_it_refuses_and_goes_on() -> None:
    with foreground_holder("raw", limits=("prlimit", "--nofile=24:24")) as holder, holder.client() as client:
        assert client.ask("list") == ["ok"]
        others = [RawClient(holder.folders.holder_socket)]
        while others[-1].served():
            others.append(RawClient(holder.folders.holder_socket))
        assert len(others) < 24
        refused(client.ask("keep", "name=a", fds=[0]), "E2BIG", "more than 32 descriptors, or no room for them")
        answer = client.ask("spawn", "id=a", "arg=/bin/true")
        assert answer[0] == "error"
        assert answer[2].endswith("Too many open files")
        # A listener that is ready for ever would turn the loop for ever: no CPU time is used while nobody asks.
        ticks = holder.stat(14) + holder.stat(15)
        others.append(RawClient(holder.folders.holder_socket))
        assert others[-1].hung_up()
        with pytest.raises(subprocess.TimeoutExpired):
            holder.process.wait(0.2)
        assert holder.stat(14) + holder.stat(15) - ticks <= 0.1 * os.sysconf("SC_CLK_TCK")
        for other in others:
            other.close()
        assert client.ask("list") == ["ok"]
        assert client.ask("spawn", "id=a", "arg=/bin/true")[0] == "ok"


def test_cycles_leak_nothing(client: RawClient, holder: ForegroundHolder) -> None:
    log = holder.folders.state / "log"
    spawn = ["spawn", "id=a", "arg=/bin/echo", "arg=hello", f"stdout={log}", f"stderr={log}", "fd=3", "fd=4"]

    def cycles(count: int) -> tuple[int, int]:
        for _ in range(count):
            client.send("".join(f"{field}\0" for field in spawn).encode(), [0, 0])
            assert {client.receive()[0], client.receive()[0]} == {"ok", "event"}
            assert client.ask("forget", "id=a") == ["ok"]
            assert client.ask("keep", "name=k", fds=[0]) == ["ok"]
            assert client.ask("drop", "name=k") == ["ok"]
        return holder.fds(), holder.resident()

    assert client.ask("watch") == ["ok"]
    before_fds, before_memory = cycles(20)
    after_fds, after_memory = cycles(200)
    assert after_fds == before_fds
    assert holder.sanitized or after_memory - before_memory < 200_000, "a sanitizer keeps freed memory for a while"
    assert log.read_text() == "hello\n" * 220


@pytest.mark.root
def test_another_user_is_hung_up_on(client: RawClient, holder: ForegroundHolder) -> None:
    path = holder.folders.holder_socket
    for folder in (path, *path.parents[:5]):
        folder.chmod(0o777)
    source = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
try:
    sock.send(b"list\\0")
    sys.exit(sock.recv(100) != b"")
except (BrokenPipeError, ConnectionResetError):
    pass
"""
    assert subprocess.run([sys.executable, "-ISc", source, str(path)], timeout=DEADLINE).returncode == 0
    assert client.ask("list") == ["ok"]


def test_the_socket_is_private(holder: ForegroundHolder) -> None:
    assert holder.folders.holder_socket.stat().st_mode & 0o777 == 0o600


def test_a_holder_in_difficulty_says_so(holder: ForegroundHolder) -> None:
    from vmcoal.holding.binaries import find_binary

    state, runtime = holder.folders.state, holder.folders.runtime
    (state / "file").touch()
    (state / "sub").mkdir()
    good = {"--socket": str(state / "sub" / "s"), "--exits": str(state / "exits")}

    def run(*more: str, **changes: str) -> tuple[int, str]:
        options = good | {f"--{key}": value for key, value in changes.items()}
        arguments = [text for pair in options.items() for text in pair]
        for detach in ((), ("--detach",)):
            done = subprocess.run(
                [find_binary("vmcoal-holder"), *arguments, *detach, *more],
                capture_output=True,
                text=True,
                timeout=DEADLINE,
            )
            first = done.returncode, done.stderr.splitlines()[0]
        return first

    assert run(socket=str(runtime / "other")) == (3, f"vmcoal-holder: another holder serves folder {runtime}")
    assert run(socket="/nowhere/s") == (1, "vmcoal-holder: cannot open folder /nowhere: No such file or directory")
    assert run(socket="relative")[0] == 1
    assert run(socket="/" + "x" * 200)[0] == 1
    (state / "sub" / "s").touch()
    assert run() == (1, f"vmcoal-holder: {state}/sub/s exists and is not a socket")
    (state / "sub" / "s").unlink()
    assert run(exits="/nowhere/exits") == (1, "vmcoal-holder: cannot write /nowhere/exits: No such file or directory")
    assert run("surplus")[0] == 2
    assert run("--unknown")[0] == 2
    assert run("--ready-fd", "77")[0] == 2
    assert run("--idle-exit", "soon")[0] == 2
    assert run(name="Not A Label")[0] == 2
    helped = subprocess.run([find_binary("vmcoal-holder"), "--help"], capture_output=True, text=True)
    assert helped.returncode == 0
    assert helped.stdout.startswith("usage: vmcoal-holder --socket PATH")


def test_a_long_message_of_a_client_that_stops_reading_is_no_delay(holder: ForegroundHolder) -> None:
    """One client's flood does not keep another from its answer."""
    with holder.client() as flood, holder.client() as client:
        flood.socket.setblocking(False)
        began = time.monotonic()
        for _ in range(100):
            try:
                flood.socket.send(b"list\0")
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                break
        assert client.ask("list") == ["ok"]
        assert time.monotonic() - began < 1


def test_a_killed_child_is_told_and_its_holder_lives(client: RawClient, holder: ForegroundHolder) -> None:
    assert client.ask("watch") == ["ok"]
    pid = int(client.ask("spawn", "id=a", "arg=/bin/sleep", "arg=1000")[1].removeprefix("pid="))
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert process_gone(pidfd)
    event = client.receive()
    assert event == [
        *("event", "type=exit", "id=a", f"pid={pid}", "state=signaled", "code=0", "signal=9", "restarting=0"),
    ]
