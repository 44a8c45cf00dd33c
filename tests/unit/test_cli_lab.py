"""What ``vmcoal lab`` takes and prints; the labs themselves are fake."""

from __future__ import annotations

import json
from typing import Any

import pytest

from framework.command import vmcoal
from vmcoal.errors import ExecutionError
from vmcoal.lab import lab as labs
from vmcoal.lab import tour as tours
from vmcoal.lab.lab import LabHostStatus, LabRequest, LabStatus
from vmcoal.lab.links import PROFILES, LinkProfile
from vmcoal.lab.network import LabLink
from vmcoal.lab.state import LabSpec, make_lab_folders, write_lab
from vmcoal.model.machine import Accel
from vmcoal.model.units import GIB

pytestmark = pytest.mark.unit

HOSTS = ("host1", "host2")
LINK = LabLink(a="host1", b="host2", profile=PROFILES["wifi"])
STATUS = LabStatus(
    name="lab",
    state="running",
    accel=Accel.TCG,
    accel_reason="no KVM here: there is no /dev/kvm",
    flavor="12",
    memory=2 * GIB,
    cpus=1,
    hosts=(
        LabHostStatus(name="host1", state="running", address="10.77.0.1", pid=7),
        LabHostStatus(name="host2", state="stopped", address="10.77.0.2"),
    ),
    links=(LINK,),
)


