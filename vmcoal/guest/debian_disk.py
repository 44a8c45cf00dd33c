"""A bootable Debian disk, made without loop devices and, outside mmdebstrap's own namespace, without mounts.

mmdebstrap installs the packages; ``mkfs.ext4 -d`` puts the tree into a partition of a sparse file; GRUB is placed for
SeaBIOS (boot sector and BIOS boot partition) and for UEFI (EFI system partition). Partition numbers: 1 BIOS boot, 2 EFI
system, 3 root, which grows with the disk at the first boot.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shlex
import shutil
import struct
import subprocess
import tarfile
import threading
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from vmcoal.errors import DeadlineError, ExecutionError, PrerequisiteError
from vmcoal.guest.packages import Progress, run_tool, search_path

BUILDER = 1
"""Raised whenever the same packages would now give another disk."""

WANTED = (
    "linux-image-cloud-amd64", "initramfs-tools", "systemd-sysv", "systemd-resolved", "dbus", "udev", "openssh-server",
    "cloud-init", "cloud-guest-utils", "numactl", "util-linux", "pciutils", "procps", "python3", "iproute2",
    "iputils-ping", "kmod", "grub-pc-bin", "grub-efi-amd64-bin", "grub2-common", "ca-certificates", "less", "sudo",
    "vim-tiny",
)  # fmt: skip
"""What the disk holds beside Debian's essential packages and apt."""

APPEND = "console=tty0 console=ttyS0 tsc=reliable memhp_default_state=online_movable movablecore=60%"
"""Kernel arguments in its boot loader; why: `vmcoal.guest.default_image.APPEND`."""

_MIB = 1 << 20
_SECTOR = 512
_BIOS_START, _BIOS_SIZE = 1 * _MIB, 1 * _MIB
_ESP_START, _ESP_SIZE = 2 * _MIB, 16 * _MIB
_ROOT_START = _ESP_START + _ESP_SIZE
_TAIL = 1 * _MIB  # the backup GPT
SMALLEST = 1 << 30
"""Bytes of the smallest disk that takes the packages."""

_INSTALL_DEADLINE = 1800.0

_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "sfdisk": "fdisk",
    "mkfs.ext4": "e2fsprogs",
    "mformat": "mtools",
    "qemu-img": "qemu-utils",
}
_TOOLS_WITHOUT_ROOT = {"fakeroot": "fakeroot", "newuidmap": "uidmap", "tar": "tar"}

# GRUB's include/grub/i386/pc/boot.h and offsets.h
_BOOT_CODE_END = 440
_KERNEL_SECTOR = 0x5C
_DRIVE_CHECK = 0x66
_BLOCKLIST = _SECTOR - 12

_CLOUD = """\
# The seed is a disk that is there from the start: no other source is looked for, no network is waited for.
datasource_list: [NoCloud, None]
network: {config: disabled}
ssh_genkeytypes: [ed25519, ecdsa]
ssh: {emit_keys_to_console: false}
apt: {preserve_sources_list: true}
cloud_init_modules: [seed_random, bootcmd, write_files, growpart, resizefs, disk_setup, mounts, set_hostname,
  update_hostname, update_etc_hosts, ca_certs, users_groups, ssh]
cloud_config_modules: [set_passwords, timezone, runcmd]
cloud_final_modules: [package_update_upgrade_install, write_files_deferred, scripts_vendor, scripts_per_once,
  scripts_per_boot, scripts_per_instance, scripts_user, final_message, power_state_change]
"""

_FILES = {
    "etc/cloud/cloud.cfg.d/90-vmcoal.cfg": _CLOUD,
    "etc/default/grub": (
        "GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\nGRUB_TERMINAL=console\n"
        f'GRUB_CMDLINE_LINUX="{APPEND}"\n'
    ),
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/initramfs-tools/conf.d/vmcoal.conf": "MODULES=list\n",
    "etc/sysctl.d/60-vmcoal.conf": "# far memory is movable: keep room in node 0 for the kernel\n"
    "vm.lowmem_reserve_ratio = 256 4 4 0 0\n",
    "etc/systemd/network/80-dhcp.network": "[Match]\nName=en* eth*\n\n[Network]\nDHCP=yes\n",
    "usr/share/initramfs-tools/modules.d/vmcoal": "virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\nahci\n",
}

