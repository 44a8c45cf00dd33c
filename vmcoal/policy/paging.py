"""Where pages of borrowed memory may be, and how long moving them takes."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import msgspec

from vmcoal.model.lease import Offer, ResourceKind
from vmcoal.model.machine import Accel
from vmcoal.model.paging import Compression, LossPolicy, PagedRegion
from vmcoal.model.units import MIB, format_duration, format_size

PLACES = 2
"""A region's pages can be in so many places besides this host."""

_KEPT_FREE = 256 * MIB
"""Bytes of this host's memory that stay free when borrowed memory comes home."""


_PAGE = 4096
_SHRINKS = 0.5
"""What a page is expected to be shorter by; programs' memory is more, pictures and keys are nothing."""

_PAUSES = 6, 2
"""The first Linux under which a VM can pause that touched a lost page."""

_PACKING = 40e-6
"""Seconds of a processor for a page that is packed once and unpacked once, half of them because each packed page is a
request of its own (docs/benchmarks.md)."""


class Candidate(msgspec.Struct, frozen=True):
    """A paired lender that answers: what it offers and grants, and the round trip to it in seconds."""

    offer: Offer
    grants: Collection[ResourceKind]
    rtt: float


def choose_spare(candidates: Sequence[Candidate], taken: Collection[str], size: int) -> str | None:
    """Return the nearest lender that has ``size`` bytes free, grants memory, is not cordoned and not among ``taken``,
    or ``None``."""
    fitting = [
        candidate
        for candidate in candidates
        if candidate.offer.lender not in taken
        and ResourceKind.MEMORY in candidate.grants
        and not candidate.offer.cordoned
        and candidate.offer.memory_free >= size
    ]
    best = min(fitting, key=lambda candidate: (candidate.rtt, candidate.offer.lender), default=None)
    return None if best is None else best.offer.lender


def fits_home(away: int, available: int, files: int) -> bool:
    """Return whether ``away`` bytes can come to a host with ``available`` bytes of memory and room for ``files`` bytes
    in the file system that backs it."""
    return away + _KEPT_FREE <= available and away <= files


def only_at(region: PagedRegion, number: int) -> int:
    """Return how many bytes at most place ``number`` of a region has alone; 0 means that it can be given up.

    Another place that answers has all but what it is behind; a region that is home has all here but what is away.
    """
    if region.copy(number) is None:
        return 0
    ways = [copy.behind for copy in region.copies if copy.number != number and copy.connected]
    if region.home:
        ways.append(region.away)
    return min(ways, default=region.size)


def compresses(wanted: Compression, region: PagedRegion) -> bool:
    """Return whether what leaves of ``region`` is to be compressed.

    With ``auto`` that is where the slowest link to one of its places needs at least twice as long for what is saved of
    a page as a processor for saving it. A region that is compressed stays so until it costs more than it saves. A rate
    that nobody has seen yet is no reason for anything.
    """
    if wanted is not Compression.AUTO:
        return wanted is Compression.ON
    rates = [copy.rate for copy in region.copies if copy.rate]
    if not rates:
        return False
    return _PAGE * _SHRINKS / min(rates) > _PACKING * (1 if region.compress else 2)


def refuse_loss(policy: LossPolicy, kernel: str, accel: Accel) -> str | None:
    """Return why a VM with ``accel`` on a host with this ``kernel`` release cannot have ``policy``, or ``None``.

    Before Linux 6.2 a KVM page fault ignores signals, and under TCG a vCPU that waits for a page cannot be interrupted
    either, so that QEMU's ``stop`` would wait with it.
    """
    if policy is LossPolicy.STALL:
        return None
    if accel is not Accel.KVM:
        return f"{policy} needs KVM: under {accel.value.upper()} a vCPU that waits cannot be stopped"
    if tuple(int(part) for part in re.findall(r"\d+", kernel)[:2]) < _PAUSES:
        return f"{policy} needs Linux {_PAUSES[0]}.{_PAUSES[1]} or newer on this host, which has {kernel}"
    return None


class Transfer:
    """How far a transfer of bytes is, told by what is left of it."""

    def __init__(self, left: int, now: float) -> None:
        self._all = left
        self._began = now
        self._moved_at = now
        self._left = left

    def look(self, left: int, now: float) -> None:
        """Note what is ``left`` at ``now`` (bytes, seconds). A guest that writes can make it more again."""
        self._all = max(self._all, left)
        if left < self._left:
            self._moved_at = now
        self._left = left

    def still(self, now: float) -> float:
        """Return for how many seconds nothing has moved."""
        return now - self._moved_at

    def rate(self, now: float) -> float:
        """Return the bytes a second so far."""
        return (self._all - self._left) / max(now - self._began, 1e-3)

    def estimate(self, now: float) -> float | None:
        """Return the seconds that the rest takes at the rate so far, or ``None`` while there is none."""
        rate = self.rate(now)
        return self._left / rate if rate > 0 else None

    @property
    def fraction(self) -> float:
        """How much of it is done, 0 to 1."""
        return 1.0 if not self._all else 1 - self._left / self._all

    def text(self, now: float) -> str:
        """Return what is left, for people."""
        said = f"{format_size(self._left)} of {format_size(self._all)} left"
        seconds = self.estimate(now)
        if seconds is None or not self._left:
            return said
        return f"{said}, {format_size(round(self.rate(now)))}/s, about {format_duration(seconds)}"
