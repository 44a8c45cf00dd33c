"""The KVM probe without KVM: programs that stand in for QEMU and end like it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmcoal.errors import PrerequisiteError
from vmcoal.host import accel
from vmcoal.host.probe_image import EXIT_CODE, SIZE, STAGES, probe_image

pytestmark = pytest.mark.unit


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "kvm").touch()
    monkeypatch.setattr(accel, "KVM", tmp_path / "kvm")
    (tmp_path / "cpuinfo").write_text("model name\t: AMD EPYC\n")
    monkeypatch.setattr(accel, "CPUINFO", tmp_path / "cpuinfo")
    return tmp_path


def fake(home: Path, body: str, version: str = "QEMU emulator version 9.2.1 (Debian)") -> str:
    """Write a program that answers --version, counts its other runs in ``runs``, and then does ``body``."""
    program = home / "qemu"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "{version}"; exit 0; }}\necho >>{home}/runs\n{body}\n'
    )
    program.chmod(0o755)
    return str(program)


def runs(home: Path) -> int:
    return len((home / "runs").read_text().splitlines()) if (home / "runs").exists() else 0


def test_works_and_is_remembered(home: Path) -> None:
    qemu = fake(home, f"printf {''.join(STAGES)}; exit {EXIT_CODE}")
    probe = accel.probe_accel(qemu)
    assert probe == accel.AccelProbe(True, "a probe guest ran", qemu, (9, 2, 1), None)
    assert accel.probe_accel(qemu) == probe
    assert runs(home) == 1
    assert accel.probe_accel(qemu, fresh=True) == probe
    assert runs(home) == 2
    os.utime(qemu, (1, 1))
    accel.probe_accel(qemu)
    assert runs(home) == 3


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("printf RPLMF", "a probe guest came as far as a page fault, then died"),
        (f"printf RPLMF; exit {EXIT_CODE}", "a probe guest came as far as a page fault, then died"),
        ("exit 3", "QEMU ends at once: exit code 3"),
        (
            "echo 'qemu-system-x86_64: error: failed to set MSR 0x10a to 0x69' >&2; kill -ABRT $$",
            "QEMU ends at once: failed to set MSR 0x10a",
        ),
    ],
)
def test_fails(home: Path, body: str, reason: str) -> None:
    probe = accel.probe_accel(fake(home, body))
    assert not probe.kvm
    assert probe.reason.startswith(reason)
    assert probe.remedy


def test_a_hang_is_not_remembered(home: Path) -> None:
    qemu = fake(home, "printf RP; exec tail -f /dev/null")
    assert (
        accel.probe_accel(qemu, deadline=0.2).reason
        == "a probe guest came as far as protected mode, then hung for 0.2 s"
    )
    accel.probe_accel(qemu, deadline=0.2)
    assert runs(home) == 2


def test_what_hangs_on_an_emulated_processor_gets_a_second_try(home: Path) -> None:
    (home / "cpuinfo").write_text("processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\n")
    qemu = fake(
        home, f"[ $(wc -l <{home}/runs) = 1 ] && exec tail -f /dev/null; printf {''.join(STAGES)}; exit {EXIT_CODE}"
    )
    assert accel.probe_accel(qemu, deadline=0.5).kvm
    assert runs(home) == 2


def test_without_the_device_nothing_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qemu = fake(home, "exit 1")
    monkeypatch.setattr(accel, "KVM", home / "missing")
    probe = accel.probe_accel(qemu)
    assert not probe.kvm
    assert "there is no" in probe.reason
    assert probe.qemu_version == (9, 2, 1)
    assert runs(home) == 0


def test_a_broken_cache_is_only_slow(home: Path) -> None:
    qemu = fake(home, f"printf {''.join(STAGES)}; exit {EXIT_CODE}")
    accel.probe_accel(qemu)
    (home / "cache/vmcoal/accel.json").write_text("{")
    assert accel.probe_accel(qemu).kvm
    (home / "cache/vmcoal").chmod(0o755)
    assert accel.probe_accel(qemu, fresh=True).kvm


def test_no_qemu(home: Path) -> None:
    with pytest.raises(PrerequisiteError, match="not installed") as caught:
        accel.probe_accel("qemu-system-nowhere")
    assert "apt install" in (caught.value.hint or "")
    with pytest.raises(PrerequisiteError, match="does not say its version"):
        accel.probe_accel(fake(home, "exit 0", version="hello"))


def test_image_ends_in_a_jump_to_its_start() -> None:
    image = probe_image()
    assert len(image) == SIZE
    assert image[0xFFF0] == 0xE9
    offset = int.from_bytes(image[0xFFF1:0xFFF3], "little")
    assert (0xFFF3 + offset) % SIZE == 0
