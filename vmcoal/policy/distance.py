"""NUMA distance from latency, and the tiers of an unmodified guest kernel.

A SLIT entry (ACPI 6.5, 5.2.17) is one byte: 10 is local, 255 unreachable. Links of a coalescent machine span seven
decades, from a coherent hop (100 ns) to a bad wireless link (a second), so the mapping is logarithmic: 35 distances for
each decade above 100 ns of one-way latency. Order is kept, and the rows of table 1 of "Coalescent Computing" (Hale,
APSys '21) fall where they should: another socket near 29, RDMA below 60, a LAN at 80-115, Wi-Fi 6E at 160, typical
Wi-Fi at 195.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from vmcoal.model.link import Link, LinkSample

LOCAL = 10
FARTHEST = 254
_NANOSECONDS_LOCAL = 100e-9
_PER_DECADE = 35.0

_TIERS: dict[int, tuple[int, ...]] = {
    1: (90,),
    2: (80, 160),
    3: (60, 100, 170),
    4: (40, 80, 120, 180),
    5: (28, 60, 90, 130, 180),
    6: (20, 45, 75, 105, 145, 190),
    7: (15, 28, 50, 80, 110, 150, 195),
}
"""Distances of the far nodes of a machine with that many; a lender gets the free node whose tier fits its link."""


def distance(one_way: float) -> int:
    """Return the SLIT distance, 11 to 254, of a link of ``one_way`` seconds; at or below 100 ns it is 11.

    A far node is never as near as node 0, so 10 is not returned. Raises `ValueError` if ``one_way`` is not a positive
    finite number.
    """
    if not (math.isfinite(one_way) and one_way > 0):
        raise ValueError(f"a latency must be a positive number of seconds, not {one_way!r}")
    value = LOCAL + _PER_DECADE * math.log10(one_way / _NANOSECONDS_LOCAL)
    return max(LOCAL + 1, min(FARTHEST, round(value)))


def latency(dist: int) -> float:
    """Return the one-way latency in seconds that ``dist`` stands for: the inverse of `distance`."""
    return _NANOSECONDS_LOCAL * 10 ** ((dist - LOCAL) / _PER_DECADE)


def summarize(sample: LinkSample) -> Link:
    """Sum up a series of pings; raises `ValueError` for an empty one.

    Our own software costs a fraction of a millisecond for each ping, more than a LAN; the kernel's smallest round trip
    has none of it but hides jitter. The estimate is the kernel's smallest plus how far the median ping lies above the
    smallest ping, but at most twice the kernel's: a busy host delays pings by milliseconds that the link knows nothing
    of, and on a logarithmic scale a factor of two is ten distances.
    """
    if not sample.pings:
        raise ValueError("no ping was answered")
    pings = sorted(sample.pings)
    middle = median(pings)
    rtt = middle if sample.kernel is None else sample.kernel + min(middle - pings[0], sample.kernel)
    return Link(
        rtt=min(rtt, middle),
        p50=middle,
        p99=pings[min(len(pings) - 1, math.ceil(len(pings) * 0.99) - 1)],
        samples=len(pings),
    )


def link_distance(link: Link) -> int:
    """Return the distance of a measured link; half a round trip is taken as one way."""
    return distance(max(link.rtt / 2, 1e-9))


def default_tiers(count: int) -> tuple[int, ...]:
    """Return the ascending distances of ``count`` far nodes (0 to 128)."""
    if count <= 0:
        return ()
    if count in _TIERS:
        return _TIERS[count]
    low, high = 15, 200
    return tuple(round(low + (high - low) * index / (count - 1)) for index in range(count))


def slit(distances: Sequence[int]) -> list[list[int]]:
    """Return the full distance matrix of a machine whose nodes lie at ``distances`` from node 0 (itself at 10).

    Two far nodes lie at the larger of their distances (an ultrametric): with sums, eight tiers would make 37 scheduler
    levels in the guest; with the larger one, ten.
    """
    size = len(distances)
    return [[LOCAL if i == j else max(distances[i], distances[j]) for j in range(size)] for i in range(size)]
