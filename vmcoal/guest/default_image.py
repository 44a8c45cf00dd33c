"""The default guest image: the distribution's cloud kernel and an initramfs made of its packages and the agent.

Everything is put together as a normal user: packages are unpacked by reading them, not by installing, and the initramfs
is written with owner 0:0 whoever builds it.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from vmcoal.errors import ExecutionError
from vmcoal.guest.initramfs import CpioWriter, copy_libraries
from vmcoal.guest.kernel import take_kernel
from vmcoal.guest.packages import Package, Progress, inside, members, run_tool

BUILDER = 2
"""Raised whenever the same packages and files would now give another image."""

WANTED = (
    "linux-image-cloud-amd64",
    "base-files",
    "bash",
    "busybox-static",
    "clinfo",
    "dropbear-bin",
    "libpython3-stdlib",
    "ncurses-base",
    "numactl",
    "ocl-icd-libopencl1",
    "openssh-sftp-server",
    "pciutils",
    "procps",
    "python3-minimal",
    "util-linux",
)
"""The packages the image is made of; their closure brings the libraries."""

APPEND = (
    "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check cryptomgr.notests "
    "memhp_default_state=online_movable movablecore=60% cgroup_no_v1=all"
)
"""Kernel arguments of the image.

Memory that is plugged comes online movable by itself, so it can leave again and virtio-mem never waits for the agent;
the movable part of node 0 keeps the kernel's own share free of what could live in far memory.
"""

LOADER = "ld-linux-x86-64.so.2"
"""The dynamic loader."""

# In the closure only for the sake of maintainer scripts, which never run here.
_NOT_NEEDED = (
    "adduser", "base-passwd", "bsdutils", "coreutils", "cpio", "dash", "debconf", "debianutils", "diffutils", "dpkg",
    "dracut*", "findutils", "gcc-*-base", "grep", "gzip", "hostname", "init-system-helpers", "initramfs-tools*",
    "klibc-utils", "kmod", "libaudit*", "libcbor*", "libcom-err2", "libdb5*", "libdebconfclient0", "libedit2",
    "libfido2*", "libfile-*", "libgdbm*", "libgssapi*", "libk5crypto*", "libkeyutils*", "libklibc", "libkrb5*",
    "libnsl2", "libnumber-*", "libpam*", "libperl*", "libsemanage*", "libsepol*", "libsqlite3*", "libsystemd-shared",
    "libtext-*", "libtirpc*", "linux-base", "linux-image-cloud-*", "login*", "logsave", "mawk", "media-types",
    "mount", "netbase", "openssh-client", "openssl-provider-legacy", "passwd", "perl*", "sed", "sqv", "systemd",
    "sysvinit-utils", "tar", "tzdata", "udev", "usr-is-merged", "usrmerge", "zstd",
)  # fmt: skip

_PROGRAMS = {
    "bash": ("bash",),
    "busybox-static": ("busybox",),
    "clinfo": ("clinfo",),
    "dropbear-bin": ("dropbear", "dropbearkey"),
    "numactl": ("*",),
    "pciutils": ("lspci", "setpci"),
    "procps": ("*",),
    "util-linux": (
        "lscpu", "lsmem", "chmem", "chcpu", "lsblk", "lsns", "taskset", "chrt", "prlimit", "unshare", "nsenter",
    ),
}  # fmt: skip

_PYTHON_DROPPED = (
    "EXTERNALLY-MANAGED", "LICENSE.txt", "__phello__*", "_aix_support*", "_osx_support*", "_pyrepl/*", "aifc*",
    "asyncio/windows_*", "cgi*", "chunk*", "config-*", "curses/*", "dbm/*", "distutils/*", "doctest*", "encodings/*",
    "ensurepip/*", "ftplib*", "idlelib/*", "imaplib*", "lib-dynload/_codecs_*", "lib-dynload/_crypt*",
    "lib-dynload/_ctypes_test*", "lib-dynload/_dbm*", "lib-dynload/_decimal*", "lib-dynload/_gdbm*",
    "lib-dynload/_hashlib*", "lib-dynload/_interp*", "lib-dynload/_multibytecodec*", "lib-dynload/_sqlite3*",
    "lib-dynload/_ssl*", "lib-dynload/_test*", "lib-dynload/_tkinter*", "lib-dynload/_xx*", "lib-dynload/audioop*",
    "lib-dynload/nis*", "lib-dynload/ossaudiodev*", "lib-dynload/xx*", "lib2to3/*", "mailbox*", "mailcap*",
    "msilib/*", "multiprocessing/popen_spawn_win32*", "nntplib*", "ossaudiodev*", "poplib*", "pydoc*",
    "sitecustomize*", "smtpd*", "smtplib*", "sndhdr*", "sqlite3/*", "sunau*", "telnetlib*", "test/*", "this*",
    "tkinter/*", "turtle*", "unittest/*", "uu.py", "venv/*", "wsgiref/*", "xdrlib*", "xml/*", "xmlrpc/*",
)  # fmt: skip

_ENCODINGS = (
    "__init__", "aliases", "ascii", "base64_codec", "charmap", "cp1252", "cp437", "hex_codec", "idna", "iso8859_1",
    "iso8859_15", "latin_1", "punycode", "raw_unicode_escape", "undefined", "unicode_escape", "utf_16", "utf_16_be",
    "utf_16_le", "utf_32", "utf_32_be", "utf_32_le", "utf_7", "utf_8", "utf_8_sig", "zlib_codec",
)  # fmt: skip

_TERMINALS = (
    "alacritty", "ansi", "dumb", "linux", "rxvt", "screen", "screen-256color", "tmux", "tmux-256color", "vt100",
    "vt102", "vt220", "xterm", "xterm-256color",
)  # fmt: skip

_MODULES = (
    "virtio_pci", "virtio_console", "virtio_net", "virtio_blk", "virtio_scsi", "virtio_mem", "virtio_balloon",
    "virtio_rng", "virtio_input", "virtio_pmem", "virtiofs", "vmw_vsock_virtio_transport", "net_failover",
    "qemu_fw_cfg", "button", "evdev", "sd_mod", "sr_mod", "loop", "isofs", "vfat", "nls_ascii", "nls_cp437",
    "nls_utf8", "nls_iso8859_1", "overlay", "fuse", "tun", "msr", "crc32c_intel", "crc32c_generic", "pvpanic_pci",
    "ahci", "e1000", "e1000e", "9p", "9pnet_virtio", "zram", "userio", "configfs", "libata", "pci_hotplug",
    "efivarfs", "ptp_kvm", "nbd",
)  # fmt: skip

_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shells": "/bin/sh\n/bin/bash\n/usr/bin/bash\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    "etc/hostname": "vmcoal\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/resolv.conf": "",
    "etc/inputrc": "set enable-bracketed-paste off\n",
}

_PYTHON_CHECK = (
    "import json, struct, mmap, ctypes, hashlib, socket, select, selectors, subprocess, threading, asyncio, signal, "
    "fcntl, termios, pty, array, random, math, time, os, re, argparse, tempfile, logging, dataclasses, typing, enum, "
    "multiprocessing, concurrent.futures, lzma, bz2, zlib, base64, binascii, platform, statistics, csv, "
    "collections, itertools, functools, contextlib, shutil, pathlib, glob, traceback, resource, syslog, readline; "
    "hashlib.sha256(b'vmcoal').hexdigest(); 'x'.encode('idna')"
)


def wanted_packages(closure: Iterable[Package]) -> list[Package]:
    """Return the packages of ``closure`` that the image takes files from."""
    return [p for p in closure if not any(fnmatch.fnmatchcase(p.name, skipped) for skipped in _NOT_NEEDED)]


def build(files: dict[str, Path], out: Path, agent: Path, init: Path, *, progress: Progress) -> tuple[str, str]:
    """Write ``vmlinuz`` and ``initrd`` into ``out``; return the kernel's release and the system's name.

    ``files`` the packages by name, as `vmcoal.guest.packages.Apt.fetch` returns them; ``agent`` the agent's source;
    ``init`` the folder of the image's own files. Raises `ExecutionError` where the packages are not as expected.
    """
    with tempfile.TemporaryDirectory(prefix="tree-", dir=out) as work:
        root, pool = Path(work, "root"), Path(work, "pool")
        pool.mkdir()
        _lay_out(root)
        release = ""
        for index, (name, deb) in enumerate(sorted(files.items())):
            progress(f"unpacking {name}", 0.6 * index / len(files))
            if name.startswith("linux-image-"):
                release = take_kernel(deb, root, out, _MODULES)
            else:
                _take_files(name, deb, root, pool)
        if not release:
            raise ExecutionError(
                "the distribution's packages hold no kernel", hint="apt-cache policy linux-image-cloud-amd64"
            )
        progress("collecting libraries", 0.62)
        copy_libraries(root, pool)
        busybox_links(root, release)
        progress("compiling Python's library", 0.65)
        _own_files(root, agent, init)
        _compile_python(root)
        progress("writing the initramfs", 0.95)
        with (out / "initrd").open("wb") as file:
            archive = CpioWriter(file)
            archive.folder("dev")
            archive.device("dev/console", 5, 1)
            archive.tree(root)
            archive.close()
        return release, _system_name(root)


def recipe_parts() -> list[str]:
    """Return what of this module decides the image, for its digest."""
    return [repr(part) for part in (WANTED, _PROGRAMS, _PYTHON_DROPPED, _ENCODINGS, _TERMINALS, _MODULES, _TEXTS)]


def _system_name(root: Path) -> str:
    for line in (root / "usr/lib/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.split("=", 1)[1].strip('"')
    return "unknown"


def _lay_out(root: Path) -> None:
    for folder in (
        "etc/acpi", "etc/dropbear", "proc", "sys", "run", "mnt", "root", "tmp", "var/log", "usr/bin", "usr/sbin",
        "usr/lib64", "usr/lib/vmcoal", "usr/libexec/vmcoal", "usr/local/bin", "usr/local/sbin", "usr/share/misc",
        "usr/lib/x86_64-linux-gnu",
    ):  # fmt: skip
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("../run")
    (root / "usr/lib64" / LOADER).symlink_to(f"../lib/x86_64-linux-gnu/{LOADER}")


def _take_files(package: str, deb: Path, root: Path, pool: Path) -> None:
    for info, reader in members(deb):
        path = inside(info.name)
        if path is None or info.isdir():
            continue
        target = pool / path.name if _is_library(path) else root / path
        if not (_is_library(path) or _is_wanted(package, path)):
            continue
        if path.name == LOADER:
            if info.issym():
                continue
            target = root / "usr/lib/x86_64-linux-gnu" / LOADER
        target.parent.mkdir(parents=True, exist_ok=True)
        if info.issym():
            target.unlink(missing_ok=True)
            target.symlink_to(PurePosixPath(info.linkname).name if _is_library(path) else info.linkname)
        elif reader is not None:
            target.write_bytes(reader.read())
            target.chmod(0o755 if info.mode & 0o111 else 0o644)
        elif info.islnk():
            source = inside(info.linkname)
            if source is not None and (root / source).is_file():
                target.write_bytes((root / source).read_bytes())
                target.chmod((root / source).stat().st_mode & 0o777)


def _is_library(path: PurePosixPath) -> bool:
    parts = path.parts
    in_lib = parts[:-1] in {("usr", "lib", "x86_64-linux-gnu"), ("usr", "lib64"), ("usr", "lib")}
    return in_lib and ".so" in path.name


def _is_wanted(package: str, path: PurePosixPath) -> bool:
    text = str(path)
    if path.parts[:2] in {("usr", "bin"), ("usr", "sbin")}:
        if package.startswith("python3"):
            return path.name.startswith("python3") and "config" not in path.name
        return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in _PROGRAMS.get(package, ()))
    if fnmatch.fnmatchcase(text, "usr/lib/python3.*/*"):
        inside = text.split("/", 3)[3]
        if inside.startswith("encodings/"):
            return path.stem in _ENCODINGS
        return not any(fnmatch.fnmatchcase(inside, pattern) for pattern in _PYTHON_DROPPED)
    if package == "ncurses-base":
        return "terminfo" in path.parts and path.name in _TERMINALS
    return (package, text) in {
        ("pci.ids", "usr/share/misc/pci.ids"),
        ("base-files", "usr/lib/os-release"),
        ("openssh-sftp-server", "usr/lib/openssh/sftp-server"),
        ("openssh-sftp-server", "usr/lib/sftp-server"),
    }


def busybox_links(root: Path, release: str) -> None:
    """Link busybox under the names of its programs, where no real one is, and let it index the modules."""
    busybox = root / "usr/bin/busybox"
    if not busybox.is_file():
        raise ExecutionError("the distribution's busybox-static holds no busybox")
    listed = run_tool([str(busybox), "--list-full"], deadline=30, what="to list its programs", package="busybox-static")
    for line in listed.decode().split():
        folder = "sbin" if "sbin" in line else "bin"
        link = root / "usr" / folder / PurePosixPath(line).name
        other = root / "usr" / ("bin" if folder == "sbin" else "sbin") / link.name
        if not link.exists() and not link.is_symlink() and not other.exists():
            link.symlink_to("/usr/bin/busybox" if folder == "sbin" else "busybox")
    run_tool(
        [str(busybox), "depmod", "-b", str(root), release],
        deadline=120,
        what="to index the kernel's modules",
        package="busybox-static",
    )


def _own_files(root: Path, agent: Path, init: Path) -> None:
    places = {
        "init": "init",
        "inittab": "etc/inittab",
        "profile": "etc/profile",
        "mdev.conf": "etc/mdev.conf",
        "power": "etc/acpi/PWRF/00000080",
        "poweroff": "usr/sbin/poweroff",
        "agent": "usr/libexec/vmcoal/agent",
        "late": "usr/libexec/vmcoal/late",
        "dhcp": "usr/libexec/vmcoal/dhcp",
    }
    for name, place in places.items():
        target = root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link to busybox, in the image and also here
        shutil.copyfile(init / name, target)
        target.chmod(0o755 if target.read_bytes().startswith(b"#!") else 0o644)
    shutil.copyfile(agent, root / "usr/lib/vmcoal/vmcoal_agent.py")
    for place, text in _TEXTS.items():
        (root / place).write_text(text)
    (root / "etc/shadow").chmod(0o600)
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    with (root / "usr/lib/os-release").open("a") as file:
        file.write('VARIANT="vmcoal default image"\nVARIANT_ID=vmcoal-default\n')


def _compile_python(root: Path) -> None:
    """Compile with the image's own Python, since the host's may be of another version; keep only what was compiled.

    Under TCG an uncompiled start of the agent costs seconds.
    """
    interpreters = sorted((root / "usr/bin").glob("python3.[0-9]*"))
    if not interpreters:
        raise ExecutionError("the distribution's python3-minimal holds no python3")
    libraries = root / "usr/lib/x86_64-linux-gnu"
    python = [str(libraries / LOADER), "--library-path", str(libraries), str(interpreters[-1])]
    link = root / "usr/bin/python3"
    link.unlink(missing_ok=True)
    link.symlink_to(interpreters[-1].name)
    (root / "usr/bin/python").unlink(missing_ok=True)
    (root / "usr/bin/python").symlink_to("python3")
    environment = {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": "",
        "PYTHONHASHSEED": "0",
    }
    library = root / "usr/lib" / interpreters[-1].name

    def run(arguments: Sequence[str], what: str) -> None:
        run_tool([*python, "-S", *arguments], deadline=300, what=what, package="python3-minimal", env=environment)

    run(["-c", _PYTHON_CHECK], "to check the image's Python")
    run(
        ["-m", "compileall", "-q", "-b", "-s", str(root), "-p", "/", "--invalidation-mode", "unchecked-hash",
         str(library), str(root / "usr/lib/vmcoal")],
        "to compile Python's library",
    )  # fmt: skip
    for source in library.rglob("*.py"):
        if source.with_suffix(".pyc").exists():
            source.unlink()
    for folder, _, files in os.walk(library, topdown=False):
        if not files and not any(Path(folder).iterdir()):
            Path(folder).rmdir()
