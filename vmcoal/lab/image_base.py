"""The system that every host of the lab runs: a distribution's stock kernel, its QEMU, its nbdkit, on a read-only disk.

Packages are unpacked by reading them, not installed, so nothing here needs root, a loop device or a namespace. The disk
is ext4 without a journal, written by ``mkfs.ext4 -d``; the initramfs holds what finds it.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from vmcoal.errors import ExecutionError
from vmcoal.guest.default_image import LOADER, busybox_links
from vmcoal.guest.images import guest_files
from vmcoal.guest.initramfs import CpioWriter, elf_needed, module_closure, module_name
from vmcoal.guest.kernel import take_kernel
from vmcoal.guest.packages import Progress, inside, members, run_tool

BUILDER = 1
"""Raised whenever the same packages would now give another system."""


class Flavor(msgspec.Struct, frozen=True):
    """A Debian that hosts can run: ``name`` its number, ``suite`` its codename, ``python`` its version and ``glibc``
    that of its C library, ``packages`` what it has under a name of its own."""

    name: str
    suite: str
    python: str
    glibc: tuple[int, int]
    packages: tuple[str, ...]


FLAVORS = {
    flavor.name: flavor
    for flavor in (
        Flavor("12", "bookworm", "3.11", (2, 36), ("libgnutls30",)),
        Flavor("13", "trixie", "3.13", (2, 41), ("libgnutls30t64",)),
    )
}
"""12 has QEMU 7.2 and Linux 6.1, 13 has QEMU 10.0 and Linux 6.12."""

WANTED = (
    "linux-image-amd64", "base-files", "bash", "busybox-static", "coreutils", "dash", "e2fsprogs", "findutils", "fuse3",
    "grep", "gzip", "hostname", "iproute2", "iputils-ping", "kmod", "less", "libnbd-bin", "libnbd0", "mawk", "mount",
    "nbdkit", "ncurses-base", "ncurses-bin", "numactl", "openssh-client", "pciutils", "procps", "python3",
    "qemu-system-x86", "qemu-utils", "seabios", "sed", "strace", "tar", "util-linux",
)  # fmt: skip
"""What a host holds, beside what these need."""

_NOT_NEEDED = (
    "adduser", "base-passwd", "debconf", "debianutils", "dpkg", "dracut*", "init-system-helpers", "initramfs-tools*",
    "ipxe-qemu", "iso-codes", "klibc-utils", "libasound2-data", "libfile-*", "libgdbm*", "libicu*-data", "libklibc*",
    "libnumber-*", "libpam-modules*", "libpam-runtime", "libperl*", "libsystemd-shared", "libtext-*", "libtorrent*",
    "linux-base", "logsave", "media-types", "passwd", "perl*", "systemd", "tzdata", "udev", "usr-is-merged", "usrmerge",
)  # fmt: skip

_DROPPED = (
    "usr/share/doc/*", "usr/share/man/*", "usr/share/info/*", "usr/share/locale/*", "usr/share/lintian/*",
    "usr/share/bash-completion/*", "usr/share/qemu/*.dtb", "usr/share/qemu/edk2*", "usr/share/qemu/u-boot*",
    "usr/lib/systemd/*", "usr/lib/udev/*", "etc/init.d/*", "usr/lib/python3*/test/*", "usr/lib/python3*/idlelib/*",
    "usr/lib/x86_64-linux-gnu/gconv/*", "usr/share/i18n/*", "boot/System.map*",
)  # fmt: skip

MODULES = (
    "kvm_amd", "kvm_intel", "vfio_pci", "vfio_iommu_type1", "vhost_net", "vhost_vsock", "fuse", "cuse", "tun", "nbd",
    "loop", "sch_netem", "sch_tbf", "sch_ingress", "cls_u32", "act_mirred", "ifb", "veth", "bridge", "dummy",
    "virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "virtio_console", "virtio_rng", "virtio_balloon",
    "virtio_mem", "virtiofs", "ext4", "overlay", "squashfs", "9p", "9pnet_virtio", "vfat", "isofs", "button", "msr",
    "cpuid", "zram", "tls", "crc32c_generic", "crc32c_intel", "aesni_intel", "qemu_fw_cfg", "pci_stub", "edu", "bochs",
    "nf_tables", "nft_chain_nat", "userio", "vmw_vsock_virtio_transport", "configfs", "efivarfs", "tcp_bbr",
)  # fmt: skip
"""Kernel modules of a host; what they need comes along."""

_EARLY = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "crc32c_intel", "overlay")

APPEND = (
    "quiet panic=-1 tsc=reliable no_timer_check cryptomgr.notests mitigations=off nokaslr audit=0 apparmor=0 selinux=0 "
    "net.ifnames=0 rcupdate.rcu_expedited=1 random.trust_cpu=on"
)
"""Kernel arguments of a host: nothing that a boot under emulation need not do."""

_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\ntty:x:5:\nkvm:x:104:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/resolv.conf": "",
}
_FOLDERS = (
    "etc", "boot", "dev", "proc", "sys", "run", "mnt", "root", "tmp", "srv", "var/log", "var/tmp", "var/cache",
    "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "usr/lib/x86_64-linux-gnu", "usr/local/bin", "usr/local/sbin",
)  # fmt: skip
_EARLY_PROGRAMS = ("sh", "mount", "umount", "modprobe", "mkdir", "sleep", "echo", "switch_root")


def recipe_parts(flavor: Flavor) -> list[str | bytes]:
    """Return what of vmcoal decides the system, for its digest."""
    parts = (BUILDER, flavor, WANTED, _NOT_NEEDED, _DROPPED, MODULES, _EARLY, _TEXTS, _FOLDERS, _EARLY_PROGRAMS)
    return [*map(repr, parts), (guest_files() / "lab/start").read_bytes()]


def wanted(flavor: Flavor) -> tuple[str, ...]:
    """Return the packages to ask for."""
    return (*WANTED, *flavor.packages)


def is_needed(package: str) -> bool:
    """Return whether files of a package of the closure are wanted; the others are there for scripts that never run."""
    return not any(fnmatch.fnmatchcase(package, skipped) for skipped in _NOT_NEEDED)


def build(files: Mapping[str, Path], flavor: Flavor, out: Path, work: Path, *, progress: Progress) -> str:
    """Write ``vmlinuz``, ``initrd``, ``disk`` and the folder ``python`` into ``out``; return the kernel's release.

    ``files`` the packages by name; ``work`` an empty folder. Raises `ExecutionError` where they are not as expected,
    `PrerequisiteError` where a tool is missing.
    """
    root = work / "root"
    _lay_out(root)
    release = ""
    for index, (name, deb) in enumerate(sorted(files.items())):
        progress(f"unpacking {name}", 0.6 * index / len(files))
        if name.startswith("linux-image-"):
            release = take_kernel(deb, root, out, MODULES) or release
        else:
            _take(deb, root)
    if not release:
        raise ExecutionError("the distribution's packages hold no kernel")
    for place, text in _TEXTS.items():
        (root / place).write_text(text)
    busybox_links(root, release)
    # kmod's own index: busybox writes only one that kmod's modprobe does not read
    run_tool(["depmod", "-b", str(root), release], deadline=60, what="to index the kernel's modules", package="kmod")
    (root / "usr/bin/awk").unlink(missing_ok=True)
    (root / "usr/bin/awk").symlink_to("mawk")
    progress("compiling Python's library", 0.65)
    compile_python(root, flavor, [root / "usr/lib" / f"python{flavor.python}"], strip=root)
    keep_python(root, flavor, out / "python")
    progress("writing the initramfs", 0.75)
    _write_initrd(root, release, out / "initrd")
    progress("writing the disk", 0.8)
    write_disk(root, out / "disk", "base")
    shutil.rmtree(root)
    return release


def _lay_out(root: Path) -> None:
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("../run")
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)


def _take(deb: Path, root: Path) -> None:
    """Unpack a package's files, owners and special modes left out."""
    for info, reader in members(deb):
        path = inside(info.name)
        if path is None or any(fnmatch.fnmatchcase(str(path), pattern) for pattern in _DROPPED):
            continue
        target = root / path
        if info.isdir():
            if not target.is_symlink():
                target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_symlink() or target.is_file():
            target.unlink()
        if info.issym():
            if not target.is_dir():  # /bin and its like are part of base-files in Debian 13
                target.symlink_to(info.linkname)
        elif reader is not None:
            with target.open("wb") as file:
                shutil.copyfileobj(reader, file, 1 << 20)
            target.chmod(0o755 if info.mode & 0o111 else 0o644)
        elif info.islnk() and (source := inside(info.linkname)) is not None and (root / source).is_file():
            os.link(root / source, target)


