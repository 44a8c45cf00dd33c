"""What every memory and vCPU engine offers, and what it says it can do.

An engine turns a granted lease into something QEMU can be given: a memory engine into a file that is mapped shared, a
vCPU engine into a place to run. It declares its properties as data, and planning refuses what they exclude.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from vmcoal.model.activity import PagingActivity
from vmcoal.model.engine import Feature
from vmcoal.model.lease import Lease, MemoryServer
from vmcoal.model.lease import MemoryRegion as MemoryRegion
from vmcoal.model.paging import PagedRegion


class EngineTraits(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine needs and excludes; planning compares these, nothing else.

    ``largest_granular`` is the size in bytes up to which a granular device can be emptied, ``None`` for any; ``pages``:
    it is a `PagingEngine`; ``excludes`` what a machine must not have beside its memory; ``missing`` is the reason why
    this host cannot run it, or ``None``.
    """

    name: str
    summary: str
    needs_kvm: bool = False
    same_host_only: bool = False
    largest_granular: int | None = None
    pages: bool = False
    excludes: tuple[Feature, ...] = ()
    missing: str | None = None
    remedy: str | None = None


class MemoryEngine(Protocol):
    """Makes the bytes of memory leases mappable on this host."""

    @property
    def traits(self) -> EngineTraits:
        """What the engine needs and excludes."""

    def plan(self, lease: str, size: int) -> tuple[MemoryRegion, list[list[str]]]:
        """Return the region that `prepare` will make and the argv of its processes; changes nothing."""

    async def prepare(self, lease: Lease, server: MemoryServer, address: str, *, deadline: float) -> MemoryRegion:
        """Make the lease's bytes a file of full size that QEMU can map.

        Undoes itself on failure. Raises `ExecutionError`, `DeadlineError`, `UnreachableError`.
        """

    async def relink(self, lease: Lease, server: MemoryServer, address: str, *, deadline: float) -> None:
        """Point the region of a lease at its server's new address after a restart of the lender."""

    async def remove(self, lease: str, *, mapped_by: int | None, deadline: float) -> None:
        """End the region of ``lease`` after QEMU (pid ``mapped_by``) let go of it. Idempotent, also after a crash that
        left only part of it."""

    async def health(self, lease: str) -> str | None:
        """Return what is wrong with the region, or ``None``."""


class PagingEngine(MemoryEngine, Protocol):
    """A memory engine that moves pages: it has a bounded cache here, and up to two places for each region's pages.

    A region keeps the name of the lease that it was made for, whoever has its pages later.
    """

    @property
    def cache(self) -> int:
        """How many bytes of borrowed memory may be on this host, all regions together."""

    async def set_cache(self, size: int, *, deadline: float = 5.0) -> None:
        """Change `cache`, also for a pager that is started later; raises `RefusedError` where that is too few."""

    async def region(self, region: str, *, deadline: float = 5.0) -> PagedRegion | None:
        """Return what the engine says of a region, or ``None`` if it has none; raises `UnreachableError` or
        `DeadlineError`."""

    async def activity(self, *, deadline: float = 5.0) -> PagingActivity:
        """Return what the engine counts; the lenders of stores are left out. Raises as `region`."""

    async def sample(self, region: str, number: int, count: int, *, deadline: float = 15.0) -> tuple[float, float, int]:
        """Read up to ``count`` pages of ``region`` from place ``number``, one at a time; return p50 and p99 in seconds,
        and of how many pages. Raises `NotFoundError`, `UnreachableError`, `ConflictError` or `DeadlineError`."""

    async def store(
        self, region: str, number: int, lease: Lease, server: MemoryServer, address: str, *, deadline: float
    ) -> None:
        """Have the pages of ``region`` in the bytes of ``lease`` as well, or again; returns when it is connected, and
        the pages that exist are copied meanwhile. Raises what `prepare` raises of the server."""

    async def unstore(self, region: str, number: int, *, gone: bool = False, deadline: float = 5.0) -> None:
        """Use place ``number`` no longer. Idempotent. Raises `ConflictError` while it alone has pages, unless it is
        ``gone`` anyway and they are lost."""

    async def home(self, region: str, on: bool, *, deadline: float = 5.0) -> None:
        """Pull every page of a region here and keep it, hottest first; or let pages leave again."""

    async def set_compression(self, region: str, on: bool, *, deadline: float = 5.0) -> None:
        """Compress what leaves of a region from now on, or not."""


def runtime_file(folder: Path, lease: str, suffix: str) -> Path:
    """Return the runtime file of a lease in a VM's runtime ``folder``."""
    return folder / f"{lease}.{suffix}"
