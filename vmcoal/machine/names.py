"""The ids that vmcoal gives to QEMU objects, which are also how they are found again after a crash.

A vCPU is ``far<node>-cpu<core>``; a root port ``far<node>-port<n>`` on expander ``far<node>-pxb``, and one for a
virtio-mem device ``far<node>-mem`` on the machine's own bus; of a memory lease the backend is ``mem-<lease>`` and the
device ``dimm-<lease>`` or ``vmem-<lease>``; of a GPU lease the PCI function is ``gpu-<lease>``, which is also what the
guest calls its port.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vmcoal.errors import UsageError
from vmcoal.model.attachment import MemoryStyle

AGENT_PORT = "agent-port"
"""QOM id of the agent's virtio-serial port."""


_LEASE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BACKEND = "mem-"
_DEVICE = {MemoryStyle.DIMM: "dimm-", MemoryStyle.GRANULAR: "vmem-"}


class MemoryIds(NamedTuple):
    """The QOM ids of one memory lease."""

    backend: str
    device: str


def memory_ids(lease: str, style: MemoryStyle) -> MemoryIds:
    """Return the ids of lease ``lease``; raises `UsageError` if it cannot be part of a QEMU id."""
    _check_lease(lease)
    return MemoryIds(f"{_BACKEND}{lease}", f"{_DEVICE[style]}{lease}")


class GpuIds(NamedTuple):
    """The QOM ids of one GPU lease: the PCI function, its virtio-serial port, and the host side of that."""

    device: str
    port: str
    chardev: str


def gpu_ids(lease: str) -> GpuIds:
    """Return the ids of GPU lease ``lease``; raises `UsageError` if it cannot be part of a QEMU id."""
    _check_lease(lease)
    return GpuIds(f"gpu-{lease}", f"gpu-{lease}-port", f"gpu-{lease}-way")


def _check_lease(lease: str) -> None:
    if not _LEASE.fullmatch(lease):
        raise UsageError(
            f"{lease!r} cannot be a lease id", hint="use small letters, digits, dots, hyphens, underscores"
        )


def is_backend_id(identifier: str) -> bool:
    """Return whether ``identifier`` is that of a lease's memory backend."""
    return identifier.startswith(_BACKEND)


def cpu_id(node: int, core: int) -> str:
    """Return the id of vCPU ``core`` of far node ``node``."""
    return f"far{node}-cpu{core}"


def expander_id(node: int) -> str:
    """Return the id of far node ``node``'s PCI expander bridge."""
    return f"far{node}-pxb"


def memory_port_id(node: int) -> str:
    """Return the id of the root port that takes far node ``node``'s virtio-mem device."""
    return f"far{node}-mem"


def port_id(node: int, port: int) -> str:
    """Return the id of root port ``port`` of far node ``node``."""
    return f"far{node}-port{port}"
