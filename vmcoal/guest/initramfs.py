"""Pieces of an initramfs: the cpio archive, the shared libraries that programs need, and kernel modules.

The archive is cpio "newc" as in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst: owner 0:0 and
time 0 throughout, so that the same files give the same bytes whoever builds them.
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

from vmcoal.errors import ExecutionError

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_COPY = 1 << 20


class CpioWriter:
    """Writes one newc archive to a binary file; several archives may follow each other in one initramfs."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inode = 0

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder."""
        self._header(name, stat.S_IFDIR | mode, 0)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        data = os.fsencode(target)
        self._header(name, stat.S_IFLNK | 0o777, len(data))
        self._data(data)

    def device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device; the kernel makes the node, so no privilege is needed here."""
        self._header(name, stat.S_IFCHR | mode, 0, (major, minor))

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._header(name, stat.S_IFREG | mode, len(data))
        self._data(data)

    def tree(self, root: Path) -> None:
        """Add everything below ``root``, in sorted order, with the modes it has there."""
        for folder, folders, files in os.walk(root):
            folders.sort()
            for name in sorted([*folders, *files]):
                path = Path(folder, name)
                inside = str(path.relative_to(root))
                info = path.lstat()
                if stat.S_ISLNK(info.st_mode):
                    self.link(inside, str(path.readlink()))
                elif stat.S_ISDIR(info.st_mode):
                    self.folder(inside, stat.S_IMODE(info.st_mode))
                elif stat.S_ISREG(info.st_mode):
                    self.file(inside, path.read_bytes(), stat.S_IMODE(info.st_mode))

    def close(self) -> None:
        """Write the trailer; the file stays open, aligned so that another archive may follow."""
        self._inode = -1
        self._header(_TRAILER, 0, 0)
        self._file.write(b"\0" * (-self._file.tell() % 512))

    def _header(self, name: str, mode: int, size: int, device: tuple[int, int] = (0, 0)) -> None:
        raw = os.fsencode(name) + b"\0"
        self._inode += 1
        links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, links, mtime, size, device of the archive (2), of the node (2), name length, checksum
        fields = (self._inode, mode, 0, 0, links, 0, size, 0, 0, *device, len(raw), 0)
        self._file.write(_MAGIC + b"".join(b"%08X" % field for field in fields) + raw)
        self._pad(len(_MAGIC) + 8 * len(fields) + len(raw))

    def _data(self, data: bytes) -> None:
        self._file.write(data)
        self._pad(len(data))

    def _pad(self, length: int) -> None:
        self._file.write(b"\0" * (-length % 4))


def elf_needed(path: Path) -> list[str] | None:
    """Return the sonames a 64-bit little-endian ELF file needs, or ``None`` if it is something else (ELF-64, gABI)."""
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return None
        try:
            return _dynamic_strings(file, head)
        except (struct.error, ValueError, IndexError) as error:
            raise ExecutionError(f"{path} is a damaged ELF file") from error


def _dynamic_strings(file: IO[bytes], head: bytes) -> list[str]:
    table, entry_size, count = struct.unpack_from("<Q14xHH", head, 32)
    file.seek(table)
    entries = file.read(entry_size * count)
    loads: list[tuple[int, int, int]] = []
    dynamic = b""
    for index in range(count):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", entries, index * entry_size)
        if kind == 1:  # PT_LOAD
            loads.append((address, offset, size))
        elif kind == 2:  # PT_DYNAMIC
            file.seek(offset)
            dynamic = file.read(size)
    tags: list[tuple[int, int]] = list(struct.iter_unpack("<qQ", dynamic[: len(dynamic) // 16 * 16]))
    address = next((value for tag, value in tags if tag == 5), None)  # DT_STRTAB
    length = next((value for tag, value in tags if tag == 10), 0)  # DT_STRSZ
    if address is None:
        return []
    offset = next(at + address - start for start, at, size in loads if start <= address < start + size)
    file.seek(offset)
    strings = file.read(length)
    return [strings[value : strings.index(b"\0", value)].decode() for tag, value in tags if tag == 1]  # DT_NEEDED


def copy_libraries(root: Path, pool: Path) -> None:
    """Copy the shared libraries that the programs below ``root`` need, and theirs, from ``pool`` to ``root``.

    ``pool`` holds the candidates in one flat folder. Raises `ExecutionError` naming what is missing.
    """
    libraries = root / "usr/lib/x86_64-linux-gnu"
    libraries.mkdir(parents=True, exist_ok=True)
    todo = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    have = {path.name for path in libraries.iterdir()}
    missing: dict[str, str] = {}
    while todo:
        path = todo.pop()
        for name in elf_needed(path) or ():
            if name in have or name.startswith("ld-linux"):
                continue
            source = pool / name
            if not source.exists():
                missing[name] = str(path.relative_to(root))
                continue
            target = libraries / name
            target.write_bytes(source.read_bytes())
            target.chmod(0o644)
            have.add(name)
            todo.append(target)
    if missing:
        listed = ", ".join(f"{name} (for {user})" for name, user in sorted(missing.items()))
        raise ExecutionError(
            f"the distribution's packages lack libraries: {listed}", hint="please report this with `vmcoal doctor`"
        )


def module_name(path: str) -> str:
    """Return a module's name from its file's path: ``virtio_net`` from ``…/virtio_net.ko.xz``."""
    return path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")


def module_data(name: str, raw: bytes) -> bytes:
    """Return a module uncompressed; raises `ExecutionError` for a compression vmcoal cannot read."""
    if name.endswith(".ko"):
        return raw
    if name.endswith(".ko.xz"):
        return lzma.decompress(raw)
    raise ExecutionError(f"kernel module {name} is compressed in a way vmcoal cannot read")


def module_depends(data: bytes) -> list[str]:
    """Return the names of the modules that a module needs (``depends=`` in its .modinfo)."""
    start = data.find(b"\0depends=")
    if start < 0:
        return []
    text = data[start + 9 : data.index(b"\0", start + 9)].decode("ascii", "replace")
    return [name.replace("-", "_") for name in text.split(",") if name]


def module_closure(wanted: Iterable[str], read: Callable[[str], bytes | None]) -> set[str]:
    """Return ``wanted`` and what they depend on. ``read`` gives a module's bytes, ``None`` for one that is built in."""
    chosen: set[str] = set()
    seen: set[str] = set()
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        data = read(name)
        if data is not None:
            chosen.add(name)
            todo += module_depends(data)
    return chosen
