"""Commands that reach into a VM: ``exec``, ``shell``, ``console``, ``ssh``."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import socket
import sys
import time
from typing import Any

import click

from vmcoal import layout
from vmcoal.cli.app import Command
from vmcoal.cli.output import note
from vmcoal.cli.params import SECONDS, resolve_vm, vm_argument
from vmcoal.cli.terminal import raw_terminal, terminal_size
from vmcoal.cli.vm import not_running, status_of, vm_call
from vmcoal.control.client import connect
from vmcoal.control.wire import Output
from vmcoal.controller.api import ExecRequest, ExecResult
from vmcoal.errors import PrerequisiteError, RefusedError, UnreachableError, UsageError

_ESCAPE = 0x1D  # Ctrl-]
_SSH_RETRY = 0.5
_SHELL = ("/bin/sh", "-c", "exec $(command -v bash || echo sh) -l")


class _WithCommand(Command):
    """``NAME [OPTIONS] [VM] -- COMMAND…``: what follows ``--`` goes to the guest untouched."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [*super().collect_usage_pieces(ctx), "-- CMD..."]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the guest's command away before click sees the rest."""
        if "--" in args:
            at = args.index("--")
            ctx.meta["vmcoal.command"] = args[at + 1 :]
            return super().parse_args(ctx, args[:at])
        try:
            return super().parse_args(ctx, list(args))
        except click.UsageError as error:
            words = [word for word in args if not word.startswith("-")]
            if len(words) < 2:
                raise
            vm = next((word for word in words if word in layout.known_vms()), words[0])
            at = args.index(vm) + 1
            raise UsageError(
                "what the guest runs goes behind two hyphens",
                hint=f"{ctx.command_path} {shlex.join(args[:at])} -- {shlex.join(args[at:])}",
            ) from error


@click.command(
    "exec",
    cls=_WithCommand,
    example="""
    vmcoal exec -- numactl -H
    vmcoal exec web -t -- top
    tar c . | vmcoal exec web -i -- tar x -C /srv
    """,
)
@vm_argument
@click.option("-t", "--tty", "terminal", is_flag=True, help="Give the command a terminal.")
@click.option("-i", "--interactive", is_flag=True, help="Send it stdin; -t does so too.")
@click.option("--deadline", type=SECONDS, help="End it after this long.")
@click.pass_context
def exec_(ctx: click.Context, vm: str | None, terminal: bool, interactive: bool, deadline: float | None) -> None:
    """Run a command in a VM; its output and its exit code become this command's.

    A command that a signal ended gives 128 plus the signal's number.
    """
    command = ctx.meta.get("vmcoal.command")
    if not command:
        raise UsageError("there is no command to run", hint="put it behind two hyphens: vmcoal exec VM -- lscpu")
    run_in_guest(resolve_vm(vm), tuple(command), terminal, interactive or terminal, deadline)


@click.command(cls=Command, example="vmcoal shell web")
@vm_argument
def shell(vm: str | None) -> None:
    """Open a login shell in a VM, through the guest's agent: no network and no password is needed."""
    run_in_guest(resolve_vm(vm), _SHELL, sys.stdin.isatty(), True, None)


_TO_SAY_SO = 15.0
"""Seconds that the controller may take, once a command's deadline is over, to end the command and tell of it."""


def run_in_guest(name: str, argv: tuple[str, ...], terminal: bool, stdin: bool, deadline: float | None) -> None:
    """Run ``argv`` in VM ``name`` with this process's streams, and end this command with its exit code."""
    if terminal and not sys.stdin.isatty():
        raise UsageError("stdin is not a terminal", hint="leave -t away")
    rows, columns = terminal_size()
    request = ExecRequest(
        argv=argv,
        tty=terminal,
        rows=rows,
        columns=columns,
        stdin=stdin,
        deadline=deadline,
        env={"TERM": os.environ.get("TERM", "dumb")} if terminal else {},
    )
    with raw_terminal() if terminal else contextlib.nullcontext():
        result = vm_call(
            name,
            "exec",
            request,
            result=ExecResult,
            on_output=_pass_on,
            stdin=sys.stdin.fileno() if stdin else None,
            terminal_size=terminal_size if terminal else None,
            deadline=None if deadline is None else deadline + _TO_SAY_SO,
        )
    raise click.exceptions.Exit(result.code if result.code is not None else 128 + (result.signal or 0))


def _pass_on(output: Output) -> None:
    stream = sys.stdout if output.stream == 1 else sys.stderr
    stream.buffer.write(output.data)
    stream.flush()


