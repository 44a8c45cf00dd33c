"""The user's disk image: what it is, judged without trusting it, and the VM's own layer over it.

An image may come from anywhere, so its header is read here before QEMU sees it. A qcow2 can name a backing file or an
external data file, by path or by a ``json:`` description, and QEMU would open whatever it names on this host; such an
image is refused unless asked for. The format is decided once, by magic, and is then always given to QEMU: a raw disk on
which a guest wrote a qcow2 header stays raw, because VMs write to overlays only (QEMU, docs/interop/qcow2.txt).
"""

from __future__ import annotations

import os
import stat
import struct
import tempfile
from pathlib import Path

import msgspec

from vmcoal.errors import UNREADABLE, ConflictError, ExecutionError, NotFoundError, PrerequisiteError, RefusedError
from vmcoal.guest.packages import run_tool

_QCOW2 = b"QFI\xfb"
_HEAD = 64 << 10
_INFO_DEADLINE = 30.0
_INFO_MAX = 1 << 20
_SECTOR = 512
_SMALLEST = 64 << 10
_EXTERNAL_DATA = 1 << 2
_CORRUPT = 1 << 1
_NAME_MAX = 1023

_FOREIGN = (
    (0, b"KDMV", "a VMware disk", "convert"),
    (0, b"# Disk DescriptorFile", "a VMware disk description", "convert"),
    (0, b"vhdxfile", "a Hyper-V disk", "convert"),
    (0, b"conectix", "a Virtual PC disk", "convert"),
    (0x40, b"\x7f\x10\xda\xbe", "a VirtualBox disk", "convert"),
    (0, b"QED\0", "a QED disk", "convert"),
    (0, b"WithoutFreeSpace", "a Parallels disk", "convert"),
    (0, b"WithouFreSpacExt", "a Parallels disk", "convert"),
    (0, b"LUKS\xba\xbe", "an encrypted container", None),
    (0x8001, b"CD001", "a CD image; --image wants an installed system", None),
    (0, b"\x1f\x8b", "compressed with gzip", "gunzip"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "unxz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unzstd"),
    (0, b"BZh", "compressed with bzip2", "bunzip2"),
    (0, b"PK\x03\x04", "a zip archive", "unzip"),
)


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One disk image. ``format`` qcow2 or raw; sizes in bytes, ``actual_size`` what it takes on disk; ``backing`` what
    it is layered over, only where that was allowed."""

    path: str
    format: str
    virtual_size: int
    actual_size: int
    backing: str | None = None


def detect_format(head: bytes) -> str:
    """Return qcow2 or raw from the first 64 KiB of an image; raises `RefusedError` for what is neither."""
    if head.startswith(_QCOW2):
        return "qcow2"
    for offset, magic, what, remedy in _FOREIGN:
        # A hybrid ISO carries a boot sector as well, but a disk never carries a CD's volume descriptor.
        if head[offset : offset + len(magic)] == magic:
            hint = f"unpack it first: {remedy} FILE" if remedy else None
            if remedy == "convert":
                hint = "convert it: qemu-img convert -O qcow2 FILE NEW.qcow2"
            raise RefusedError(f"the image is {what}", hint=hint)
    return "raw"


def inspect_image(image: str | Path, *, bootable: bool = True, allow_backing: bool = False) -> ImageInfo:
    """Return what ``image`` is.

    ``bootable``: a raw one must carry a boot sector; ``allow_backing``: take an image layered over another, trusting
    the names in it. Raises `NotFoundError` (no such file), `PrerequisiteError` (unreadable, no qemu-img),
    `RefusedError` (not an image, damaged, or reaching for other files), `ConflictError` (a VM writes to it).
    """
    path = Path(image).absolute()
    head = _read_head(path)
    try:
        form = detect_format(head)
        backing = _check_qcow2(head, allow_backing) if form == "qcow2" else None
        if form == "raw" and bootable and head[510:512] != b"\x55\xaa":
            raise RefusedError("it is no disk image: no qcow2 header and no boot sector")
    except RefusedError as error:
        raise RefusedError(
            f"{path} cannot be booted: {error.message}" if bootable else f"{path} cannot be used: {error.message}",
            hint=error.hint or "give a qcow2 or raw disk image, for example: vmcoal image build debian",
        ) from error
    if form == "raw":
        return _raw_info(path)
    return _qcow2_info(path, backing)


def make_overlay(base: str | Path, form: str, path: Path, *, size: int | None = None) -> Path:
    """Make an empty qcow2 layer at ``path`` over ``base`` (of format ``form``, never written) and return it.

    ``size`` in bytes makes the guest's disk larger than the base. Nothing is left behind on failure. Raises
    `ConflictError` where ``path`` exists, `ExecutionError` where qemu-img fails.
    """
    if path.exists():
        raise ConflictError(f"{path} exists already", hint="vmcoal boot uses it; vmcoal delete removes it")
    try:
        with tempfile.TemporaryDirectory(prefix=".overlay-", dir=path.parent) as work:
            made = Path(work, "overlay.qcow2")
            _qemu_img(
                ["create", "-q", "-f", "qcow2", "-F", form, "-b", str(Path(base).absolute()), str(made)]
                + ([str(size)] if size is not None else []),
                f"to make a layer over {base}",
            )
            made.chmod(0o600)
            os.link(made, path)
    except FileExistsError as error:
        raise ConflictError(f"{path} exists already") from error
    except OSError as error:
        raise ExecutionError(
            f"{path} cannot be made: {error.strerror}", hint=f"check {path.parent} and its free space"
        ) from error
    return path


def _read_head(path: Path) -> bytes:
    try:
        info = path.stat()
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
            raise RefusedError(f"{path} is neither a file nor a block device", hint="give a qcow2 or raw disk image")
        with path.open("rb") as file:
            return file.read(_HEAD)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no image {path}", hint="check the path, or build one: vmcoal image build debian"
        ) from error
    except OSError as error:
        raise PrerequisiteError(f"{path} cannot be read: {error.strerror}", hint="check its owner and mode") from error


def _check_qcow2(head: bytes, allow_backing: bool) -> str | None:
    """Check the header's fields that make QEMU open other files; return the backing file's name, if it has one."""
    try:
        version, offset, size = struct.unpack_from(">IQI", head, 4)
        encrypted = struct.unpack_from(">I", head, 32)[0]
        incompatible = struct.unpack_from(">Q", head, 72)[0] if version >= 3 else 0
    except struct.error as error:
        raise RefusedError("its qcow2 header is cut off") from error
    if version not in {2, 3}:
        raise RefusedError(f"it is qcow2 of version {version}, which QEMU does not know")
    if encrypted:
        raise RefusedError("it is encrypted", hint="qemu-img convert -O qcow2 writes a plain copy")
    if incompatible & _EXTERNAL_DATA:
        raise RefusedError("it keeps its data in another file that it names itself")
    if incompatible & _CORRUPT:
        raise RefusedError("it is marked corrupt", hint="qemu-img check -r all FILE")
    if not offset:
        return None
    if not 0 < size <= _NAME_MAX or offset + size > len(head):
        raise RefusedError("its qcow2 header is damaged")
    name = head[offset : offset + size].decode(errors="replace")
    if not allow_backing:
        raise RefusedError(
            f"it is a layer over another file, {name[:200]!r}",
            hint="if you trust it, make one image of both: qemu-img convert -O qcow2 FILE NEW.qcow2",
        )
    return name


def _raw_info(path: Path) -> ImageInfo:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
    if size < _SMALLEST or size % _SECTOR:
        raise RefusedError(f"{path} cannot be used: {size} bytes make no disk", hint="give a qcow2 or raw disk image")
    info = path.stat()
    actual = info.st_blocks * 512 if stat.S_ISREG(info.st_mode) else size
    return ImageInfo(path=str(path), format="raw", virtual_size=size, actual_size=actual)


class _QemuInfo(msgspec.Struct, rename="kebab"):
    virtual_size: int
    format: str
    actual_size: int = 0


def _qcow2_info(path: Path, backing: str | None) -> ImageInfo:
    out = _qemu_img(["info", "--output=json", "-f", "qcow2", str(path)], f"to read {path}")
    info = parse_info(out)
    return ImageInfo(
        path=str(path), format="qcow2", virtual_size=info.virtual_size, actual_size=info.actual_size, backing=backing
    )


def parse_info(out: bytes) -> _QemuInfo:
    """Parse ``qemu-img info --output=json``; raises `ExecutionError` for what it cannot have printed."""
    try:
        if len(out) > _INFO_MAX:
            raise ValueError(f"{len(out)} bytes")
        info = msgspec.json.decode(out, type=_QemuInfo)
        if info.virtual_size <= 0:
            raise ValueError(f"virtual size {info.virtual_size}")
    except (*UNREADABLE, ValueError) as error:
        raise ExecutionError(f"qemu-img printed what vmcoal does not understand: {error}") from error
    return info


def _qemu_img(arguments: list[str], what: str) -> bytes:
    try:
        # Damaged images have made qemu-img take memory and time without end.
        return run_tool(
            ["prlimit", "--as=2147483648", f"--cpu={_INFO_DEADLINE:.0f}", "--", "qemu-img", *arguments],
            deadline=_INFO_DEADLINE,
            what=what,
            package="util-linux",
        )
    except ExecutionError as error:
        tail = str(error.details.get("stderr", ""))
        if "lock" in tail:
            raise ConflictError(
                f"the image is in use: a running VM writes to it ({what})", hint="stop that VM, or copy the image"
            ) from error
        if "No such file" in tail and "prlimit" in tail:
            raise PrerequisiteError("qemu-img is not installed", hint="apt install qemu-utils") from error
        if "info" in arguments:
            last = tail.splitlines()[-1] if tail else error.message
            raise RefusedError(f"QEMU cannot read the image: {last}", hint="qemu-img check FILE") from error
        raise
