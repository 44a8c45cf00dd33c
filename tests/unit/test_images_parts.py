"""The pieces that images are made of: package lists, cpio archives, libraries, modules, boot loader, image headers."""

from __future__ import annotations

import io
import lzma
import stat
import struct
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcoal.errors import ExecutionError, RefusedError, VmcoalError
from vmcoal.guest import debian_disk, default_image, packages
from vmcoal.guest.initramfs import (
    CpioWriter,
    copy_libraries,
    elf_needed,
    module_closure,
    module_data,
    module_depends,
    module_name,
)
from vmcoal.guest.overlay import detect_format, inspect_image, parse_info
from vmcoal.guest.packages import Package, parse_uris

pytestmark = pytest.mark.unit


def test_package_lines() -> None:
    out = """Reading package lists...
'http://deb.debian.org/debian/pool/main/a/acl/libacl1_2.3.1-3_amd64.deb' libacl1_2.3.1-3_amd64.deb 31488 MD5Sum:ab12
'http://x/libattr1_2.5.1-4%2bb1_amd64.deb' libattr1_1%3a2.5.1-4+b1_amd64.deb 22164 SHA256:cd
'copy:/x/y_1~rc1_all.deb' y_1~rc1_all.deb 5 \n"""
    assert parse_uris(out) == [
        Package("libacl1", "2.3.1-3", "libacl1_2.3.1-3_amd64.deb", 31488, "MD5Sum:ab12"),
        Package("libattr1", "1:2.5.1-4+b1", "libattr1_1%3a2.5.1-4+b1_amd64.deb", 22164, "SHA256:cd"),
        Package("y", "1~rc1", "y_1~rc1_all.deb", 5, ""),
    ]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a.deb", "a_1_amd64.rpm", "a/b_1_amd64.deb"])
def test_package_names_that_apt_never_prints(name: str) -> None:
    with pytest.raises(ExecutionError, match="does not understand"):
        parse_uris(f"'http://x/y' {name} 1 ")


def test_too_many_packages() -> None:
    with pytest.raises(ExecutionError, match="cannot be right"):
        parse_uris("\n".join(f"'http://x/y' p{number}_1_all.deb 1 " for number in range(2001)))


def test_what_is_for_maintainer_scripts_stays_away() -> None:
    def package(name: str) -> Package:
        return Package(name, "1", f"{name}_1_amd64.deb", 1, "")

    names = [
        "perl-base",
        "initramfs-tools-core",
        "libc6",
        "linux-image-6.1.0-56-cloud-amd64",
        "linux-image-cloud-amd64",
    ]
    wanted = default_image.wanted_packages(map(package, names))
    assert [one.name for one in wanted] == ["libc6", "linux-image-6.1.0-56-cloud-amd64"]


def entries(archive: bytes) -> Iterator[tuple[str, int, bytes, tuple[int, int]]]:
    """Read a newc archive: name, mode, data, device."""
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        assert fields[2:4] == [0, 0], "owner"
        assert fields[5] == 0, "time"
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        at += (110 + fields[11] + 3) // 4 * 4
        data = archive[at : at + fields[6]]
        at += (fields[6] + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert set(archive[at:]) <= {0}
            assert len(archive) % 512 == 0
            return
        yield name, fields[1], data, (fields[9], fields[10])


def test_cpio(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc/deep").mkdir(parents=True)
    (root / "etc/deep/file").write_bytes(b"12345")
    (root / "etc/deep/file").chmod(0o640)
    (root / "etc/deep").chmod(0o750)
    (root / "etc").chmod(0o755)
    (root / "link").symlink_to("etc/deep")
    out = io.BytesIO()
    archive = CpioWriter(out)
    archive.device("dev/console", 5, 1)
    archive.tree(root)
    archive.close()
    assert list(entries(out.getvalue())) == [
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        ("etc", stat.S_IFDIR | 0o755, b"", (0, 0)),
        ("link", stat.S_IFLNK | 0o777, b"etc/deep", (0, 0)),
        ("etc/deep", stat.S_IFDIR | 0o750, b"", (0, 0)),
        ("etc/deep/file", stat.S_IFREG | 0o640, b"12345", (0, 0)),
    ]


@given(st.dictionaries(st.text("abc.-_é", min_size=1, max_size=30), st.binary(max_size=50), max_size=8))
def test_any_file_comes_back(files: dict[str, bytes]) -> None:
    out = io.BytesIO()
    archive = CpioWriter(out)
    for name, data in files.items():
        archive.file(name, data)
    archive.close()
    assert {name: data for name, _, data, _ in entries(out.getvalue())} == files


def elf(*needed: str) -> bytes:
    """A shared library that needs others and has nothing else."""
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in needed)
    names, at = [], 1
    for name in needed:
        names.append(at)
        at += len(name) + 1
    start = 64 + 2 * 56
    dynamic = b"".join(struct.pack("<qQ", 1, name) for name in names)
    size = len(dynamic) + 48
    dynamic += struct.pack("<qQqQqQ", 5, start + size, 10, len(strings), 0, 0)
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    total = start + size + len(strings)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, total, total, 4096)
    table = struct.pack("<IIQQQQQQ", 2, 6, start, start, start, size, size, 8)
    return head + load + table + dynamic + strings


