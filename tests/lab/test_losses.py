"""What happens when a link, a lender or a process of vmcoal goes while a guest uses memory of another host."""

from __future__ import annotations

import random

import pytest

from framework.labs import BORROWER, GUEST, Lab
from vmcoal.lending.api import ReclaimResult

pytestmark = [pytest.mark.lab, pytest.mark.soak, pytest.mark.timeout(1200)]

SIZE = 128


# Links that go


def lease_states(lab: Lab) -> set[str]:
    return {memory.lease_state.value for at in lab.guest().attachments for memory in at.memory}


def test_a_link_that_is_gone_for_a_while(lab: Lab) -> None:
    result = lab.attach("--from", "host2", "--memory", f"{SIZE}M")
    node = result.attachment.node
    program = lab.hold(node)
    (lease,) = (memory.lease for memory in result.attachment.memory)
    lab.cut("host2")
    lab.wait(lambda: lease_states(lab) == {"unreachable"}, "the lease being unreachable")
    lab.wait(
        lambda: any("host2 has been unreachable" in line for line in lab.guest().degraded), "the VM being degraded"
    )
    assert lab.guest().state == "running"
    assert lab.exec("echo", "alive").strip() == "alive"
    lab.link("host2", "lan")
    lab.wait(lambda: lease_states(lab) == {"active"}, "the lease being active again")
    assert program.wrong_pages() == 0
    program.end()
    assert [memory.lease for at in lab.guest().attachments for memory in at.memory] == [lease]
    lab.detach("--from", "host2")


def test_a_link_that_is_gone_for_longer_than_the_grace(lab: Lab) -> None:
    lab.attach("--from", "host2", "--memory", f"{SIZE}M")
    lab.cut("host2")
    lab.wait(lambda: not lab.lender("host2").leases, "the lender taking it back", 900)
    assert lab.guest().state == "running"
    lab.link("host2", "lan")
    lab.vmcoal(BORROWER, "detach", GUEST, "--from", "host2", "--force", code=None)
    lab.wait(lambda: not lab.guest().attachments, "nothing being attached")


def test_a_lender_is_drained_over_a_slow_link(lab: Lab) -> None:
    lab.link("host3", "wifi")
    result = lab.attach("--from", "host3", "--memory", f"{SIZE}M")
    program = lab.hold(result.attachment.node)
    drained = lab.json("host3", ReclaimResult, "drain", "--deadline", "240s")
    assert (len(drained.released), drained.taken) == (1, ())
    assert program.wrong_pages() == 0
    program.end()
    assert lab.guest().attachments == ()
    lab.vmcoal("host3", "uncordon")
    lab.link("host3", "lan")


# Two places for every page


def slow(lab: Lab, host: str) -> None:
    """Make the link as slow as a bad Wi-Fi is one time in a hundred."""
    lab.link(host, "500ms,100ms")


LOSSES = {"cut off": Lab.cut, "slow": slow, "killed": lambda lab, host: lab.run("kill", host)}


@pytest.mark.parametrize("how", list(LOSSES))
def test_one_of_two_lenders_is_lost(lab: Lab, how: str) -> None:
    options = ("--from", "host2", "--replica-on", "host3", "--memory", f"{SIZE}M", "--cache", "32M")
    result = lab.attach(*options)
    program = lab.hold(result.attachment.node, 48)
    LOSSES[how](lab, "host2")
    assert program.wrong_pages() == 0
    program.end()
    assert lab.guest().state == "running"
    if how == "killed":
        lab.run("up")
        lab.vmcoal(BORROWER, "detach", GUEST, "--from", "host2", "--force", code=None)
        lab.vmcoal(BORROWER, "unpair", "host2")
        lab.lend("host2")
        lab.pair("host2")
    else:
        lab.link("host2", "lan")
        lab.wait(lambda: not lab.guest().degraded, "all being well")
        lab.detach("--all")
    lab.wait(lambda: not lab.guest().attachments, "nothing being attached")


# Processes and hosts that die

VICTIMS = {
    "controller": (BORROWER, "vmcoal.controller"),
    "lender": ("host2", "vmcoal.lending"),
    "lender's holder": ("host2", "vmcoal-holder.*lend"),
    "memory server": ("host2", "exportname="),
}


def kill(lab: Lab, victim: str) -> None:
    host, words = VICTIMS[victim]
    lab.on(host, "pkill", "-KILL", "-f", words)


@pytest.mark.parametrize("victim", list(VICTIMS))
def test_what_is_killed_comes_back(lab: Lab, victim: str) -> None:
    result = lab.attach("--from", "host2", "--memory", f"{SIZE}M")
    program = lab.hold(result.attachment.node)
    kill(lab, victim)
    if victim == "lender":
        lab.lend("host2")
    lab.wait(lambda: not lab.guest().degraded and lease_states(lab) == {"active"}, "all being well")
    assert program.wrong_pages() == 0
    program.end()
    lab.detach("--from", "host2")


@pytest.mark.parametrize("seed", range(8))
def test_a_controller_or_lender_killed_in_the_middle_of_an_attach(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    victim = chance.choice(["controller", "lender"])
    step = chance.choice([b"lease", b"serve", b"plug", b"online"])
    with lab.spawn(BORROWER, "vmcoal", "attach", GUEST, "--from", "host2", "--memory", f"{SIZE}M") as attaching:
        assert attaching.stderr
        while step not in (line := attaching.stderr.readline()) and line:
            pass
        kill(lab, victim)
        attaching.communicate(timeout=300)
    if victim == "lender":
        lab.lend("host2")
    lab.wait(lambda: not (status := lab.guest()).operation and not status.degraded, "the recovery")
    if lab.guest().attachments:
        lab.detach("--all")


def test_a_lender_whose_power_is_cut(lab: Lab) -> None:
    lab.attach("--from", "host2", "--memory", f"{SIZE}M")
    lab.run("kill", "host2")
    lab.wait(lambda: any("host2" in line for line in lab.guest().degraded), "the VM being degraded")
    assert lab.exec("echo", "alive").strip() == "alive"
    lab.run("up")
    lab.vmcoal(BORROWER, "detach", GUEST, "--from", "host2", "--force", code=None)
    lab.vmcoal(BORROWER, "unpair", "host2")
    lab.lend("host2")
    lab.pair("host2")
    lab.wait(lambda: not lab.guest().attachments, "nothing being attached")
