"""Commands on a real terminal, and commands that Ctrl-C ends; each as a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from framework.command import spawn_vmcoal
from framework.fake_controller import Conversation, FakeController, failure, result
from vmcoal import layout
from vmcoal.control.wire import Call, Output, Progress
from vmcoal.controller.api import ExecResult
from vmcoal.errors import UnreachableError
from vmcoal.model.machine import Accel, KernelBoot, MachineSpec

pytestmark = pytest.mark.contract

PATIENCE = 20.0


@pytest.fixture
def web() -> layout.VmFolders:
    folders = layout.vm_folders("web")
    folders.make()
    spec = MachineSpec(name="web", uuid="u", accel=Accel.TCG, memory=1 << 30, boot=KernelBoot("/k"))
    folders.spec.write_bytes(msgspec.json.encode(spec))
    return folders


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *arguments: str, rows: int = 30, columns: int = 90) -> None:
        self.master, slave = pty.openpty()
        self.resize(rows, columns)
        self.process = spawn_vmcoal(*arguments, stdin=slave, stdout=slave, stderr=slave, preexec_fn=_own_terminal)
        os.close(slave)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def wait_for(self, text: bytes) -> None:
        ends = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert select.select([self.master], [], [], max(0.0, ends - time.monotonic()))[0], self.seen
            try:
                data = os.read(self.master, 65536)
            except OSError:
                data = b""
            assert data, f"ended without {text!r}: {self.seen!r}"
            self.seen += data

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.master)[3] & termios.ICANON

    def end(self) -> int:
        while True:
            assert select.select([self.master], [], [], PATIENCE)[0], self.seen
            try:
                data = os.read(self.master, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data
        os.close(self.master)
        return self.process.wait(PATIENCE)


def _own_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def console(web: layout.VmFolders) -> Iterator[tuple[socket.socket, list[bytes]]]:
    """A console that echoes in capitals; gives the listener and what was typed."""
    typed: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(web.console_socket))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer, contextlib.suppress(ConnectionError):
                peer.sendall(b"login: ")
                while data := peer.recv(4096):
                    typed.append(data)
                    peer.sendall(data.upper())
                    if b"bye" in data:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener, typed
        thread.join(PATIENCE)
    web.console_socket.unlink()


def test_console_is_raw_until_its_escape(console: tuple[socket.socket, list[bytes]]) -> None:
    terminal = Terminal("console", "web")
    terminal.wait_for(b"login: ")
    assert terminal.is_raw()
    terminal.type(b"root\r\x03\x04")
    terminal.wait_for(b"ROOT\r\x03\x04")
    terminal.type(b"x\x1dignored")
    assert terminal.end() == 0
    assert b"left the console" in terminal.seen
    assert b"".join(console[1]) == b"root\r\x03\x04x"


def test_console_ends_with_the_vm(console: tuple[socket.socket, list[bytes]]) -> None:
    terminal = Terminal("console", "web")
    terminal.wait_for(b"login: ")
    terminal.type(b"bye")
    assert terminal.end() == 0


def test_exec_with_a_terminal(web: layout.VmFolders) -> None:
    sizes: list[tuple[int | None, int | None]] = []

    def shell(call: Call, conversation: Conversation) -> Iterator[Any]:
        sizes.append((call.params["rows"], call.params["columns"]))
        yield Output(1, b"# ")
        typed = b""
        while not typed.endswith(b"\x04"):
            item = conversation.read_input()
            assert item is not None
            if item.rows is not None:
                sizes.append((item.rows, item.columns))
                yield Output(1, b"resized ")
            typed += item.data
            yield Output(1, item.data.upper())
        yield result(ExecResult(code=5))

    with FakeController(web.control_socket, {"exec": shell}) as fake:
        terminal = Terminal("shell", "web")
        terminal.wait_for(b"# ")
        assert terminal.is_raw()
        terminal.type(b"ls\x03")
        terminal.wait_for(b"LS\x03")
        terminal.resize(50, 120)
        terminal.wait_for(b"resized ")
        terminal.type(b"\x04")
        assert terminal.end() == 5
    assert sizes == [(30, 90), (50, 120)]
    assert fake.last("exec")["tty"] is True


def test_exec_sends_stdin_to_its_end(web: layout.VmFolders) -> None:
    got = bytearray()

    def cat(call: Call, conversation: Conversation) -> Iterator[Any]:
        while (item := conversation.read_input()) is not None and not item.eof:
            got.extend(item.data)
        yield result(ExecResult(code=0))

    sent = os.urandom(1 << 20)
    with FakeController(web.control_socket, {"exec": cat}):
        process = spawn_vmcoal("exec", "web", "-i", "--", "cat", stdin=subprocess.PIPE)
        _, err = process.communicate(sent, timeout=PATIENCE)
    assert process.returncode == 0, err
    assert bytes(got) == sent


def interrupted(answers: bool) -> tuple[subprocess.Popen[bytes], bytes]:
    """Run an attach, interrupt it in its second step, and return the process and its stderr."""

    def attach(call: Call, conversation: Conversation) -> Iterator[Any]:
        yield Progress(1, 3, "ask for a lease")
        yield Progress(2, 3, "plug")
        assert conversation.read_input() is None
        if answers:
            yield failure(UnreachableError("attach was cancelled", left="nothing"))

    with FakeController(layout.vm_folders("web").control_socket, {"attach": attach}) as fake:
        process = spawn_vmcoal("attach", "web", "--cpus", "1")
        assert process.stderr is not None
        said = b""
        while b"[2/3] plug" not in said:
            said += os.read(process.stderr.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        err = said + process.communicate(timeout=PATIENCE)[1]
        assert fake.conversations[0].hung_up.is_set()
    return process, err


def test_ctrl_c_cancels_the_call_and_says_what_came_of_it(web: layout.VmFolders) -> None:
    process, err = interrupted(answers=True)
    assert process.returncode == 130
    assert b"[2/3] plug" in err
    assert b"cancelling: what was begun is undone" in err
    assert b"vmcoal: cancelled: attach was cancelled\n  left: nothing\n" in err
    assert b"Traceback" not in err


def test_ctrl_c_against_a_controller_that_says_nothing(web: layout.VmFolders) -> None:
    process, err = interrupted(answers=False)
    assert process.returncode == 130
    assert b"\nvmcoal: cancelled: the controller of VM web ended in the middle of the call\n  left: " in err


def test_a_second_ctrl_c_does_not_wait(web: layout.VmFolders) -> None:
    hung_up = threading.Event()
    let_go = threading.Event()

    def attach(call: Call, conversation: Conversation) -> Iterator[Any]:
        yield Progress(1, 3, "plug")
        assert conversation.read_input() is None
        hung_up.set()
        let_go.wait(PATIENCE)

    with FakeController(web.control_socket, {"attach": attach}):
        process = spawn_vmcoal("attach", "web", "--cpus", "1")
        assert process.stderr is not None
        assert process.stderr.read(5) == b"[1/3]"
        process.send_signal(signal.SIGINT)
        assert hung_up.wait(PATIENCE)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        let_go.set()
    assert process.returncode == 130


def test_steps_are_live_on_a_terminal(web: layout.VmFolders) -> None:
    def attach(call: Call, conversation: Conversation) -> Iterator[Any]:
        yield Progress(1, 2, "plug", 0.5, "256 MiB of 512 MiB")
        yield Progress(2, 2, "verify")
        yield failure(UnreachableError("enough"))

    with FakeController(web.control_socket, {"attach": attach}):
        terminal = Terminal("attach", "web", "--cpus", "1")
        assert terminal.end() == 7
    text = terminal.seen.decode()
    assert "\r[1/2] plug … ████████████░░░░░░░░░░░░  50% 256 MiB of 512 MiB" in text
    assert "\n[2/2] verify … failed\r\n" in text


def test_watch_until_ctrl_c(web: layout.VmFolders) -> None:
    terminal = Terminal("status", "--watch")
    terminal.wait_for(b"stopped")
    terminal.type(b"\x03")
    assert terminal.end() == 0
