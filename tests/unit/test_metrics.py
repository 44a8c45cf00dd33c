"""docs/metrics.md names exactly the metrics that exist, with their types and labels."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from vmcoal.errors import ConflictError, PrerequisiteError, UsageError, VmcoalError
from vmcoal.metrics.controller import ControllerMetrics
from vmcoal.metrics.gpu import SERIES as GPU_SERIES
from vmcoal.metrics.gpu import GpuCollector
from vmcoal.metrics.http import check_address, parse_address
from vmcoal.metrics.lender import LenderMetrics
from vmcoal.metrics.paging import SERIES, PagingCollector, Series
from vmcoal.model.activity import GpuActivity, PagingActivity, StoreActivity, percentile
from vmcoal.model.attachment import (
    AttachedCpu,
    AttachedMemory,
    Attachment,
    AttachmentState,
    AttachRequest,
    MemoryStyle,
)
from vmcoal.model.engine import EngineChoice, MemoryEngineName
from vmcoal.model.lease import LeaseState
from vmcoal.model.link import Link
from vmcoal.model.machine import Accel, CpuMode, Engine
from vmcoal.model.paging import PagedRegion
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
        if isinstance(collector, PagingCollector | GpuCollector):
            continue
        name, kind = collector._name, collector._type  # type: ignore[attr-defined]
        labels = frozenset(collector._labelnames) - common  # type: ignore[attr-defined]
        found[f"{name}_total" if kind == "counter" else name] = (kind, labels)
    return found


def test_the_controllers_metrics_are_documented() -> None:
    assert existing(ControllerMetrics("web").registry, frozenset({"vm"})) == documented("Controller")


@pytest.mark.parametrize(("all_series", "section"), [(SERIES, "Page engine"), (GPU_SERIES, "GPUs")])
def test_what_others_count_is_documented(all_series: tuple[Series, ...], section: str) -> None:
    found = {
        f"{series.name}_total" if series.kind == "counter" else series.name: (series.kind, frozenset(series.labels))
        for series in all_series
    }
    assert found == documented(section)


def test_attached_gpus_are_exposed() -> None:
    seen = GpuActivity(
        lease="g1", lender="attic", name="card", bytes_out=5, bytes_in=7, calls=3, failed=1, busy=2.0, attached=8.0,
        latency=(0, 2, 1),
    )  # fmt: skip
    assert seen.utilization == 0.25
    text = ControllerMetrics("web").exposition(msgspec.structs.replace(STATUS, gpus=(seen,)))
    samples = {
        (sample.name, sample.labels.get("outcome") or sample.labels.get("direction") or sample.labels.get("le")): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("lease") == "g1"
    }
    assert samples["vmcoal_gpu_calls_total", "ok"] == 2
    assert samples["vmcoal_gpu_calls_total", "failed"] == 1
    assert samples["vmcoal_gpu_bytes_total", "in"] == 7
    assert samples["vmcoal_gpu_bytes_total", "out"] == 5
    assert samples["vmcoal_gpu_busy_seconds_total", None] == 2
    assert samples["vmcoal_gpu_call_seconds_count", None] == 3
    assert samples["vmcoal_gpu_call_seconds_bucket", "2e-06"] == 2


def test_the_rules_use_metrics_that_exist() -> None:
    rules = (DOC.parent.parent / "configs" / "prometheus-rules.yml").read_text()
    known = documented("Page engine") | documented("Controller") | documented("Lender")
    names = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bvmcoal_[a-z_]+", rules)}
    assert names
    assert names <= known.keys()


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


PAGING = PagingActivity(
    cache=64 << 20,
    used=32 << 20,
    faults=10,
    found=4,
    standby=2,
    missed=3,
    fetched=5 << 12,
    prefetched=2 << 12,
    prefetch_used=1 << 12,
    regions={"m1": PagedRegion(size=512 << 20, here=32 << 20, away=100 << 20, lost=4096, waiting=3)},
    stores=(
        StoreActivity(
            region="m1",
            number=0,
            lender="attic",
            connected=True,
            bytes_in=20480,
            plain_in=40960,
            latency=(0, 0, 3, 0, 1),
        ),
        StoreActivity(region="m1", number=1, lender="barn", behind=8192, bytes_out=4096),
    ),
)


def test_what_the_page_engine_does() -> None:
    metrics = ControllerMetrics("web")
    assert "vmcoal_paging" not in metrics.exposition(STATUS)
    engine = EngineChoice(name=MemoryEngineName.PAGER, reason="it can")
    text = metrics.exposition(msgspec.structs.replace(STATUS, paging=PAGING, memory_engine=engine))
    samples = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return samples[f"vmcoal_{name}", frozenset({"vm": "web", **labels}.items())]

    attic = {"lender": "attic", "region": "m1"}
    assert value("memory_engine", engine="pager") == 1
    assert value("paging_cache_bytes") == 64 << 20
    assert value("paging_memory_bytes", where="away") == 100 << 20
    assert value("paging_memory_bytes", where="lost") == 4096
    assert value("paging_waiting_pages") == 3
    assert [value("paging_faults_total", outcome=how) for how in ("found", "fetched", "zero")] == [4, 3, 3]
    assert value("paging_standby_faults_total") == 2
    assert value("paging_fetched_bytes_total", by="fault") == 3 << 12
    assert value("paging_prefetch_judged_bytes_total", outcome="used") == 1 << 12
    assert (value("paging_copy_up", **attic), value("paging_copy_up", lender="barn", region="m1")) == (1, 0)
    assert value("paging_copy_behind_bytes", lender="barn", region="m1") == 8192
    assert value("paging_copy_bytes_total", direction="in", **attic) == 20480
    assert value("paging_copy_page_bytes_total", direction="in", **attic) == 40960
    assert value("paging_fetch_seconds_bucket", le="2e-06", **attic) == 0
    assert value("paging_fetch_seconds_bucket", le="4e-06", **attic) == 3
    assert value("paging_fetch_seconds_bucket", le="+Inf", **attic) == 4
    assert value("paging_fetch_seconds_count", **attic) == 4
    assert value("paging_fetch_seconds_sum", **attic) == pytest.approx(3 * 3e-6 + 12e-6)


def test_percentiles_are_upper_bounds() -> None:
    assert percentile((), 0.5) is None
    assert percentile((0, 0, 3, 0, 1), 0.5) == pytest.approx(4e-6)
    assert percentile((0, 0, 3, 0, 1), 0.99) == pytest.approx(16e-6)


def test_what_is_gone_is_no_longer_exposed() -> None:
    metrics = ControllerMetrics("web")
    metrics.exposition(STATUS)
    assert "attic" not in metrics.exposition(msgspec.structs.replace(STATUS, attachments=()))


@pytest.mark.parametrize(
    "text", ["", "9464", "host:", "host:x", "host:70000", "host:١", "host:" + "1" * 5000, "\0:1", "a..b:1"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("127.0.0.1:0", UsageError, "names no port"),
        ("192.0.2.1:9464", PrerequisiteError, "192.0.2.1 is no address of this host"),
        ("*:9464", PrerequisiteError, "no name that can be resolved"),
        ("[fe80::1]:9464", PrerequisiteError, "belongs to an interface"),
    ],
)
def test_addresses_that_cannot_be_had(address: str, error: type[VmcoalError], said: str) -> None:
    with pytest.raises(error, match=said.replace("*", ".")) as caught:
        check_address(address)
    assert caught.value.hint


def test_an_address_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(ConflictError, match="taken"):
        check_address(f"127.0.0.1:{other.getsockname()[1]}")


def test_addresses() -> None:
    assert parse_address("[::1]:9464") == ("::1", 9464)
    assert parse_address("127.0.0.1:0") == ("127.0.0.1", 0)
