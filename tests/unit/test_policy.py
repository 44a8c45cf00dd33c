"""Distances, placement and admission: pure functions, with the paper's table 1 as a test."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcoal.errors import ConflictError, RefusedError, UsageError
from vmcoal.model.lease import Offer, ResourceKind
from vmcoal.model.link import LinkSample
from vmcoal.model.machine import Accel, FarNode, KernelBoot, MachineSpec
from vmcoal.model.units import GIB, MIB
from vmcoal.policy.admission import admit
from vmcoal.policy.distance import default_tiers, distance, latency, link_distance, slit, summarize
from vmcoal.policy.placement import check_headroom, choose_node, free_cores, pick_dimms

pytestmark = pytest.mark.unit

# One-way latencies of table 1 of "Coalescent Computing" and the range its distance must fall into.
TABLE_1 = [
    ("cross-core coherence", 100e-9, 10, 20),
    ("cross-socket (QPI)", 355e-9, 20, 30),
    ("PCIe Gen 3", 900e-9, 30, 60),
    ("InfiniBand, one-sided", 1e-6, 30, 60),
    ("LAN, fast", 10e-6, 80, 115),
    ("LAN, slow", 100e-6, 80, 115),
    ("5G URLLC", 1e-3, 140, 155),
    ("Wi-Fi 6E", 2e-3, 155, 165),
    ("5G, first hop", 14e-3, 180, 195),
    ("typical Wi-Fi, 90th percentile", 20e-3, 190, 200),
]


@pytest.mark.parametrize(("name", "seconds", "low", "high"), TABLE_1)
def test_table_1(name: str, seconds: float, low: int, high: int) -> None:
    assert low <= distance(seconds) <= high, name


@given(st.floats(1e-12, 1e4), st.floats(1e-12, 1e4))
def test_order_is_kept(a: float, b: float) -> None:
    assert 11 <= distance(a) <= 254
    if a <= b:
        assert distance(a) <= distance(b)


@given(st.integers(12, 253))
def test_latency_is_the_inverse(value: int) -> None:
    assert distance(latency(value)) == value


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_no_latency_no_distance(bad: float) -> None:
    with pytest.raises(ValueError, match="latency"):
        distance(bad)


@given(st.integers(0, 128))
def test_tiers_ascend(count: int) -> None:
    tiers = default_tiers(count)
    assert len(tiers) == count
    assert list(tiers) == sorted(tiers)
    assert all(11 <= tier <= 254 for tier in tiers)


@given(st.lists(st.integers(11, 254), max_size=8))
def test_slit_is_an_ultrametric(far: list[int]) -> None:
    matrix = slit([10, *far])
    nodes = range(len(matrix))
    for i in nodes:
        assert matrix[i][i] == 10
        for j in nodes:
            assert matrix[i][j] == matrix[j][i]
            for k in nodes:
                assert matrix[i][k] <= max(matrix[i][j], matrix[j][k])


@given(st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=50), st.floats(1e-6, 1.0))
def test_the_estimate_never_exceeds_what_was_seen(pings: list[float], kernel: float) -> None:
    link = summarize(LinkSample(tuple(pings), kernel))
    assert 0 < link.rtt <= link.p50 <= link.p99 <= max(pings)
    assert 11 <= link_distance(link) <= 254


def test_software_overhead_is_taken_out_and_jitter_kept() -> None:
    quiet = summarize(LinkSample((0.0005, 0.0005, 0.0005), 0.00003))
    assert quiet.rtt == pytest.approx(0.00003)
    jittery = summarize(LinkSample((0.0025, 0.0035, 0.0205), 0.002))
    assert jittery.rtt == pytest.approx(0.003)
    busy = summarize(LinkSample((0.0005, 0.0040, 0.0090), 0.00003))
    assert busy.rtt == pytest.approx(0.00006)


def spec(far: int = 4) -> MachineSpec:
    nodes = tuple(
        FarNode(node=n, cpus=2, memory=GIB, distance=d, bus_nr=32 * n)
        for n, d in enumerate(default_tiers(far), start=1)
    )
    return MachineSpec(name="t", uuid="u", accel=Accel.TCG, memory=GIB, far_nodes=nodes, boot=KernelBoot("/k"))


def test_a_lender_gets_the_tier_that_fits_and_keeps_it() -> None:
    machine = spec()
    near = choose_node(machine, {}, "near", distance(15e-6), None)
    slow = choose_node(machine, {near.node: "near"}, "slow", distance(10e-3), None)
    assert near.distance < slow.distance
    assert choose_node(machine, {near.node: "near"}, "near", 250, None) == near


def test_nodes_that_cannot_be_had() -> None:
    machine = spec(1)
    with pytest.raises(ConflictError, match="all 1 far nodes"):
        choose_node(machine, {1: "a"}, "b", 90, None)
    with pytest.raises(ConflictError, match="bound to a"):
        choose_node(machine, {1: "a"}, "b", 90, 1)
    with pytest.raises(UsageError, match="no far node 7"):
        choose_node(machine, {}, "b", 90, 7)
    with pytest.raises(ConflictError, match="already"):
        choose_node(spec(2), {1: "a"}, "a", 90, 2)


def test_slots_and_headroom() -> None:
    far = spec().far_nodes[0]
    assert free_cores(far, {0}, 1) == [1]
    with pytest.raises(ConflictError, match="1 of 2 vCPU slots"):
        free_cores(far, {0}, 2)
    check_headroom(far, 0, GIB)
    with pytest.raises(ConflictError, match="headroom"):
        check_headroom(far, MIB, GIB)


@given(st.lists(st.sampled_from([128, 256, 512]), max_size=6), st.integers(1, 3072))
def test_dimms_leave_whole(sizes: list[int], amount: int) -> None:
    dimms = {f"d{i}": size for i, size in enumerate(sizes)}
    try:
        chosen = pick_dimms(dimms, amount)
    except UsageError:
        return
    assert sum(dimms[device] for device in chosen) == amount
    assert len(set(chosen)) == len(chosen)


OFFER = Offer(lender="l", cpus_free=2, cpus_total=4, memory_free=GIB, memory_total=2 * GIB)
ALL = frozenset(ResourceKind)


def test_admission_grants() -> None:
    admit(OFFER, ALL, ResourceKind.MEMORY, GIB, GIB, False)
    admit(OFFER, ALL, ResourceKind.MEMORY, 4 * GIB, 0, False)
    admit(OFFER, ALL, ResourceKind.CPU, 2, 2, True)


@pytest.mark.parametrize(
    ("kind", "amount", "committed", "same_host", "grants", "says"),
    [
        (ResourceKind.MEMORY, 2 * GIB, 2 * GIB, True, ALL, "free"),
        (ResourceKind.MEMORY, GIB + 1, GIB, True, ALL, "multiples"),
        (ResourceKind.MEMORY, GIB, 2 * GIB, True, ALL, "multiples"),
        (ResourceKind.MEMORY, GIB, GIB, True, {ResourceKind.CPU}, "does not lend memory"),
        (ResourceKind.CPU, 3, 3, True, ALL, "2 of 4 CPUs"),
        (ResourceKind.CPU, 1, 1, False, ALL, "engine local"),
        (ResourceKind.CPU, 0, 0, True, ALL, "whole"),
        (ResourceKind.GPU, 1, 1, True, ALL, "no GPU"),
    ],
)
def test_admission_refuses(
    kind: ResourceKind, amount: int, committed: int, same_host: bool, grants: frozenset[ResourceKind], says: str
) -> None:
    with pytest.raises(RefusedError, match=says):
        admit(OFFER, grants, kind, amount, committed, same_host)


def test_a_cordoned_lender_grants_nothing() -> None:
    offer = Offer(lender="l", cpus_free=1, cpus_total=1, memory_free=GIB, memory_total=GIB, cordoned=True)
    with pytest.raises(RefusedError, match="cordoned"):
        admit(offer, ALL, ResourceKind.CPU, 1, 1, True)
