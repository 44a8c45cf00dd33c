"""The readiness checks, run against other hosts' facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from framework.command import vmcoal
from vmcoal.backends import nbd, probe
from vmcoal.cli import doctor
from vmcoal.host import checks
from vmcoal.host.checks import CHECKS, Check, Duty, Finding, Level, Seen, run_checks
from vmcoal.host.facts import Host
from vmcoal.model.engine import EngineFacts, FaultFacts

pytestmark = pytest.mark.unit

ALL = frozenset(Duty)

NBDKIT = """\
filterdir=/lib/nbdkit/filters
plugindir=/lib/nbdkit/plugins
tls=yes
"""


class GoodHost(Host):
    """A host that has everything; each test takes something away."""

    def __init__(self, **facts: Any) -> None:
        self.facts = facts

    def fact(self, name: str, default: Any) -> Any:
        return self.facts.get(name, default)

    def kernel(self) -> str:
        return str(self.fact("kernel", "6.1.0-30-amd64"))

    def machine(self) -> str:
        return str(self.fact("machine", "x86_64"))

    def python(self) -> tuple[int, int]:
        version: tuple[int, int] = self.fact("python", (3, 11))
        return version

    def is_root(self) -> bool:
        return bool(self.fact("root", False))

    def which(self, program: str) -> str | None:
        return None if program in self.fact("missing", ()) else f"/usr/bin/{program}"

    def output(self, *argv: str) -> str | None:
        if argv[0] in self.fact("missing", ()):
            return None
        return str(self.fact("nbdkit", NBDKIT))

    def version(self, program: str) -> tuple[int, ...] | None:
        version: tuple[int, ...] | None = self.fact("versions", {}).get(program, (99, 0))
        return version

    def read(self, path: str) -> str | None:
        return str(self.fact("files", {}).get(path, ""))

    def exists(self, path: str) -> bool:
        return path not in self.fact("missing", ())

    def open_error(self, path: str) -> str | None:
        error: str | None = self.fact("devices", {}).get(path)
        return error

    def writable(self, folder: Path) -> bool:
        return not str(folder).startswith(self.fact("read_only", ("/nothing",)))

    def free(self, folder: Path) -> int:
        return int(self.fact("free", 1 << 40))

    def file_system(self, folder: Path) -> str:
        return str(self.fact("file_system", "tmpfs"))

    def cgroup(self) -> Path | None:
        return Path("/sys/fs/cgroup") if self.fact("cgroup", True) else None

    def memory_available(self) -> int:
        return int(self.fact("memory", 1 << 40))

    def mounts_below(self, folder: Path) -> list[Path]:
        return [folder / mount for mount in self.fact("mounts", ())]

    def answers(self, path: Path) -> bool:
        return "alive" in str(path)

    def try_fuse(self) -> str | None:
        error: str | None = self.fact("fuse", None)
        return error


def run(**facts: Any) -> dict[str, Finding]:
    return {finding.id: finding for finding in run_checks(CHECKS, GoodHost(**facts), ALL)}


def test_a_good_host_is_ready() -> None:
    assert {finding.level for finding in run().values()} == {Level.OK}
    assert all(finding.remedy is None for finding in run().values())


def test_ids_are_unique_and_every_check_has_a_duty() -> None:
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    assert all(check.duties and check.remedy and check.description for check in CHECKS)


@pytest.mark.parametrize(
    ("facts", "check", "level", "found"),
    [
        ({"python": (3, 9)}, "python", Level.FAIL, "3.9"),
        ({"machine": "aarch64"}, "machine", Level.FAIL, "aarch64"),
        ({"kernel": "4.19.0"}, "kernel", Level.FAIL, "4.19.0"),
        ({"kernel": "weird"}, "kernel", Level.FAIL, "weird"),
        ({"missing": ("qemu-system-x86_64",)}, "qemu", Level.FAIL, "not installed"),
        ({"versions": {"qemu-system-x86_64": (6, 2, 0)}}, "qemu", Level.FAIL, "6.2.0 is older than 7.2"),
        ({"versions": {"qemu-system-x86_64": None}}, "qemu", Level.FAIL, "does not say its version"),
        ({"missing": ("qemu-img",)}, "qemu-img", Level.WARN, "not installed"),
        ({"versions": {"nbdkit": (1, 30, 1)}}, "nbdkit", Level.FAIL, "1.30.1 is older than 1.32"),
        ({"nbdkit": ""}, "nbdkit-lend", Level.FAIL, "does not say what it has"),
        ({"nbdkit": NBDKIT.replace("yes", "no")}, "nbdkit-borrow", Level.WARN, "without TLS"),
        (
            {"missing": ("/lib/nbdkit/filters/nbdkit-exportname-filter.so",)},
            "nbdkit-lend",
            Level.FAIL,
            "without exportname-filter",
        ),
        ({"missing": ("/lib/nbdkit/plugins/nbdkit-nbd-plugin.so",)}, "nbdkit-borrow", Level.WARN, "without nbd"),
        ({"missing": ("nbdinfo",)}, "nbdinfo", Level.FAIL, "not installed"),
        ({"missing": ("nbdfuse",)}, "nbdfuse", Level.WARN, "not installed"),
        ({"missing": ("nbdfuse",)}, "fuse-mount", Level.WARN, "cannot be tried"),
        ({"devices": {"/dev/fuse": "Permission denied"}}, "fuse", Level.WARN, "Permission denied"),
        ({"missing": ("fusermount3",)}, "fusermount", Level.WARN, "not installed"),
        ({"fuse": "mount failed: Operation not permitted"}, "fuse-mount", Level.WARN, "not permitted"),
        ({"file_system": "ext4"}, "tmpfs", Level.WARN, "/dev/shm is ext4"),
        ({"memory": 1 << 20}, "tmpfs", Level.WARN, "1 MiB can be lent"),
        ({"cgroup": False}, "cgroup", Level.WARN, "no cgroup version 2"),
        ({"read_only": ("/sys",)}, "cgroup", Level.WARN, "cannot have groups"),
        ({"read_only": ("/tmp",)}, "folders", Level.FAIL, "cannot be written"),
        ({"free": 1 << 20}, "folders", Level.FAIL, "has only 1 MiB left"),
        ({"mounts": ("gone/mem-1", "alive/mem-2")}, "leftovers", Level.WARN, "1 without a VM"),
        ({"missing": ("apt-get",)}, "apt", Level.WARN, "not installed"),
    ],
)
def test_what_is_missing_is_found(facts: dict[str, Any], check: str, level: Level, found: str) -> None:
    finding = run(**facts)[check]
    assert finding.level is level
    assert found in finding.found
    assert finding.remedy


def test_root_needs_no_fusermount() -> None:
    assert run(missing=("fusermount3",), root=True)["fusermount"].level is Level.OK


def test_a_missing_module_has_its_own_remedy() -> None:
    assert run(devices={"/dev/fuse": "No such file or directory"})["fuse"].remedy == "modprobe fuse"


@pytest.mark.parametrize(
    ("by", "missing", "level", "found"),
    [
        ("/dev/userfaultfd", "nbdfuse", Level.OK, "pager: faults are taken through /dev/userfaultfd"),
        (None, None, Level.WARN, "fuse, several times slower, because this user may not use userfaultfd"),
        (None, "nbdfuse is not installed", Level.FAIL, "none: not pager, this user may not"),
    ],
)
def test_the_memory_engine(
    monkeypatch: pytest.MonkeyPatch, by: str | None, missing: str | None, level: Level, found: str
) -> None:
    faults = FaultFacts(by=by, refused=None if by else "Operation not permitted", features=(1 << 13) - 1)
    monkeypatch.setattr(probe, "engine_facts", lambda qemu: EngineFacts(kernel="6.1.0", faults=faults))
    monkeypatch.setattr(nbd, "missing_client", lambda: missing)
    check = next(check for check in doctor.QEMU_CHECKS if check.id == "memory-engine")
    (finding,) = run_checks([check], GoodHost(), ALL)
    assert finding.level is level
    assert found in finding.found
    assert bool(finding.remedy and "udevadm" in finding.remedy) == (by is None)


def test_a_long_runtime_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/" + "x" * 60)
    assert run()["socket-path"].level is Level.FAIL


def test_only_what_a_duty_needs() -> None:
    lend = {finding.id for finding in run_checks(CHECKS, GoodHost(), frozenset({Duty.LEND}))}
    assert "nbdkit-lend" in lend
    assert not {"qemu", "nbdinfo", "fuse"} & lend


def test_a_probe_that_breaks_is_a_finding() -> None:
    def broken(host: Host) -> Seen:
        raise RuntimeError("oops")

    (finding,) = run_checks([Check("x", "x", broken, "mend it", True)], GoodHost(), ALL)
    assert (finding.level, finding.remedy) == (Level.FAIL, "mend it")
    assert "oops" in finding.found


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "QEMU_CHECKS", ())
    monkeypatch.setattr(doctor, "Host", lambda: GoodHost(missing=("nbdinfo", "apt-get")))
    done = vmcoal("doctor")
    assert done.code == 3
    assert "FAIL  nbdinfo asks for borrowed memory" in done.out
    assert "warn  apt, to build the default image" in done.out
    assert "  nbdinfo asks for borrowed memory: apt install libnbd-bin\n" in done.out
    assert done.out.endswith("Not ready: 1 of the checks failed, 1 more warn.\n")
    assert vmcoal("doctor", "--for", "lend").code == 0
    findings = msgspec.json.decode(vmcoal("doctor", "-o", "json").out, type=list[Finding])
    assert {finding.id for finding in findings if finding.level is Level.FAIL} == {"nbdinfo"}


def test_doctor_sums_up() -> None:
    assert doctor.findings_text(run_checks(CHECKS, GoodHost(), ALL)).endswith("\n\nReady.")
    warned = run_checks(CHECKS, GoodHost(missing=("apt-get",)), ALL)
    assert doctor.findings_text(warned).endswith("Ready, with 1 warning.")


def test_facts_of_this_host() -> None:
    host = Host()
    assert host.python() >= checks.OLDEST_PYTHON
    assert host.version("false") is None
    assert host.version("nothing-of-this-name") is None
    assert host.read("/nothing") is None
    assert host.free(Path("/nothing/below")) > 0
    assert host.file_system(Path("/proc/self/nothing")) == "proc"
    assert host.memory_available() > 0
    assert host.open_error("/nothing") == "No such file or directory"
    assert host.open_error("/dev/null") is None
    assert not host.answers(Path("/nothing"))
    assert host.mounts_below(Path("/nothing")) == []
