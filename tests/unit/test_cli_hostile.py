"""Values and files that make no sense are told in one line, whatever the command: never a traceback, never a defect."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from framework.command import vmcoal
from framework.fake_vm import spec
from vmcoal import layout
from vmcoal.cli.app import app
from vmcoal.controller.journal import Journal
from vmcoal.errors import InternalError, PrerequisiteError

pytestmark = pytest.mark.unit

VALUES = [
    "",
    "\0",
    "\udcff",
    "-1",
    "x" * 5000,
    "9" * 400,
    "nan",
    "²",
    "../../x",
    "/proc/self/mem",
    "[::1]:99999",
    "30ms,5ms,nan%",
    "65536-1",
    "²-5",
    "host:" + "1" * 5000,
    "1" * 5000 + "-5",
    "a..b:80",
    "x" * 300 + ":80",
    "\0:80",
    "[::1",
    "[a]:80",
]
GOOD = msgspec.json.encode(spec())
BYTES = [
    b"",
    b"null",
    b"{",
    b'{"name":"\xff"}',
    b'{"name":"\\ud800"}',
    b'{"records":[{"name":"../x"}]}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"a=" + b"[" * 100_000,
    GOOD[:-5],
    GOOD.replace(b'"web"', b"1"),
]


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command end where it would start or ask another process."""

    def stop(*arguments: Any, **_: Any) -> None:
        for one in arguments:
            if asyncio.iscoroutine(one):
                one.close()
        raise PrerequisiteError("it would go on here")

    monkeypatch.setattr(subprocess.Popen, "__init__", stop)
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda self: None)
    monkeypatch.setattr(asyncio, "run", stop)
    for name in ("execv", "execvp", "execve", "fork"):
        monkeypatch.setattr(os, name, stop)


@pytest.fixture(autouse=True)
def web() -> layout.VmFolders:
    folders = layout.vm_folders("web")
    folders.state.mkdir(parents=True)
    folders.spec.write_bytes(GOOD)
    return folders


def told(*arguments: str) -> None:
    """Run a command and see that it ends in order."""
    done = vmcoal(*arguments)
    assert done.code != InternalError.exit_code, f"{arguments}: {done.err}"
    assert "Traceback" not in done.err


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands(found, (*path, name))


ALL = dict(commands(app))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_value_of_every_option(path: tuple[str, ...]) -> None:
    parameters = ALL[path].params
    needed = ["web" for one in parameters if isinstance(one, click.Argument) and one.required]
    for value in VALUES:
        for one in parameters:
            if isinstance(one, click.Option) and not one.is_flag and one.opts[-1].startswith("--"):
                told(*path, *needed, f"{one.opts[-1]}={value}")
        told(*path, *[value for _ in needed or [""]])


def files() -> dict[str, tuple[Path, list[tuple[str, ...]]]]:
    vm, lender, lab = layout.vm_folders("web"), layout.lender_folders("barn"), layout.state_home() / "lab/lab"
    status: list[tuple[str, ...]] = [("status",), ("status", "web")]
    change: list[tuple[str, ...]] = [("attach", "--cpus", "1"), ("shutdown",), ("delete", "web", "--dry-run")]
    return {
        "spec": (vm.spec, [*status, *change, ("boot", "web", "--dry-run")]),
        "journal": (vm.journal, [*status, *change]),
        "exits": (vm.exits, status),
        "config": (layout.config_file(), [("boot", "x", "--dry-run"), ("attach", "--cpus", "1"), ("lend",)]),
        "lenders": (layout.known_lenders(), [("lenders",), ("unpair", "attic"), ("ping", "attic")]),
        "lab": (lab / "lab.json", [("lab", "status"), ("lab", "exec", "host1", "--", "true"), ("lab", "up")]),
        "host": (lab / "host1/host.json", [("lab", "status"), ("lab", "kill", "host1")]),
        "lender": (lender.journal, [("lend", "status"), ("lend", "delete", "barn", "--dry-run")]),
        "borrowers": (lender.borrowers, [("lend", "status"), ("lend", "forget", "x", "--dry-run")]),
    }


@pytest.mark.parametrize(
    "name", ["spec", "journal", "exits", "config", "lenders", "lab", "host", "lender", "borrowers"]
)
def test_every_file_broken(name: str) -> None:
    path, lines = files()[name]
    for folder in reversed(path.parents):
        folder.mkdir(mode=0o700, exist_ok=True)
    for content in BYTES:
        path.write_bytes(content)
        path.chmod(0o600)
        for line in lines:
            told(*line)
    path.unlink()
    path.mkdir()
    for line in lines:
        told(*line)


@pytest.mark.parametrize("data", ["{", "{}", "5", b"\xff", "[" * 100_000])
@pytest.mark.parametrize("item", ["loan:x", "tuning"])
def test_a_journal_with_items_that_nobody_wrote(web: layout.VmFolders, item: str, data: str | bytes) -> None:
    Journal(web.journal).close()
    with sqlite3.connect(web.journal) as db:
        db.execute("insert into events (at, op, kind, name, data) values (0, 0, 'put', ?, ?)", (item, data))
    db.close()
    for line in (("status",), ("status", "web"), ("shutdown",), ("shutdown", "--dry-run"), ("attach", "--cpus", "1")):
        told(*line)
