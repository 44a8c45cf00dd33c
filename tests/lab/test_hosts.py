"""The hosts and their links, and labs that do not come up."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.labs import Lab, folders
from framework.path import kill, until
from vmcoal.lab.lab import LabStatus
from vmcoal.lab.links import PROFILES

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

SMALL = ("--hosts", "2", "--memory", "768M", "--cpus", "1")
"""Two hosts that take little: these tests are about how they begin and end."""


def ping(lab: Lab, host: str, peer: str) -> float | None:
    """Return the shortest of some round trips in seconds, or ``None`` where no answer came."""
    out = lab.on(host, "ping", "-q", "-c", "5", "-i", "0.3", "-W", "3", peer, code=None).out
    match = re.search(r"rtt min/avg/max/mdev = ([\d.]+)/", out)
    return float(match[1]) / 1000 if match else None


def test_links_are_as_told_each_for_itself(lab: Lab) -> None:
    lab.run("link", "host1", "host3", "wifi")
    lab.run("cut", "host1", "host2")
    assert ping(lab, "host1", "host2") is None
    slow = ping(lab, "host3", "host1")
    assert slow is not None
    assert slow >= PROFILES["wifi"].rtt - PROFILES["wifi"].jitter
    assert ping(lab, "host2", "host3") is not None
    assert {(link.a, link.b): link.cut for link in lab.status().links if link.cut} == {("host1", "host2"): True}
    for peer in ("host2", "host3"):
        lab.run("link", "host1", peer, "lan")
        assert ping(lab, "host1", peer) is not None


def terminal_of(lab: Lab, host: str, script: str) -> tuple[int, str]:
    """Run a script in a host on a terminal of 33 × 111, where ``typed`` and the end are typed; return its exit code and
    what the terminal showed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 33, 111, 0, 0))
    streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with lab.scene.spawn("lab", "exec", "-t", host, "--", "sh", "-c", script, **streams) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: everybody closed the other end
            while data := os.read(ours, 4096):
                shown += data
                if shown.count(b"\n") == 2:
                    os.write(ours, b"typed\n\4")
        os.close(ours)
    return process.returncode, shown.decode()


def test_commands_in_hosts(lab: Lab) -> None:
    assert lab.on("host2", "hostname").out == "host2\n"
    done = lab.on("host1", "sh", "-c", "cat; echo said >&2; exit 7", stdin=b"given\n", code=7)
    assert (done.out, done.err) == ("given\n", "said\n")
    lab.on("host1", "sh", "-c", "kill -TERM $$", code=128 + signal.SIGTERM)
    big = os.urandom(3 << 20)
    assert lab.on("host1", "md5sum", stdin=big).out == lab.on("host2", "md5sum", stdin=big).out
    code, shown = terminal_of(lab, "host1", "tty; stty size; cat; exit 4")
    assert code == 4
    assert re.fullmatch(r"/dev/pts/\d+\r\n33 111\r\ntyped\r\ntyped\r\n", shown)
    assert "KVM runs a probe guest" in lab.vmcoal("host3", "doctor", code=None).out
    assert "no host 'host9'" in lab.run("exec", "host9", "--", "true", code=4).err
    assert "hyphens" in lab.run("exec", "host1", code=2).err
    assert "runs already" in lab.run("up", code=5).err
    assert "--hosts is for a new one" in lab.run("up", "--hosts", "3", code=5).err


# Labs that do not come up, or are killed


