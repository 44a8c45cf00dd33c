"""The controller's metrics. Their names are documented in docs/metrics.md and checked by a test."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vmcoal.metrics.gpu import GpuCollector
from vmcoal.metrics.paging import PagingCollector
from vmcoal.model.attachment import AttachRequest
from vmcoal.model.status import VmStatus

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class ControllerMetrics:
    """The registry of one VM; gauges are set from a `VmStatus` when it is asked for."""

    def __init__(self, vm: str) -> None:
        self.registry = CollectorRegistry()
        self._vm = vm

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"vmcoal_{name}", text, ("vm", *labels), registry=self.registry)

        self._up = gauge("vm_up", "1 while QEMU runs")
        self._agent = gauge("vm_agent_up", "1 while an agent answers in the guest", "agent")
        self._degraded = gauge("vm_degraded", "Number of things that are degraded")
        self._leases = gauge("leases", "Leases held", "lender", "kind", "state")
        self._memory = gauge("borrowed_memory_bytes", "Borrowed memory the guest was given", "lender", "engine")
        self._cpus = gauge("borrowed_cpus", "Borrowed vCPUs the guest was given", "lender", "engine")
        self._rtt = gauge("link_rtt_seconds", "Estimated round trip of the link at its last measurement", "lender")
        self._distance = gauge("node_distance", "SLIT distance of the far node a lender is bound to", "lender", "node")
        self._engine = gauge("memory_engine", "1 for the engine that borrowed memory comes through", "engine")
        self._paging = PagingCollector(vm)
        self._gpus = GpuCollector(vm)
        self.registry.register(self._paging)
        self.registry.register(self._gpus)
        self._plug = Histogram(
            "vmcoal_plug_seconds",
            "From the first QMP command until the guest uses it",
            ("vm", "kind", "outcome"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._unplug = Histogram(
            "vmcoal_unplug_seconds",
            "From the drain until the unplug is confirmed",
            ("vm", "kind", "outcome"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._steps = Histogram(
            "vmcoal_attach_step_seconds",
            "Each step of an attach",
            ("vm", "step"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._operations = Counter(
            "vmcoal_operations",
            "Operations by kind and outcome",
            ("vm", "operation", "outcome"),
            registry=self.registry,
        )

    def plugged(self, kind: str, seconds: float, outcome: str = "ok") -> None:
        """Record one plug."""
        self._plug.labels(self._vm, kind, outcome).observe(seconds)

    def unplugged(self, kind: str, outcome: str, seconds: float) -> None:
        """Record one unplug."""
        self._unplug.labels(self._vm, kind, outcome).observe(seconds)

    def attached(self, request: AttachRequest, seconds: dict[str, float]) -> None:
        """Record the steps of one attach."""
        for step, value in seconds.items():
            self._steps.labels(self._vm, step).observe(value)

    def operation(self, kind: str, outcome: str) -> None:
        """Count one operation; ``outcome`` is ok or the class of the error."""
        self._operations.labels(self._vm, kind, outcome).inc()

    def exposition(self, status: VmStatus) -> str:
        """Return the Prometheus text exposition with gauges set from ``status``."""
        vm = self._vm
        self._up.labels(vm).set(status.state in ("running", "paused"))
        self._degraded.labels(vm).set(len(status.degraded))
        self._paging.activity = status.paging
        self._gpus.activities = status.gpus
        for family in (self._engine, self._agent, self._leases, self._memory, self._cpus, self._rtt, self._distance):
            family.clear()
        self._agent.labels(vm, status.agent).set(status.agent != "none")
        if status.memory_engine is not None:
            self._engine.labels(vm, status.memory_engine.name).set(1)
        for found in status.attachments:
            if found.link:
                self._rtt.labels(vm, found.lender).set(found.link.rtt)
            self._distance.labels(vm, found.lender, str(found.node)).set(found.distance)
            for memory in found.memory:
                if not memory.copy:
                    self._memory.labels(vm, found.lender, memory.engine).inc(memory.size)
                self._leases.labels(vm, found.lender, "memory", memory.lease_state).inc()
            for cpu in found.cpus:
                self._cpus.labels(vm, found.lender, cpu.engine).inc()
            for _lease, state in sorted({(cpu.lease, cpu.lease_state) for cpu in found.cpus}):
                self._leases.labels(vm, found.lender, "cpu", state).inc()
        return generate_latest(self.registry).decode()
