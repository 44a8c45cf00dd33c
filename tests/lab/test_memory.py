"""Memory and vCPUs of other hosts in a guest under KVM, over links of every kind."""

from __future__ import annotations

import pytest

from framework.labs import SELF, Lab
from vmcoal.controller.api import AttachResult
from vmcoal.lab.links import PROFILES
from vmcoal.lab.tour import far_nodes
from vmcoal.model.machine import Accel, CpuMode
from vmcoal.model.units import MIB
from vmcoal.policy.distance import default_tiers, link_distance

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

SIZE = 128


def memory_of(lab: Lab, result: AttachResult) -> int:
    """Check that the guest sees the memory at its node's distance, and return the node."""
    at = result.attachment
    assert result.verified
    assert far_nodes(lab.exec("numactl", "-H")) == {at.node: at.distance}

    def told() -> bool:  # the guest's agent may be late once on a busy machine
        (node,) = (node for node in lab.guest().nodes if node.node == at.node)
        return (node.lender, node.memory_online) == (at.lender, SIZE * MIB)

    lab.wait(told, "the status telling of the memory")
    return at.node


def nearest_tier(result: AttachResult) -> int:
    """Return the distance of the free node that fits the measured link best."""
    assert result.attachment.link is not None
    measured = link_distance(result.attachment.link)
    return min(default_tiers(7), key=lambda tier: abs(tier - measured))


def test_the_guest_runs_under_kvm(lab: Lab) -> None:
    status = lab.guest()
    assert (status.accel, status.cpu_mode) == (Accel.KVM, CpuMode.HOTPLUG)
    assert "KVM" in lab.exec("lscpu")


@pytest.mark.parametrize(
    "profile", ["lan", *(pytest.param(name, marks=pytest.mark.soak) for name in ("wifi6e", "5g", "wifi"))]
)
def test_a_dimm_over_each_link(lab: Lab, profile: str) -> None:
    lab.new_link("host2", profile)
    result = lab.attach("--from", "host2", "--memory", f"{SIZE}M")
    node = memory_of(lab, result)
    assert result.attachment.link is not None
    # netem delays by what it was told at least, whatever the emulation adds
    assert result.attachment.link.rtt >= PROFILES[profile].rtt - PROFILES[profile].jitter
    assert result.attachment.distance == nearest_tier(result)
    program = lab.hold(node)
    assert program.wrong_pages() == 0
    program.end()
    gone = lab.detach("--from", "host2")
    assert (gone.memory_removed, gone.remaining) == (SIZE * MIB, ())
    assert far_nodes(lab.exec("numactl", "-H")) == {}
    lab.link("host2", "lan")


@pytest.mark.soak
def test_two_lenders_at_two_distances(lab: Lab) -> None:
    lab.new_link("host3", "wifi")
    far = lab.attach("--from", "host3", "--memory", f"{SIZE}M").attachment
    near = lab.attach("--from", "host2", "--memory", f"{SIZE}M").attachment
    assert far_nodes(lab.exec("numactl", "-H")) == {far.node: far.distance, near.node: near.distance}
    assert near.distance < far.distance
    programs = [lab.hold(at.node) for at in (near, far)]
    for program in programs:
        assert program.wrong_pages() == 0
        program.end()
    assert lab.detach("--all").memory_removed == 2 * SIZE * MIB
    lab.link("host3", "lan")


@pytest.mark.soak
def test_a_vcpu_comes_and_goes_under_kvm(lab: Lab) -> None:
    before = lab.exec("nproc").strip()
    result = lab.attach("--from", SELF, "--cpus", "1")
    assert (result.cpus_added, result.verified) == (1, True)
    assert lab.exec("nproc").strip() != before
    where = f"/sys/devices/system/node/node{result.attachment.node}/cpulist"
    assert lab.exec("sh", "-c", f"taskset -c $(cat {where}) echo runs").strip() == "runs"
    gone = lab.detach("--from", SELF)
    assert (gone.cpus_removed, gone.remaining) == (1, ())
    assert lab.exec("nproc").strip() == before
    (plugged,) = {node.cpus_plugged for node in lab.guest().nodes if node.node != 0}
    assert plugged == 0


@pytest.mark.soak
@pytest.mark.parametrize("profile", ["lan", "wifi6e", "5g", "wifi"])
def test_granular_memory_over_each_link(lab: Lab, profile: str) -> None:
    # After the others: QEMU 7.2 keeps the emptied device, and host3 its node with it, whatever its link is like then.
    lab.link("host3", profile)
    result = lab.attach("--from", "host3", "--memory", f"{SIZE}M", "--granular")
    node = memory_of(lab, result)
    program = lab.hold(node)
    assert program.wrong_pages() == 0
    program.end()
    assert lab.detach("--from", "host3").memory_removed == SIZE * MIB
    lab.link("host3", "lan")
