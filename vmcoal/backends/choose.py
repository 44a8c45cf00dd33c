"""Which memory engine a VM gets on this host."""

from __future__ import annotations

import os
from pathlib import Path

from vmcoal.backends.base import MemoryEngine
from vmcoal.backends.fuse import FuseEngine
from vmcoal.backends.pager import PagerEngine
from vmcoal.holding.client import Holder
from vmcoal.layout import VmFolders


async def choose_memory_engine(
    holder: Holder, folders: VmFolders, qemu: str = "qemu"
) -> tuple[MemoryEngine, dict[str, str]]:
    """Return the engine that ``VMCOAL_MEMORY_ENGINE`` names, ``fuse`` or ``pager``, and what QEMU's environment needs.

    Unless told it is the FUSE engine, and so it is where the host cannot run the page engine.

    A QEMU that runs already (the holder's child ``qemu``) keeps the engine that it was started for: without the preload
    library it would use paged memory as if it were its own.
    """
    pager = PagerEngine(holder, folders)
    running = next((child for child in await holder.list() if child.id == qemu and child.live), None)
    if running is not None and running.pid:
        if _preloaded(running.pid):
            return pager, pager.environment()
    elif os.environ.get("VMCOAL_MEMORY_ENGINE", "fuse") == "pager" and pager.traits.missing is None:
        return pager, pager.environment()
    return FuseEngine(holder, folders), {}


def _preloaded(pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return any(variable.startswith(b"VMCOAL_PAGER=") for variable in environment.split(b"\0"))
