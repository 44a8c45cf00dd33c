"""What a VM's page engine does: counters that begin with the pager, and begin again when it is started anew."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vmcoal.model.paging import PagedRegion


class StoreActivity(msgspec.Struct, frozen=True, kw_only=True):
    """One place of a region's pages (`vmcoal.model.paging.PageCopy`), and what went through it.

    ``lender`` has it; sizes in bytes; ``bytes_in`` came from there, ``bytes_out`` went there, which were pages of
    ``plain_in`` and ``plain_out`` bytes before they were compressed; ``latency[i]`` counts
    reads of one page that took less than 2**i µs and not less than half of that, the last bucket also what took longer.
    """

    region: str
    number: int
    lender: str = ""
    connected: bool = False
    refused: bool = False
    behind: int = 0
    why: str = ""
    bytes_in: int = 0
    bytes_out: int = 0
    plain_in: int = 0
    plain_out: int = 0
    latency: tuple[int, ...] = ()


class PagingActivity(msgspec.Struct, frozen=True, kw_only=True):
    """All of a VM's paged memory. ``cache`` bytes may be on this host, ``used`` are.

    Of the ``faults``, ``found`` ones met a page that was here or on its way already, ``standby`` of them one that had
    left the guest's memory a moment before; ``missed`` ones had to fetch it; the others touched a page of zeros for the
    first time. ``hit_ratio`` is what was found of those that were found or missed; an access to what is here mostly
    causes no fault and is in neither. ``prefetch_accuracy``: of the guesses
    that came out one way or the other, those that were used. Both are ``None`` before there is anything to tell.
    """

    cache: int
    used: int = 0
    faults: int = 0
    found: int = 0
    standby: int = 0
    missed: int = 0
    hit_ratio: float | None = None
    fetched: int = 0
    prefetched: int = 0
    prefetch_used: int = 0
    prefetch_wasted: int = 0
    prefetch_accuracy: float | None = None
    regions: dict[str, PagedRegion] = {}
    stores: tuple[StoreActivity, ...] = ()

    @property
    def compressed(self) -> bool:
        """Whether pages are compressed, or were."""
        moved = any(store.plain_in + store.plain_out > store.bytes_in + store.bytes_out for store in self.stores)
        return moved or any(region.compress for region in self.regions.values())

    @property
    def compression(self) -> float | None:
        """Bytes of pages for each byte that they were on a link, both ways."""
        plain = sum(store.plain_in + store.plain_out for store in self.stores)
        return ratio(plain, sum(store.bytes_in + store.bytes_out for store in self.stores))

    @property
    def here(self) -> int:
        """Bytes of the guest's borrowed memory that are on this host."""
        return sum(region.here for region in self.regions.values())

    @property
    def away(self) -> int:
        """Bytes that are with lenders only."""
        return sum(region.away for region in self.regions.values())

    @property
    def lost(self) -> int:
        """Bytes that no lender gives back as they were sealed."""
        return sum(region.lost for region in self.regions.values())


class GpuActivity(msgspec.Struct, frozen=True, kw_only=True):
    """What went to and from one attached GPU since it was attached, counted where it passes this host.

    ``bytes_out`` went to the lender, ``bytes_in`` came; ``calls`` were answered, ``failed`` of them with an error.
    ``busy``: seconds in which at least one call was under way at the lender, and ``latency[i]`` counts calls that took
    it less than 2**i µs and not less than half of that: both as the lender tells, without the link.
    """

    lease: str
    lender: str
    name: str
    bytes_out: int = 0
    bytes_in: int = 0
    calls: int = 0
    failed: int = 0
    busy: float = 0.0
    attached: float = 0.0
    latency: tuple[int, ...] = ()

    @property
    def utilization(self) -> float | None:
        """Part of the ``attached`` seconds in which the lender was busy with its calls."""
        return min(1.0, self.busy / self.attached) if self.attached > 0 else None


class PageFetch(msgspec.Struct, frozen=True, kw_only=True):
    """How long single pages took from a lender into ``vm``, in seconds, ``pages`` of them, one at a time."""

    vm: str
    p50: float
    p99: float
    pages: int


def ratio(part: int, whole: int) -> float | None:
    """Return ``part`` of ``whole``, or ``None`` of nothing."""
    return part / whole if whole else None


def percentile(latency: Sequence[int], fraction: float) -> float | None:
    """Return seconds that ``fraction`` of the fetches in the buckets ``latency`` did not take longer than."""
    wanted, seen = fraction * sum(latency), 0
    for bucket, count in enumerate(latency):
        seen += count
        if count and seen >= wanted:
            return float(2**bucket) * 1e-6
    return None
