"""Orders to vmcoal-pager over its control socket (docs/internals/pager-protocol.md)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    ExecutionError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    VmcoalError,
)
from vmcoal.holding.connection import Connection
from vmcoal.holding.wire import Field, Packet, encode

_OF_STORE = ("links", "behind", "unsettled", "bytes-in", "bytes-out", "plain-in", "plain-out", "rate")
_KINDS: dict[str, type[VmcoalError]] = {
    "ENOENT": NotFoundError,
    "EEXIST": ConflictError,
    "EBUSY": ConflictError,
    "EINVAL": RefusedError,
    "EHOSTUNREACH": UnreachableError,
    "EOPNOTSUPP": RefusedError,
}


@dataclass
class StoreStats:
    """A lender's server of a region: ``links`` that work, whether it ``refused`` (it has other bytes), pages
    that it does not have yet, and why it is not connected; payload bytes from and to it, and the bytes of the pages
    that those were, which are more where pages are compressed. ``rate``: payload bytes a second while its link was
    busy, 0 while that is not known.

    ``unsettled`` pages are of writes that it did not answer and may still do; they are not written to it meanwhile.
    ``latency[i]`` counts reads of one page that took less than 2**i µs and not less than half of that, since it is a
    store of the region; the last bucket that the pager has counts all that took longer, too.
    """

    links: int = 0
    refused: bool = False
    behind: int = 0
    unsettled: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    plain_in: int = 0
    plain_out: int = 0
    rate: int = 0
    latency: tuple[int, ...] = ()
    why: str = ""


@dataclass
class RegionStats:
    """A region: its pages, whether QEMU maps it, and its stores by number.

    ``here`` pages are in this host's memory, ``away`` ones are neither here nor zeros; ``lost`` ones, which are away,
    no store has as they were sealed. ``waiting`` pages are waited for, and no store gives them now. ``home``: it comes
    here as a whole, and stays. ``compress``: what leaves is compressed first. ``policy``: what a touch of a lost
    page gives.
    """

    pages: int = 0
    mapped: bool = False
    home: bool = False
    compress: bool = False
    policy: str = "stall"
    away: int = 0
    here: int = 0
    lost: int = 0
    waiting: int = 0
    stores: dict[int, StoreStats] = field(default_factory=dict)


@dataclass
class PagerStats:
    """What the pager counts. ``counters`` by name; ``latency`` counts demand fetches below so many microseconds."""

    counters: dict[str, int] = field(default_factory=dict)
    latency: dict[int, int] = field(default_factory=dict)
    regions: dict[str, RegionStats] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """How long a store took for single pages, microseconds; ``pages`` were read."""

    p50: int
    p99: int
    pages: int


async def order(path: Path, verb: str, *fields: Field, fds: Sequence[int] = (), deadline: float) -> Packet:
    """Send one order and return its answer.

    A pager that dies before it answers is started anew by the holder and asked again. Raises `NotFoundError`,
    `ConflictError`, `RefusedError` or `ExecutionError` as it says no, `UnreachableError` or `DeadlineError`.
    """
    try:
        async with asyncio.timeout(deadline):
            while True:
                connection = Connection.open(path, lambda _: None, lambda _: None)
                try:
                    answer = await connection.request(encode(verb, *fields), fds)
                    break
                except UnreachableError:
                    await asyncio.sleep(0.02)
                finally:
                    connection.close()
    except TimeoutError as error:
        raise DeadlineError(f"the pager did not answer {verb} within {deadline:g} s") from error
    except UnreachableError as error:
        raise UnreachableError(f"no pager listens at {path}") from error
    for descriptor in answer.fds:
        os.close(descriptor)
    if answer.head == "ok":
        return answer
    raise _KINDS.get(answer.get("errno") or "", ExecutionError)(f"the pager: {answer.get('message')}")


async def stats(path: Path, *, deadline: float) -> PagerStats:
    """Return what the pager counts; raises `UnreachableError` or `DeadlineError`."""
    result = PagerStats()
    region: RegionStats | None = None
    store: StoreStats | None = None
    for key, value in (await order(path, "stats", deadline=deadline)).fields:
        if key == "region":
            region, store = RegionStats(), None
            result.regions[value] = region
        elif region is not None and key == "store":
            store = region.stores[int(value)] = StoreStats()
        elif store is not None and key == "why":
            store.why = "".join(char if char.isprintable() else "?" for char in value)  # of other software
        elif store is not None and key == "refused":
            store.refused = value == "1"
        elif store is not None and key == "latency":
            store.latency = tuple(int(count) for count in value.split(",") if count)
        elif store is not None and key in _OF_STORE:
            setattr(store, key.replace("-", "_"), int(value))
        elif region is not None and key == "policy":
            region.policy = value
        elif region is not None and key in ("mapped", "home", "compress"):
            setattr(region, key, value == "1")
        elif region is not None and key in ("pages", "away", "here", "lost", "waiting"):
            setattr(region, key, int(value))
        elif key.startswith("below-us-"):
            result.latency[int(key.removeprefix("below-us-"))] = int(value)
        else:
            result.counters[key] = int(value)
    return result


async def home(path: Path, region: str, on: bool, *, deadline: float) -> None:
    """Have all of a region come here, what was used most first, and stay; or, not ``on``, be paged again.

    Returns at once. `RegionStats.away` says how many pages are to come; at 0 the last store may be taken away. Raises
    `NotFoundError`, `UnreachableError` or `DeadlineError`.
    """
    await order(path, "home", ("id", region), ("on", int(on)), deadline=deadline)


async def compress(path: Path, region: str, on: bool, *, deadline: float) -> None:
    """Compress what leaves of a region from now on, or not; what is with stores already is read as it was written.

    Raises `NotFoundError`, `UnreachableError` or `DeadlineError`.
    """
    await order(path, "compress", ("id", region), ("on", int(on)), deadline=deadline)


async def unstore(path: Path, region: str, number: int, *, gone: bool = False, deadline: float) -> None:
    """Take a store away from a region. ``gone``: its bytes are given up, so what only it had is lost from now on.

    Raises `ConflictError` while it alone has pages and is not ``gone``, `NotFoundError`, `UnreachableError` or
    `DeadlineError`.
    """
    await order(path, "unstore", ("id", region), ("number", number), ("gone", int(gone)), deadline=deadline)


async def sample(path: Path, region: str, number: int, count: int, *, deadline: float) -> Sample:
    """Read up to ``count`` (1–1000) random pages of a region from a store, one at a time, and say how long that took.

    It takes 10 s at most; a store that fails meanwhile gives fewer pages. Raises `NotFoundError` without such a region
    or store, `UnreachableError` without a link to it, `ConflictError` while another sample is taken, `DeadlineError`.
    """
    answer = await order(path, "sample", ("id", region), ("number", number), ("count", count), deadline=deadline)
    return Sample(*(int(answer.get(key) or 0) for key in ("p50-us", "p99-us", "pages")))
