"""Which memory engine a VM gets."""

from __future__ import annotations

import pytest

from framework.fake_holder import FakeHolder
from vmcoal.backends import choose
from vmcoal.backends.base import EngineTraits
from vmcoal.backends.choose import choose_memory_engine
from vmcoal.backends.pager import PagerEngine
from vmcoal.errors import PrerequisiteError, UsageError
from vmcoal.layout import vm_folders

pytestmark = pytest.mark.unit


def traits(missing: str | None) -> EngineTraits:
    return EngineTraits(name="pager", summary="", missing=missing, remedy="load it")


async def chosen(monkeypatch: pytest.MonkeyPatch, wanted: str | None, missing: str | None = None) -> str:
    monkeypatch.setattr(PagerEngine, "traits", property(lambda self: traits(missing)))
    if wanted is None:
        monkeypatch.delenv("VMCOAL_MEMORY_ENGINE", raising=False)
    else:
        monkeypatch.setenv("VMCOAL_MEMORY_ENGINE", wanted)
    engine, environment = await choose_memory_engine(FakeHolder(), vm_folders("web"))
    assert bool(environment) == isinstance(engine, PagerEngine)
    return type(engine).__name__


async def test_fuse_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await chosen(monkeypatch, None) == "FuseEngine"
    assert await chosen(monkeypatch, "fuse", "no userfaultfd") == "FuseEngine"
    assert await chosen(monkeypatch, "pager") == "PagerEngine"


async def test_what_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PrerequisiteError, match="no userfaultfd"):
        await chosen(monkeypatch, "pager", "no userfaultfd")
    with pytest.raises(UsageError, match="names no memory engine"):
        await chosen(monkeypatch, "quick")


async def test_a_running_qemu_keeps_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMCOAL_MEMORY_ENGINE", "pager")
    monkeypatch.setattr(choose, "_preloaded", lambda pid: False)
    holder = FakeHolder()
    from vmcoal.holding.client import ChildSpec

    await holder.spawn(ChildSpec(id="qemu", argv=["qemu"]))
    engine, environment = await choose_memory_engine(holder, vm_folders("web"))
    assert (type(engine).__name__, environment) == ("FuseEngine", {})
