"""Which memory engine a VM gets, and what of its machine an engine excludes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vmcoal.errors import ConflictError, PrerequisiteError
from vmcoal.model.engine import EngineChoice, EngineFacts, Feature, MemoryEngineName, Obstacle
from vmcoal.model.machine import MachineSpec
from vmcoal.model.units import MIB, format_size

LEAST_ROOM = 128 * MIB
"""What the page engine needs of tmpfs: its smallest cache, and as much again for pages on their way."""

FEATURE_MISSING_SHMEM = 1 << 5
FEATURE_WP_SHMEM = 1 << 12

UDEV_RULE = 'KERNEL=="userfaultfd", GROUP="kvm", MODE="0660"'
"""The rule of configs/60-vmcoal-userfaultfd.rules."""

_RULES = "/etc/udev/rules.d/60-vmcoal-userfaultfd.rules"
ALLOW_USERFAULTFD = (
    f"let group kvm have it, and join: echo '{UDEV_RULE}' | sudo tee {_RULES} && sudo udevadm control --reload && "
    'sudo udevadm trigger --settle /dev/userfaultfd && sudo usermod -aG kvm "$USER" (log in again); '
    "in a container: --device /dev/userfaultfd"
)
_ALLOW_BY_SYSCTL = "this kernel has no /dev/userfaultfd (6.1 and newer do): sudo sysctl vm.unprivileged_userfaultfd=1"

_WHY_EXCLUDED = {
    Feature.VFIO: "VFIO pins every page of the guest here, so none could stay with a lender",
    Feature.VHOST_USER: "vhost-user has another process map the guest's memory, and its faults reach no pager",
    Feature.VIRTIOFS: "virtiofs has another process map the guest's memory, and its faults reach no pager",
    Feature.FREE_PAGE_REPORTING: "free-page reporting takes pages away behind the pager's back",
    Feature.MIGRATION_FAULTS: "background snapshots and postcopy need userfaultfd on memory that the pager has it on",
    Feature.LOCKED_MEMORY: "locked memory brings every page here and keeps it, so none could stay with a lender",
}

_ON = r"""["']?\s*[=:]\s*["']?(on|true|yes)"""
_SIGNS: tuple[tuple[re.Pattern[str], Feature], ...] = (
    (re.compile(r"\bvfio-|\bvhost-vdpa\b"), Feature.VFIO),
    (re.compile(r"\bvhost-user-fs\b"), Feature.VIRTIOFS),
    (re.compile(r"\bvhost-user\b(?!-fs)|\bvhost-user-(?!fs\b)"), Feature.VHOST_USER),
    (re.compile(r"\bfree-page-reporting" + _ON), Feature.FREE_PAGE_REPORTING),
    (re.compile(r"\b(x-)?(background-snapshot|postcopy-ram)" + _ON), Feature.MIGRATION_FAULTS),
    (re.compile(r"\b(mem-lock|mlock)" + _ON), Feature.LOCKED_MEMORY),
)


def machine_features(arguments: Iterable[str]) -> dict[Feature, str]:
    """Return what QEMU's ``arguments`` bring that an engine may exclude, each with the argument that brings it."""
    found: dict[Feature, str] = {}
    for argument in arguments:
        for sign, feature in _SIGNS:
            if sign.search(argument):
                found.setdefault(feature, argument)
    return found


def excluded_features(excludes: Sequence[Feature], spec: MachineSpec) -> list[str]:
    """Return one reason for each feature of ``spec`` that is among ``excludes``."""
    return [
        f"{argument!r} in --qemu-args: {_WHY_EXCLUDED[feature]}"
        for feature, argument in machine_features(spec.qemu_args).items()
        if feature in excludes
    ]


def pager_obstacle(facts: EngineFacts) -> Obstacle | None:
    """Return what keeps the page engine from running on a host with ``facts``, or ``None``."""
    faults = facts.faults
    if faults.by is None:
        if faults.refused == "No such file or directory":
            return Obstacle("this kernel has no userfaultfd", "boot a kernel that is built with CONFIG_USERFAULTFD")
        return Obstacle(
            f"this user may not use userfaultfd ({faults.refused})",
            ALLOW_USERFAULTFD if _newer(facts.kernel, (6, 1)) else _ALLOW_BY_SYSCTL,
        )
    needed = FEATURE_MISSING_SHMEM | FEATURE_WP_SHMEM
    if faults.features & needed != needed:
        return Obstacle(
            f"userfaultfd of Linux {facts.kernel} cannot write-protect shared memory",
            "boot Linux 5.19 or newer; until then the FUSE engine is used",
        )
    if facts.missing:
        return Obstacle(facts.missing, "apt install libnbd-bin; the pager itself comes with vmcoal's wheel")
    if facts.files != "tmpfs":
        return Obstacle(
            f"the folder of borrowed memory is on {facts.files}, and userfaultfd needs tmpfs",
            "set VMCOAL_SHM_DIR to a folder on a tmpfs",
        )
    if facts.room < LEAST_ROOM:
        return Obstacle(
            f"tmpfs has {format_size(facts.room)} left for borrowed memory, and {format_size(LEAST_ROOM)} are needed",
            "free memory there, or enlarge it: mount -o remount,size=50% /dev/shm (in a container: --shm-size 1g)",
        )
    if facts.qemu:
        return Obstacle(facts.qemu, "name a QEMU that takes it with --qemu")
    return None


def choose_engine(
    wanted: MemoryEngineName, facts: EngineFacts, spec: MachineSpec, excludes: Sequence[Feature]
) -> EngineChoice:
    """Return the engine for machine ``spec`` on a host with ``facts``; ``excludes`` is what the page engine excludes.

    ``auto`` is the page engine where it can run, else FUSE. Raises `PrerequisiteError` or `ConflictError` where the
    page engine is asked for and cannot run.
    """
    if wanted is MemoryEngineName.FUSE:
        return EngineChoice(name=wanted, reason="asked for")
    obstacle = pager_obstacle(facts)
    conflicts = excluded_features(excludes, spec)
    if wanted is MemoryEngineName.PAGER:
        if obstacle:
            raise PrerequisiteError(
                f"the page engine cannot run here: {obstacle.reason}",
                hint=f"{obstacle.remedy}; or leave --memory-engine to auto",
            )
        if conflicts:
            raise ConflictError(
                "; ".join(conflicts), hint="boot without it, or leave --memory-engine to auto", reasons=conflicts
            )
        return EngineChoice(name=wanted, reason="asked for")
    if obstacle:
        return EngineChoice(name=MemoryEngineName.FUSE, reason=obstacle.reason, remedy=obstacle.remedy)
    if conflicts:
        return EngineChoice(name=MemoryEngineName.FUSE, reason=conflicts[0], remedy="boot without it")
    return EngineChoice(name=MemoryEngineName.PAGER, reason=f"faults are taken through {facts.faults.by}")


def _newer(kernel: str, than: tuple[int, int]) -> bool:
    match = re.match(r"(\d+)\.(\d+)", kernel)
    return bool(match) and (int(match[1]), int(match[2])) >= than if match else False
