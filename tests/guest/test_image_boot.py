"""Both images boot with nothing but QEMU: the default image as promised, the Debian disk by both firmwares."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from framework.linux import Console
from framework.qemu import BareQemu, qemu_binaries, running_qemu
from vmcoal.guest.channel import Agent, wait_agent
from vmcoal.guest.images import FW_CFG_KEYS, build_debian, ensure_default_image
from vmcoal.guest.overlay import inspect_image, make_overlay
from vmcoal.guest.seed import make_seed
from vmcoal.layout import VmFolders
from vmcoal.model.guest import CommandEnd, GuestCommand

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

# On a quiet machine 4 s and 35 s; the tests share theirs.
DEFAULT_DEADLINE = 120.0
DEBIAN_DEADLINE = 600.0


def machine(folders: VmFolders, port: int) -> list[str]:
    return [
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={folders.agent_socket},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.vmcoal.agent.0"),
        *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net,romfile="),
    ]


@pytest.fixture
def folders(surroundings: Path) -> VmFolders:
    found = VmFolders(surroundings / "r", surroundings / "s")
    for path in (found.runtime, found.state):
        path.mkdir(exist_ok=True)
    return found


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def booted(folders: VmFolders, argv: list[str]) -> AsyncIterator[tuple[BareQemu, Console]]:
    ours, theirs = os.pipe()
    console = Console(ours)
    argv = [*argv, "-chardev", f"file,id=console,path=/dev/fd/{theirs}", "-serial", "chardev:console"]
    try:
        async with running_qemu(qemu_binaries()[0], folders.state / "qemu", argv, fds=[theirs]) as qemu:
            await qemu.client.execute("cont")
            yield qemu, console
    except BaseException:
        sys.stderr.write(console.text[-3000:].decode(errors="replace"))
        raise
    finally:
        console.close()
        os.close(theirs)
        folders.agent_socket.unlink(missing_ok=True)  # a killed QEMU leaves it


async def run(agent: Agent, script: str) -> str:
    out = bytearray()

    async def on_output(stream: int, data: bytes) -> None:
        out.extend(data)

    end = await agent.exec(GuestCommand(argv=("sh", "-c", script)), on_output=on_output, deadline=120)
    assert end == CommandEnd(code=0), out.decode()
    return out.decode()


async def ssh(port: int, key: asyncssh.SSHKey, command: str, *, deadline: float) -> str:
    async with asyncio.timeout(deadline):
        options = {"username": "root", "client_keys": [key], "known_hosts": None, "config": None, "agent_path": None}
        async with asyncssh.connect("127.0.0.1", port, **options) as session:
            done = await session.run(command, check=True)
            async with session.start_sftp_client() as sftp:
                await sftp.stat("/etc/os-release")
    return str(done.stdout)


async def test_default_image(folders: VmFolders, port: int) -> None:
    image = ensure_default_image()
    key = asyncssh.generate_private_key("ssh-ed25519")
    argv = [
        *machine(folders, port),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", f"{image.append} hostname=dev"),
        *("-fw_cfg", f"name={FW_CFG_KEYS},string={key.export_public_key().decode().strip()}"),
    ]
    async with booted(folders, argv) as (qemu, console):
        agent = await wait_agent(folders, deadline=DEFAULT_DEADLINE)
        assert (await agent.info()).release == image.release
        assert (await agent.info()).hostname == "dev"
        assert "Model name" in await run(agent, "lscpu")
        assert "node distances:" in await run(agent, "numactl -H")
        assert "Virtio network device" in await run(agent, "lspci")
        assert "Mem:" in await run(agent, "free -h")
        assert "Memory block size:" in await run(agent, "lsmem")
        assert await run(agent, "python3 -c 'import hashlib, ctypes, json; print(json.dumps(1))'") == "1\n"
        assert await run(agent, "bash -c 'for i in {1..3}; do echo -n $i; done'") == "123"
        assert (await run(agent, "cat /sys/devices/system/memory/auto_online_blocks")).strip() == "online_movable"
        assert await run(agent, "mount -t tmpfs x /mnt && umount /mnt && modprobe isofs") == ""
        assert await run(agent, "find / -xdev -not -user root | wc -l") == "0\n"
        said = await ssh(port, key, "echo $HOSTNAME; tty || true; cat /sys/class/net/eth0/operstate", deadline=60)
        assert said.split() == ["dev", "not", "a", "tty", "up"]
        stranger = asyncssh.generate_private_key("ssh-ed25519")
        with pytest.raises(asyncssh.PermissionDenied):
            await ssh(port, stranger, "true", deadline=60)
        await console.until("root@dev:~#")
        await qemu.client.execute("system_powerdown")
        assert await qemu.exited(30) == 0
        await agent.close()


async def test_debian_disk(folders: VmFolders, port: int) -> None:
    """By SeaBIOS, with a seed: the agent comes, the key is let in, the disk has grown, the base is untouched."""
    disk = build_debian(refresh=False)
    base = disk.path("disk")
    before = (base.stat().st_mtime_ns, base.stat().st_size)
    info = inspect_image(base)
    make_overlay(base, info.format, folders.overlay, size=3 << 30)
    key = asyncssh.generate_private_key("ssh-ed25519")
    public = key.export_public_key().decode()
    make_seed(folders.seed, name="dev", identity=str(uuid.uuid4()), ssh_key=public)
    argv = [
        *machine(folders, port),
        *("-drive", f"if=virtio,format=qcow2,file={folders.overlay}"),
        *("-drive", f"if=virtio,format=raw,readonly=on,file={folders.seed}"),
    ]
    async with booted(folders, argv) as (qemu, _):
        agent = await wait_agent(folders, deadline=DEBIAN_DEADLINE)
        assert (await agent.info()).release == disk.release
        assert "status: done" in await run(agent, "cloud-init status --wait || true")
        assert (await agent.info()).hostname == "dev"
        assert (await run(agent, "systemctl --failed --no-legend")) == ""
        assert "node distances:" in await run(agent, "numactl -H")
        assert int(await run(agent, "df --output=size -B1M / | tail -1")) > 2500
        assert (await run(agent, "getent shadow root")).split(":")[1] in {"*", "!*", "!"}
        assert (await ssh(port, key, "hostname", deadline=120)).strip() == "dev"
        await qemu.client.execute("system_powerdown")
        assert await qemu.exited(120) == 0
        await agent.close()
    assert (base.stat().st_mtime_ns, base.stat().st_size) == before


async def test_debian_disk_by_uefi(folders: VmFolders, port: int) -> None:
    """The firmware finds the boot loader, and that finds Linux; what follows is as by SeaBIOS."""
    code, blank = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
    if not code.exists():
        pytest.skip("no UEFI firmware: apt install ovmf")
    disk = build_debian(refresh=False)
    make_overlay(disk.path("disk"), "qcow2", folders.overlay)
    variables = folders.state / "vars.fd"
    shutil.copy(blank, variables)
    argv = [
        *machine(folders, port),
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"),
        *("-drive", f"if=pflash,format=raw,unit=1,file={variables}"),
        *("-drive", f"if=virtio,format=qcow2,file={folders.overlay}"),
    ]
    async with booted(folders, argv) as (_, console):
        await console.until("cloud-init", deadline=DEBIAN_DEADLINE)
