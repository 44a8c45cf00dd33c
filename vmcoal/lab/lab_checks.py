"""What this machine must have for a lab, found out before anything is started."""

from __future__ import annotations

import os
from pathlib import Path

from vmcoal.errors import PrerequisiteError
from vmcoal.host.accel import probe_accel
from vmcoal.host.facts import Host as ThisMachine
from vmcoal.model.machine import Accel
from vmcoal.model.units import MIB, format_size

_QEMU_OWN = {Accel.TCG: 320 * MIB, Accel.KVM: 96 * MIB}
"""What QEMU takes beside a host's memory; under TCG most of it is translated code."""
_STAYS_FREE = 256 * MIB
_LOGS = 32 * MIB


def needed_memory(hosts: int, memory: int, accel: Accel) -> int:
    """Return the bytes of this machine that ``hosts`` hosts of ``memory`` bytes can come to use."""
    return hosts * (memory + _QEMU_OWN[accel])


def check_memory(hosts: int, memory: int, accel: Accel, available: int) -> None:
    """Raise `PrerequisiteError`, with the sum, where ``available`` bytes are too few."""
    needed = needed_memory(hosts, memory, accel)
    if needed + _STAYS_FREE <= available:
        return
    each = format_size(memory + _QEMU_OWN[accel])
    fits = max(0, available - _STAYS_FREE) // (memory + _QEMU_OWN[accel])
    hint = f"vmcoal lab up --hosts {fits}, or less --memory for each" if fits > 1 else "end what uses the memory"
    raise PrerequisiteError(
        f"not enough memory for {hosts} hosts: {hosts} × {each} ({format_size(memory)} and what QEMU needs itself) is "
        f"{format_size(needed)}, and of the {format_size(available)} that are available {format_size(_STAYS_FREE)} "
        "stay free",
        hint=hint,
    )


def check_space(folder: Path, hosts: int) -> None:
    """Raise `PrerequisiteError` where the file system of ``folder``, or of what exists above it, is as good as full."""
    while not folder.exists():
        folder = folder.parent
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if free < hosts * _LOGS:
        raise PrerequisiteError(
            f"no space for a lab of {hosts} hosts: {format_size(free)} are free in {folder}, "
            f"{format_size(hosts * _LOGS)} are needed for logs",
            hint="free some, or set XDG_STATE_HOME to another disk",
        )


def choose_accel(qemu: str, wanted: Accel | None) -> tuple[Accel, str]:
    """Return what runs the hosts, and why: KVM where it runs guests here and their KVM works too, else TCG, which
    emulates a processor with virtualization. Blocks. Raises `PrerequisiteError` where ``wanted`` cannot be had."""
    probe = probe_accel(qemu)
    nests, why = nested_kvm(ThisMachine()) if probe.kvm else (False, f"no KVM here: {probe.reason}")
    if wanted is Accel.KVM and not nests:
        raise PrerequisiteError(
            f"the hosts cannot run under KVM: {why}", hint=probe.remedy or "vmcoal lab up --accel tcg"
        )
    if wanted is not Accel.TCG and nests:
        return Accel.KVM, why
    return Accel.TCG, "asked for" if wanted else why


def nested_kvm(machine: ThisMachine) -> tuple[bool, str]:
    """Return whether guests of this machine's KVM have one of their own, and a reason for people
    (``nested`` of kvm_intel and kvm_amd, Documentation/virt/kvm/x86/nested-vmx.rst in Linux)."""
    for module in ("kvm_intel", "kvm_amd"):
        value = (machine.read(f"/sys/module/{module}/parameters/nested") or "").strip()
        if value:
            on = value in ("1", "Y")
            return on, f"{module} {'nests' if on else 'does not nest: load it with nested=1'}"
    return False, "neither kvm_intel nor kvm_amd is loaded"
