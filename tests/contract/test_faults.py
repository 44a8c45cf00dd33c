"""Bad input and faults through the command line, on a real QEMU that runs nothing.

Each has its exit code and one clear line, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import hostile_peers as hostile
from framework.command import Done
from framework.path import Scene, kill, scene, until
from vmcoal.fabric.identity import LenderRecord, lender_store, load_identity
from vmcoal.model.lease import ResourceKind

pytestmark = [pytest.mark.contract, pytest.mark.timeout(120)]

BOOT_SECTOR = b"\xfa\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"
"""cli; hlt; and again: a guest that answers nothing and costs nothing."""


@pytest.fixture(scope="module")
def yard(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with scene(request) as made:
        made.lend("attic", cpus=1, memory="512M")
        image = made.home / "still.raw"
        image.write_bytes(BOOT_SECTOR.ljust(1 << 20, b"\0"))
        made.boot("still", "--image", str(image), "--no-seed", "--wait", "qemu")
        yield made


@pytest.fixture
def still(yard: Scene) -> Iterator[Scene]:
    """The VM with nothing attached, before and after."""
    yield yard
    nothing_is_left(yard)


def nothing_is_left(yard: Scene) -> None:
    if yard.status().attachments:
        yard.run("detach", yard.vm, "--all", "--force", code=None)
        pytest.fail("something stayed attached")
    assert yard.open_operations() == []
    assert yard.pids("nbd") == []
    assert yard.shm.is_dir() is False or list(yard.shm.iterdir()) == []
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{yard.home}/r" in line]
    assert not [path for path in yard.folders.runtime.iterdir() if path.suffix in (".psk", ".nb", ".link")]


def one_clear_error(done: Done, *words: str, hint: bool = True) -> None:
    lines = done.err.splitlines()
    errors = [line for line in lines if line.startswith("vmcoal: error: ")]
    assert len(errors) == 1, done.err
    assert len(errors[0]) < 300, done.err
    assert not hint or any(line.startswith("  hint: ") for line in lines), done.err
    for word in words:
        assert word in done.err, done.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("attach nowhere --memory 128M", 4, "nowhere"),
        ("detach nowhere", 4, "nowhere"),
        ("status nowhere", 4, "nowhere"),
        ("shutdown nowhere", 4, "nowhere"),
        ("boot ../evil", 2, "name"),
        ("boot -- -evil", 2, "name"),
        ("boot still", 5, "runs already"),
        ("attach still", 2, "nothing to attach"),
        ("attach still --memory 0", 2, "--memory"),
        ("attach still --memory -128M", 2, "--memory"),
        ("attach still --memory 128Q", 2, "--memory"),
        ("attach still --memory 100M", 2, "multiple"),
        ("attach still --granular --memory 3M", 2, "multiple"),
        ("attach still --cpus 0", 2, "--cpus"),
        ("attach still --cpus many", 2, "--cpus"),
        ("attach still --granular --cpus 1", 2, "--granular"),
        ("attach still --memory 8G", 5, "headroom"),
        ("attach still --cpus 3", 5, "slots"),
        ("attach still --memory 640M", 6, "attic"),
        ("attach still --cpus 2", 6, "attic"),
        ("attach still --granular --memory 640M", 6, "attic"),
        ("attach still --from nobody --memory 128M", 4, "nobody"),
        ("attach still --memory 128M --node 9", 2, "node"),
        ("attach still --cpus 1 --engine far", 3, "far"),
        ("detach still", 4, "nothing is attached"),
        ("detach still --memory 128M", 4, "nothing is attached"),
        ("detach still --all --from attic", 2, "exclude"),
        ("exec still -- true", 7, "agent"),
        ("boot other --image /nowhere.qcow2", 4, "/nowhere.qcow2"),
        ("boot other --image /etc/hostname", 6, "/etc/hostname"),
        ("boot other --kernel /nowhere", 4, "/nowhere"),
        ("boot other --qemu /nowhere/qemu", 3, "/nowhere/qemu"),
        ("boot other --cpus 0", 2, "--cpus"),
        ("boot other --memory 1", 2, "memory"),
        ("boot other --far-nodes 99", 2, "far"),
        ("boot other --ssh-port 99999", 2, "--ssh-port"),
        ("lend --name attic --cpus 1", 5, "runs already"),
        ("lend --name x/y --cpus 1", 2, "name"),
        ("lend --name barn --memory 900T", 3, "cannot be lent"),
        ("pair 127.0.0.1:1 --code-file /dev/null", 2, "code"),
    ],
)
def test_bad_input(still: Scene, arguments: str, code: int, words: str) -> None:
    one_clear_error(still.run(*arguments.split(), code=code), words)
    assert not (still.home / "s" / "vmcoal" / "vm" / "other").exists()


# Lenders


def add_lender(yard: Scene, name: str, port: int, key: str) -> None:
    store = lender_store(yard.home / "s" / "vmcoal" / "lenders.json")
    kinds = (ResourceKind.MEMORY, ResourceKind.CPU)
    store.add(LenderRecord(name=name, host="127.0.0.1", port=port, host_key=key, grants=kinds), replace=True)


def test_a_lender_that_is_not_there(still: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    add_lender(still, "gone", port, load_identity(still.home / "s" / "gone.key").public)
    try:
        one_clear_error(still.run("attach", still.vm, "--from", "gone", "--memory", "128M", code=7), "gone")
    finally:
        still.run("unpair", "gone")


def test_a_lender_with_another_key(still: Scene) -> None:
    port = int(still.lender("attic").addresses[0].rpartition(":")[2])
    add_lender(still, "twin", port, load_identity(still.home / "s" / "twin.key").public)
    try:
        one_clear_error(still.run("attach", still.vm, "--from", "twin", "--memory", "128M", code=3), "twin", "key")
    finally:
        still.run("unpair", "twin")


@pytest.mark.parametrize(
    ("program", "codes"),
    [
        (hostile.refuses, (6,)),
        (hostile.says_nothing, (7, 8)),
        (hostile.speaks_a_newer_protocol, (3,)),
        (hostile.closes_instead_of_welcome, (7,)),
        (hostile.closes_in_the_middle_of_welcome, (7,)),
        (hostile.closes_after(0), (7,)),
        (hostile.closes_after(10, cut=True), (7,)),
        (hostile.sends_garbage, (7,)),
        (hostile.refuses_to_go_on, (5, 7)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_lender_that_misbehaves(still: Scene, program: hostile.Program, codes: tuple[int, ...]) -> None:
    key = load_identity(still.home / "s" / "evil.key")
    async with hostile.HostileLender(key, program) as lender:
        add_lender(still, "evil", lender.port, key.public)
        try:
            arguments = ("attach", still.vm, "--from", "evil", "--memory", "128M", "--deadline", "5s")
            done = await asyncio.to_thread(still.run, *arguments, code=None)
        finally:
            await asyncio.to_thread(still.run, "unpair", "evil")
    assert done.code in codes, done.err
    one_clear_error(done, hint=program is not hostile.refuses_to_go_on)
    assert "\x1b" not in done.err


# Programs


@pytest.fixture
def tools(still: Scene) -> Iterator[Path]:
    """A folder that stands for PATH, with every program in it; tests take some away or put others in their place."""
    folder = still.home / "tools"
    folder.mkdir()
    for place in reversed(os.environ["PATH"].split(":")):
        for program in Path(place).glob("*"):
            (folder / program.name).unlink(missing_ok=True)
            (folder / program.name).symlink_to(program)
    yield folder
    shutil.rmtree(folder)


def replace(tools: Path, name: str, script: str) -> None:
    program = (tools / name).resolve()
    (tools / name).unlink()
    (tools / name).write_text(f"#!/bin/sh\n{script.replace('PROGRAM', str(program))}\n")
    (tools / name).chmod(0o755)


def nothing_of_other(yard: Scene) -> None:
    """Nothing runs of VM ``other``; its description stays, for its logs to be read, until it is deleted."""
    try:
        until(lambda: not yard.pids(" other "), "the end of the controller")
        assert not (yard.home / "r" / "vmcoal" / "vm" / "other").exists()
    finally:
        yard.run("delete", "other", "--yes", code=None)


@pytest.mark.parametrize("broken", ["missing", "dying"])
def test_nbdkit_of_the_borrower(still: Scene, tools: Path, broken: str) -> None:
    """The FUSE engine runs one; its controller is started anew where it finds none that works."""
    image = ("--image", str(still.home / "still.raw"), "--no-seed", "--accel", "tcg", "--net", "none")
    still.run("boot", "other", *image, "--far-memory", "1G", "--memory-engine", "fuse", "--wait", "qemu")
    if broken == "missing":
        (tools / "nbdkit").unlink()
    else:
        replace(
            tools, "nbdkit", 'case "$*" in *--dump*|*--version*) exec PROGRAM "$@";; esac; echo no luck >&2; exit 3'
        )
    try:
        kill(still.pid("vmcoal.controller", " other "))
        still.run("status", "other", prefix=("env", f"PATH={tools}"))
        done = still.run("attach", "other", "--memory", "128M", "--deadline", "20s", code=None)
        assert done.code in ((3,) if broken == "missing" else (8, 9)), done.err
        one_clear_error(done)
    finally:
        still.run("shutdown", "other", "--force", code=None)
        nothing_of_other(still)


@pytest.mark.parametrize("broken", ["missing", "dying"])
def test_nbdkit_of_the_lender(still: Scene, tools: Path, broken: str) -> None:
    path = ("env", f"PATH={tools}")
    if broken == "missing":
        (tools / "nbdkit").unlink()
        one_clear_error(
            still.run("lend", "--name", "bare", "--memory", "256M", "--listen", "127.0.0.1:0", code=3, prefix=path),
            "nbdkit",
        )
        return
    replace(tools, "nbdkit", 'case "$*" in *--dump*|*--version*) exec PROGRAM "$@";; esac; echo no luck >&2; exit 3')
    still.lend("bare", memory="256M", prefix=path)
    try:
        done = still.run("attach", still.vm, "--from", "bare", "--memory", "128M", code=9)
        one_clear_error(done, "on bare", "ended at its start")
        assert still.lender("bare").leases == ()
    finally:
        still.run("lend", "stop", "--name", "bare")
        still.run("unpair", "bare")


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ('case "$*" in *--version*) exec PROGRAM "$@";; esac; echo it hurts >&2; exit 3', 9, "it hurts"),
        ('case "$*" in *--version*) exec PROGRAM "$@";; esac; echo it hurts >&2; kill -SEGV $$', 9, "signal 11"),
        ('echo "QEMU emulator version 4.2.0"', 3, "4.2"),
        ("echo hello", 3, "does not say its version"),
    ],
    ids=["exits", "crashes", "too-old", "no-qemu"],
)
def test_a_qemu_that_does_not_do(still: Scene, tools: Path, script: str, code: int, words: str) -> None:
    replace(tools, "qemu-system-x86_64", script)
    image = still.home / "still.raw"
    arguments = ("boot", "other", "--image", str(image), "--no-seed", "--accel", "tcg", "--net", "none")
    done = still.run(*arguments, prefix=("env", f"PATH={tools}"), code=code)
    one_clear_error(done, words)
    nothing_of_other(still)


# What is taken, full or read-only


def test_a_port_that_is_taken(still: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = still.run("lend", "--name", "barn", "--cpus", "1", "--listen", address, code=5)
        one_clear_error(done, "taken")
        image = ("--image", str(still.home / "still.raw"), "--no-seed", "--accel", "tcg", "--wait", "qemu")
        done = still.run("boot", "other", *image, "--net", "none", "--metrics", address, code=5)
        one_clear_error(done, address)
    nothing_of_other(still)


def test_a_socket_that_is_taken(still: Scene) -> None:
    folder = still.home / "r" / "vmcoal" / "vm" / "other"
    folder.mkdir(mode=0o700)
    (still.home / "s" / "vmcoal" / "vm" / "other").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(folder / "control.sock"))
        taken.listen()
        image = ("--image", str(still.home / "still.raw"), "--no-seed", "--accel", "tcg", "--net", "none")
        one_clear_error(still.run("boot", "other", *image, code=5), "runs already")
    shutil.rmtree(folder)
    shutil.rmtree(still.home / "s" / "vmcoal" / "vm" / "other")


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


@pytest.mark.root
@pytest.mark.parametrize("options", ["ro", "size=16k"])
def test_a_state_folder_that_takes_nothing(still: Scene, options: str) -> None:
    state = still.home / "small"
    with mounted(state, options):
        image = ("--image", str(still.home / "still.raw"), "--no-seed", "--accel", "tcg", "--net", "none")
        if options != "ro":
            (state / "ballast").write_bytes(b"x" * 8192)
        done = still.run("boot", "other", *image, code=3, prefix=("env", f"XDG_STATE_HOME={state}"))
        one_clear_error(done, str(state))
        done = still.run(
            *("lend", "--name", "barn", "--cpus", "1", "--listen", "127.0.0.1:0"),
            code=3,
            prefix=("env", f"XDG_STATE_HOME={state}"),
        )
        one_clear_error(done, str(state))
    assert not (still.home / "r" / "vmcoal" / "vm" / "other" / "qmp.sock").exists()
