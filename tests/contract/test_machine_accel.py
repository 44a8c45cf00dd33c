"""The KVM probe with the real QEMU: its guest comes to its end where CPUs work."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import vmcoal.host
from vmcoal.host.accel import find_qemu, probe_accel, qemu_version, run_probe
from vmcoal.host.probe_image import probe_image

pytestmark = pytest.mark.contract


def test_guest_runs_to_its_end_under_tcg() -> None:
    assert run_probe(find_qemu(), ["-accel", "tcg", "-cpu", "max"], deadline=60) == (True, "a probe guest ran", True)


def test_guest_needs_long_mode() -> None:
    works, reason, _ = run_probe(find_qemu(), ["-accel", "tcg", "-cpu", "qemu32"], deadline=60)
    assert not works
    assert reason == "a probe guest came as far as protected mode, then died"


def test_unknown_accelerator() -> None:
    works, reason, _ = run_probe(find_qemu(), ["-accel", "abacus"], deadline=60)
    assert not works
    assert reason.startswith("QEMU ends at once: ")
    assert "abacus" in reason


def test_probe_always_has_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    probe = probe_accel(deadline=60)
    assert probe.reason
    assert probe.kvm == (probe.remedy is None)
    assert probe.qemu_version == qemu_version(probe.qemu)
    assert probe_accel(deadline=60) == probe


@pytest.mark.skipif(
    not shutil.which("as") or not shutil.which("objcopy"), reason="needs binutils: apt install binutils"
)
def test_image_is_what_the_source_assembles_to(tmp_path: Path) -> None:
    source = Path(vmcoal.host.__file__).with_name("probe.S")
    subprocess.run(["as", "--64", source, "-o", tmp_path / "probe.o"], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", tmp_path / "probe.o", tmp_path / "probe.bin"], check=True)
    assert (tmp_path / "probe.bin").read_bytes() == probe_image()
