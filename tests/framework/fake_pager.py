"""A page engine in memory: regions with places for their pages, whose copying goes on as far as a test lets it."""

from __future__ import annotations

from dataclasses import dataclass, field

from framework.fake_vm import FakeEngine, Fuse
from vmcoal.backends.base import EngineTraits, MemoryRegion
from vmcoal.errors import ConflictError, NotFoundError, UnreachableError
from vmcoal.model.activity import PagingActivity, StoreActivity
from vmcoal.model.lease import Lease, MemoryServer
from vmcoal.model.paging import PageCopy, PagedRegion
from vmcoal.model.units import MIB


@dataclass
class Place:
    """Where a region's pages are stored: the lease, and bytes it does not have yet."""

    lease: str
    behind: int = 0
    connected: bool = True
    rate: int = 0


@dataclass
class Region:
    """One region; ``away`` bytes are not on this host."""

    size: int
    places: dict[int, Place] = field(default_factory=dict)
    away: int = 64 * MIB
    lost: int = 0
    waiting: int = 0
    home: bool = False
    compress: bool = False


class FakePager(FakeEngine):
    """Implements `vmcoal.backends.base.PagingEngine`. ``step`` is how many bytes are copied or pulled at each look;
    ``mapped`` whether QEMU's preload library does its work."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__(fuse)
        self.traits = EngineTraits(name="fake pager", summary="for tests", pages=True)
        self.paged: dict[str, Region] = {}
        self.cache = 256 * MIB
        self.mapped = True
        self.step = 32 * MIB
        self.refuses: set[str] = set()
        self.silent = False

    async def prepare(self, lease: Lease, server: MemoryServer, address: str, *, deadline: float) -> MemoryRegion:
        made = await super().prepare(lease, server, address, deadline=deadline)
        self.paged[lease.id] = Region(lease.amount, {0: Place(lease.id)})
        return made

    async def remove(self, lease: str, *, mapped_by: int | None, deadline: float) -> None:
        await super().remove(lease, mapped_by=mapped_by, deadline=deadline)
        self.paged.pop(lease, None)

    async def set_cache(self, size: int, *, deadline: float = 5.0) -> None:
        await self._fuse.blow("cache")
        self.cache = size

    async def region(self, region: str, *, deadline: float = 5.0) -> PagedRegion | None:
        found = self.paged.get(region)
        if found is None:
            return None
        told = PagedRegion(
            size=found.size,
            mapped=self.mapped,
            away=found.away,
            here=found.size - found.away,
            lost=found.lost,
            waiting=found.waiting,
            home=found.home,
            compress=found.compress,
            copies=tuple(
                PageCopy(number=number, connected=place.connected, behind=place.behind, rate=place.rate)
                for number, place in sorted(found.places.items())
            ),
        )
        for place in found.places.values():
            place.behind = max(0, place.behind - (0 if found.home else self.step))
        if found.home:
            found.away = max(0, found.away - self.step)
        return told

    async def activity(self, *, deadline: float = 5.0) -> PagingActivity:
        if self.silent:
            raise UnreachableError("no pager listens")
        return PagingActivity(
            cache=self.cache,
            faults=10,
            found=8,
            hit_ratio=0.8,
            regions={
                name: PagedRegion(size=one.size, away=one.away, lost=one.lost, waiting=one.waiting)
                for name, one in self.paged.items()
            },
            stores=tuple(
                StoreActivity(region=name, number=number, connected=place.connected, behind=place.behind)
                for name, one in self.paged.items()
                for number, place in sorted(one.places.items())
            ),
        )

    async def sample(self, region: str, number: int, count: int, *, deadline: float = 15.0) -> tuple[float, float, int]:
        if not self.paged[region].places[number].connected:
            raise UnreachableError("store 0 is not linked")
        return 0.0001, 0.002, min(count, self.paged[region].away // 4096)

    async def store(
        self, region: str, number: int, lease: Lease, server: MemoryServer, address: str, *, deadline: float
    ) -> None:
        await self._fuse.blow("store")
        if region not in self.paged:
            raise NotFoundError(f"there is no region {region}")
        if lease.lender in self.refuses:
            raise UnreachableError("nothing answers on the memory server's port", host=lease.lender)
        known = self.paged[region].places.get(number)
        if known is None or known.lease != lease.id:
            self.paged[region].places[number] = Place(lease.id, behind=128 * MIB)

    async def unstore(self, region: str, number: int, *, gone: bool = False, deadline: float = 5.0) -> None:
        await self._fuse.blow("unstore")
        found = self.paged.get(region)
        if found is None or number not in found.places:
            return
        others = [place for n, place in found.places.items() if n != number]
        elsewhere = any(not place.behind for place in others) or (found.home and not found.away)
        if not elsewhere and not gone:
            raise ConflictError("the pager: store alone has pages")
        del found.places[number]

    async def home(self, region: str, on: bool, *, deadline: float = 5.0) -> None:
        await self._fuse.blow("home")
        self.paged[region].home = on

    async def set_compression(self, region: str, on: bool, *, deadline: float = 5.0) -> None:
        await self._fuse.blow("compress")
        self.paged[region].compress = on
