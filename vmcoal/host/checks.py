"""Readiness checks as data: what is looked at, for which duty, what mends it, and whether it can be done without."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from vmcoal import layout
from vmcoal.host.facts import Host
from vmcoal.model.units import GIB, MIB, format_size

QEMU = "qemu-system-x86_64"
OLDEST_PYTHON = (3, 11)
OLDEST_QEMU = (7, 2)
OLDEST_NBDKIT = (1, 32)
OLDEST_KERNEL = (5, 10)
STATE_SPACE = 256 * MIB
CACHE_SPACE = 1 * GIB
LENT_SPACE = 256 * MIB


class Duty(enum.StrEnum):
    """What a check is needed for."""

    BOOT = "boot"
    ATTACH = "attach"
    LEND = "lend"


class Level(enum.StrEnum):
    """How a check came out. ``warn``: something is missing that is not needed for everything."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Seen:
    """What a probe saw: ``good`` or not, ``found`` in words, and a remedy that fits better than the check's own.
    ``fatal`` where it is not what the check says."""

    good: bool
    found: str
    remedy: str | None = None
    fatal: bool | None = None


@dataclass(frozen=True)
class Check:
    """One check. ``fatal``: without it its duties cannot be done; else what is missing is a warning."""

    id: str
    description: str
    probe: Callable[[Host], Seen]
    remedy: str
    fatal: bool
    duties: frozenset[Duty] = frozenset(Duty)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """A check's result, as ``vmcoal doctor -o json`` prints it. ``remedy`` is ``None`` where all is well."""

    id: str
    description: str
    level: Level
    found: str
    remedy: str | None
    fatal: bool
    duties: tuple[Duty, ...]


def run_checks(checks: Iterable[Check], host: Host, duties: frozenset[Duty]) -> list[Finding]:
    """Run the checks that one of ``duties`` needs; a probe that breaks is a finding too."""
    return [_run(check, host) for check in checks if check.duties & duties]


def _run(check: Check, host: Host) -> Finding:
    try:
        seen = check.probe(host)
    except Exception as error:
        seen = Seen(False, f"the probe itself failed: {error}")
    fatal = check.fatal if seen.fatal is None else seen.fatal
    level = Level.OK if seen.good else Level.FAIL if fatal else Level.WARN
    return Finding(
        id=check.id,
        description=check.description,
        level=level,
        found=seen.found,
        remedy=None if seen.good else seen.remedy or check.remedy,
        fatal=fatal,
        duties=tuple(sorted(check.duties)),
    )


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


def _python(host: Host) -> Seen:
    return Seen(host.python() >= OLDEST_PYTHON, _dotted(host.python()))


def _machine(host: Host) -> Seen:
    return Seen(host.machine() == "x86_64", host.machine())


def _kernel(host: Host) -> Seen:
    match = re.match(r"(\d+)\.(\d+)", host.kernel())
    return Seen(bool(match) and (int(match[1]), int(match[2])) >= OLDEST_KERNEL if match else False, host.kernel())


def _program(program: str, oldest: tuple[int, int] | None = None) -> Callable[[Host], Seen]:
    def probe(host: Host) -> Seen:
        path = host.which(program)
        if path is None:
            return Seen(False, "not installed")
        version = host.version(program)
        if version is None:
            return Seen(False, f"{path} does not say its version")
        if oldest and version[:2] < oldest:
            return Seen(False, f"{_dotted(version)} is older than {_dotted(oldest)}")
        return Seen(True, f"{_dotted(version)} ({path})")

    return probe


def _nbdkit_parts(names: tuple[str, ...]) -> Callable[[Host], Seen]:
    """Check plugins (``file``) and filters (``exportname-filter``) of nbdkit, and its TLS."""

    def probe(host: Host) -> Seen:
        config = dict(
            line.split("=", 1) for line in (host.output("nbdkit", "--dump-config") or "").splitlines() if "=" in line
        )
        if not config:
            return Seen(False, "nbdkit does not say what it has")
        missing = []
        for name in names:
            folder, file = ("filterdir", name) if name.endswith("-filter") else ("plugindir", f"{name}-plugin")
            if not host.exists(f"{config.get(folder, '')}/nbdkit-{file}.so"):
                missing.append(name)
        if config.get("tls") != "yes":
            missing.append("TLS")
        return Seen(not missing, f"without {', '.join(missing)}" if missing else f"{', '.join(names)}, TLS")

    return probe


def _fuse_device(host: Host) -> Seen:
    error = host.open_error("/dev/fuse")
    if error is None:
        return Seen(True, "/dev/fuse opens")
    missing = "No such" in error
    return Seen(False, f"/dev/fuse: {error}", "modprobe fuse" if missing else None)


def _fuse_mount(host: Host) -> Seen:
    if host.which("nbdfuse") is None or host.which("nbdkit") is None:
        return Seen(False, "cannot be tried without nbdfuse and nbdkit", "apt install libnbd-bin nbdkit")
    error = host.try_fuse()
    knobs = "" if host.is_root() else "; as root its read-ahead and write-back could be raised: about twice the speed"
    return Seen(error is None, error or f"a test file was mounted and unmounted{knobs}")


def _fusermount(host: Host) -> Seen:
    path = host.which("fusermount3")
    return Seen(
        path is not None or host.is_root(), path or ("not needed by root" if host.is_root() else "not installed")
    )