_CORE_MODULES = (
    "part_gpt ext2 serial terminal search search_fs_uuid normal configfile linux minicmd echo test ls cat reboot halt "
    "boot sleep"
)


def recipe_parts() -> list[str]:
    """Return what of this module decides the disk, for its digest."""
    return [str(BUILDER), repr(WANTED), repr(_FILES), _CORE_MODULES, _finish("UUID")]


def sources(suite: str, mirrors: Sequence[str] = ()) -> list[str]:
    """Return the lines of sources.list for ``suite``, on the first Debian and Debian security mirror of ``mirrors``,
    else on Debian's own."""
    security = next((uri for uri in mirrors if "security" in uri), "http://deb.debian.org/debian-security")
    mirror = next((uri for uri in mirrors if "security" not in uri), "http://deb.debian.org/debian")
    return [
        f"deb {mirror} {suite} main",
        f"deb {mirror} {suite}-updates main",
        f"deb {security} {suite}-security main",
    ]


def host_suite() -> str:
    """Return the codename of the Debian that this host runs, else of the oldest one that vmcoal supports."""
    with contextlib.suppress(OSError):
        facts = platform.freedesktop_os_release()
        if facts.get("ID") == "debian" and facts.get("VERSION_CODENAME"):
            return facts["VERSION_CODENAME"]
    return "bookworm"


def check_tools() -> None:
    """Raise `PrerequisiteError` naming every program that a build needs and that is not installed."""
    tools = _TOOLS | ({} if os.geteuid() == 0 else _TOOLS_WITHOUT_ROOT)
    missing = [tool for tool in tools if shutil.which(tool, path=search_path()) is None]
    if missing:
        raise PrerequisiteError(
            f"building a Debian disk needs {', '.join(missing)}",
            hint=f"apt install {' '.join(tools[tool] for tool in missing)}",
        )


def build(out: Path, work: Path, *, suite: str, lines: Sequence[str], size: int, progress: Progress) -> tuple[str, str]:
    """Write ``disk.qcow2`` of ``size`` bytes into ``out``, using the empty folder ``work``.

    Returns the kernel's release and the system's name.

    ``lines`` the sources.list. Raises `PrerequisiteError` for a missing tool, `ExecutionError` and `DeadlineError`.
    """
    root_uuid = str(uuid.uuid4())
    esp_id = uuid.uuid4().int & 0xFFFFFFFF
    _write_files(work / "before.tar", {**_FILES, "etc/fstab": _fstab(root_uuid, esp_id)})
    # Only at the end: a grub.cfg makes the kernel's installation look for the disk that / is on.
    _write_files(work / "after.tar", {"boot/grub/grub.cfg": _menu(root_uuid)})
    root = work / "root"
    as_root = os.geteuid() == 0
    _install(work, root if as_root else work / "root.tar", suite, lines, root_uuid, progress)

    disk = work / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(size)
    progress("making the file system", 0.85)
    _partition(disk)
    _make_root(disk, size, root, root_uuid, None if as_root else work / "root.tar")
    progress("placing the boot loaders", 0.92)
    _make_esp(disk, root, esp_id)
    _place_bios_loader(disk, root)
    progress("writing the qcow2 image", 0.94)
    run_tool(
        ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(out / "disk.qcow2")],
        deadline=600,
        what="to write the Debian disk",
        package="qemu-utils",
    )
    release = next((path.name[8:] for path in sorted((root / "boot").glob("vmlinuz-*"))), "")
    return release, system_name(root)


