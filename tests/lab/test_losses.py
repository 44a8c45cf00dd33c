"""What happens when a link, a lender or a process of vmcoal goes while a guest uses memory of another host."""

from __future__ import annotations

import os
import random
import signal

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
    lab.link(host, "200ms,50ms")


def freeze(lab: Lab, host: str, number: signal.Signals = signal.SIGSTOP) -> None:
    """Stop a host in the middle of whatever it does, or let it go on."""
    os.kill(lab.scene.pid(f"guest=lab-{host},"), number)


def anew(lab: Lab, host: str) -> None:
    """Start a host again that was killed, with a lender that knows nothing of before."""
    lab.run("up")
    lab.vmcoal(BORROWER, "detach", GUEST, "--all", "--force", code=None)
    lab.vmcoal(BORROWER, "unpair", host)
    lab.lend(host)
    lab.pair(host)


def mended(lab: Lab, host: str) -> None:
    """Mend the link of a lender, and detach what it and others lent."""
    lab.link(host, "lan")
    lab.wait(lambda: not lab.guest().degraded, "all being well")
    lab.detach("--all")


def thawed(lab: Lab, host: str) -> None:
    """Let a host go on, and detach what it and others lent."""
    freeze(lab, host, signal.SIGCONT)
    mended(lab, host)


LOSSES = {
    "cut off": (Lab.cut, mended),
    "slow": (slow, mended),
    "stopped": (freeze, thawed),
    "killed": (lambda lab, host: lab.run("kill", host), anew),
}


@pytest.mark.parametrize("how", list(LOSSES))
def test_one_of_two_lenders_is_lost(lab: Lab, how: str) -> None:
    options = ("--from", "host2", "--replica-on", "host3", "--memory", f"{SIZE}M", "--cache", "8M")
    result = lab.attach(*options)
    program = lab.hold(result.attachment.node, 16)
    lose, mend = LOSSES[how]
    lose(lab, "host2")
    assert program.wrong_pages() == 0
    program.end()
    assert lab.guest().state == "running"
    mend(lab, "host2")
    lab.wait(lambda: not lab.guest().attachments, "nothing being attached")


def test_a_lost_copy_is_made_anew_elsewhere(lab: Lab) -> None:
    """One place is a file of the borrower's; when the other one's grace is over, the third host takes its part."""
    options = ("--from", "host2", "--replica-on", "local", "--memory", f"{SIZE}M", "--cache", "8M")
    program = lab.hold(lab.attach(*options).attachment.node, 16)
    lab.cut("host2")
    lab.wait(lambda: lab.lender("host3").leases, "a copy on the third host", 600)
    lab.wait(lambda: not any("host2" in line for line in lab.guest().degraded), "the first lender being given up", 600)
    assert program.wrong_pages() == 0
    program.end()
    lab.link("host2", "lan")
    lab.wait(lambda: not lab.lender("host2").leases, "the first lender taking its memory back", 600)
    lab.detach("--all")
    lab.wait(lambda: not lab.guest().attachments, "nothing being attached")


# What touches a page that nobody gives: Debian 12's kernel is too old for a pause


def test_what_the_kernel_cannot_do_is_refused(lab: Lab) -> None:
    if lab.flavor != "12":
        pytest.skip("Linux has what pause needs here")
    refused = lab.vmcoal(BORROWER, "attach", GUEST, "--from", "host2", "--memory", "128M", "--on-loss", "pause", code=3)
    assert "pause needs Linux 6.2" in refused.err
    assert lab.guest().attachments == ()


@pytest.fixture
def newer(lab: Lab) -> Lab:
    if lab.flavor == "12":
        pytest.skip("Linux 6.1 cannot do it: run with --lab-flavor 13")
    return lab


def test_a_vm_pauses_until_its_memory_is_back(newer: Lab) -> None:
    lab = newer
    options = ("--from", "host2", "--memory", f"{SIZE}M", "--cache", "8M", "--on-loss", "pause")
    program = lab.hold(lab.attach(*options).attachment.node, 16)
    lab.cut("host2")
    program.ask()
    lab.wait(lambda: lab.guest().state == "paused", "the VM being paused", 300)
    assert any("goes on by itself" in line for line in lab.guest().degraded)
    lab.link("host2", "lan")
    lab.wait(lambda: lab.guest().state == "running", "the VM going on", 300)
    assert program.told() == 0
    program.end()
    lab.vmcoal(BORROWER, "tune", GUEST, "--on-loss", "stall")
    lab.detach("--from", "host2")


# Processes and hosts that die

VICTIMS = {
    "controller": (BORROWER, "vmcoal.controller"),
    "pager": (BORROWER, "vmcoal-pager"),
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
    program = lab.hold_detached(result.attachment.node)
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
    # One that was dead when the attach was undone is told as soon as it answers again.
    lab.wait(lambda: not lab.lender("host2").leases, "the lender having everything back")


def test_a_lender_whose_power_is_cut(lab: Lab) -> None:
    lab.attach("--from", "host2", "--memory", f"{SIZE}M")
    lab.run("kill", "host2")
    lab.wait(lambda: any("host2" in line for line in lab.guest().degraded), "the VM being degraded")
    assert lab.exec("echo", "alive").strip() == "alive"
    anew(lab, "host2")
    lab.wait(lambda: not lab.guest().attachments, "nothing being attached")
