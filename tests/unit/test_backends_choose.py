"""Which memory engine a VM gets, and what of the host is asked for that."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from framework.fake_holder import FakeHolder
from vmcoal.backends import choose, probe
from vmcoal.backends.choose import choose_memory_engine
from vmcoal.backends.fuse import FuseEngine
from vmcoal.backends.pager import PagerEngine
from vmcoal.errors import PrerequisiteError
from vmcoal.holding.client import ChildSpec
from vmcoal.layout import vm_folders
from vmcoal.model.engine import EngineFacts, FaultFacts, MemoryEngineName
from vmcoal.model.machine import Accel, KernelBoot, MachineSpec

pytestmark = pytest.mark.unit

GOOD = EngineFacts(kernel="6.6.0", faults=FaultFacts(by="/dev/userfaultfd", features=(1 << 15) - 1))
BAD = EngineFacts(kernel="6.6.0", faults=FaultFacts(by=None, refused="Operation not permitted"))


def spec(wanted: MemoryEngineName) -> MachineSpec:
    boot = KernelBoot("vmlinuz")
    return MachineSpec(name="web", uuid="0", accel=Accel.TCG, memory=1 << 30, boot=boot, memory_engine=wanted)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PagerEngine, "environment", lambda self: {"VMCOAL_PAGER": "there"})


async def chosen(
    monkeypatch: pytest.MonkeyPatch, wanted: MemoryEngineName, facts: EngineFacts, holder: FakeHolder | None = None
) -> tuple[str, str]:
    monkeypatch.setattr(choose, "engine_facts", lambda qemu: facts)
    engine, choice, environment = await choose_memory_engine(spec(wanted), holder or FakeHolder(), vm_folders("web"))
    assert bool(environment) == isinstance(engine, PagerEngine)
    assert isinstance(engine, PagerEngine if choice.name is MemoryEngineName.PAGER else FuseEngine)
    return choice.name.value, choice.reason


async def test_the_better_one_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await chosen(monkeypatch, MemoryEngineName.AUTO, GOOD))[0] == "pager"
    name, reason = await chosen(monkeypatch, MemoryEngineName.AUTO, BAD)
    assert (name, reason) == ("fuse", "this user may not use userfaultfd (Operation not permitted)")
    assert await chosen(monkeypatch, MemoryEngineName.FUSE, GOOD) == ("fuse", "asked for")
    with pytest.raises(PrerequisiteError, match="may not use userfaultfd"):
        await chosen(monkeypatch, MemoryEngineName.PAGER, BAD)


@pytest.mark.parametrize("preloaded", [True, False])
async def test_a_running_qemu_keeps_its_engine(monkeypatch: pytest.MonkeyPatch, preloaded: bool) -> None:
    monkeypatch.setattr(choose, "_preloaded", lambda pid: preloaded)
    holder = FakeHolder()
    await holder.spawn(ChildSpec(id="qemu", argv=["qemu"]))
    name, unlike = ("pager", BAD) if preloaded else ("fuse", GOOD)
    assert await chosen(monkeypatch, MemoryEngineName.AUTO, unlike, holder) == (name, "QEMU was started with it")
    alike = GOOD if preloaded else BAD
    assert (await chosen(monkeypatch, MemoryEngineName.AUTO, alike, holder))[1] != "QEMU was started with it"
    # Not even what was asked for is in the way of a VM that runs.
    assert (await chosen(monkeypatch, MemoryEngineName.PAGER, BAD, holder))[0] == name


def test_programs_that_take_no_preload_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    assert probe.preload_obstacle(str(program)) is None
    assert probe.preload_obstacle("nothing-of-this-name") is None
    program.chmod(0o4755)
    assert "set-uid" in (probe.preload_obstacle(str(program)) or "")
    program.chmod(0o755)
    monkeypatch.setattr(os, "listxattr", lambda path: ["security.capability"])
    assert "file capabilities" in (probe.preload_obstacle(str(program)) or "")
    monkeypatch.setattr(os, "listxattr", lambda path: [])
    head = bytearray(program.read_bytes())
    head[56:58] = bytes(2)  # no program headers at all, so no interpreter
    program.write_bytes(head)
    assert "statically" in (probe.preload_obstacle(str(program)) or "")
    program.write_text("#!/bin/sh\n")
    assert probe.preload_obstacle(str(program)) is None


def test_facts_of_this_host() -> None:
    facts = probe.engine_facts("sh")
    assert facts.qemu is None
    assert facts.room > 0
    assert (facts.faults.by is None) == bool(facts.faults.refused)
    assert probe.file_system(Path("/proc/self")) == "proc"
