"""The lender's metrics. Their names are documented in docs/metrics.md and checked by a test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vmcoal.model.lease import TERMINAL, Lease, LeaseState, Offer, ResourceKind

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class LenderMetrics:
    """The registry of one lender; gauges are set when it is asked for."""

    def __init__(self, lender: str) -> None:
        self.registry = CollectorRegistry()
        self._lender = lender

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"vmcoal_lender_{name}", text, ("lender", *labels), registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"vmcoal_lender_{name}", text, ("lender", *labels), registry=self.registry)

        self._memory = gauge("memory_bytes", "Memory lent at most")
        self._memory_free = gauge("memory_free_bytes", "Memory that is not lent")
        self._resident = gauge("memory_resident_bytes", "Lent bytes that are really in memory")
        self._cpus = gauge("cpus", "vCPUs lent at most")
        self._cpus_free = gauge("cpus_free", "vCPUs that are not lent")
        self._gpus = gauge("gpus", "GPUs lent at most")
        self._gpus_free = gauge("gpus_free", "GPUs that are not lent")
        self._cordoned = gauge("cordoned", "1 while nothing new is lent")
        self._degraded = gauge("degraded", "Number of things that are degraded")
        self._sessions = gauge("sessions", "Open sessions of borrowers")
        self._borrowers = gauge("borrowers", "Paired borrowers")
        self._leases = gauge("leases", "Live leases", "kind", "state")
        self._events = counter("lease_events", "What happened to leases", "kind", "event")
        self._refusals = counter("refusals", "Requests that were refused, by the class of the error", "error")
        self._restarts = counter("server_restarts", "Lease servers that ended and were started again")
        self._grant = Histogram(
            "vmcoal_lender_grant_seconds",
            "From a request until its bytes are reserved and served",
            ("lender", "kind", "outcome"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._reclaim = Histogram(
            "vmcoal_lender_reclaim_seconds",
            "From the end of a lease until what it held is free again",
            ("lender", "kind"),
            buckets=_SECONDS,
            registry=self.registry,
        )

    def event(self, kind: ResourceKind, event: str) -> None:
        """Count an event of a lease (`vmcoal.model.lease.LeaseEvent`)."""
        self._events.labels(self._lender, kind.value, event).inc()

    def refused(self, error: str) -> None:
        """Count a refused request by the class of its error."""
        self._refusals.labels(self._lender, error).inc()

    def restarted(self) -> None:
        """Count a lease server that the holder started again."""
        self._restarts.labels(self._lender).inc()

    def granted(self, kind: ResourceKind, seconds: float, outcome: str) -> None:
        """Record how long a grant took; ``outcome`` is ``ok`` or the class of the error."""
        self._grant.labels(self._lender, kind.value, outcome).observe(seconds)

    def reclaimed(self, kind: ResourceKind, seconds: float) -> None:
        """Record how long it took to give back what an ended lease held."""
        self._reclaim.labels(self._lender, kind.value).observe(seconds)

    def exposition(
        self,
        offer: Offer,
        leases: Iterable[Lease],
        *,
        resident: int,
        sessions: int,
        borrowers: int,
        degraded: int,
    ) -> str:
        """Return all metrics in Prometheus' text format."""
        values: Mapping[Gauge, int] = {
            self._memory: offer.memory_total,
            self._memory_free: offer.memory_free,
            self._resident: resident,
            self._cpus: offer.cpus_total,
            self._cpus_free: offer.cpus_free,
            self._gpus: offer.gpus_total,
            self._gpus_free: offer.gpus_free,
            self._cordoned: int(offer.cordoned),
            self._degraded: degraded,
            self._sessions: sessions,
            self._borrowers: borrowers,
        }
        for gauge, value in values.items():
            gauge.labels(self._lender).set(value)
        counts = {(kind, state): 0 for kind in ResourceKind for state in LeaseState if state not in TERMINAL}
        for lease in leases:
            counts[lease.kind, lease.state] = counts.get((lease.kind, lease.state), 0) + 1
        for (kind, state), count in counts.items():
            self._leases.labels(self._lender, kind.value, state.value).set(count)
        return generate_latest(self.registry).decode()