def _write_initrd(root: Path, release: str, out: Path) -> None:
    modules = root / "usr/lib/modules" / release
    found = {module_name(path.name): path for path in modules.rglob("*.ko")}
    with out.open("wb") as file:
        archive = CpioWriter(file)
        for folder in ("bin", "dev", "proc", "sys", "lib", "lib/modules", f"lib/modules/{release}"):
            archive.folder(folder)
        archive.device("dev/console", 5, 1)
        archive.file("init", (guest_files() / "lab/start").read_bytes(), 0o755)
        archive.file("bin/busybox", (root / "usr/bin/busybox").read_bytes(), 0o755)
        for name in _EARLY_PROGRAMS:
            archive.link(f"bin/{name}", "busybox")
        made: set[str] = set()
        for name in sorted(module_closure(_EARLY, lambda name: found[name].read_bytes() if name in found else None)):
            place = PurePosixPath("lib/modules", release, found[name].relative_to(modules))
            for parent in reversed(place.parents[:-4]):
                if str(parent) not in made:
                    made.add(str(parent))
                    archive.folder(str(parent))
            archive.file(str(place), found[name].read_bytes())
        for name in ("modules.dep", "modules.alias", "modules.builtin"):
            if (modules / name).is_file():
                archive.file(f"lib/modules/{release}/{name}", (modules / name).read_bytes())
        archive.close()


