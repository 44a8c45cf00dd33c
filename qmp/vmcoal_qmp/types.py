"""What QMP answers and announces, as typed data.

Names follow QEMU's QAPI schema (docs/interop/qemu-qmp-ref in QEMU's documentation). Keys that a newer QEMU adds are
ignored; sizes and addresses are in bytes.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from vmcoal_qmp.errors import QmpProtocolError
from vmcoal_qmp.events import Event

T = TypeVar("T")


def convert(command: str | None, value: Any, kind: type[T]) -> T:
    """Return ``value``, the answer to ``command``, as ``kind``; raises `QmpProtocolError` where it does not fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise QmpProtocolError(command, f"unexpected answer: {error}") from error


class VersionTriple(msgspec.Struct, frozen=True, kw_only=True):
    """QEMU's release number."""

    major: int
    minor: int
    micro: int


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """query-version. ``package``: the distribution's name for it, often empty."""

    qemu: VersionTriple
    package: str = ""

    @property
    def triple(self) -> tuple[int, int, int]:
        """Return (major, minor, micro), for comparing."""
        return self.qemu.major, self.qemu.minor, self.qemu.micro

    def __str__(self) -> str:
        return ".".join(map(str, self.triple))


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """query-status. ``status``: RunState (running, paused, prelaunch, shutdown, guest-panicked, internal-error, …)."""

    running: bool
    status: str


class Kvm(msgspec.Struct, frozen=True, kw_only=True):
    """query-kvm: whether KVM is compiled in, and whether this machine runs on it."""

    present: bool
    enabled: bool


