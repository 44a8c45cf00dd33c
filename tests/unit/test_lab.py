"""A lab as a whole, on fake hosts: all of it or nothing, and what it says when a host fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest

from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    ExecutionError,
    NotFoundError,
    PrerequisiteError,
    UnreachableError,
    UsageError,
)
from vmcoal.host.accel import AccelProbe
from vmcoal.lab import image, lab, lab_checks
from vmcoal.lab.lab import LabRequest, LabStatus, lab_down, lab_kill, lab_link, lab_status, lab_up
from vmcoal.lab.lab_checks import check_memory, check_space, choose_accel, needed_memory, nested_kvm
from vmcoal.lab.links import PROFILES
from vmcoal.lab.state import known_labs, read_lab
from vmcoal.layout import LabHostFolders, lab_runtime, lab_state
from vmcoal.model.machine import Accel
from vmcoal.model.units import GIB, MIB

pytestmark = pytest.mark.unit


class FakeHost:
    """A host that runs as long as its folder has a file; `broken` maps a host to what it fails with at a stage."""

    broken: ClassVar[dict[tuple[str, str], Exception]] = {}
    ran: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, folders: LabHostFolders) -> None:
        self.folders = folders
        self.name = folders.runtime.name

    def _at(self, stage: str) -> None:
        if error := self.broken.get((self.name, stage)):
            raise error

    @classmethod
    async def start(cls, _spec: object, folders: LabHostFolders, **_kwargs: object) -> Self:
        folders.make()
        host = cls(folders)
        host._at("start")
        (folders.runtime / "runs").touch()
        return host

    @classmethod
    async def connect(cls, folders: LabHostFolders, **_kwargs: object) -> Self:
        if not (folders.runtime / "runs").exists():
            raise UnreachableError("it does not run")
        return cls(folders)

    async def wait_ready(self, _deadline: float) -> None:
        self._at("boot")

    async def run(self, argv: list[str], *, stdin: bytes = b"", **_kwargs: object) -> None:
        self.ran.append((self.name, stdin.decode() or argv[-1]))
        self._at("run")

    async def kill(self) -> None:
        (self.folders.runtime / "runs").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folders.runtime.rmdir()

    async def close(self) -> None:
        return None


class FakeHolder:
    """The holder of a fake host."""

    pid = 4711

    @classmethod
    async def connect(cls, socket: Path, **_kwargs: object) -> Self:
        if not (socket.parent / "runs").exists():
            raise UnreachableError("there is none")
        holder = cls()
        holder.runs = socket.parent / "runs"
        return holder

    runs: Path

    async def shutdown(self, **_kwargs: object) -> None:
        self.runs.unlink()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lab, "Host", FakeHost)
    monkeypatch.setattr(lab, "Holder", FakeHolder)
    monkeypatch.setattr(lab, "find_binary", lambda _: Path("/bin/true"))
    monkeypatch.setattr(image, "ensure_image", lambda *_: None)
    monkeypatch.setattr(image, "make_host_spec", lambda *_, **__: None)
    monkeypatch.setattr(lab, "choose_accel", lambda *_: (Accel.TCG, "there is no /dev/kvm"))
    monkeypatch.setattr(lab.ThisMachine, "memory_available", lambda _: 64 * GIB)
    FakeHost.broken, FakeHost.ran = {}, []
    yield
    for name in known_labs():
        asyncio.run(lab_down(name))
    assert not lab_state("lab").parent.exists()
    assert not lab_runtime("lab").parent.exists()


def up(**options: Any) -> LabStatus:
    return lab_up(LabRequest(name="lab", **options), lambda *_: None)


def states(status: LabStatus) -> dict[str, str]:
    return {host.name: host.state for host in status.hosts}


def test_a_lab_comes_up_and_goes() -> None:
    status = up(link=PROFILES["wifi"])
    assert (status.state, set(states(status).values())) == ("running", {"running"})
    assert [host.address for host in status.hosts] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    joined = dict(FakeHost.ran)
    assert set(joined) == {"host1", "host2", "host3"}
    assert all("netem delay 20000us" in script for script in joined.values())
    assert asyncio.run(lab_down("lab")) == ["host1", "host2", "host3"]
    assert known_labs() == []


@pytest.mark.parametrize("stage", ["start", "boot", "run"])
def test_a_host_that_fails_takes_the_lab_along_and_says_why(stage: str) -> None:
    console = "\n".join(f"line {number}" for number in range(30))
    FakeHost.broken["host2", stage] = ExecutionError("the host ended while it booted", console=console)
    with pytest.raises(ExecutionError) as caught:
        up()
    assert str(caught.value) == "the host ended while it booted on host2"
    assert caught.value.details["stderr"].splitlines() == [f"line {number}" for number in range(20, 30)]
    assert known_labs() == []


def test_what_a_console_says_of_its_end() -> None:
    trace = [f"trace {number}" for number in range(20)]
    told = lab.telling("\n".join(["booting", "[1.0] Kernel panic - not syncing: no init", *trace])).splitlines()
    assert told == ["[1.0] Kernel panic - not syncing: no init", *trace[:9]]
    assert lab.telling("\n".join(trace)).splitlines() == trace[-10:]


def test_hosts_that_take_too_long() -> None:
    FakeHost.broken["host3", "boot"] = DeadlineError("the host did not boot within 300 s")
    with pytest.raises(DeadlineError) as caught:
        up()
    assert "--deadline 600s" in (caught.value.hint or "")
    assert caught.value.host == "host3"


def test_what_a_lab_lost_comes_back_as_it_was() -> None:
    up(link=PROFILES["wifi"])
    with pytest.raises(ConflictError, match="runs already"):
        up()
    asyncio.run(lab_link("lab", "host1", "host2", None, cut=True))
    ports = [(link.port_a, link.port_b) for link in asyncio.run(lab_status("lab")).links]
    asyncio.run(lab_kill("lab", "host2"))
    assert states(asyncio.run(lab_status("lab"))) == {"host1": "running", "host2": "stopped", "host3": "running"}
    with pytest.raises(UnreachableError) as caught:
        asyncio.run(lab_link("lab", "host2", "host1", PROFILES["lan"]))
    assert "vmcoal lab up" in (caught.value.hint or "")

    FakeHost.broken["host2", "boot"] = ExecutionError("it ended")
    with pytest.raises(ExecutionError):
        up()
    assert asyncio.run(lab_status("lab")).state == "degraded"

    FakeHost.broken, FakeHost.ran = {}, []
    status = up()
    assert status.state == "running"
    assert [(link.port_a, link.port_b) for link in status.links] == ports
    ((host, script),) = FakeHost.ran
    assert host == "host2"
    assert "dev to-host1 root netem loss 100%" in script


def test_a_lab_that_a_killed_command_left_is_told_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeHost.broken["host1", "boot"] = ExecutionError("stands for SIGKILL")
    with monkeypatch.context() as patch:
        patch.setattr(FakeHost, "kill", FakeHost.close)
        patch.setattr(lab, "remove_lab_folders", lambda _: None)
        with pytest.raises(ExecutionError):
            up()
    assert asyncio.run(lab_status("lab")).state == "unfinished"
    with pytest.raises(ConflictError, match="left unfinished") as caught:
        up()
    assert caught.value.hint == "vmcoal lab down --name lab"
    with pytest.raises(ConflictError, match="left unfinished"):
        asyncio.run(lab_kill("lab", "host1"))
    (lab_state("lab") / "lab.json").write_text("torn")
    assert asyncio.run(lab_status("lab")).state == "unfinished"
    assert asyncio.run(lab_down("lab")) == ["host1", "host2", "host3"]


def test_a_link_is_changed_on_both_sides_or_on_none() -> None:
    up()
    FakeHost.ran = []
    changed = asyncio.run(lab_link("lab", "host3", "host1", PROFILES["5g"]))
    assert (changed.a, changed.b, changed.profile.name, changed.cut) == ("host1", "host3", "5g", False)
    assert [(host, "to-host3" in ran, "14000us" in ran) for host, ran in FakeHost.ran] == [
        ("host1", True, True),
        ("host3", False, True),
    ]
    FakeHost.broken["host3", "run"] = ExecutionError("no")
    FakeHost.ran = []
    with pytest.raises(ExecutionError):
        asyncio.run(lab_link("lab", "host1", "host3", None, cut=True))
    FakeHost.broken = {}
    assert [("loss 100%" in ran) for host, ran in FakeHost.ran if host == "host1"] == [True, False]
    spec = read_lab("lab")
    assert spec is not None
    assert [link.cut for link in spec.links] == [False, False, False]


def test_hosts_that_are_not_there() -> None:
    up(hosts=1)
    with pytest.raises(NotFoundError) as caught:
        asyncio.run(lab_kill("lab", "host2"))
    assert caught.value.hint == "its hosts are host1"
    with pytest.raises(NotFoundError):
        asyncio.run(lab_link("lab", "host1", "host2", None, cut=True))


def test_what_cannot_be_is_refused_before_anything_is_made() -> None:
    for options in ({"hosts": 9}, {"memory": 5 * MIB}, {"cpus": 0}):
        with pytest.raises(UsageError):
            up(**options)
    assert known_labs() == []


def test_too_little_memory_is_refused_with_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.ThisMachine, "memory_available", lambda _: 4 * GIB)
    with pytest.raises(PrerequisiteError) as caught:
        up()
    assert "3 × 1.81 GiB (1.5 GiB and what QEMU needs itself) is 5.44 GiB" in str(caught.value)
    assert caught.value.hint == "vmcoal lab up --hosts 2, or less --memory for each"
    assert known_labs() == []


def test_memory_and_space() -> None:
    needed = needed_memory(3, 1536 * MIB, Accel.TCG)
    assert needed < 6 * GIB
    check_memory(3, 1536 * MIB, Accel.TCG, needed + 256 * MIB)
    with pytest.raises(PrerequisiteError) as caught:
        check_memory(1, 1536 * MIB, Accel.KVM, GIB)
    assert caught.value.hint == "end what uses the memory"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "yet", 3)

    class Full:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr(lab_checks.os, "statvfs", lambda _: Full)
    with pytest.raises(PrerequisiteError, match="40 KiB are free"):
        check_space(tmp_path, 3)


class Machine:
    """A machine whose files are `files`."""

    def __init__(self, **files: str) -> None:
        self.files = files

    def read(self, path: str) -> str | None:
        return next((text for name, text in self.files.items() if f"/{name}/" in path), None)


@pytest.mark.parametrize(
    ("machine", "wanted"),
    [
        (Machine(kvm_intel="Y\n"), (True, "kvm_intel nests")),
        (Machine(kvm_amd="1"), (True, "kvm_amd nests")),
        (Machine(kvm_amd="0"), (False, "kvm_amd does not nest: load it with nested=1")),
        (Machine(), (False, "neither kvm_intel nor kvm_amd is loaded")),
    ],
)
def test_whether_kvm_nests(machine: Any, wanted: tuple[bool, str]) -> None:
    assert nested_kvm(machine) == wanted


@pytest.mark.parametrize(
    ("works", "nests", "asked", "wanted"),
    [
        (True, True, None, Accel.KVM),
        (True, True, Accel.TCG, Accel.TCG),
        (True, False, None, Accel.TCG),
        (False, True, None, Accel.TCG),
        (True, True, Accel.KVM, Accel.KVM),
        (True, False, Accel.KVM, None),
    ],
)
def test_what_runs_the_hosts(
    works: bool, nests: bool, asked: Accel | None, wanted: Accel | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = AccelProbe(works, "why", "/bin/qemu", (7, 2, 0))
    monkeypatch.setattr(lab_checks, "probe_accel", lambda _: probe)
    monkeypatch.setattr(lab_checks, "nested_kvm", lambda _: (nests, "so"))
    if wanted is None:
        with pytest.raises(PrerequisiteError, match="so"):
            choose_accel("qemu", asked)
        return
    assert choose_accel("qemu", asked)[0] is wanted
