"""The metrics of attached GPUs, taken from `GpuActivity` when they are asked for: the process that carries their calls
counts, not we."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from vmcoal.metrics.paging import Series, buckets_of, family_of
from vmcoal.model.activity import GpuActivity

_WHO = ("lender", "lease", "gpu")
SERIES = (
    Series("vmcoal_gpu_calls", "counter", "Calls that the lender answered", (*_WHO, "outcome")),
    Series("vmcoal_gpu_bytes", "counter", "Bytes of calls from and to a lender", (*_WHO, "direction")),
    Series("vmcoal_gpu_busy_seconds", "counter", "Time in which the lender had a call under way", _WHO),
    Series("vmcoal_gpu_call_seconds", "histogram", "Calls, from the lender's reading to its answer", _WHO),
)


class GpuCollector(Collector):
    """Exposes the activities that it was last given."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self.activities: tuple[GpuActivity, ...] = ()

    def describe(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily]:
        """Return every family without a sample, so that registering it asks for nothing."""
        return [family_of(series) for series in SERIES]

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily]:
        """Return every family with what the activities say."""
        if not self.activities:
            return
        for series in SERIES:
            family = family_of(series)
            for seen in self.activities:
                who = [self._vm, seen.lender, seen.lease, seen.name]
                if isinstance(family, HistogramMetricFamily):
                    buckets, total = buckets_of(seen.latency)
                    family.add_metric(who, buckets, total)
                else:
                    for labels, value in _values(series.name, seen):
                        family.add_metric([*who, *labels], value)
            yield family


def _values(name: str, seen: GpuActivity) -> list[tuple[tuple[str, ...], float]]:
    if name == "vmcoal_gpu_calls":
        return [(("ok",), max(0, seen.calls - seen.failed)), (("failed",), seen.failed)]
    if name == "vmcoal_gpu_bytes":
        return [(("in",), seen.bytes_in), (("out",), seen.bytes_out)]
    return [((), seen.busy)]
