"""The lender's small parts: addresses, capacity, cgroups, metrics."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vmcoal.errors import PrerequisiteError, UsageError
from vmcoal.fabric.identity import DEFAULT_PORT
from vmcoal.host.facts import Host
from vmcoal.lending import cgroup
from vmcoal.lending.__main__ import parse_listen, parse_ports
from vmcoal.lending.capacity import HEADROOM, check_capacity
from vmcoal.lending.entry import Capacity
from vmcoal.metrics.lender import LenderMetrics
from vmcoal.model.lease import Lease, LeaseState, Offer, ResourceKind
from vmcoal.model.units import GIB, MIB

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("*", ("", DEFAULT_PORT)),
        ("*:7", ("", 7)),
        (":7", ("", 7)),
        ("10.0.0.1", ("10.0.0.1", DEFAULT_PORT)),
        ("den.example:0", ("den.example", 0)),
        ("[::1]:7", ("::1", 7)),
        ("[::1]", ("::1", DEFAULT_PORT)),
        ("::1", ("::1", DEFAULT_PORT)),
    ],
)
def test_listen_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "text",
    ["a:b", "a:70000", "[::1", "[::1]7", "a b:1", "a:", "a:-1", "a:²", "a:" + "1" * 5000, "a..b:1", "\0:1", "x" * 99],
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        parse_listen(text)


def test_data_ports() -> None:
    assert parse_ports("6181-6199") == (6181, 6199)
    for text in ("", "1", "2-1", "0-5", "1-70000", "a-b", "²-5", "1-" + "1" * 5000):
        with pytest.raises(UsageError):
            parse_ports(text)


class Small(Host):
    """A host with 1 GiB of memory above the headroom and 2 GiB of tmpfs."""

    kind = "tmpfs"

    def file_system(self, folder: Path) -> str:
        return self.kind

    def memory_available(self) -> int:
        return GIB + HEADROOM

    def free(self, folder: Path) -> int:
        return 2 * GIB


def test_capacity_that_is_there() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert check_capacity(Capacity(cpus, GIB + 5), reserved=10, host=Small()) == Capacity(cpus, GIB)
    assert check_capacity(Capacity(1, 0), reserved=0, host=Small()) == Capacity(1, 0)
    lent = check_capacity(Capacity(0, GIB + 512 * MIB), reserved=512 * MIB, host=Small())
    assert lent.memory == GIB + 512 * MIB, "what is lent already is not free, and not missing either"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Capacity(0, GIB + 2 * MIB), "1 GiB of free memory, 256 MiB kept"),
        (Capacity(100_000, 0), "CPUs cannot be lent"),
    ],
)
def test_capacity_that_is_not_there(wanted: Capacity, words: str) -> None:
    with pytest.raises(PrerequisiteError, match=words):
        check_capacity(wanted, reserved=0, host=Small())


@pytest.mark.parametrize("wanted", [Capacity(0, 0), Capacity(-1, GIB), Capacity(1, -1), Capacity(0, MIB)])
def test_capacity_that_makes_no_sense(wanted: Capacity) -> None:
    with pytest.raises(UsageError):
        check_capacity(wanted, reserved=0, host=Small())


def test_lent_bytes_need_a_tmpfs() -> None:
    host = Small()
    host.kind = "ext4"
    with pytest.raises(PrerequisiteError, match="ext4"):
        check_capacity(Capacity(0, GIB), reserved=0, host=host)


def fake_proc(folder: Path, groups: str, mounts: str) -> Path:
    (folder / "proc").mkdir()
    (folder / "proc" / "cgroup").write_text(groups)
    (folder / "proc" / "mountinfo").write_text(mounts)
    return folder / "proc"


def test_groups_below_our_own_on_v2(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "0::/user.slice/app\n", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    own = tmp_path / "sys/fs/cgroup/user.slice/app"
    own.mkdir(parents=True)
    parent = cgroup.parent_group("den", proc=proc, root=tmp_path)
    assert parent == own / "vmcoal-lend-den"
    (parent / "m1").mkdir()
    for knob in ("memory.max", "pids.max"):
        (parent / "m1" / knob).write_text("max")
    group = cgroup.lease_group(parent, "m1", GIB)
    assert group == parent / "m1"
    assert (group / "memory.max").read_text() == str(GIB + cgroup.SLACK)
    assert (group / "pids.max").read_text() == str(cgroup.TASKS)
    assert cgroup.lease_group(parent, "m2", GIB) == parent / "m2"
    cgroup.remove_group(parent / "m2")
    cgroup.remove_group(parent / "m2")
    assert not (parent / "m2").exists()


def test_groups_of_v1s_memory_controller_come_first(tmp_path: Path) -> None:
    proc = fake_proc(
        tmp_path,
        "4:memory:/box/1\n0::/\n",
        "30 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "31 1 0:27 /box /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n",
    )
    (tmp_path / "sys/fs/cgroup/memory/1").mkdir(parents=True)
    expected = tmp_path / "sys/fs/cgroup/memory/1/vmcoal-lend-den"
    assert cgroup.parent_group("den", proc=proc, root=tmp_path) == expected


def test_no_group_where_none_can_be_made(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path, "0::/gone\n", "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    assert cgroup.parent_group("den", proc=proc, root=tmp_path) is None
    assert cgroup.parent_group("den", proc=tmp_path / "nothing", root=tmp_path) is None


def test_metrics_of_a_lender() -> None:
    metrics = LenderMetrics("den")
    lease = Lease("m1", ResourceKind.MEMORY, GIB, GIB, LeaseState.ACTIVE, 1, "den", "ann", "dev")
    metrics.event(ResourceKind.MEMORY, "grant")
    metrics.granted(ResourceKind.MEMORY, 0.1, "ok")
    metrics.reclaimed(ResourceKind.MEMORY, 0.1)
    metrics.refused("RefusedError")
    metrics.restarted()
    offer = Offer("den", 1, 2, GIB, 2 * GIB, cordoned=True)

    def read(leases: list[Lease]) -> dict[tuple[str, str], float]:
        text = metrics.exposition(offer, leases, resident=5, sessions=1, borrowers=2, degraded=0)
        return {
            (sample.name, sample.labels.get("state", "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("kind", "memory") == "memory"
        }

    seen = read([lease])
    assert seen["vmcoal_lender_memory_bytes", ""] == 2 * GIB
    assert seen["vmcoal_lender_memory_resident_bytes", ""] == 5
    assert seen["vmcoal_lender_cordoned", ""] == 1
    assert seen["vmcoal_lender_leases", "active"] == 1
    assert read([])["vmcoal_lender_leases", "active"] == 0, "a lease that ended leaves no trace in the gauge"