@pytest.fixture
def small(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with folders(request) as home:
        yield Lab(home)


def nothing_is_left(lab: Lab) -> bool:
    """Check that a lab left neither folder nor process."""
    left = [path for part in "sr" for path in (lab.scene.home / part).rglob("lab*")]
    return not left and not lab.scene.pids("qemu-system") and not lab.scene.pids("vmcoal-holder")


def qemu_that(lab: Lab, script: str) -> str:
    """Return a QEMU that runs ``script`` before it starts, where it is a host's."""
    path = lab.scene.home / "qemu"
    path.write_text(f'#!/bin/bash\ncase "$*" in *guest=lab-*) {script};; esac\nexec qemu-system-x86_64 "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_qemu_that_ends_at_once(small: Lab) -> None:
    qemu = qemu_that(small, 'case "$*" in *lab-host2*) echo "no such luck" >&2; exit 1;; esac')
    error = small.run("up", *SMALL, "--qemu", qemu, code=9).err
    assert "QEMU of the host ended at once: no such luck on host2" in error
    assert nothing_is_left(small)


def test_a_host_that_cannot_boot(small: Lab) -> None:
    """Its kernel finds no init, panics and resets."""
    append = "console=ttyS0 panic=-1 rdinit=/nowhere root=/none"
    qemu = qemu_that(small, f'case "$*" in *lab-host2*) set -- "$@" -append "{append}" -no-reboot;; esac')
    error = small.run("up", *SMALL, "--qemu", qemu, code=9).err
    assert "the host ended while it booted" in error
    assert "on host2" in error
    assert "Kernel panic" in error
    assert nothing_is_left(small)


def test_hosts_that_never_answer(small: Lab) -> None:
    qemu = qemu_that(small, 'set -- "$@" -S')
    error = small.run("up", *SMALL, "--qemu", qemu, "--deadline", "3s", code=8).err
    assert "did not boot within 3 s" in error
    assert "--deadline 6s" in error
    assert nothing_is_left(small)


def test_more_memory_than_there_is(small: Lab) -> None:
    error = small.run("up", "--memory", "512G", code=3).err
    assert "not enough memory for 3 hosts: 3 × 512" in error
    assert nothing_is_left(small)


def test_killed_while_it_came_up(small: Lab) -> None:
    with small.scene.spawn("lab", "up", *SMALL) as process:
        until(lambda: len(small.scene.pids("guest=lab-host")) == 2, "two hosts running", 120)
        kill(process.pid)
        process.communicate()
    (status,) = json.loads(small.run("status", "-o", "json").out)
    assert status["state"] == "unfinished"
    assert "vmcoal lab down" in small.run("up", *SMALL, code=5).err
    assert json.loads(small.run("down", "-o", "json").out) == {"lab": ["host1", "host2"]}
    assert nothing_is_left(small)


def test_interrupted_while_it_came_up(small: Lab) -> None:
    with small.scene.spawn("lab", "up", *SMALL) as process:
        until(lambda: len(small.scene.pids("guest=lab-host")) == 2, "two hosts running", 120)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert nothing_is_left(small)


def test_a_host_comes_back_and_all_that_is_killed_is_taken_away(small: Lab) -> None:
    small.run("up", *SMALL)
    before = small.status()
    assert before.state == "running"
    small.run("kill", "host2")
    assert [host.state for host in small.status().hosts] == ["running", "stopped"]
    assert "does not run" in small.run("exec", "host2", "--", "true", code=7).err

    port = before.links[0].port_b
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.bind(("127.0.0.1", port))
        assert f"UDP port {port} of this machine" in small.run("up", code=5).err
    assert [host.state for host in small.status().hosts] == ["running", "stopped"]
    small.run("up")
    assert ping(small, "host1", "host2") is not None

    for pid in (*small.scene.pids("vmcoal-holder"), *small.scene.pids("guest=lab-host")):
        with_pid = Path(f"/proc/{pid}")
        if with_pid.exists():
            os.kill(pid, signal.SIGKILL)
    until(lambda: not small.scene.pids("guest=lab-host"), "the hosts' end")
    status: LabStatus = small.status()
    assert status.state == "stopped"
    small.run("down")
    assert nothing_is_left(small)


@pytest.mark.soak
def test_the_tour(small: Lab) -> None:
    out = small.run("tour", patience=850).out
    assert "0 wrong pages" in out
    assert re.search(r"^node \d+ size: 256 MB$", out, re.MULTILINE)
    assert nothing_is_left(small)
