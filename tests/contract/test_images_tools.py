"""Images against the programs they lean on: apt, dpkg-deb, qemu-img, xorriso, the shell of a guest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vmcoal.errors import ConflictError, ExecutionError, PrerequisiteError, RefusedError
from vmcoal.guest import images, seed
from vmcoal.guest.overlay import inspect_image, make_overlay
from vmcoal.guest.packages import Apt, members, run_tool

pytestmark = pytest.mark.contract


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base:1,a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "64M"], check=True)
    return path


def test_overlay(base: Path, tmp_path: Path) -> None:
    before = (base.read_bytes(), base.stat().st_mtime_ns)
    info = inspect_image(base)
    assert (info.format, info.virtual_size) == ("qcow2", 64 << 20)
    layer = make_overlay(base, info.format, tmp_path / "overlay.qcow2")
    told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "-f", "qcow2", layer]))
    assert told["full-backing-filename"] == str(base)
    assert told["backing-filename-format"] == "qcow2"
    assert layer.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConflictError, match="exists already"):
        make_overlay(base, "qcow2", layer)
    with pytest.raises(RefusedError, match="layer over"):
        inspect_image(layer)
    assert inspect_image(layer, allow_backing=True).backing == str(base)
    larger = make_overlay(base, "qcow2", tmp_path / "larger.qcow2", size=128 << 20)
    assert inspect_image(larger, allow_backing=True).virtual_size == 128 << 20
    assert (base.read_bytes(), base.stat().st_mtime_ns) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base:1,a.qcow2", "larger.qcow2", "overlay.qcow2"]


def test_a_guest_cannot_turn_a_raw_disk_into_qcow2(tmp_path: Path) -> None:
    raw = tmp_path / "disk"
    raw.write_bytes((b"\0" * 510 + b"\x55\xaa").ljust(1 << 20, b"\0"))
    layer = make_overlay(raw, inspect_image(raw).format, tmp_path / "overlay.qcow2")
    told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "-f", "qcow2", layer]))
    assert told["backing-filename-format"] == "raw"


def test_an_image_that_a_vm_writes_to(base: Path) -> None:
    writer = subprocess.Popen(
        ["qemu-io", "-f", "qcow2", base], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write("length\n")
        writer.stdin.flush()
        assert "64 MiB" in writer.stdout.readline()
        with pytest.raises(ConflictError, match="in use"):
            inspect_image(base)
    finally:
        writer.communicate(timeout=10)
    assert inspect_image(base).virtual_size == 64 << 20


def test_a_damaged_qcow2(base: Path) -> None:
    data = bytearray(base.read_bytes())
    data[20:24] = b"\xff\xff\xff\xff"  # cluster_bits
    base.write_bytes(data)
    with pytest.raises(RefusedError, match="QEMU cannot read") as caught:
        inspect_image(base)
    assert caught.value.hint


def test_a_base_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError):
        make_overlay(tmp_path / "none", "qcow2", tmp_path / "overlay.qcow2")
    assert list(tmp_path.iterdir()) == []


def test_missing_programs(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(PrerequisiteError, match="prlimit") as caught:
        inspect_image(base)
    assert "util-linux" in str(caught.value.hint)
    (tools / "prlimit").symlink_to("/usr/bin/prlimit")
    with pytest.raises(PrerequisiteError, match="qemu-img") as caught:
        inspect_image(base)
    assert "qemu-utils" in str(caught.value.hint)
    with pytest.raises(PrerequisiteError, match="xorriso"):
        seed.make_seed(tmp_path / "seed.iso", name="dev", identity="u")
    assert not list(tmp_path.glob("seed*"))


def test_seed(tmp_path: Path) -> None:
    path = seed.make_seed(tmp_path / "seed.iso", name="dev", identity="1-2-3", ssh_key="ssh-ed25519 AAAA")
    assert path.stat().st_mode & 0o777 == 0o600
    seed.make_seed(path, name="dev", identity="1-2-3", ssh_key="ssh-ed25519 AAAA")
    assert [entry.name for entry in tmp_path.iterdir()] == ["seed.iso"]
    data = path.read_bytes()
    assert data[0x8000:0x8008] == b"\1CD001\1\0"
    assert data[0x8028:0x8048].decode().strip() == "cidata"
    subprocess.run(
        ["xorriso", "-osirrox", "on", "-indev", path, "-extract", "/", tmp_path / "out"],
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "out/meta-data").read_text() == seed.meta_data(name="dev", identity="1-2-3")
    assert (tmp_path / "out/user-data").read_text() == seed.user_data(ssh_key="ssh-ed25519 AAAA")


def test_the_boothook_brings_the_agent_up_to_date(tmp_path: Path) -> None:
    hook = json.loads(seed.user_data().partition("\n")[2])[0]["content"]
    agent, unit, calls = tmp_path / "agent", tmp_path / "unit", tmp_path / "calls"
    hook = hook.replace(seed.AGENT_PLACE, str(agent)).replace(seed.UNIT_PLACE, str(unit))
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    systemctl.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n')
    systemctl.chmod(0o755)
    environment = {**os.environ, "PATH": f"{systemctl.parent}:{os.environ['PATH']}"}

    def boot() -> list[str]:
        calls.write_text("")
        subprocess.run(["sh", "-e"], input=hook, env=environment, text=True, check=True)
        return calls.read_text().splitlines()

    said = boot()
    assert said[1:] == ["daemon-reload", f"restart --no-block {Path(seed.UNIT_PLACE).name}"]
    assert said[0].startswith("--no-reload enable ")
    assert agent.read_bytes() == images.agent_source().read_bytes()
    assert agent.stat().st_mode & 0o777 == 0o755
    assert unit.read_bytes() == images.agent_unit().read_bytes()
    assert boot() == []
    agent.write_text("older")
    assert len(boot()) == 3
    assert agent.read_bytes() == images.agent_source().read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent", "bin", "calls", "unit"]


def test_apt_without_root_or_traces(tmp_path: Path) -> None:
    apt = Apt(tmp_path / "apt", tmp_path / "archives")
    closure = apt.resolve(["libnuma1"])
    assert {"libnuma1", "libc6"} <= {package.name for package in closure}
    assert list((tmp_path / "archives").iterdir()) == []
    wanted = [package for package in closure if package.name == "libnuma1"]
    deb = apt.fetch(wanted)["libnuma1"]
    names = [info.name for info, _ in members(deb)]
    assert any("libnuma.so.1" in name for name in names)
    changed = deb.stat().st_mtime_ns
    apt.fetch(wanted)
    assert deb.stat().st_mtime_ns == changed
    deb.write_bytes(b"x" * deb.stat().st_size)
    apt.fetch(wanted)
    assert [info.name for info, _ in members(deb)] == names


def test_a_package_that_does_not_exist(tmp_path: Path) -> None:
    apt = Apt(tmp_path / "apt", tmp_path / "archives", sources=["deb file:/nonexistent/vmcoal none main"])
    with pytest.raises(PrerequisiteError) as caught:
        apt.resolve(["no-such-package"])
    assert caught.value.hint


def test_a_broken_package(tmp_path: Path) -> None:
    deb = tmp_path / "x_1_amd64.deb"
    deb.write_bytes(b"!<arch>\ndebian-binary")
    with pytest.raises(ExecutionError, match=r"x_1_amd64.deb cannot be"):
        list(members(deb))


def test_a_failing_program_tells_its_last_words() -> None:
    with pytest.raises(ExecutionError, match="exit code 3: no luck") as caught:
        run_tool(["sh", "-c", "echo no luck >&2; exit 3"], deadline=10, what="to try", package="dash")
    assert caught.value.details["stderr"] == "no luck"


def test_the_default_image_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    """Built twice: the second with nothing to fetch, because the packages are kept."""
    cached = images.ensure_default_image()
    kept = tmp_path / "packages"
    source = Path(os.environ["XDG_CACHE_HOME"]) / "vmcoal" / "packages"
    if source.is_dir():
        shutil.copytree(source, kept)
    texts: list[str] = []
    again = images.build_default(lambda text, _: texts.append(text), cache=tmp_path)
    assert "writing the initramfs" in texts
    if again.digest == cached.digest:  # no newer packages since
        assert again.path("initrd").read_bytes() == cached.initrd.read_bytes()
    assert images.build_default(cache=tmp_path).digest == again.digest
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        f"default-{again.digest}",
        "default.lock",
    ]


def test_a_debian_disk_says_at_once_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcoal.guest.debian_disk.search_path", lambda: str(tmp_path))
    with pytest.raises(PrerequisiteError, match="mmdebstrap, sfdisk") as caught:
        images.build_debian(cache=tmp_path)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("apt install mmdebstrap fdisk")
    assert not (tmp_path / "images").exists()
