"""Whether KVM works here, found out by running a guest under it.

That /dev/kvm exists and opens says little: inside containers and nested or paravirtual hosts it may start a guest and
lose it at the first return from user mode, or end QEMU at once. So a guest of 64 KiB (probe.S) does what a kernel does
with a CPU in its first milliseconds, and tells how far it came.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import msgspec

from vmcoal.errors import UNREADABLE, PrerequisiteError
from vmcoal.host.probe_image import EXIT_CODE, STAGES, probe_image
from vmcoal.layout import cache_home, make_private

KVM = Path("/dev/kvm")
CPUINFO = Path("/proc/cpuinfo")
_EMULATED = b"QEMU TCG CPU"
_PATIENCE = 12
"""How much more time a probe guest gets where the host's own processor is emulated, as a factor."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)(?:\.(\d+))?")
_TIMESTAMP = re.compile(r"^(?:\S+Z )?(?:\S*qemu-system\S*: )?(?:error: |warning: )?")


class AccelProbe(msgspec.Struct, frozen=True):
    """What runs guests here. ``kvm``: KVM does; ``reason`` why or why not, for people; ``remedy`` the next step where
    there is one; ``qemu`` the binary's path; ``qemu_version`` of it."""

    kvm: bool
    reason: str
    qemu: str
    qemu_version: tuple[int, int, int]
    remedy: str | None = None


class _Cached(msgspec.Struct, frozen=True):
    """A probe and all that it depends on."""

    key: tuple[str, str, int, int]
    probe: AccelProbe


def find_qemu(qemu: str = "qemu-system-x86_64") -> str:
    """Return the path of ``qemu``; raises `PrerequisiteError` if it is not there or cannot be run."""
    path = shutil.which(qemu)
    if path is None:
        raise PrerequisiteError(f"{qemu} is not installed", hint="install it: apt install qemu-system-x86")
    return path


def qemu_version(qemu: str, *, deadline: float = 60.0) -> tuple[int, int, int]:
    """Return the version of the QEMU binary ``qemu``; raises `PrerequisiteError` if it does not say one in time."""
    hint = "check that it is a QEMU system emulator: " + qemu + " --version"
    try:
        done = subprocess.run([qemu, "--version"], capture_output=True, timeout=deadline, check=False, text=True)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError) as error:
        raise PrerequisiteError(f"{qemu} does not run: {error}", hint=hint) from error
    match = _VERSION.search(done.stdout)
    if done.returncode != 0 or match is None:
        raise PrerequisiteError(f"{qemu} does not say its version", hint=hint, stderr=done.stderr[-2000:])
    return int(match[1]), int(match[2]), int(match[3] or 0)


def probe_accel(qemu: str = "qemu-system-x86_64", *, deadline: float = 10.0, fresh: bool = False) -> AccelProbe:
    """Find out whether ``qemu`` runs guests under KVM on this host.

    The probe guest gets ``deadline`` seconds. Where this host's own processor is emulated, as the lab's are, everything
    takes as long as the machine beneath is busy: what hangs there is tried once more and gets `_PATIENCE` times
    as much.

    The answer is kept until the next boot or a change of the binary, in the cache folder; ``fresh`` asks again.
    Blocks: call it from a thread in asynchronous code. Raises `PrerequisiteError` where there is no usable QEMU at all.
    """
    path = find_qemu(qemu)
    obstacle = _obstacle()
    if obstacle is not None:
        return AccelProbe(False, obstacle[0], path, qemu_version(path), obstacle[1])
    key = _key(path)
    if not fresh and (known := _recall(key)) is not None:
        return known
    probe = AccelProbe(False, "", path, qemu_version(path))
    arguments = ["-accel", "kvm", "-cpu", "host"]
    works, reason, lasting = run_probe(path, arguments, deadline=deadline)
    if not works and not lasting and _emulated():
        works, reason, lasting = run_probe(path, arguments, deadline=deadline * _PATIENCE)
    remedy = None if works else "run vmcoal on a host, or in a VM with nested virtualization, whose KVM runs guests"
    probe = msgspec.structs.replace(probe, kvm=works, reason=reason, remedy=remedy)
    if lasting:
        _remember(_Cached(key, probe))
    return probe


def run_probe(qemu: str, accel: list[str], *, deadline: float) -> tuple[bool, str, bool]:
    """Run the probe guest with the arguments ``accel``.

    Returns whether it came to its end, a reason for people, and whether a second try would find the same (not after a
    time-out).
    """
    with tempfile.TemporaryDirectory(prefix="vmcoal-probe-") as folder:
        image = Path(folder, "probe.bin")
        image.write_bytes(probe_image())
        argv = [
            *(qemu, *accel, "-machine", "q35", "-m", "32", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-no-reboot", "-bios", str(image), "-chardev", "stdio,id=out,signal=off"),
            *("-device", "isa-debugcon,iobase=0xe9,chardev=out", "-device", "isa-debug-exit,iobase=0x501"),
        ]
        try:
            done = subprocess.run(
                argv,
                cwd=folder,  # should QEMU abort, its core file goes with the folder
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=deadline,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return False, f"a probe guest {_progress(error.stdout)}, then hung for {deadline:g} s", False
        except OSError as error:
            return False, f"QEMU does not start: {error.strerror}", False
    if done.returncode == EXIT_CODE and done.stdout == "".join(STAGES).encode():
        return True, "a probe guest ran", True
    if not done.stdout:
        return False, f"QEMU ends at once: {_first_line(done.stderr) or f'exit code {done.returncode}'}", True
    return False, f"a probe guest {_progress(done.stdout)}, then died", True


def _progress(output: bytes | None) -> str:
    reached = [STAGES[letter] for letter in (output or b"").decode("ascii", "replace") if letter in STAGES]
    return f"came as far as {reached[-1]}" if reached else "did not begin"


def _first_line(stderr: bytes) -> str:
    lines = stderr[:4096].decode("utf-8", "replace").strip().splitlines()
    return _TIMESTAMP.sub("", lines[0])[:200] if lines else ""


def _emulated() -> bool:
    with CPUINFO.open("rb") as file:
        return _EMULATED in file.read(4096)


def _obstacle() -> tuple[str, str] | None:
    if not KVM.exists():
        return f"there is no {KVM}", "enable virtualization in the firmware and load kvm_intel or kvm_amd"
    if not os.access(KVM, os.R_OK | os.W_OK):
        return (
            f"{KVM} may not be opened by this user",
            'join its group: sudo usermod -aG kvm "$USER", then log in again',
        )
    return None


def _key(qemu: str) -> tuple[str, str, int, int]:
    binary = Path(qemu).resolve()
    return _BOOT_ID.read_text(encoding="ascii").strip(), str(binary), binary.stat().st_mtime_ns, os.geteuid()


def _recall(key: tuple[str, str, int, int]) -> AccelProbe | None:
    try:
        cached = msgspec.json.decode((cache_home() / "accel.json").read_bytes(), type=_Cached)
    except (OSError, *UNREADABLE):
        return None
    return cached.probe if cached.key == key else None


def _remember(cached: _Cached) -> None:
    try:
        folder = make_private(cache_home())
        with tempfile.NamedTemporaryFile(dir=folder, prefix="accel-", delete=False) as file:
            file.write(msgspec.json.encode(cached))
        Path(file.name).replace(folder / "accel.json")
    except (OSError, PrerequisiteError):
        return  # only a cache: the next call probes again