@pytest.fixture
def exists() -> None:
    """Let lab ``lab`` be there."""
    make_lab_folders("lab")
    write_lab(
        LabSpec(
            name="lab",
            hosts=HOSTS,
            links=(LINK,),
            memory=2 * GIB,
            cpus=1,
            flavor="12",
            iommu=False,
            qemu="qemu-system-x86_64",
            accel=Accel.TCG,
            accel_reason="why",
            created="2026-01-01T00:00:00+00:00",
            complete=True,
        )
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return what the lab is asked for."""
    seen: list[Any] = []

    def up(request: LabRequest, report: labs.Report) -> LabStatus:
        seen.append(request)
        report(1, "check this machine", None, None)
        return STATUS

    async def status(_name: str) -> LabStatus:
        return STATUS

    async def link(*arguments: Any, **options: Any) -> LabLink:
        seen.append((*arguments, options))
        return LINK

    async def down(name: str) -> list[str]:
        seen.append(name)
        return ["host1"]

    async def kill(name: str, host: str) -> None:
        seen.append((name, host))

    for name, fake in (("up", up), ("status", status), ("link", link), ("down", down), ("kill", kill)):
        monkeypatch.setattr(labs, f"lab_{name}", fake)
    return seen


def test_up_passes_on_what_is_asked(asked: list[Any]) -> None:
    done = vmcoal("lab", "up")
    assert done.code == 0
    assert (
        done.out
        == "the lab is running: 2 hosts of 1 CPU and 2 GiB, Debian 12, tcg (no KVM here: there is no /dev/kvm)\n"
    )
    assert "[1/5] check this machine" in done.err
    assert "vmcoal lab shell host1" in done.err
    options = ("--hosts", "2", "--link", "30ms,5ms", "--memory", "1G", "--cpus", "4", "--iommu", "--accel", "tcg")
    done = vmcoal("lab", "up", "--name", "shed", *options, "--flavor", "13", "--deadline", "10m", "-o", "json")
    assert json.loads(done.out)["hosts"][1] == {
        "name": "host2",
        "state": "stopped",
        "address": "10.77.0.2",
        "pid": None,
    }
    assert asked == [
        LabRequest(name="lab"),
        LabRequest(
            name="shed",
            hosts=2,
            link=LinkProfile(name="custom", rtt=0.03, jitter=0.005),
            memory=GIB,
            cpus=4,
            iommu=True,
            accel=Accel.TCG,
            flavor="13",
            deadline=600.0,
        ),
    ]


def test_a_lab_that_exists_takes_no_other_options(asked: list[Any], exists: None) -> None:
    done = vmcoal("lab", "up", "--memory", "1G")
    assert done.code == 5
    assert "--memory is for a new one" in done.err
    assert vmcoal("lab", "up").code == 0
    assert len(asked) == 1


def test_bad_options() -> None:
    for arguments in (("--link", "wlan"), ("--hosts", "0"), ("--name", "-x"), ("--flavor", "11"), ("--memory", "x")):
        done = vmcoal("lab", "up", *arguments)
        assert done.code == 2
        assert arguments[0] in done.err


def test_status(asked: list[Any], exists: None) -> None:
    done = vmcoal("lab", "status")
    assert done.out.splitlines()[2:] == [
        "HOST   STATE    ADDRESS    HOLDER",
        "host1  running  10.77.0.1  7",
        "host2  stopped  10.77.0.2  -",
        "",
        "LINK         STATE  PROFILE",
        "host1 host2  up     wifi: RTT 40 ms ± 10 ms, loss 0.2 %, 100 Mbit/s",
    ]
    (document,) = json.loads(vmcoal("lab", "status", "-o", "json").out)
    assert document["links"][0]["profile"]["rtt"] == 0.04
    assert vmcoal("lab", "status", "--name", "shed").code == 4


def test_without_a_lab() -> None:
    assert vmcoal("lab", "status").out == "there is no lab; vmcoal lab up starts one\n"
    assert vmcoal("lab", "status", "-o", "json").out == "[]\n"
    assert vmcoal("lab", "down", "--all").out == "there is no lab\n"
    for arguments in (("down",), ("exec", "host1", "--", "true"), ("cut", "host1", "host2"), ("kill", "host1")):
        done = vmcoal("lab", *arguments)
        assert (done.code, "hint: vmcoal lab up" in done.err) == (4, True)


def test_links_and_ends(asked: list[Any], exists: None) -> None:
    assert "wifi: RTT 40 ms" in vmcoal("lab", "link", "host1", "host2", "wifi").out
    cut = vmcoal("lab", "cut", "host2", "host1")
    assert cut.out == "the link between host1 and host2 is cut\n"
    assert "next: vmcoal lab link host1 host2 wifi" in cut.err
    assert vmcoal("lab", "kill", "host2").code == 0
    assert vmcoal("lab", "down", "--all", "--name", "lab").code == 2
    assert vmcoal("lab", "down").out == "the lab is gone, 1 running host ended\n"
    assert asked == [
        ("lab", "host1", "host2", PROFILES["wifi"], {"cut": False}),
        ("lab", "host2", "host1", None, {"cut": True}),
        ("lab", "host2"),
        "lab",
    ]


def test_exec_needs_a_command(exists: None) -> None:
    done = vmcoal("lab", "exec", "host1")
    assert done.code == 2
    assert "vmcoal lab exec host1 -- vmcoal doctor" in done.err
    assert vmcoal("lab", "exec", "-t", "host1", "--", "true").code == 2
    assert "no host 'host9'" in vmcoal("lab", "exec", "host9", "--", "true").err


def test_logs(exists: None) -> None:
    done = vmcoal("lab", "logs", "host1")
    assert (done.code, "has no console log" in done.err) == (4, True)
    folder = labs.lab_host_folders("host1", "lab")
    folder.make()
    folder.console_log.write_text("one\ntwo\n")
    assert vmcoal("lab", "logs", "host1", "-n", "1").out == "two\n"


@pytest.mark.parametrize("fails", [False, True])
def test_the_tour_cleans_up(asked: list[Any], monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    async def take(lab: str, narrator: tours.Narrator, **_: object) -> None:
        narrator.chapter(2, 10, "Two links", "About links.")
        narrator.command("host1", "vmcoal lenders")
        narrator.output("LENDER\x1b[2J")
        if fails:
            raise ExecutionError("no")

    monkeypatch.setattr(tours, "take_tour", take)
    done = vmcoal("lab", "tour")
    assert done.code == (9 if fails else 0)
    assert [getattr(each, "name", each) for each in asked] == ["tour", "tour"]
    assert "host1$ vmcoal lenders\nLENDER\\x1b[2J\n" in done.out
    assert "Nothing is left" in done.out
    kept = vmcoal("lab", "tour", "--keep")
    assert "vmcoal lab down --name tour" in kept.err
    assert len(asked) == 3
