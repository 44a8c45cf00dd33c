"""Probes that try something on this host: they must find it as it is, and leave nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmcoal.host.facts import Host

pytestmark = pytest.mark.contract


@pytest.fixture
def host() -> Host:
    found = Host()
    if found.open_error("/dev/fuse") or not (found.which("nbdfuse") and found.which("nbdkit")):
        pytest.skip("needs /dev/fuse, nbdfuse and nbdkit: apt install libnbd-bin nbdkit fuse3")
    return found


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def test_a_fuse_mount_is_tried_and_taken_away(host: Host) -> None:
    before = mounts()
    assert host.try_fuse() is None
    assert mounts() == before


def test_why_a_fuse_mount_fails(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "nbdfuse"
    fake.write_text("#!/bin/sh\necho 'nbdfuse: not today' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    before = mounts()
    assert host.try_fuse() == "nbdfuse: not today"
    assert mounts() == before


def test_versions_of_real_programs(host: Host) -> None:
    version = host.version("nbdkit")
    assert version is not None
    assert version >= (1, 0)
    assert "plugindir=" in (host.output("nbdkit", "--dump-config") or "")
