"""Which memory engine a VM gets on this host."""

from __future__ import annotations

import os
from pathlib import Path

from vmcoal.backends.base import MemoryEngine
from vmcoal.backends.fuse import FuseEngine
from vmcoal.backends.pager import PagerEngine
from vmcoal.errors import PrerequisiteError, UsageError
from vmcoal.holding.client import Holder
from vmcoal.layout import VmFolders


async def choose_memory_engine(
    holder: Holder, folders: VmFolders, qemu: str = "qemu"
) -> tuple[MemoryEngine, dict[str, str]]:
    """Return the engine that ``VMCOAL_MEMORY_ENGINE`` names, ``fuse`` (the default) or ``pager``, and what QEMU's
    environment needs.

    A QEMU that runs already (the holder's child ``qemu``) keeps the engine that it was started for: without the preload
    library it would use paged memory as if it were its own. Raises `UsageError` for another name, `PrerequisiteError`
    if this host cannot run the page engine.
    """
    pager = PagerEngine(holder, folders)
    running = next((child for child in await holder.list() if child.id == qemu and child.live), None)
    if running is not None and running.pid:
        return (pager, pager.environment()) if _preloaded(running.pid) else (FuseEngine(holder, folders), {})
    wanted = os.environ.get("VMCOAL_MEMORY_ENGINE") or "fuse"
    if wanted not in ("fuse", "pager"):
        raise UsageError(f"VMCOAL_MEMORY_ENGINE={wanted} names no memory engine", hint="use fuse or pager")
    if wanted == "fuse":
        return FuseEngine(holder, folders), {}
    if pager.traits.missing:
        raise PrerequisiteError(
            f"the page engine cannot run here: {pager.traits.missing}",
            hint=f"{pager.traits.remedy}; or unset VMCOAL_MEMORY_ENGINE",
        )
    return pager, pager.environment()


def _preloaded(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return any(variable.startswith(b"VMCOAL_PAGER=") for variable in environment.split(b"\0"))