def _shm(host: Host) -> Seen:
    folder = layout.shm_home().parent
    kind = host.file_system(folder)
    if kind != "tmpfs":
        return Seen(False, f"{folder} is {kind}", f"mount -t tmpfs tmpfs {folder}")
    room = min(host.free(folder), host.memory_available())
    return Seen(room >= LENT_SPACE, f"{format_size(room)} can be lent")


def _cgroup(host: Host) -> Seen:
    folder = host.cgroup()
    if folder is None:
        return Seen(False, "no cgroup version 2 is mounted")
    return Seen(host.writable(folder), f"{folder} {'can' if host.writable(folder) else 'cannot'} have groups of ours")


def _folders(host: Host) -> Seen:
    for folder, needed in (
        (layout.state_home(), STATE_SPACE),
        (layout.runtime_home(), MIB),
        (layout.cache_home(), CACHE_SPACE),
    ):
        if not host.writable(folder):
            return Seen(False, f"{folder} cannot be written", f"check the owner and mode of {folder}")
        if host.free(folder) < needed:
            return Seen(
                False, f"{folder} has only {format_size(host.free(folder))} left", f"free {format_size(needed)} there"
            )
    return Seen(True, f"{layout.state_home()}, {layout.runtime_home()} and {layout.cache_home()} can be written")


def _leftovers(host: Host) -> Seen:
    """Mounts of VMs that do not run any more: whoever touches one waits for a process that is gone."""
    dead = [
        point
        for point in host.mounts_below(layout.runtime_home() / "vm")
        if not host.answers(layout.vm_folders(point.parent.name).holder_socket)
    ]
    if not dead:
        return Seen(True, "none")
    return Seen(False, f"{len(dead)} without a VM", " && ".join(f"fusermount3 -u -z {point}" for point in dead))


def _runtime_length(host: Host) -> Seen:
    del host
    longest = layout.runtime_home() / "vm" / ("n" * 32) / "control.sock"
    size = len(str(longest).encode())
    return Seen(size <= 107, f"the longest socket path has {size} of 107 bytes")


def _apt(host: Host) -> Seen:
    path = host.which("apt-get")
    return Seen(path is not None, path or "not installed")


_BOOT = frozenset({Duty.BOOT})
_ATTACH = frozenset({Duty.ATTACH})
_LEND = frozenset({Duty.LEND})

CHECKS: tuple[Check, ...] = (
    Check("python", "Python 3.11 or newer", _python, "install a newer Python", True),
    Check("machine", "an x86-64 host", _machine, "use an x86-64 host", True),
    Check("kernel", "Linux 5.10 or newer", _kernel, "boot a newer kernel", True),
    Check("qemu", "QEMU 7.2 or newer", _program(QEMU, OLDEST_QEMU), "apt install qemu-system-x86", True, _BOOT),
    Check("qemu-img", "qemu-img for disk images", _program("qemu-img"), "apt install qemu-utils", False, _BOOT),
    Check("nbdkit", "nbdkit 1.32 or newer", _program("nbdkit", OLDEST_NBDKIT), "apt install nbdkit", True, _LEND),
    Check(
        "nbdkit-lend",
        "nbdkit's parts for a lender",
        _nbdkit_parts(("file", "exportname-filter")),
        "apt install nbdkit",
        True,
        _LEND,
    ),
    Check("nbdinfo", "nbdinfo asks for borrowed memory", _program("nbdinfo"), "apt install libnbd-bin", True, _ATTACH),
    Check(
        "nbdkit-borrow",
        "nbdkit's parts for engine fuse",
        _nbdkit_parts(("nbd", "retry-filter")),
        "apt install nbdkit",
        False,
        _ATTACH,
    ),
    Check("nbdfuse", "nbdfuse, for engine fuse", _program("nbdfuse"), "apt install libnbd-bin", False, _ATTACH),
    Check("fuse", "the FUSE device", _fuse_device, "run as a user who may open /dev/fuse, or as root", False, _ATTACH),
    Check("fusermount", "fusermount3 for mounting as a user", _fusermount, "apt install fuse3", False, _ATTACH),
    Check(
        "fuse-mount",
        "a FUSE mount can be made",
        _fuse_mount,
        "in a container: --device /dev/fuse --cap-add SYS_ADMIN",
        False,
        _ATTACH,
    ),
    Check("tmpfs", "tmpfs room for lent memory", _shm, "free memory, or enlarge /dev/shm", False, _LEND),
    Check(
        "cgroup",
        "a cgroup of its own for each lease",
        _cgroup,
        "run as root, or under: systemd-run --user --scope -p Delegate=yes",
        False,
        _LEND,
    ),
    Check("folders", "folders for state, sockets and images", _folders, "check XDG_STATE_HOME and the like", True),
    Check("socket-path", "socket paths that fit", _runtime_length, "set XDG_RUNTIME_DIR to a shorter folder", True),
    Check("leftovers", "mounts of ended VMs", _leftovers, "unmount them", False, _ATTACH),
    Check(
        "apt", "apt, to build the default image", _apt, "boot your own image: vmcoal boot --image FILE", False, _BOOT
    ),
)
"""Every check that needs nothing but this host's facts. `vmcoal doctor` adds what it must run QEMU for."""