@click.command(cls=Command, example="vmcoal console web")
@vm_argument
def console(vm: str | None) -> None:
    """Connect the terminal to a VM's serial console. Ctrl-] leaves it.

    One connection at a time; what was written earlier is in `vmcoal logs VM console`.
    """
    name = resolve_vm(vm)
    if not sys.stdin.isatty():
        raise UsageError("stdin is not a terminal", hint=f"vmcoal logs {name} console prints what was written")
    with connect(layout.vm_folders(name).console_socket, f"the console of VM {name}") as sock:
        note(f"console of VM {name}; Ctrl-] leaves it")
        sock.setblocking(True)
        with raw_terminal():
            _shuttle(sock)
    note("left the console")


def _shuttle(sock: Any) -> None:
    """Carry bytes between the terminal and a socket until Ctrl-] or the other side's end."""
    terminal = sys.stdin.fileno()
    poller = select.poll()
    poller.register(terminal, select.POLLIN)
    poller.register(sock, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            if descriptor == terminal:
                typed = os.read(terminal, 4096)
                before, escape, _ = typed.partition(bytes([_ESCAPE]))
                sock.sendall(before)
                if escape or not typed:
                    return
            else:
                data = sock.recv(65536)
                if not data:
                    return
                sys.stdout.buffer.write(data)
                sys.stdout.flush()


@click.command(
    cls=_WithCommand,
    example="""
    vmcoal ssh web
    vmcoal ssh web -- -L 8080:localhost:80 uname -r
    """,
)
@vm_argument
@click.option("--user", default="root", show_default=True, help="The guest's user.")
@click.pass_context
def ssh(ctx: click.Context, vm: str | None, user: str) -> None:
    """Log in to a VM with its own key and known-hosts file; what follows -- goes to ssh.

    It needs a guest that runs an SSH server, and user-mode networking.
    """
    name = resolve_vm(vm)
    folders = layout.vm_folders(name)
    status = status_of(name)
    if status.state in ("stopped", "failed"):
        raise not_running(name)
    port = status.ssh_port
    if port is None:
        raise RefusedError(f"VM {name} forwards no SSH port", hint=f"vmcoal shell {name} needs no network")
    if not folders.ssh_key.exists():
        raise RefusedError(f"VM {name} has no SSH key of its own", hint=f"vmcoal shell {name} needs no network")
    program = shutil.which("ssh")
    if program is None:
        raise PrerequisiteError("ssh is not installed", hint="apt install openssh-client")
    wait_for_ssh(name, port)
    argv = [program, "-i", str(folders.ssh_key), "-p", str(port)]
    for option in (
        f"UserKnownHostsFile={folders.state / 'known_hosts'}",
        "StrictHostKeyChecking=accept-new",
        "IdentitiesOnly=yes",
        "LogLevel=ERROR",
    ):
        argv += ["-o", option]
    rest = ctx.meta.get("vmcoal.command", [])
    options, command = _split_ssh(rest)
    sys.stdout.flush()
    os.execv(program, [*argv, *options, f"{user}@127.0.0.1", *command])  # noqa: S606


def wait_for_ssh(name: str, port: int, *, deadline: float = 60.0) -> None:
    """Wait until the guest's SSH server greets: QEMU accepts the connection long before. Raises `UnreachableError`."""
    ends = time.monotonic() + deadline
    told = False
    while True:
        with socket.socket() as sock:
            sock.settimeout(max(0.1, min(5.0, ends - time.monotonic())))
            try:
                sock.connect(("127.0.0.1", port))
                if sock.recv(4) == b"SSH-":
                    return
            except OSError:
                pass
        if time.monotonic() >= ends:
            raise UnreachableError(
                f"no SSH server answers in VM {name} within {deadline:g} s",
                hint=f"vmcoal shell {name} needs none; vmcoal logs {name} console",
            )
        if not told:
            note(f"waiting for the SSH server in VM {name}")
            told = True
        time.sleep(_SSH_RETRY)


def _split_ssh(words: list[str]) -> tuple[list[str], list[str]]:
    """Split ssh's arguments into options and the remote command; option letters with a value are those of ssh(1)."""
    with_value = set("BbcDEeFIiJLlmOopQRSWw")
    at = 0
    while at < len(words) and words[at].startswith("-") and len(words[at]) > 1:
        at += 2 if words[at][1] in with_value and len(words[at]) == 2 else 1
    return words[:at], words[at:]