def system_name(root: Path) -> str:
    """Return PRETTY_NAME of the system below ``root``."""
    for line in (root / "usr/lib/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return "unknown"


def _fstab(root_uuid: str, esp_id: int) -> str:
    esp = f"{esp_id >> 16:04X}-{esp_id & 0xFFFF:04X}"
    return (
        f"UUID={root_uuid} / ext4 errors=remount-ro 0 1\n"
        f"UUID={esp} /boot/efi vfat umask=0077,nofail,noauto,x-systemd.automount 0 0\n"
    )


def _menu(root_uuid: str) -> str:
    return (
        "# Boots the newest kernel by the links that linux-base keeps; update-grub replaces this file.\n"
        "serial --unit=0 --speed=115200\n"
        "terminal_output console serial\n"
        f"search --no-floppy --fs-uuid --set=root {root_uuid}\n"
        "echo 'Starting Linux'\n"
        f"linux /vmlinuz root=UUID={root_uuid} ro quiet {APPEND}\n"
        "initrd /initrd.img\n"
        "boot\n"
    )


def _write_files(path: Path, files: dict[str, str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            data = text.encode()
            info.size, info.mode = len(data), 0o644
            archive.addfile(info, io.BytesIO(data))


def _finish(root_uuid: str) -> str:
    """Return the shell script that ends the installation; $1 is the new root."""
    early = f"search.fs_uuid {root_uuid} root\\nset prefix=($root)/boot/grub\\n"
    return f"""set -e
chroot "$1" systemctl -q enable systemd-networkd.service systemd-resolved.service ssh.service
chroot "$1" systemctl -q mask systemd-networkd-wait-online.service e2scrub_reap.service
rm -f "$1"/etc/ssh/ssh_host_*
mkdir -p "$1/boot/efi" "$1/boot/grub/i386-pc"
printf '{early}' >"$1/boot/grub/early.cfg"
chroot "$1" grub-mkimage -O i386-pc -p /boot/grub -c /boot/grub/early.cfg -o /boot/grub/i386-pc/core.img \
 biosdisk {_CORE_MODULES}
chroot "$1" grub-mkimage -O x86_64-efi -p /boot/grub -c /boot/grub/early.cfg -o /boot/grub/bootx64.efi {_CORE_MODULES}
rm "$1/boot/grub/early.cfg"
cp "$1"/usr/lib/grub/i386-pc/boot.img "$1"/usr/lib/grub/i386-pc/*.mod "$1"/usr/lib/grub/i386-pc/*.lst \
 "$1/boot/grub/i386-pc/"
"""


def _install(work: Path, target: Path, suite: str, lines: Sequence[str], root_uuid: str, progress: Progress) -> None:
    unwanted = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*")
    argv = [
        "mmdebstrap", "--mode=root" if target.suffix != ".tar" else "--mode=unshare", "--variant=minbase", "--verbose",
        f"--format={'directory' if target.suffix != '.tar' else 'tar'}", f"--include={','.join(WANTED)}",
        *(f"--dpkgopt=path-exclude={path}" for path in unwanted),
        f"--essential-hook=tar-in {shlex.quote(str(work / 'before.tar'))} /",
        f"--customize-hook=tar-in {shlex.quote(str(work / 'after.tar'))} /",
        f"--customize-hook={_finish(root_uuid)}",
        suite, str(target), *lines,
    ]  # fmt: skip
    environment = {**os.environ, "PATH": search_path(), "LC_ALL": "C.UTF-8"}
    if target.suffix != ".tar":
        environment["TMPDIR"] = str(work)
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise PrerequisiteError(
            "mmdebstrap is needed to build a Debian disk and is not installed", hint="apt install mmdebstrap"
        ) from error
    late = threading.Event()

    def expire() -> None:
        late.set()
        process.terminate()

    timer = threading.Timer(_INSTALL_DEADLINE, expire)
    timer.start()
    tail: deque[str] = deque(maxlen=40)
    try:
        assert process.stderr is not None
        _follow(process.stderr, tail, progress)
        code = process.wait()
    except BaseException:
        # It unmounts what it mounted before it goes.
        process.terminate()
        process.wait()
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise DeadlineError(f"installing Debian took longer than {_INSTALL_DEADLINE:.0f} s")
    if code != 0:
        problem = next((line for line in tail if line.startswith("E:")), tail[-1] if tail else "no message")
        raise ExecutionError(
            f"mmdebstrap failed: {problem}",
            hint=(
                "check the network and the mirror"
                if os.geteuid() == 0
                else "run it with sudo, or: apt install uidmap fakeroot, and give this user ranges in /etc/subuid"
            ),
            argv=argv[:8],
            code=code,
            stderr="\n".join(tail),
        )


def _follow(stderr: IO[str], tail: deque[str], progress: Progress) -> None:
    """Turn mmdebstrap's and dpkg's lines into progress."""
    done = 0
    for raw in stderr:
        line = raw.rstrip()
        tail.append(line)
        if line.startswith("I: "):
            progress(line[3:].split(" in shell:")[0][:80], min(0.8, done / 550))
        elif line.startswith(("Unpacking ", "Setting up ")):
            done += 1
            progress(" ".join(line.split()[: 3 if line.startswith("Setting") else 2]), min(0.8, done / 550))


def _partition(disk: Path) -> None:
    script = (
        "label: gpt\n"
        f"start={_BIOS_START // _SECTOR}, size={_BIOS_SIZE // _SECTOR}, type=21686148-6449-6E6F-744E-656564454649\n"
        f"start={_ESP_START // _SECTOR}, size={_ESP_SIZE // _SECTOR}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\n"
        f"start={_ROOT_START // _SECTOR}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\n"
    )
    run_tool(
        ["sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(disk)],
        deadline=60,
        what="to partition the Debian disk",
        package="fdisk",
        text_input=script.encode(),
    )


def _make_root(disk: Path, size: int, root: Path, root_uuid: str, archive: Path | None) -> None:
    blocks = (size - _ROOT_START - _TAIL) // 4096
    mkfs = [
        "mkfs.ext4", "-q", "-F", "-b", "4096", "-L", "root", "-U", root_uuid, "-E",
        f"offset={_ROOT_START},lazy_itable_init=1,root_owner=0:0", "-d", str(root), str(disk), str(blocks),
    ]  # fmt: skip
    if archive is None:
        argv = mkfs
    else:
        root.mkdir()
        # fakeroot remembers the owners that the unpacked files cannot have.
        unpack = ["tar", "--numeric-owner", "-C", str(root), "-xf", str(archive)]
        argv = ["fakeroot", "sh", "-c", f"{shlex.join(unpack)} && {shlex.join(mkfs)}"]
    run_tool(argv, deadline=600, what="to make the root file system", package="e2fsprogs fakeroot")


def _make_esp(disk: Path, root: Path, esp_id: int) -> None:
    where = f"{disk}@@{_ESP_START}"
    steps = (
        ["mformat", "-i", where, "-v", "ESP", "-N", f"{esp_id:08x}", "-T", str(_ESP_SIZE // _SECTOR), "::"],
        ["mmd", "-i", where, "::/EFI", "::/EFI/BOOT"],
        ["mcopy", "-i", where, str(root / "boot/grub/bootx64.efi"), "::/EFI/BOOT/BOOTX64.EFI"],
    )
    for argv in steps:
        run_tool(argv, deadline=60, what="to make the EFI system partition", package="mtools")


def place_grub(head: bytes, boot: bytes, core: bytes, core_sector: int) -> tuple[bytes, bytes]:
    """Return the disk's first sector and GRUB's core image, each knowing where the other parts are.

    ``head`` the first sector with its partition table, ``boot`` boot.img, ``core`` what grub-mkimage made,
    ``core_sector`` where it goes. This is what grub-bios-setup does for a GPT disk. Raises `ExecutionError` for files
    that are not GRUB's.
    """
    if len(boot) != _SECTOR or boot[510:] != b"\x55\xaa" or len(core) < 2 * _SECTOR or len(core) > _BIOS_SIZE:
        raise ExecutionError("GRUB's boot images are not as expected")
    sector = bytearray(boot[:_BOOT_CODE_END] + head[_BOOT_CODE_END:_SECTOR])
    struct.pack_into("<Q", sector, _KERNEL_SECTOR, core_sector)
    sector[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"  # trust the drive number that the BIOS gives
    image = bytearray(core)
    start, length = struct.unpack_from("<QH", image, _BLOCKLIST)  # as if the image lay behind the boot sector
    if start != 2 or length != -(-len(core) // _SECTOR) - 1:
        raise ExecutionError("GRUB's core image has a block list vmcoal does not understand")
    struct.pack_into("<Q", image, _BLOCKLIST, core_sector + 1)
    return bytes(sector), bytes(image)


def _place_bios_loader(disk: Path, root: Path) -> None:
    grub = root / "boot/grub/i386-pc"
    with disk.open("r+b") as file:
        head, core = place_grub(
            file.read(_SECTOR),
            (grub / "boot.img").read_bytes(),
            (grub / "core.img").read_bytes(),
            _BIOS_START // _SECTOR,
        )
        file.seek(0)
        file.write(head)
        file.seek(_BIOS_START)
        file.write(core)
