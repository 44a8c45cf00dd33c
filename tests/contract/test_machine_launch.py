"""QEMU started, adopted and ended through the real holder; the guest is an empty firmware or none."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from framework.qemu import qemu_binaries
from vmcoal.errors import ConflictError, DeadlineError, ExecutionError, PrerequisiteError
from vmcoal.holding.client import Holder
from vmcoal.layout import VmFolders, vm_folders
from vmcoal.machine.firmware import find_uefi
from vmcoal.machine.launch import QEMU, HolderLauncher, copy_uefi_variables, listen, socket_path
from vmcoal.machine.spec import make_spec
from vmcoal.model.machine import Accel, Disk, DiskBoot, KernelBoot, MachineSpec, Net
from vmcoal.model.units import MIB

pytestmark = pytest.mark.contract


@pytest.fixture
def folders(surroundings: Path) -> VmFolders:
    folders = vm_folders("demo")
    folders.make()
    return folders


@pytest.fixture
async def holder(folders: VmFolders) -> AsyncIterator[Holder]:
    holder = await Holder.start(folders, name="demo", deadline=10)
    yield holder
    await holder.shutdown(grace=2)
    await holder.close()


@pytest.fixture
def spec(folders: VmFolders) -> MachineSpec:
    """A machine whose firmware finds nothing to boot: enough to be spoken to."""
    (folders.state / "disk").write_bytes(bytes(MIB))
    spec = make_spec(
        name="demo",
        qemu=qemu_binaries()[0],
        accel=Accel.TCG,
        qemu_version=(7, 2),
        boot=DiskBoot(str(folders.state / "disk"), "raw"),
        memory=128 * MIB,
        far_memory=1024 * MIB,
        net=Net("none"),
    )
    os.system(f"qemu-img create -q -f qcow2 -F raw -b {folders.state / 'disk'} {folders.overlay}")
    return spec


def sockets(folders: VmFolders) -> list[str]:
    return [path.name for path in folders.runtime.iterdir() if path.is_socket() and path != folders.holder_socket]


async def test_launch_speak_and_kill(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    launcher = HolderLauncher(holder, folders)
    assert await launcher.exit_status() is None
    monitor = await launcher.launch(spec, deadline=30)
    assert (await monitor.execute("query-status"))["status"] == "running"
    assert (await monitor.execute("query-name"))["name"] == "demo"
    assert await launcher.exit_status() is None
    assert sorted(sockets(folders)) == ["agent.sock", "console.sock", "qga.sock", "qmp.sock"]
    assert all((folders.runtime / name).stat().st_mode & 0o777 == 0o600 for name in sockets(folders))
    await launcher.kill(grace=5)
    status = await launcher.exit_status()
    assert status is not None
    assert (status["state"], status["code"], status["signal"]) == ("exited", 0, 0)
    assert sockets(folders) == []
    assert "query-name" in folders.qmp_log.read_text()
    await monitor.close()
    await launcher.kill(grace=1)


async def test_every_channel_is_served(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    monitor = await HolderLauncher(holder, folders).launch(spec, deadline=30)
    served = {chardev["label"]: chardev["filename"] for chardev in await monitor.execute("query-chardev")}
    for channel in ("agent", "qga", "console"):
        assert str(socket_path(folders, channel)) in served[channel]
        reader, writer = await asyncio.open_unix_connection(socket_path(folders, channel))
        assert not reader.at_eof()
        writer.close()
        await writer.wait_closed()
    await monitor.close()


async def test_second_launcher_adopts(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    first = HolderLauncher(holder, folders)
    assert await first.adopt(spec, deadline=5) is None
    monitor = await first.launch(spec, deadline=30)
    second = HolderLauncher(holder, folders)
    with pytest.raises(DeadlineError, match="monitor of demo") as caught:  # the first one holds the monitor
        await second.adopt(spec, deadline=2)
    assert "pid" in (caught.value.left or "")
    await monitor.close()
    adopted = await second.adopt(spec, deadline=10)
    assert adopted is not None
    assert (await adopted.execute("query-status"))["running"]
    with pytest.raises(ConflictError):
        await first.launch(spec, deadline=5)
    assert (await adopted.execute("query-status"))["running"]
    await adopted.close()


@pytest.mark.parametrize(
    ("changes", "says", "hint"),
    [
        ({"cpu_model": "abacus"}, "exit code 1: .*abacus", "qemu.log"),
        ({"disks": (Disk("/nowhere/disk"),)}, "exit code 1: .*No such file", "qemu.log"),
    ],
)
async def test_death_at_start_is_told(
    holder: Holder, folders: VmFolders, spec: MachineSpec, changes: dict[str, Any], says: str, hint: str
) -> None:
    folders.qemu_log.write_text("qemu-system-x86_64: of an earlier run\n")
    launcher = HolderLauncher(holder, folders)
    with pytest.raises(ExecutionError, match=says) as caught:
        await launcher.launch(msgspec.structs.replace(spec, **changes), deadline=30)
    error = caught.value
    assert hint in (error.hint or "")
    assert error.details["code"] == 1
    assert error.details["argv"][0] == spec.qemu
    assert "earlier run" not in error.details["stderr"]
    assert sockets(folders) == []
    status = await launcher.exit_status()
    assert status is not None
    assert status["code"] == 1


async def test_taken_port_has_a_hint(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        net = Net(ssh_port=server.getsockname()[1])
        with pytest.raises(ExecutionError) as caught:
            await HolderLauncher(holder, folders).launch(msgspec.structs.replace(spec, net=net), deadline=30)
    assert "--ssh-port" in (caught.value.hint or "")


async def test_missing_qemu(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    with pytest.raises(PrerequisiteError):
        await HolderLauncher(holder, folders).launch(msgspec.structs.replace(spec, qemu="qemu-nowhere"), deadline=5)
    assert sockets(folders) == []
    assert await holder.list() == []


async def test_a_qemu_that_never_answers(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    silent = folders.state / "silent"
    silent.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    silent.chmod(0o755)
    with pytest.raises(DeadlineError, match="did not answer within"):
        await HolderLauncher(holder, folders).launch(msgspec.structs.replace(spec, qemu=str(silent)), deadline=0.5)
    assert sockets(folders) == []


async def test_cancelled_launch_leaves_nothing(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    silent = folders.state / "silent"
    silent.write_text("#!/bin/sh\necho up >&2\nexec tail -f /dev/null\n")
    silent.chmod(0o755)
    launcher = HolderLauncher(holder, folders)
    launch = asyncio.create_task(launcher.launch(msgspec.structs.replace(spec, qemu=str(silent)), deadline=30))
    while not any(child.live for child in await holder.list()):
        assert not launch.done()
    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch
    assert sockets(folders) == []
    await holder.wait_lost()
    assert await launcher.exit_status() is not None


async def test_killed_qemu(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    launcher = HolderLauncher(holder, folders)
    monitor = await launcher.launch(spec, deadline=30)
    await holder.signal(QEMU, signal.SIGSEGV)
    await monitor.disconnected
    await holder.wait_lost()
    status = await launcher.exit_status()
    assert status is not None
    assert (status["state"], status["code"], status["signal"]) == ("signaled", 0, signal.SIGSEGV)
    await launcher.kill(grace=1)
    assert sockets(folders) == []
    await monitor.close()


async def test_killed_holder(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    launcher = HolderLauncher(holder, folders)
    monitor = await launcher.launch(spec, deadline=30)
    os.kill(holder.pid, signal.SIGKILL)
    await monitor.disconnected
    await holder.wait_lost()
    status = await launcher.exit_status()
    assert status is not None
    assert (status["state"], status["signal"]) == ("signaled", 9)
    await launcher.kill(grace=1)
    assert sockets(folders) == []
    folders.holder_socket.unlink()
    await monitor.close()


async def test_serial_console_is_logged(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    # boot sector: writes "VC" to the first serial port, then resets the machine through port 0xcf9
    code = bytes.fromhex("baf803 b056ee b043ee baf90c b006ee f4ebfd")
    (folders.state / "disk").write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(MIB, b"\0"))
    launcher = HolderLauncher(holder, folders)
    monitor = await launcher.launch(spec, deadline=30)
    async with monitor.events("RESET") as resets:
        await resets.wait_for(lambda event: bool(event.data["guest"]), deadline=60)
    await launcher.kill(grace=5)
    assert "VC" in folders.console_log.read_text(errors="replace")
    await monitor.close()


async def test_uefi_machine(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    try:
        uefi = find_uefi()
    except PrerequisiteError as error:
        pytest.skip(f"{error}: {error.hint}")
    assert isinstance(spec.boot, DiskBoot)
    boot = msgspec.structs.replace(spec.boot, firmware="uefi", uefi_code=uefi.code, uefi_vars=uefi.variables)
    monitor = await HolderLauncher(holder, folders).launch(msgspec.structs.replace(spec, boot=boot), deadline=30)
    nodes = {node["node-name"]: node for node in await monitor.execute("query-named-block-nodes", {"flat": True})}
    assert (nodes["uefi-code"]["ro"], nodes["uefi-vars"]["ro"]) == (True, False)
    assert nodes["uefi-vars"]["file"] == str(folders.uefi_vars)
    assert (await monitor.execute("query-status"))["running"]
    await monitor.close()


async def test_disks_screen_and_user_network(holder: Holder, folders: VmFolders, spec: MachineSpec) -> None:
    (folders.state / "seed.iso").write_bytes(bytes(MIB))
    (folders.state / "with,comma").write_bytes(bytes(MIB))
    assert isinstance(spec.boot, DiskBoot)
    spec = msgspec.structs.replace(
        spec,
        boot=msgspec.structs.replace(spec.boot, seed=True),
        disks=(Disk(str(folders.state / "with,comma")), Disk(str(folders.state / "disk"), readonly=True)),
        net=Net("user"),
        display="vnc=127.0.0.1:77,to=99",
    )
    monitor = await HolderLauncher(holder, folders).launch(spec, deadline=30)
    blocks = {block["qdev"].split("/")[3]: block for block in await monitor.execute("query-block") if "qdev" in block}
    assert {name for name in blocks if name.endswith("-device")} == {
        *("root-device", "seed-device", "disk0-device", "disk1-device")
    }
    assert blocks["disk1-device"]["inserted"]["ro"]
    assert blocks["root-device"]["inserted"]["backing_file"] == str(folders.state / "disk")
    assert (await monitor.execute("query-vnc"))["enabled"]
    await monitor.close()


async def test_stale_socket_is_replaced_and_a_served_one_is_not(folders: VmFolders) -> None:
    path = folders.runtime / "x.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with AsyncExitStack() as undo:
        listen(path, undo, look="vmcoal status")
        with pytest.raises(ConflictError, match="serves"):
            listen(path, undo, look="vmcoal status")
        with pytest.raises(PrerequisiteError):
            listen(folders.runtime / "missing" / "x.sock", undo, look="vmcoal status")
    assert not path.exists()


def test_uefi_variables_are_copied_once(folders: VmFolders, spec: MachineSpec) -> None:
    template = folders.state / "template"
    template.write_text("fresh")
    boot = DiskBoot("/image", "raw", "uefi", uefi_code="/code", uefi_vars=str(template))
    spec = msgspec.structs.replace(spec, boot=boot)
    copy_uefi_variables(spec, folders)
    assert folders.uefi_vars.read_text() == "fresh"
    folders.uefi_vars.write_text("used")
    copy_uefi_variables(spec, folders)
    assert folders.uefi_vars.read_text() == "used"
    folders.uefi_vars.unlink()
    template.unlink()
    with pytest.raises(PrerequisiteError, match="UEFI variables"):
        copy_uefi_variables(spec, folders)
    copy_uefi_variables(msgspec.structs.replace(spec, boot=KernelBoot("/kernel")), folders)