def test_libraries_are_found_through_libraries(tmp_path: Path) -> None:
    root, pool = tmp_path / "root", tmp_path / "pool"
    (root / "usr/bin").mkdir(parents=True)
    pool.mkdir()
    (root / "usr/bin/tool").write_bytes(elf("liba.so.1", "ld-linux-x86-64.so.2"))
    (root / "usr/bin/script").write_text("#!/bin/sh\n")
    (pool / "liba.so.1.5").write_bytes(elf("libb.so"))
    (pool / "liba.so.1").symlink_to("liba.so.1.5")
    (pool / "libb.so").write_bytes(elf())
    (pool / "unused.so").write_bytes(elf())
    assert elf_needed(root / "usr/bin/tool") == ["liba.so.1", "ld-linux-x86-64.so.2"]
    assert elf_needed(root / "usr/bin/script") is None
    copy_libraries(root, pool)
    assert sorted(path.name for path in (root / "usr/lib/x86_64-linux-gnu").iterdir()) == ["liba.so.1", "libb.so"]
    (root / "usr/bin/other").write_bytes(elf("libc.so.6"))
    with pytest.raises(ExecutionError, match=r"libc.so.6 \(for usr/bin/other\)"):
        copy_libraries(root, pool)


def test_damaged_elf(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    path.write_bytes(elf("liba.so")[:100])
    with pytest.raises(ExecutionError, match="damaged"):
        elf_needed(path)


def test_modules() -> None:
    assert module_name("kernel/drivers/net/virtio-net.ko.xz") == "virtio_net"
    net = b"\0license=GPL\0depends=net-failover,virtio\0name=x\0"
    assert module_depends(net) == ["net_failover", "virtio"]
    assert module_depends(b"\0depends=\0") == []
    assert module_depends(b"") == []
    modules = {"virtio_net": net, "net_failover": b"\0depends=failover\0", "failover": b"", "unrelated": b""}
    assert module_closure(["virtio_net", "builtin"], modules.get) == {"virtio_net", "net_failover", "failover"}
    assert module_data("x.ko", b"raw") == b"raw"
    assert module_data("x.ko.xz", lzma.compress(b"raw")) == b"raw"
    with pytest.raises(ExecutionError, match="cannot read"):
        module_data("x.ko.zst", b"")


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("./bin/ls", "usr/bin/ls"),
        ("./usr/bin/ls", "usr/bin/ls"),
        ("lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
        ("./etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("./../../etc/passwd", None),
    ],
)
def test_where_package_files_go(name: str, inside: str | None) -> None:
    assert packages.inside(name) == (None if inside is None else PurePosixPath(inside))


def test_grub_knows_where_it_is() -> None:
    boot = bytes(range(256)) * 2
    boot = boot[:510] + b"\x55\xaa"
    head = b"\0" * 440 + b"T" * 70 + b"\x55\xaa"
    core = bytearray(b"C" * 5000)
    struct.pack_into("<QHH", core, 500, 2, 9, 0x820)
    sector, image = debian_disk.place_grub(head, boot, bytes(core), 2048)
    assert sector[440:] == head[440:]
    assert struct.unpack_from("<Q", sector, 0x5C) == (2048,)
    assert sector[0x66:0x68] == b"\x90\x90"
    assert struct.unpack_from("<QHH", image, 500) == (2049, 9, 0x820)
    assert image[:500] == core[:500]
    assert image[512:] == core[512:]


@pytest.mark.parametrize("start", [0, 1, 3])
def test_a_grub_of_another_kind_is_not_placed(start: int) -> None:
    core = bytearray(b"C" * 5000)
    struct.pack_into("<QHH", core, 500, start, 9, 0x820)
    with pytest.raises(ExecutionError, match="block list"):
        debian_disk.place_grub(b"\0" * 512, b"\0" * 510 + b"\x55\xaa", bytes(core), 2048)
    with pytest.raises(ExecutionError, match="not as expected"):
        debian_disk.place_grub(b"\0" * 512, b"", bytes(core), 2048)


def test_sources_follow_the_host() -> None:
    assert debian_disk.sources("trixie") == [
        "deb http://deb.debian.org/debian trixie main",
        "deb http://deb.debian.org/debian trixie-updates main",
        "deb http://deb.debian.org/debian-security trixie-security main",
    ]
    lines = debian_disk.sources("bookworm", ["http://a/debian", "http://b/debian-security"])
    assert [line.split()[1] for line in lines] == ["http://a/debian", "http://a/debian", "http://b/debian-security"]


def qcow2(
    version: int = 3, backing: bytes = b"", incompatible: int = 0, encrypted: int = 0, *, offset: int = 512
) -> bytes:
    head = struct.pack(
        ">4sIQIIQI", b"QFI\xfb", version, offset if backing else 0, len(backing), 16, 1 << 30, encrypted
    ).ljust(72, b"\0")
    return (head + struct.pack(">Q", incompatible)).ljust(512, b"\0") + backing + b"\0" * 1024


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no qcow2 header and no boot sector"),
        (b"<html>".ljust(4096), "no qcow2 header and no boot sector"),
        (b"KDMV".ljust(4096, b"\0"), "VMware"),
        (b"\0" * 0x8001 + b"CD001".ljust(4096), "CD image"),
        (b"\x1f\x8b".ljust(4096, b"\0"), "gzip"),
        (b"QFI\xfb\0\0\0\3", "cut off"),
        (qcow2(version=1), "version 1"),
        (qcow2(incompatible=4), "another file"),
        (qcow2(incompatible=2), "corrupt"),
        (qcow2(encrypted=2), "encrypted"),
        (qcow2(backing=b"/etc/shadow"), "a layer over another file, '/etc/shadow'"),
        (qcow2(backing=b'json:{"driver":"nbd"}'), "json:"),
        (qcow2(backing=b"\xff\xfe"), "layer"),
        (qcow2(backing=b"x", offset=1 << 40), "damaged"),
        (qcow2(backing=b"x" * 2000), "damaged"),
        ((b"\0" * 510 + b"\x55\xaa").ljust(4096, b"\0"), "make no disk"),
        ((b"\0" * 510 + b"\x55\xaa").ljust((64 << 10) + 1, b"\0"), "make no disk"),
    ],
)
def test_images_that_are_refused_before_qemu_sees_them(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(RefusedError, match="cannot be") as caught:
        inspect_image(path)
    assert problem in caught.value.message
    assert caught.value.hint


def test_a_raw_image_stays_raw(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes((b"\0" * 510 + b"\x55\xaa").ljust(1 << 20, b"\0"))
    info = inspect_image(path)
    assert (info.format, info.virtual_size, info.path) == ("raw", 1 << 20, str(path))
    path.write_bytes(b"\0" * (1 << 20))
    assert inspect_image(path, bootable=False).format == "raw"


def test_no_image(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(VmcoalError) as caught:
            inspect_image(path)
        assert caught.value.hint


@given(st.binary(max_size=600))
def test_any_bytes_have_a_format_or_a_reason(data: bytes) -> None:
    try:
        assert detect_format(data) in {"qcow2", "raw"}
    except RefusedError as error:
        assert error.message


@pytest.mark.parametrize(
    "out", [b"", b"[]", b"{}", b'{"virtual-size":-1,"format":"qcow2"}', b'{"virtual-size":"1"}', b" " * (2 << 20)]
)
def test_qemu_img_output_that_cannot_be(out: bytes) -> None:
    with pytest.raises(ExecutionError, match="does not understand"):
        parse_info(out)


def test_qemu_img_output() -> None:
    info = parse_info(b'{"virtual-size": 2147483648, "format": "qcow2", "actual-size": 462950400, "dirty-flag": false}')
    assert (info.virtual_size, info.format, info.actual_size) == (2 << 30, "qcow2", 462950400)
