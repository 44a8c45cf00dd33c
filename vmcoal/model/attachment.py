"""What is attached to a VM, and the plans that attach and detach it."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from vmcoal.model.gpu import GpuDevice
from vmcoal.model.lease import LeaseState
from vmcoal.model.link import Link
from vmcoal.model.machine import Engine
from vmcoal.model.paging import Compression, LossPolicy


class MemoryStyle(enum.StrEnum):
    """How far memory is plugged: whole DIMMs, or one virtio-mem device resized in 2 MiB grains."""

    DIMM = "dimm"
    GRANULAR = "granular"


class AttachmentState(enum.StrEnum):
    """Where one attachment is in its journey."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    DEGRADED = "degraded"
    PARKED = "parked"  # nothing usable is left of it, but QEMU cannot remove its device before shutdown


class AttachRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `vmcoal attach` asks for. ``memory`` in bytes; ``gpu`` one of the lender's, ``pci`` the address of one of
    this host; ``lender`` a paired lender's name or ``None`` for the only one; ``node`` a far node, or ``None`` for the
    one whose tier fits the link; ``deadline`` in seconds. ``cache`` bytes of all the VM's borrowed memory that may be
    on this host, ``None`` as it is; ``replicas`` 1 or 2 places for the pages, the second one ``replica_on`` a lender,
    ``local`` (a file here), or ``None`` for the nearest other lender; ``on_loss`` what touching a lost page does,
    ``None`` as it was tuned; ``compress`` whether pages of all the VM's borrowed memory are made smaller on their way,
    ``None`` as it is."""

    lender: str | None = None
    cpus: int = 0
    memory: int = 0
    gpu: bool = False
    pci: str | None = None
    style: MemoryStyle = MemoryStyle.DIMM
    engine: Engine = Engine.LOCAL
    node: int | None = None
    cache: int | None = None
    replicas: int = 1
    replica_on: str | None = None
    on_loss: LossPolicy | None = None
    compress: Compression | None = None
    deadline: float = 120.0
    dry_run: bool = False


class DetachRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `vmcoal detach` asks for: from one lender (or all), all of it unless ``cpus``, ``memory`` or ``gpu`` (its
    newest GPU) says how much; or the function of this host with address ``pci``.
    ``force`` gives the lease back even if the guest did not let go."""

    lender: str | None = None
    everything: bool = False
    cpus: int = 0
    memory: int = 0
    gpu: bool = False
    pci: str | None = None
    deadline: float = 60.0
    force: bool = False
    dry_run: bool = False


class AttachedMemory(msgspec.Struct, frozen=True, kw_only=True):
    """One DIMM or virtio-mem device. ``size`` bytes usable now; ``capacity`` bytes of the device; ``backend`` and
    ``device`` QOM ids. A ``copy`` has the pages of another lender's device a second time; ``on_loss`` is what touching
    a lost page does."""

    lease: str
    style: MemoryStyle
    size: int
    capacity: int
    engine: str
    backend: str
    device: str
    state: AttachmentState
    lease_state: LeaseState
    copy: bool = False
    on_loss: LossPolicy = LossPolicy.STALL


class AttachedCpu(msgspec.Struct, frozen=True, kw_only=True):
    """One vCPU of a far node. ``device`` its QOM id, or ``None`` where it was present from boot."""

    lease: str
    engine: Engine
    core: int
    device: str | None
    state: AttachmentState
    lease_state: LeaseState


class AttachedGpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU. ``engine`` how its calls are carried; ``device`` the QOM id of its PCI function, empty where it was lost
    and unplugged; ``address`` where the guest has it, ``host`` where this host has it, if it is its own."""

    lease: str
    engine: str
    gpu: GpuDevice
    device: str
    address: str
    host: str = ""
    state: AttachmentState
    lease_state: LeaseState


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one lender lends to one VM: it is bound to one far node."""

    lender: str
    node: int
    distance: int
    link: Link | None = None
    cpus: tuple[AttachedCpu, ...] = ()
    memory: tuple[AttachedMemory, ...] = ()
    gpus: tuple[AttachedGpu, ...] = ()


class Step(msgspec.Struct, frozen=True):
    """One step of a plan: what it does in words, and the exact argv or QMP command, as plain data."""

    name: str
    summary: str
    where: str
    commands: tuple[dict[str, Any], ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """What an attach or detach will do; `--dry-run` prints it."""

    kind: str
    summary: str
    steps: tuple[Step, ...] = ()
    warnings: tuple[str, ...] = ()
