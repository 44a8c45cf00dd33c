"""Engines as data: what they need, what they exclude, what a hostile lender cannot make of a command line."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from vmcoal.backends import nbd
from vmcoal.backends.base import EngineTraits
from vmcoal.backends.conflicts import conflicts, refuse_conflicts
from vmcoal.backends.cpu import FAR, LOCAL, choose_cpu_engine
from vmcoal.errors import ConflictError, PrerequisiteError, RefusedError
from vmcoal.model.lease import MemoryServer
from vmcoal.model.machine import Accel, Engine, FarNode, KernelBoot, MachineSpec
from vmcoal.model.units import GIB

pytestmark = pytest.mark.unit

SPEC = MachineSpec(
    name="dev",
    uuid="0",
    accel=Accel.TCG,
    memory=GIB,
    far_nodes=(FarNode(1, 2, GIB, 20, 32),),
    boot=KernelBoot("vmlinuz"),
)


def test_local_vcpus_only_from_this_host() -> None:
    assert choose_cpu_engine(Engine.LOCAL, True) is LOCAL
    with pytest.raises(RefusedError, match="another host"):
        choose_cpu_engine(Engine.LOCAL, False)


@pytest.mark.parametrize("same_host", [True, False])
def test_far_vcpus_say_what_is_missing(same_host: bool) -> None:
    with pytest.raises(PrerequisiteError, match="executes a vCPU on the lender") as caught:
        choose_cpu_engine(Engine.FAR, same_host)
    assert "/dev/kvm on both hosts" in caught.value.details["needs"]
    assert caught.value.hint == FAR.remedy


def test_conflicts() -> None:
    plain = EngineTraits(name="plain", summary="")
    assert conflicts(plain, SPEC) == []
    refuse_conflicts(plain, SPEC)
    kvm = EngineTraits(name="far", summary="", needs_kvm=True)
    assert conflicts(kvm, SPEC) == ["engine far needs KVM, and this VM runs with TCG"]
    assert conflicts(kvm, msgspec.structs.replace(SPEC, accel=Accel.KVM)) == []
    with pytest.raises(ConflictError, match="KVM"):
        refuse_conflicts(kvm, SPEC)
    with pytest.raises(ConflictError, match="far nodes"):
        refuse_conflicts(plain, msgspec.structs.replace(SPEC, far_nodes=()))
    with pytest.raises(PrerequisiteError, match="no luck"):
        refuse_conflicts(EngineTraits(name="x", summary="", missing="no luck", remedy="try"), SPEC)


def test_command_lines() -> None:
    key = Path("/run/k.psk")
    assert nbd.info_argv("fe80::1%eth0", 7, "m1-1-a", "m1", key)[-1].startswith("nbds://m1@[fe80::1%25eth0]:7/m1-1-a?")
    proxy = nbd.proxy_argv("10.0.0.2", 7, "m1-1-a", "m1", key)
    assert "tls=require" in proxy
    assert "retry-exponential=no" in proxy
    server = nbd.server_argv(Path("/dev/shm/f"), nbd.export_name("m1", 3, "ab"), key, threads=8)
    assert {"--tls=require", "exportname=m1-3-ab", "exportname-strict=true", "exportname-list=empty"} <= set(server)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "fe80::1%eth0", "den.example.org", "den-2"])
def test_addresses_that_are_accepted(address: str) -> None:
    nbd.check_server(MemoryServer(1, "m1-1-a", "m1", nbd.new_psk()), address)


@pytest.mark.parametrize(
    ("flags", "system", "expected"),
    [("fpu aes avx", False, True), ("fpu avx", False, False), ("fpu aes avx", True, False), (None, False, False)],
)
def test_aes_is_preferred_where_the_processor_has_it_and_the_host_says_nothing(
    tmp_path: Path, flags: str | None, system: bool, expected: bool
) -> None:
    cpuinfo, priorities = tmp_path / "cpuinfo", tmp_path / "gnutls.config"
    if flags is not None:
        cpuinfo.write_text(f"flags\t\t: {flags}\n")
    if system:
        priorities.touch()
    assert nbd.prefers_aes(cpuinfo, (priorities,)) is expected


def test_what_tls_prefers_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GNUTLS_SYSTEM_PRIORITY_FILE", "/mine")
    assert nbd.child_env()["GNUTLS_SYSTEM_PRIORITY_FILE"] == "/mine"
    monkeypatch.delenv("GNUTLS_SYSTEM_PRIORITY_FILE")
    path = nbd.child_env().get("GNUTLS_SYSTEM_PRIORITY_FILE")
    assert (path is not None) is nbd.prefers_aes()
    assert path is None or "CHACHA20" in Path(path).read_text()


def test_child_env_passes_no_sockets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "x")
    assert not [key for key in nbd.child_env() if key.startswith("LISTEN_")]
    assert nbd.child_env(1)["LISTEN_FDS"] == "1"
