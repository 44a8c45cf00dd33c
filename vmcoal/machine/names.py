"""The ids that vmcoal gives to QEMU objects, and how they are read back after a crash.

A vCPU is ``far<node>-cpu<core>``; a root port ``far<node>-port<n>`` on expander ``far<node>-pxb``; of a memory
lease the backend is ``mem-<lease>`` and the device ``dimm-<lease>`` or ``vmem-<lease>``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vmcoal.errors import UsageError
from vmcoal.model.attachment import MemoryStyle

_CPU = re.compile(r"far(\d{1,3})-cpu(\d{1,4})")
_PORT = re.compile(r"far(\d{1,3})-port(\d{1,3})")
_LEASE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DEVICE = {MemoryStyle.DIMM: "dimm-", MemoryStyle.GRANULAR: "vmem-"}


class MemoryIds(NamedTuple):
    """The QOM ids of one memory lease."""

    backend: str
    device: str


def memory_ids(lease: str, style: MemoryStyle) -> MemoryIds:
    """Return the ids of lease ``lease``; raises `UsageError` if it cannot be part of a QEMU id."""
    if not _LEASE.fullmatch(lease):
        raise UsageError(
            f"{lease!r} cannot be a lease id", hint="use small letters, digits, dots, hyphens, underscores"
        )
    return MemoryIds(f"mem-{lease}", f"{_DEVICE[style]}{lease}")


def lease_of(identifier: str) -> str | None:
    """Return the lease that a backend's or memory device's id belongs to, or ``None`` if it is not of ours."""
    for prefix in ("mem-", *_DEVICE.values()):
        if identifier.startswith(prefix):
            return identifier[len(prefix) :]
    return None


def cpu_id(node: int, core: int) -> str:
    """Return the id of vCPU ``core`` of far node ``node``."""
    return f"far{node}-cpu{core}"


def parse_cpu_id(identifier: str) -> tuple[int, int] | None:
    """Return node and core of a vCPU's id, or ``None`` if it is not one."""
    match = _CPU.fullmatch(identifier)
    return (int(match[1]), int(match[2])) if match else None


def expander_id(node: int) -> str:
    """Return the id of far node ``node``'s PCI expander bridge."""
    return f"far{node}-pxb"


def port_id(node: int, port: int) -> str:
    """Return the id of root port ``port`` of far node ``node``."""
    return f"far{node}-port{port}"


def parse_port_id(identifier: str) -> tuple[int, int] | None:
    """Return node and number of a root port's id, or ``None`` if it is not one."""
    match = _PORT.fullmatch(identifier)
    return (int(match[1]), int(match[2])) if match else None
