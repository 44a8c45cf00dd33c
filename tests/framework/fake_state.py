"""The state of a `FakeMachine`, and what its guest does: answers to plugging and unplugging, and virtio-mem."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

CPU_TYPE = "max-x86_64-cpu"
RAM = "memory-backend-ram"
_INSERTION, _EJECT_REQUEST = 1, 3
_SUCCESS, _BUSY, _IN_PROGRESS = 0, 130, 132


class RefusalError(Exception):
    """QEMU's error to a command."""

    def __init__(self, desc: str, qmp_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.desc = desc
        self.qmp_class = qmp_class


def not_found(name: str) -> RefusalError:
    return RefusalError(f"Device '{name}' not found", "DeviceNotFound")


@dataclass
class FakeGuest:
    """What the guest does, ``delay`` seconds after it is asked.

    ``unplug``: by device id ``release``, ``refuse`` or ``ignore``; `default` for the others. ``stuck``: by virtio-mem
    id, the bytes that the guest will not give back. A guest that is not ``booted`` ignores everything.
    """

    booted: bool = False
    delay: float = 0.0
    default: str = "release"
    unplug: dict[str, str] = field(default_factory=dict)
    stuck: dict[str, int] = field(default_factory=dict)


@dataclass
class Backend:
    """A memory backend."""

    kind: str
    size: int
    share: bool
    user: str | None = None


@dataclass
class Device:
    """A plugged device. ``place``: slot of a DIMM, (node, core) of a vCPU, (port, devfn) of a PCI device;
    ``host``: the address of one that is a function of the host."""

    driver: str
    place: Any
    node: int = 0
    memdev: str = ""
    addr: int = 0
    size: int = 0
    requested: int = 0
    leaving: bool = False
    host: str = ""

    @property
    def acpi(self) -> str:
        """What ACPI calls the kind of its slot; empty for PCI devices."""
        return {"pc-dimm": "DIMM", CPU_TYPE: "CPU"}.get(self.driver, "")


class MachineState:
    """What there is, and what the guest makes of it."""

    def __init__(
        self,
        *,
        version: tuple[int, int] = (7, 2),
        accel: str = "tcg",
        nodes: int = 4,
        cores: int = 2,
        near_cpus: int = 2,
        near_memory: int = 256 << 20,
        max_memory: int = 8 << 30,
        slots: int = 3,
        ports: Mapping[str, int] | None = None,
        near_ports: Collection[str] | None = None,
        guest: FakeGuest | None = None,
    ) -> None:
        """``ports``: root ports by id, with their far node; ``near_ports``: those of them that are on pcie.0 instead of
        behind the node's expander (default: the ``-mem`` ones)."""
        self.version = version
        self.accel = accel
        self.guest = guest or FakeGuest()
        self.status = "running" if self.guest.booted else "prelaunch"
        self.objects: dict[str, Backend] = {"near": Backend(RAM, near_memory, False, user="machine")}
        self.devices: dict[str, Device] = {}
        self._nodes, self._cores, self._near_cpus = nodes, cores, near_cpus
        self._near_memory, self._room, self._slots = near_memory, max_memory - near_memory, slots
        far = {f"far{node}-{port}": node for node in range(1, nodes) for port in ("mem", "port0", "port1")}
        self._ports = dict(ports or far)
        self._near_ports = set(near_ports or (port for port in self._ports if port.endswith("-mem")))

    def emit(self, name: str, **data: Any) -> None:
        """Announce an event."""
        raise NotImplementedError

    def disconnect(self, reason: str = "QEMU closed the connection") -> None:
        """End the connection."""
        raise NotImplementedError

    def _cpus(self) -> dict[tuple[int, int], str]:
        near = {(0, core): f"/machine/unattached/device[{2 * core}]" for core in range(self._near_cpus)}
        far = {
            device.place: f"/machine/peripheral/{name}"
            for name, device in self.devices.items()
            if device.driver == CPU_TYPE
        }
        return near | far

    def _memory(self) -> dict[str, Device]:
        return {name: device for name, device in self.devices.items() if device.memdev}

    def _device(self, path: str) -> tuple[str, Device]:
        name = path.removeprefix("/machine/peripheral/")
        if name not in self.devices:
            raise not_found(path)
        return name, self.devices[name]

    def _answer_plug(self, name: str) -> None:
        device = self.devices.get(name)
        if device and device.driver == "virtio-mem-pci":
            self._resize(name, device)
        elif device and device.acpi:
            self._ost(device, _INSERTION, _SUCCESS, name)

    def _answer_unplug(self, name: str) -> None:
        device = self.devices.get(name)
        wish = self.guest.unplug.get(name, self.guest.default)
        if device is None or wish == "ignore":
            return
        device.leaving = False
        if device.acpi:
            self._ost(device, _EJECT_REQUEST, _IN_PROGRESS, name)
        if wish == "refuse":
            if device.acpi:
                self._ost(device, _EJECT_REQUEST, _BUSY, name)
            return  # a refusing pciehp says nothing
        if device.driver == CPU_TYPE and self.accel == "tcg":
            self.disconnect()  # QEMU corrupts its heap and dies
            return
        self._gone(name)
        if device.acpi:
            self._ost(device, _EJECT_REQUEST, _SUCCESS, None)

    def _ost(self, device: Device, source: int, status: int, name: str | None) -> None:
        slot = device.place[0] * self._cores + device.place[1] if device.driver == CPU_TYPE else device.place
        info = {"slot": str(slot), "slot-type": device.acpi, "source": source, "status": status}
        self.emit("ACPI_DEVICE_OST", info=info | ({"device": name} if name else {}))

    def _gone(self, name: str) -> None:
        device = self.devices.pop(name)
        if device.memdev:
            self.objects[device.memdev].user = None
        path = f"/machine/peripheral/{name}"
        if device.driver.startswith("virtio-"):
            self.emit("DEVICE_DELETED", path=f"{path}/virtio-backend")
        self.emit("DEVICE_DELETED", device=name, path=path)

    def _follow(self, name: str) -> None:
        device = self.devices.get(name)
        # 7.2 gives virtio-mem no MSI-X, and legacy interrupts from behind an expander never arrive.
        if device and (self.version >= (8, 0) or device.place[0] in self._near_ports):
            self._resize(name, device)

    def _resize(self, name: str, device: Device) -> None:
        size = max(device.requested, min(self.guest.stuck.get(name, 0), device.size))
        size = min(size, self.objects[device.memdev].size)
        if size != device.size:
            device.size = size
            path = f"/machine/peripheral/{name}"
            self.emit("MEMORY_DEVICE_SIZE_CHANGE", **{"id": name, "size": size, "qom-path": path})

    def _later(self, action: Any, name: str) -> None:
        if self.guest.booted:
            asyncio.get_running_loop().call_later(self.guest.delay, action, name)
