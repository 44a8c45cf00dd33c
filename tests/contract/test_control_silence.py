"""A call to a daemon that is stopped, or says nothing, ends; one that takes long does not."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.fake_controller import FakeController
from vmcoal.control import client, silence
from vmcoal.control.client import call
from vmcoal.control.wire import Alive, Progress, Result
from vmcoal.errors import DeadlineError, UnreachableError

pytestmark = pytest.mark.contract

PATIENCE = 60.0
SERVER = """
import asyncio, sys
from pathlib import Path
from vmcoal.control.server import ControlServer

async def forever(params, client):
    client.report(1, 1, "began")
    try:
        await asyncio.Event().wait()
    finally:
        print("cancelled", flush=True)

async def main():
    server = ControlServer(Path(sys.argv[1]), {"forever": forever}, what="the daemon", look="", log="")
    await server.start()
    print("listens", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE)[0]
    return process.stdout.readline().strip()


@pytest.fixture
def daemon(surroundings: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    path = surroundings / "d.sock"
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(path)], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert next_line(process) == "listens"
            yield process, path
        finally:
            process.kill()
            process.send_signal(signal.SIGCONT)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "STOPPED", 0.05)
    monkeypatch.setattr(silence.Silence, "LOOK", 0.05)


def test_a_daemon_that_is_stopped_in_the_middle_is_named(daemon: tuple[subprocess.Popen[str], Path]) -> None:
    process, path = daemon

    def stop(_: Progress) -> None:
        process.send_signal(signal.SIGSTOP)

    with pytest.raises(UnreachableError) as failed:
        call(path, "forever", result=str, peer="the daemon", on_progress=stop)
    assert str(failed.value) == f"the daemon (process {process.pid}) is stopped"
    assert f"kill -CONT {process.pid}" in (failed.value.hint or "")
    assert failed.value.exit_code == 7
    process.send_signal(signal.SIGCONT)
    assert next_line(process) == "cancelled"


def test_a_daemon_that_was_stopped_before_the_call_is_named(daemon: tuple[subprocess.Popen[str], Path]) -> None:
    process, path = daemon
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    for deadline in (None, 0.0):
        with pytest.raises(UnreachableError, match=r"the daemon \(process \d+\) is stopped"):
            call(path, "forever", result=str, peer="the daemon", deadline=deadline)


def test_a_daemon_that_says_nothing_is_given_up(surroundings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "SILENT", 0.1)

    def nothing(_call: object, conversation: object) -> Iterator[Result]:
        assert conversation.read_input() is None  # type: ignore[attr-defined]
        yield from ()

    with FakeController(surroundings / "f.sock", {"attach": nothing}) as fake:
        with pytest.raises(UnreachableError, match="has said nothing for") as failed:
            call(fake.path, "attach", result=str, peer="the daemon")
        assert f"kill -9 {os.getpid()}" in (failed.value.hint or "")


def test_signs_of_life_are_no_answer(surroundings: Path) -> None:
    with FakeController(surroundings / "f.sock", {"attach": [Alive(), Alive(), Result("done")]}) as fake:
        assert call(fake.path, "attach", result=str, peer="the daemon") == "done"


def test_a_deadline_of_a_call_holds_with_signs_of_life(daemon: tuple[subprocess.Popen[str], Path]) -> None:
    process, path = daemon
    with pytest.raises(DeadlineError):
        call(path, "forever", result=str, peer="the daemon", deadline=0.2)
    assert next_line(process) == "cancelled"


def test_the_time_in_which_nobody_looked_does_not_count(surroundings: Path) -> None:
    with FakeController(surroundings / "f.sock", {}) as fake, client.connect(fake.path, "the daemon") as sock:
        waited = silence.Silence(sock, "the daemon")
        for _ in range(10):
            waited.lasted(3600.0)  # this process was stopped itself
        waited.broken()
