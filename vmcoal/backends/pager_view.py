"""What the pager counts, as plain data in bytes and seconds (`vmcoal.model.activity`)."""

from __future__ import annotations

from vmcoal.backends.pager_client import PagerStats, RegionStats
from vmcoal.model.activity import PagingActivity, StoreActivity, ratio
from vmcoal.model.paging import PageCopy, PagedRegion

_PAGE = 4096


def activity_of(stats: PagerStats, regions: dict[str, PagedRegion]) -> PagingActivity:
    """Return what ``stats`` say, ``regions`` as they are told apart from it already."""
    count = stats.counters.get
    found, missed = count("found", 0), max(0, count("fetched", 0) - count("prefetched", 0))
    used, wasted = count("prefetch-used", 0), count("prefetch-wasted", 0)
    return PagingActivity(
        cache=count("budget", 0) * _PAGE,
        used=count("charged", 0) * _PAGE,
        faults=count("faults", 0),
        found=found,
        standby=count("standby-used", 0),
        missed=missed,
        hit_ratio=ratio(found, found + missed),
        fetched=count("fetched", 0) * _PAGE,
        prefetched=count("prefetched", 0) * _PAGE,
        prefetch_used=used * _PAGE,
        prefetch_wasted=wasted * _PAGE,
        prefetch_accuracy=ratio(used, used + wasted),
        regions=regions,
        stores=tuple(
            StoreActivity(
                region=name,
                number=number,
                connected=bool(store.links),
                refused=store.refused,
                behind=store.behind * _PAGE,
                why=store.why,
                bytes_in=store.bytes_in,
                bytes_out=store.bytes_out,
                plain_in=store.plain_in,
                plain_out=store.plain_out,
                latency=store.latency,
            )
            for name, region in stats.regions.items()
            for number, store in sorted(region.stores.items())
        ),
    )


def complaint(region: RegionStats) -> str | None:
    """Return what is wrong with a region, for people, or ``None``."""
    if region.lost:
        return f"{region.lost} of its pages are lost: what touches them waits; detach it by force, or shut the VM down"
    away = [store for store in region.stores.values() if not store.links]
    if away and len(away) == len(region.stores):
        return f"its lender does not answer, what touches its pages waits: {away[0].why}"
    if away:
        return f"one of its lenders does not answer: {away[0].why}"
    behind = sum(store.behind for store in region.stores.values())
    return f"{behind} of its pages are on one lender alone, being copied" if behind else None


def paged_region(region: RegionStats) -> PagedRegion:
    """Return a region as the controller knows it; its loss policy is not the pager's to tell."""
    return PagedRegion(
        size=region.pages * _PAGE,
        mapped=region.mapped,
        away=region.away * _PAGE,
        here=region.here * _PAGE,
        lost=region.lost * _PAGE,
        waiting=region.waiting,
        home=region.home,
        compress=region.compress,
        copies=tuple(
            PageCopy(
                number=number,
                connected=bool(store.links),
                refused=store.refused,
                behind=store.behind * _PAGE,
                why=store.why,
                rate=store.rate,
            )
            for number, store in sorted(region.stores.items())
        ),
    )