def write_disk(tree: Path, out: Path, label: str) -> None:
    """Write ``tree`` as a file system of its size to ``out``, everything owned by root."""
    blocks = inodes = 0
    for folder, folders, names in os.walk(tree):
        inodes += len(folders) + len(names)
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                blocks += -(-path.stat().st_size // 4096)
        blocks += 1 + len(names) // 50
    blocks += blocks // 50 + inodes // 14 + 4096
    argv = [
        "mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256", "-N", str(inodes + 512), "-m", "0", "-L", label,
        "-O", "^has_journal,^metadata_csum,^resize_inode", "-E", "root_owner=0:0,lazy_itable_init=0",
        "-d", str(tree), str(out), str(blocks),
    ]  # fmt: skip
    if os.geteuid() != 0:
        argv = ["fakeroot", *argv]
    run_tool(argv, deadline=600, what="to write the disk of a lab host", package="e2fsprogs fakeroot")
    out.chmod(0o644)


# Python of another distribution than this one's


def _python(root: Path, flavor: Flavor) -> list[str]:
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return [str(libraries / LOADER), "--library-path", str(libraries), str(root / f"usr/bin/python{flavor.python}")]


def compile_python(python: Path, flavor: Flavor, folders: Sequence[Path], *, strip: Path, beside: bool = False) -> None:
    """Compile the modules in ``folders`` with the flavour's own Python, which lies below ``python``.

    The host's disks are read-only and its processor emulated: what is not compiled here is compiled anew at each start.
    ``strip`` what their paths begin with here; ``beside``: the result lies beside the source (``x.pyc``).
    """
    environment = {"PYTHONHOME": str(python / "usr"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
    options = ["-q", "-s", str(strip), "-p", "/", "--invalidation-mode", "unchecked-hash", *(["-b"] if beside else [])]
    run_tool(
        [*_python(python, flavor), "-S", "-m", "compileall", *options, *map(str, folders)],
        deadline=600,
        what="to compile Python modules for a lab host",
        package="python3",
        env=environment,
    )


def keep_python(root: Path, flavor: Flavor, out: Path) -> None:
    """Keep what of the system `compile_python` needs later, below ``out``."""
    program = Path("usr/bin", f"python{flavor.python}")
    library = Path("usr/lib", f"python{flavor.python}")
    libraries = Path("usr/lib/x86_64-linux-gnu")
    (out / libraries).mkdir(parents=True)
    (out / program).parent.mkdir(parents=True)
    shutil.copyfile(root / program, out / program)
    (out / program).chmod(0o755)
    shutil.copytree(root / library, out / library, symlinks=True)
    todo = [root / program]
    while todo:
        for name in elf_needed(todo.pop()) or ():
            source = root / libraries / name
            if not (out / libraries / name).exists() and source.exists():
                shutil.copyfile(source, out / libraries / name)
                todo.append(source)
    shutil.copyfile(root / libraries / LOADER, out / libraries / LOADER)
    (out / libraries / LOADER).chmod(0o755)
