"""What this host can lend: it refuses promises that its CPUs, its memory or its tmpfs cannot keep."""

from __future__ import annotations

import os

from vmcoal.errors import PrerequisiteError, UsageError
from vmcoal.host.facts import Host
from vmcoal.layout import shm_home
from vmcoal.lending.entry import Capacity
from vmcoal.model.units import MIB, format_size
from vmcoal.policy.admission import GRAIN

HEADROOM = 256 * MIB
"""What a lender keeps for its own host, beside what is in use already."""


def check_capacity(wanted: Capacity, *, reserved: int, host: Host | None = None) -> Capacity:
    """Return ``wanted``, its memory rounded down to whole grains, if this host can lend it.

    ``reserved`` bytes are lent already and count as there. Raises `UsageError` for nonsense and `PrerequisiteError`
    with what there is.
    """
    host = host or Host()
    if wanted.cpus < 0 or wanted.memory < 0 or not (wanted.cpus or wanted.memory or wanted.gpus):
        raise UsageError("nothing to lend", hint="give --cpus N, --memory SIZE, --gpu auto or several of them")
    cpus = len(os.sched_getaffinity(0))
    if wanted.cpus > cpus:
        raise PrerequisiteError(
            f"{wanted.cpus} CPUs cannot be lent: this host has {cpus}", hint=f"lend at most --cpus {cpus}"
        )
    if not wanted.memory:
        return wanted
    if wanted.memory < GRAIN:
        raise UsageError("memory is lent in multiples of 2 MiB", hint="lend at least --memory 2M")
    kind = host.file_system(shm_home())
    if kind != "tmpfs":
        raise PrerequisiteError(
            f"{shm_home().parent} is {kind}, and lent bytes need a tmpfs", hint="mount -t tmpfs tmpfs /dev/shm"
        )
    for what, free, remedy in (
        ("free memory", host.memory_available() - HEADROOM, "lend less, or end something"),
        (f"room in {shm_home().parent}", host.free(shm_home()), "lend less, or: mount -o remount,size=… /dev/shm"),
    ):
        room = free + reserved
        if wanted.memory > room:
            raise PrerequisiteError(
                f"{format_size(wanted.memory)} cannot be lent: this host has {format_size(max(0, room))} of {what}"
                + (f", {format_size(HEADROOM)} kept for itself" if "memory" in what else ""),
                hint=remedy,
            )
    return Capacity(wanted.cpus, wanted.memory - wanted.memory % GRAIN, wanted.gpus)
