"""The memory engine of a VM: chosen when its QEMU is started, and kept as long as that one runs."""

from __future__ import annotations

import contextlib
from pathlib import Path

from vmcoal.backends.base import MemoryEngine
from vmcoal.backends.fuse import FuseEngine
from vmcoal.backends.pager import EXCLUDES, PagerEngine
from vmcoal.backends.probe import engine_facts
from vmcoal.errors import VmcoalError
from vmcoal.holding.client import Holder
from vmcoal.layout import VmFolders
from vmcoal.model.engine import EngineChoice, MemoryEngineName
from vmcoal.model.machine import MachineSpec
from vmcoal.policy.engine import choose_engine


def engine_choice(spec: MachineSpec) -> EngineChoice:
    """Return the engine that ``spec`` would be booted with on this host now, and why; raises as `choose_engine`."""
    return choose_engine(spec.memory_engine, engine_facts(spec.qemu), spec, EXCLUDES)


async def choose_memory_engine(
    spec: MachineSpec, holder: Holder, folders: VmFolders, qemu: str = "qemu"
) -> tuple[MemoryEngine, EngineChoice, dict[str, str]]:
    """Return the engine of a VM, why it is that one, and what QEMU's environment needs for it.

    A QEMU that runs already (the holder's child ``qemu``) keeps the engine that it was started for: without the preload
    library it would use paged memory as if it were its own. Raises `PrerequisiteError` or `ConflictError` where
    ``spec`` asks for the page engine and it cannot be had.
    """
    running = next((child for child in await holder.list() if child.id == qemu and child.live), None)
    if running is not None and running.pid:
        choice = _kept(spec, MemoryEngineName.PAGER if _preloaded(running.pid) else MemoryEngineName.FUSE)
    else:
        choice = engine_choice(spec)
    if choice.name is MemoryEngineName.PAGER:
        engine = PagerEngine(holder, folders)
        return engine, choice, engine.environment()
    return FuseEngine(holder, folders), choice, {}


async def sweep(holder: Holder, folders: VmFolders) -> None:
    """Take away what either engine left of regions that nobody knows any more; QEMU must have ended. What cannot be
    taken away is tried again at the VM's next boot."""
    pager, fuse = PagerEngine(holder, folders), FuseEngine(holder, folders)
    left: list[tuple[MemoryEngine, str]] = [(fuse, link.stem) for link in folders.runtime.glob("*.link")]
    left += [(pager, region) for region in pager.leftovers()]
    for engine, region in left:
        with contextlib.suppress(VmcoalError):
            await engine.remove(region, mapped_by=None, deadline=30.0)


def _kept(spec: MachineSpec, name: MemoryEngineName) -> EngineChoice:
    """Return the choice of a QEMU that runs with engine ``name``, with today's reason if that still leads to it."""
    try:
        choice = engine_choice(spec)
    except VmcoalError:
        choice = None
    if choice is not None and choice.name is name:
        return choice
    remedy = (
        None if name is MemoryEngineName.PAGER else f"for the page engine: vmcoal shutdown, vmcoal boot {spec.name}"
    )
    return EngineChoice(name=name, reason="QEMU was started with it", remedy=remedy)


def _preloaded(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return any(variable.startswith(b"VMCOAL_PAGER=") for variable in environment.split(b"\0"))
