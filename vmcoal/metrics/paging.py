"""The page engine's metrics, taken from a `PagingActivity` when they are asked for: the pager counts, not we."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from vmcoal.model.activity import PagingActivity

_BUCKETS = 24
"""Of the pager and of what carries GPU calls: less than 1, 2, 4 … 2^22 µs, and the rest."""


class Series(NamedTuple):
    """One metric: its name without ``_total``, type, meaning, and labels after ``vm``."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...] = ()


SERIES = (
    Series("vmcoal_paging_cache_bytes", "gauge", "Bytes of borrowed memory that may be on this host"),
    Series("vmcoal_paging_cache_used_bytes", "gauge", "Bytes of borrowed memory that are on this host or on their way"),
    Series("vmcoal_paging_memory_bytes", "gauge", "Borrowed memory that is not zeros, by where it is", ("where",)),
    Series("vmcoal_paging_waiting_pages", "gauge", "Pages that are waited for and that no lender gives now"),
    Series("vmcoal_paging_faults", "counter", "Faults that the pager was asked to answer", ("outcome",)),
    Series("vmcoal_paging_standby_faults", "counter", "Faults of them that found their page on standby"),
    Series(
        "vmcoal_paging_fetched_bytes", "counter", "Bytes that came from lenders, before a fault or for one", ("by",)
    ),
    Series(
        "vmcoal_paging_prefetch_judged_bytes", "counter", "Guesses that came out one way or the other", ("outcome",)
    ),
    Series("vmcoal_paging_copy_up", "gauge", "1 while a lender's memory server answers", ("lender", "region")),
    Series("vmcoal_paging_copy_behind_bytes", "gauge", "Bytes that a lender does not have yet", ("lender", "region")),
    Series("vmcoal_paging_copy_bytes", "counter", "Payload from and to a lender", ("lender", "region", "direction")),
    Series(
        "vmcoal_paging_copy_page_bytes",
        "counter",
        "The pages that the payload was before it was compressed",
        ("lender", "region", "direction"),
    ),
    Series("vmcoal_paging_fetch_seconds", "histogram", "Reads of single pages from a lender", ("lender", "region")),
)


class PagingCollector(Collector):
    """Exposes the activity that it was last given."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self.activity: PagingActivity | None = None

    def describe(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily]:
        """Return every family without a sample, so that registering it asks for nothing."""
        return [family_of(series) for series in SERIES]

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily]:
        """Return every family with what the activity says."""
        seen = self.activity
        if seen is None:
            return
        values = _values(seen)
        for series in SERIES:
            family = family_of(series)
            if isinstance(family, HistogramMetricFamily):
                for store in seen.stores:
                    buckets, total = buckets_of(store.latency)
                    family.add_metric([self._vm, store.lender, store.region], buckets, total)
            else:
                for labels, value in values[series.name]:
                    family.add_metric([self._vm, *labels], value)
            yield family


def family_of(series: Series) -> GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily:
    """Return a family without a sample."""
    labels = ["vm", *series.labels]
    if series.kind == "gauge":
        return GaugeMetricFamily(series.name, series.text, labels=labels)
    if series.kind == "counter":
        return CounterMetricFamily(series.name, series.text, labels=labels)
    return HistogramMetricFamily(series.name, series.text, labels=labels)


def _values(seen: PagingActivity) -> dict[str, list[tuple[tuple[str, ...], float]]]:
    asked = seen.fetched - seen.prefetched
    stores = [((store.lender, store.region), store) for store in seen.stores]
    return {
        "vmcoal_paging_cache_bytes": [((), seen.cache)],
        "vmcoal_paging_cache_used_bytes": [((), seen.used)],
        "vmcoal_paging_memory_bytes": [(("here",), seen.here), (("away",), seen.away), (("lost",), seen.lost)],
        "vmcoal_paging_waiting_pages": [((), sum(region.waiting for region in seen.regions.values()))],
        "vmcoal_paging_faults": [
            (("found",), seen.found),
            (("fetched",), seen.missed),
            (("zero",), max(0, seen.faults - seen.found - seen.missed)),
        ],
        "vmcoal_paging_standby_faults": [((), seen.standby)],
        "vmcoal_paging_fetched_bytes": [(("fault",), max(0, asked)), (("prefetch",), seen.prefetched)],
        "vmcoal_paging_prefetch_judged_bytes": [
            (("used",), seen.prefetch_used),
            (("wasted",), seen.prefetch_wasted),
        ],
        "vmcoal_paging_copy_up": [(who, float(store.connected)) for who, store in stores],
        "vmcoal_paging_copy_behind_bytes": [(who, store.behind) for who, store in stores],
        "vmcoal_paging_copy_bytes": [
            *(((*who, "in"), store.bytes_in) for who, store in stores),
            *(((*who, "out"), store.bytes_out) for who, store in stores),
        ],
        "vmcoal_paging_copy_page_bytes": [
            *(((*who, "in"), store.plain_in) for who, store in stores),
            *(((*who, "out"), store.plain_out) for who, store in stores),
        ],
    }


def buckets_of(latency: Sequence[int]) -> tuple[list[tuple[str, float]], float]:
    """Return Prometheus' cumulative buckets, and the sum as far as the buckets tell it: each read at three quarters of
    its bucket's upper bound, the middle of the bucket."""
    buckets: list[tuple[str, float]] = []
    seen, total = 0, 0.0
    for number in range(_BUCKETS):
        count = latency[number] if number < len(latency) else 0
        bound = 2**number * 1e-6
        seen += count
        total += count * bound * 0.75
        buckets.append((f"{bound:.6g}" if number < _BUCKETS - 1 else "+Inf", seen))
    return buckets, total
