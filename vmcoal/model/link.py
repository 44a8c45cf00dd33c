"""What was measured of the link to a lender."""

from __future__ import annotations

import msgspec


class LinkSample(msgspec.Struct, frozen=True):
    """A series of round trips to one lender, in seconds.

    ``pings`` round trips of vmcoal's own messages, our software included; ``kernel`` the smallest round trip that the
    kernels saw while connections were made for it (``tcpi_min_rtt``), or ``None`` where it does not say.
    """

    pings: tuple[float, ...]
    kernel: float | None = None


class Link(msgspec.Struct, frozen=True):
    """A link summed up: ``rtt`` estimated round trip of the link alone, ``p50``/``p99`` of the pings, in seconds."""

    rtt: float
    p50: float
    p99: float
    samples: int
