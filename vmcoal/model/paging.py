"""Borrowed memory that is paged: what a VM's page engine is told, and what it says of a region."""

from __future__ import annotations

import enum

import msgspec

HOME = "home"
"""Stands for a lender where memory is on this host again: its device stays plugged, and nobody lends it."""

LOCAL = "local"
"""Stands for a lender where a copy of borrowed memory is in a file on this host's disk."""


class LossPolicy(enum.StrEnum):
    """What touching a page that no lender gives does.

    Not a memory error, as from a broken DIMM: KVM brings a late page asynchronously and reports the error to whatever
    the vCPU does by then, and if that is the guest's kernel, it panics (docs/lab.md).
    """

    STALL = "stall"  # what touches it waits
    PAUSE = "pause"  # what touches it waits, and the whole VM is stopped until the page is back

    @classmethod
    def _missing_(cls, value: object) -> LossPolicy | None:
        """Read what a VM was told by a vmcoal that still had memory errors."""
        return cls.STALL if value == "poison" else None


class Compression(enum.StrEnum):
    """Whether pages are made smaller before they are sealed and leave this host."""

    AUTO = "auto"  # where the link is so slow that it pays
    ON = "on"
    OFF = "off"


class PageCopy(msgspec.Struct, frozen=True, kw_only=True):
    """One of up to two places that a region's pages are stored in: ``number`` 0 or 1, whether it is ``connected`` or
    ``refused`` (it has other bytes), how many bytes it is ``behind``, and ``why`` it does not answer. ``rate``: bytes
    a second that went over its link while that was busy, 0 while that is not known."""

    number: int
    connected: bool = False
    refused: bool = False
    behind: int = 0
    why: str = ""
    rate: int = 0


class PagedRegion(msgspec.Struct, frozen=True, kw_only=True):
    """One region of paged memory, sizes in bytes.

    ``mapped``: QEMU has it through the engine; ``away`` is neither here nor zero; ``lost``: no place has it as it was
    stored; ``waiting``: faults that wait now on a page that no place gives; ``home``: it stays here;
    ``compress``: what leaves is made smaller.
    """

    size: int
    mapped: bool = False
    away: int = 0
    here: int = 0
    lost: int = 0
    waiting: int = 0
    home: bool = False
    compress: bool = False
    policy: LossPolicy = LossPolicy.STALL
    copies: tuple[PageCopy, ...] = ()

    def copy(self, number: int) -> PageCopy | None:
        """Return the place with ``number``, or ``None``."""
        return next((copy for copy in self.copies if copy.number == number), None)

    @property
    def whole(self) -> tuple[PageCopy, ...]:
        """The places that have every page and answer."""
        return tuple(copy for copy in self.copies if copy.connected and not copy.behind)