class CpuProperties(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Where a vCPU is or could be: what device_add takes. A machine tells only the levels it has."""

    node_id: int | None = None
    socket_id: int | None = None
    die_id: int | None = None
    cluster_id: int | None = None
    module_id: int | None = None
    core_id: int | None = None
    thread_id: int | None = None

    def arguments(self) -> dict[str, int]:
        """Return what device_add takes: the levels that are set, without ``node-id`` (the socket decides it)."""
        named: dict[str, int] = msgspec.to_builtins(self)
        return {key: value for key, value in named.items() if value is not None and key != "node-id"}


class Cpu(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One vCPU that is there (query-cpus-fast). ``thread_id``: the host's thread that runs it."""

    cpu_index: int
    qom_path: str
    thread_id: int
    props: CpuProperties = CpuProperties()
    target: str = ""


class HotpluggableCpu(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One place for a vCPU (query-hotpluggable-cpus). ``qom_path``: the vCPU that is there, ``None`` where the place is
    empty; ``type``: the driver for device_add."""

    type: str
    vcpus_count: int
    props: CpuProperties
    qom_path: str | None = None


class Dimm(msgspec.Struct, frozen=True, kw_only=True):
    """One pc-dimm (query-memory-devices). ``id``: as given to device_add; ``memdev``: QOM path of its backend."""

    size: int
    addr: int
    slot: int
    node: int
    memdev: str
    hotplugged: bool
    hotpluggable: bool
    id: str | None = None


class VirtioMem(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One virtio-mem device (query-memory-devices). ``requested_size``: what was asked of the guest; ``size``: what it
    has plugged; ``max_size``: the backend's; ``block_size``: grain of both."""

    size: int
    requested_size: int
    max_size: int
    block_size: int
    node: int
    memdev: str
    memaddr: int
    id: str | None = None


class OtherMemoryDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A memory device of a kind that is not spelt out here."""

    type: str
    data: dict[str, Any]


MemoryDevice = Dimm | VirtioMem | OtherMemoryDevice


def memory_device(raw: Any) -> MemoryDevice:
    """Decode one element of query-memory-devices."""
    device = convert("query-memory-devices", raw, OtherMemoryDevice)
    if device.type == "dimm":
        return convert("query-memory-devices", device.data, Dimm)
    if device.type == "virtio-mem":
        return convert("query-memory-devices", device.data, VirtioMem)
    return device


class MemorySummary(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """query-memory-size-summary: memory from boot, and memory of plugged devices (``None``: cannot tell)."""

    base_memory: int
    plugged_memory: int | None = None


class Memdev(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One memory backend (query-memdev). ``host_nodes``: host NUMA nodes it is bound to."""

    size: int
    merge: bool
    dump: bool
    prealloc: bool
    share: bool = False
    policy: str
    host_nodes: list[int] = []
    id: str | None = None


class QomProperty(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One property of a QOM object (qom-list). ``type``: ``child<KIND>``, ``link<KIND>`` or a scalar type."""

    name: str
    type: str


class PciClass(msgspec.Struct, frozen=True, kw_only=True):
    """PCI class code and its name, where QEMU knows one."""

    class_: int = msgspec.field(name="class")
    desc: str | None = None


class PciId(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """PCI vendor and device, and the subsystem's."""

    device: int
    vendor: int
    subsystem: int | None = None
    subsystem_vendor: int | None = None


class PciRegion(msgspec.Struct, frozen=True, kw_only=True):
    """One BAR. ``address`` -1: not mapped."""

    bar: int
    type: str
    address: int
    size: int
    prefetch: bool | None = None
    mem_type_64: bool | None = None


class PciBridgeBus(msgspec.Struct, frozen=True, kw_only=True):
    """Bus numbers of a bridge."""

    number: int
    secondary: int
    subordinate: int


class PciBridge(msgspec.Struct, frozen=True, kw_only=True):
    """What is behind a bridge."""

    bus: PciBridgeBus
    devices: list[PciDevice] = []


class PciDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One PCI function (query-pci). ``qdev_id``: as given to device_add, empty where none was."""

    bus: int
    slot: int
    function: int
    class_info: PciClass
    id: PciId
    qdev_id: str
    regions: list[PciRegion] = []
    irq_pin: int = 0
    irq: int | None = None
    pci_bridge: PciBridge | None = None


class PciBus(msgspec.Struct, frozen=True, kw_only=True):
    """One root bus (query-pci)."""

    bus: int
    devices: list[PciDevice]


class Chardev(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """One character device (query-chardev). ``frontend_open``: the guest side is open."""

    label: str
    filename: str
    frontend_open: bool


class OstStatus:
    """Codes of ACPI's ``_OST`` for an ejection request (ACPI 6.4, section 6.3.5, table 6.46 and following).

    ``source`` of `AcpiDeviceOst` says what is answered: 3 an ejection request from the firmware, 0x103 an ejection that
    the guest's own software asked for; 0, 1 and 0x200 are insertions and checks.
    """

    SOURCE_EJECT_REQUEST = 3
    SOURCE_OSPM_EJECT = 0x103

    SUCCESS = 0
    FAILURE = 1
    NOT_SUPPORTED = 0x80
    DEVICE_IN_USE = 0x81
    DEVICE_BUSY = 0x82
    DEPENDENCY_BUSY = 0x83
    IN_PROGRESS = 0x84


class AcpiDeviceOst(msgspec.Struct, frozen=True, kw_only=True):
    """ACPI_DEVICE_OST: the guest's firmware interface answers for a DIMM or vCPU. ``device``: its id, where it has one;
    ``slot_type``: DIMM or CPU; ``source`` and ``status`` as in `OstStatus`."""

    slot: str
    slot_type: str
    source: int
    status: int
    device: str | None = None

    @property
    def is_ejection(self) -> bool:
        """Whether it answers an ejection request."""
        return self.source in (OstStatus.SOURCE_EJECT_REQUEST, OstStatus.SOURCE_OSPM_EJECT)

    @property
    def refused(self) -> bool:
        """Whether the guest refused to let the device go (in progress is no refusal)."""
        return self.is_ejection and self.status not in (OstStatus.SUCCESS, OstStatus.IN_PROGRESS)


class DeviceDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """DEVICE_DELETED: the device is gone. ``device``: its id, where it had one; ``path``: its QOM path."""

    path: str
    device: str | None = None


class DeviceUnplugGuestError(msgspec.Struct, frozen=True, kw_only=True):
    """DEVICE_UNPLUG_GUEST_ERROR: the guest refused to let the device go."""

    path: str
    device: str | None = None


class MemUnplugError(msgspec.Struct, frozen=True, kw_only=True):
    """MEM_UNPLUG_ERROR (deprecated by QEMU in favour of DEVICE_UNPLUG_GUEST_ERROR)."""

    device: str
    msg: str


class MemoryDeviceSizeChange(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """MEMORY_DEVICE_SIZE_CHANGE: a virtio-mem device has now ``size`` bytes plugged.

    QEMU sends at most one a second for each device, the latest last: the size that was waited for may be told up to a
    second late, so ask query_memory_devices in between.
    """

    size: int
    qom_path: str
    id: str | None = None


class Shutdown(msgspec.Struct, frozen=True, kw_only=True):
    """SHUTDOWN: the machine goes down; ``reason``: ShutdownCause (guest-shutdown, host-qmp-quit, host-signal, …)."""

    guest: bool
    reason: str


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """RESET: the machine resets."""

    guest: bool
    reason: str


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    """STOP: the vCPUs stopped."""


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """RESUME: the vCPUs run again."""


class GuestPanicked(msgspec.Struct, frozen=True, kw_only=True):
    """GUEST_PANICKED. ``action``: pause, poweroff or run; ``info`` depends on the guest."""

    action: str
    info: dict[str, Any] | None = None


class VserportChange(msgspec.Struct, frozen=True, kw_only=True):
    """VSERPORT_CHANGE: the guest opened or closed virtio-serial port ``id``."""

    id: str
    open: bool


KnownEvent = (
    AcpiDeviceOst
    | DeviceDeleted
    | DeviceUnplugGuestError
    | MemUnplugError
    | MemoryDeviceSizeChange
    | Shutdown
    | Reset
    | Stop
    | Resume
    | GuestPanicked
    | VserportChange
)

_EVENTS: dict[str, type[KnownEvent]] = {
    "DEVICE_DELETED": DeviceDeleted,
    "DEVICE_UNPLUG_GUEST_ERROR": DeviceUnplugGuestError,
    "MEM_UNPLUG_ERROR": MemUnplugError,
    "MEMORY_DEVICE_SIZE_CHANGE": MemoryDeviceSizeChange,
    "SHUTDOWN": Shutdown,
    "RESET": Reset,
    "STOP": Stop,
    "RESUME": Resume,
    "GUEST_PANICKED": GuestPanicked,
    "VSERPORT_CHANGE": VserportChange,
}


class _OstRaw(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    slot: str
    slot_type: str
    source: int
    status: int
    device: str | None = None


def decode_event(event: Event) -> KnownEvent | Event:
    """Return ``event`` as its type, or itself where its name is not spelt out here.

    Raises `QmpProtocolError` where its data is not what its name promises.
    """
    if event.name == "ACPI_DEVICE_OST":
        info = convert(None, event.data.get("info"), _OstRaw)
        return AcpiDeviceOst(**msgspec.structs.asdict(info))
    kind = _EVENTS.get(event.name)
    return event if kind is None else convert(None, event.data, kind)
