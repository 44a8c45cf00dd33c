"""What `vmcoal status` tells; the same data feeds the table, the JSON and the metrics."""

from __future__ import annotations

from typing import Any

import msgspec

from vmcoal.model.activity import GpuActivity, PagingActivity
from vmcoal.model.attachment import Attachment
from vmcoal.model.engine import EngineChoice
from vmcoal.model.machine import Accel, CpuMode


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA node: what QEMU has plugged and what the guest has online (``None``: the guest did not say).

    ``gpu_window`` bytes for a GPU's memory at each of its ``pci_ports``.
    """

    node: int
    distance: int
    lender: str | None
    cpus_plugged: int
    cpus_online: int | None
    memory_plugged: int
    memory_online: int | None
    cpu_slots: int
    memory_headroom: int
    pci_ports: int = 0
    gpu_window: int = 0


class VmStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One VM. ``state``: running | paused | starting | stopped | failed | unknown; ``degraded``: what is wrong, each
    with its next step; ``agent``: vmcoal | qemu-guest-agent | none; ``memory_engine``: what brings borrowed memory, and
    ``paging`` what it does where that is the page engine and memory is borrowed; ``gpus`` what attached GPUs do."""

    name: str
    state: str
    accel: Accel
    accel_reason: str
    cpu_mode: CpuMode
    cpus: int
    memory: int
    agent: str = "none"
    guest: str | None = None
    qemu_version: str | None = None
    qemu_pid: int | None = None
    controller_pid: int | None = None
    holder_pid: int | None = None
    ssh_port: int | None = None
    metrics: str | None = None
    memory_engine: EngineChoice | None = None
    uptime: float | None = None
    degraded: tuple[str, ...] = ()
    nodes: tuple[NodeStatus, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    paging: PagingActivity | None = None
    gpus: tuple[GpuActivity, ...] = ()
    operation: str | None = None
    exit: dict[str, Any] | None = None
