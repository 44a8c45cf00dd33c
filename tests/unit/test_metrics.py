"""docs/metrics.md names exactly the metrics that exist, with their types and labels."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from vmcoal.metrics.controller import ControllerMetrics
from vmcoal.metrics.http import parse_address
from vmcoal.metrics.lender import LenderMetrics
from vmcoal.model.attachment import (
    AttachedCpu,
    AttachedMemory,
    Attachment,
    AttachmentState,
    AttachRequest,
    MemoryStyle,
)
from vmcoal.model.lease import LeaseState
from vmcoal.model.link import Link
from vmcoal.model.machine import Accel, CpuMode, Engine
from vmcoal.model.status import VmStatus

pytestmark = pytest.mark.unit

DOC = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
ROW = re.compile(r"^\| `(vmcoal_[a-z_]+)` \| (gauge|counter|histogram) \| (.*?) \|", re.MULTILINE)


def documented(section: str) -> dict[str, tuple[str, frozenset[str]]]:
    text = DOC.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return {name: (kind, frozenset(re.findall(r"`([a-z_]+)`", labels))) for name, kind, labels in ROW.findall(text)}


def existing(registry: CollectorRegistry, common: frozenset[str]) -> dict[str, tuple[str, frozenset[str]]]:
    found = {}
    for collector in set(registry._collector_to_names):
        name, kind = collector._name, collector._type  # type: ignore[attr-defined]
        labels = frozenset(collector._labelnames) - common  # type: ignore[attr-defined]
        found[f"{name}_total" if kind == "counter" else name] = (kind, labels)
    return found


def test_the_controllers_metrics_are_documented() -> None:
    assert existing(ControllerMetrics("web").registry, frozenset({"vm"})) == documented("Controller")


def test_the_lenders_metrics_are_documented() -> None:
    assert existing(LenderMetrics("den").registry, frozenset({"lender"})) == documented("Lender")


STATUS = VmStatus(
    name="web",
    state="running",
    accel=Accel.TCG,
    accel_reason="",
    cpu_mode=CpuMode.PARKED,
    cpus=2,
    memory=1 << 30,
    agent="vmcoal",
    degraded=("x",),
    attachments=(
        Attachment(
            lender="attic",
            node=2,
            distance=80,
            link=Link(rtt=0.001, p50=0.002, p99=0.003, samples=5),
            memory=(
                AttachedMemory(
                    lease="m1",
                    style=MemoryStyle.DIMM,
                    size=512 << 20,
                    capacity=512 << 20,
                    engine="fuse",
                    backend="mem-m1",
                    device="dimm-m1",
                    state=AttachmentState.ATTACHED,
                    lease_state=LeaseState.ACTIVE,
                ),
            ),
            cpus=tuple(
                AttachedCpu(
                    lease="c1",
                    engine=Engine.LOCAL,
                    core=core,
                    device=None,
                    state=AttachmentState.ATTACHED,
                    lease_state=LeaseState.ACTIVE,
                )
                for core in (0, 1)
            ),
        ),
    ),
)


def test_the_exposition_says_what_the_status_says() -> None:
    metrics = ControllerMetrics("web")
    metrics.plugged("memory", 0.3)
    metrics.unplugged("cpu", "failed", 0.3)
    metrics.attached(AttachRequest(memory=1), {"lease": 0.1})
    metrics.operation("attach", "ok")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition(STATUS))
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted({"vm": "web", **labels}.items()))]

    assert value("vmcoal_vm_up") == 1
    assert value("vmcoal_vm_agent_up", agent="vmcoal") == 1
    assert value("vmcoal_vm_degraded") == 1
    assert value("vmcoal_borrowed_memory_bytes", lender="attic", engine="fuse") == 512 << 20
    assert value("vmcoal_borrowed_cpus", lender="attic", engine="local") == 2
    assert value("vmcoal_leases", lender="attic", kind="cpu", state="active") == 1
    assert value("vmcoal_link_rtt_seconds", lender="attic") == 0.001
    assert value("vmcoal_node_distance", lender="attic", node="2") == 80
    assert value("vmcoal_plug_seconds_count", kind="memory", outcome="ok") == 1
    assert value("vmcoal_unplug_seconds_count", kind="cpu", outcome="failed") == 1
    assert value("vmcoal_operations_total", operation="attach", outcome="ok") == 1


def test_what_is_gone_is_no_longer_exposed() -> None:
    metrics = ControllerMetrics("web")
    metrics.exposition(STATUS)
    import msgspec

    assert "attic" not in metrics.exposition(msgspec.structs.replace(STATUS, attachments=()))


@pytest.mark.parametrize("text", ["", "9464", "host:", "host:x", "host:70000", "host:١"])
def test_addresses_that_are_none(text: str) -> None:
    from vmcoal.errors import UsageError

    with pytest.raises(UsageError):
        parse_address(text)


def test_addresses() -> None:
    assert parse_address("[::1]:9464") == ("::1", 9464)
    assert parse_address("127.0.0.1:0") == ("127.0.0.1", 0)
