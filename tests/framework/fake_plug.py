"""Plugging into a `FakeMachine`, resizing and unplugging, with QEMU's checks in QEMU's order."""

from __future__ import annotations

import re
from typing import Any

from framework.fake_state import CPU_TYPE, Backend, Device, MachineState, RefusalError, not_found

GRAIN = 2 << 20
DEVICE_MEMORY = 4 << 30
IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")


class Plugging(MachineState):
    """device_add, device_del and qom-set."""

    def _device_add(self, a: Any) -> Any:
        driver, name = a["driver"], a.get("id", "")
        props = {key: value for key, value in a.items() if key not in ("driver", "id")}
        if self.version < (9, 2) and not IDENTIFIER.fullmatch(name):
            raise RefusalError("Parameter 'id' expects an identifier")
        if driver.endswith("-cpu"):
            plug = self._plug_cpu
        elif driver == "pc-dimm":
            plug = self._plug_dimm
        elif driver.endswith("-pci") or driver == "edu":
            plug = self._plug_pci
        else:
            raise RefusalError(f"'{driver}' is not a valid device model name")
        if name in self.devices or name in self._ports:
            raise RefusalError(f"Duplicate device ID '{name}'")
        self.devices[name] = plug(driver, name, props)
        self._later(self._answer_plug, name)
        return {}

    def _plug_cpu(self, driver: str, name: str, props: dict[str, Any]) -> Device:
        if driver != CPU_TYPE:
            raise RefusalError(f"Invalid CPU type, expected cpu type: '{CPU_TYPE}'")
        for level in ("socket", "core", "thread"):
            if f"{level}-id" not in props:
                raise RefusalError(f"CPU {level}-id is not set")
        socket, core = props["socket-id"], props["core-id"]
        if not 0 <= socket < self._nodes:
            raise RefusalError(f"Invalid CPU socket-id: {socket} must be in range 0:{self._nodes - 1}")
        if not 0 <= core < self._cores:
            raise RefusalError(f"Invalid CPU core-id: {core} must be in range 0:{self._cores - 1}")
        index = socket * self._cores + core
        if (socket, core) in self._cpus():
            raise RefusalError(f"CPU[{index}] with APIC ID {index} exists")
        if props.get("node-id", socket) != socket:
            raise RefusalError(f"invalid node-id, must be {socket}")
        return Device(driver, (socket, core), node=socket)

    def _plug_dimm(self, driver: str, name: str, props: dict[str, Any]) -> Device:
        for key in props:
            if key not in ("memdev", "node", "slot", "addr"):
                raise RefusalError(f"Property 'pc-dimm.{key}' not found")
        backend, memdev = self._backend(props)
        if backend.user:
            raise RefusalError(f"can't use already busy memdev: {memdev}")
        node = props.get("node", 0)
        if node >= self._nodes:
            raise RefusalError(
                f"'DIMM property node has value {node}' which exceeds the number of numa nodes: {self._nodes}"
            )
        slot = self._slot(props.get("slot"))
        addr = self._address(backend.size, props.get("addr"))
        backend.user = name
        return Device(driver, slot, node, memdev, addr, backend.size)

    def _plug_pci(self, driver: str, name: str, props: dict[str, Any]) -> Device:
        bus = props.get("bus", "pcie.0")
        if bus == "pcie.0":
            raise RefusalError("Bus 'pcie.0' does not support hotplugging")
        if bus not in self._ports:
            raise RefusalError(f"Bus '{bus}' not found")
        taken = {
            device.place: (other, device) for other, device in self.devices.items() if isinstance(device.place, tuple)
        }
        if "addr" in props:
            devfn = int(str(props["addr"]), 16) * 8
        else:
            devfn = next(devfn for devfn in range(0, 256, 8) if (bus, devfn) not in taken)
            if devfn and self.version >= (8, 0):
                where = f"slot 0 function 0 already occupied by {taken[bus, 0][1].driver}"
                raise RefusalError(f"PCI: {where}, new func {driver} cannot be exposed to guest.")
        if (bus, devfn) in taken:
            other, device = taken[bus, devfn]
            raise RefusalError(
                f"PCI: slot {devfn // 8} function 0 not available for {driver}, in use by {device.driver},id={other}"
            )
        device = Device(driver, (bus, devfn), self._ports[bus], host=props.get("host", ""))
        if driver == "virtio-mem-pci":
            self._plug_virtio_mem(name, device, props)
        return device

    def _plug_virtio_mem(self, name: str, device: Device, props: dict[str, Any]) -> None:
        backend, device.memdev = self._backend(props)
        device.node, device.requested = props.get("node", 0), props.get("requested-size", 0)
        if backend.user:
            raise RefusalError(f"'memdev' property specifies a busy memdev: {device.memdev}")
        if device.node >= self._nodes:
            value = f"'node' property has value '{device.node}', which exceeds"
            raise RefusalError(f"{value}the number of numa nodes: {self._nodes}")
        if device.requested % GRAIN:
            raise RefusalError("'requested-size' property has to be multiples of 'block-size' (0x200000)")
        device.addr = self._address(backend.size, None)
        backend.user = name

    def _backend(self, props: dict[str, Any]) -> tuple[Backend, str]:
        if "memdev" not in props:
            raise RefusalError("'memdev' property must be set")
        memdev = props["memdev"]
        if memdev in self.devices or memdev in self._ports:
            raise RefusalError("Invalid parameter type for 'memdev', expected: memory-backend")
        if memdev not in self.objects:
            raise not_found(memdev)
        return self.objects[memdev], memdev

    def _slot(self, wanted: int | None) -> int:
        taken = {device.place for device in self.devices.values() if device.driver == "pc-dimm"}
        if wanted is not None and not 0 <= wanted < self._slots:
            raise RefusalError(f"invalid slot number {wanted}, valid range is [0-{self._slots - 1}]")
        if wanted in taken:
            raise RefusalError(f"slot {wanted} is busy")
        free = [slot for slot in range(self._slots) if slot not in taken]
        if not free:
            raise RefusalError("no free slots available")
        return free[0] if wanted is None else wanted

    def _address(self, size: int, wanted: int | None) -> int:
        ranges = sorted(
            (device.addr, self.objects[device.memdev].size, name) for name, device in self._memory().items()
        )
        if size % GRAIN:
            raise RefusalError("backend memory size must be multiple of 0x200000")
        used = sum(length for _start, length, _name in ranges)
        if used + size > self._room:
            raise RefusalError(
                f"not enough space, currently 0x{used:x} in use of total space for memory devices 0x{self._room:x}"
            )
        if wanted is not None and wanted % GRAIN:
            raise RefusalError("address must be aligned to 0x200000 bytes")
        addr = DEVICE_MEMORY if wanted is None else wanted
        for start, length, name in ranges:
            if addr < start + length and start < addr + size:
                if wanted is not None:
                    raise RefusalError(f"address range conflicts with memory device id='{name}'")
                addr = start + length
        return addr

    def _qom_set(self, a: Any) -> Any:
        name, device = self._device(a["path"])
        if device.driver != "virtio-mem-pci" or a["property"] not in ("requested-size", "size"):
            raise RefusalError(f"Property '{device.driver}.{a['property']}' not found")
        if a["property"] == "size":
            raise RefusalError("Property 'virtio-mem.size' is not writable")
        value, most = a["value"], self.objects[device.memdev].size
        if not isinstance(value, int):
            raise RefusalError("Parameter 'requested-size' expects uint64")
        if value % GRAIN:
            raise RefusalError("'requested-size' has to be multiples of 'block-size' (0x200000)")
        if value > most:
            raise RefusalError(f"'requested-size' cannot exceed the memory backend size(0x{most:x})")
        device.requested = value
        self._later(self._follow, name)
        return {}

    def _device_del(self, a: Any) -> Any:
        if a["id"].startswith("/machine/unattached/"):
            raise RefusalError("Boot CPU is unpluggable")
        if a["id"] in self._ports or a["id"].startswith("pxb"):
            raise RefusalError("Bus 'pcie.0' does not support hotplugging")
        name, device = self._device(a["id"])
        if device.driver == CPU_TYPE and not self.guest.booted:
            raise RefusalError(f"acpi: device unplug request for not supported device type: {CPU_TYPE}")
        if device.driver == "virtio-mem-pci":
            self._check_virtio_mem_unplug(device)
        if not device.acpi and not self.guest.booted:
            self._gone(name)  # the slot has no power yet: nobody needs to be asked
            return {}
        if device.leaving:
            raise RefusalError(f"Device {name} is already in the process of unplug")
        device.leaving = not device.acpi
        self._later(self._answer_unplug, name)
        return {}

    def _check_virtio_mem_unplug(self, device: Device) -> None:
        if self.version < (8, 2):
            raise RefusalError("virtio based memory devices cannot be unplugged.")
        if device.requested:
            raise RefusalError("virtio-mem device cannot get unplugged while 'requested-size' != '0'")
        if device.size:
            raise RefusalError("virtio-mem device cannot get unplugged while some of its memory is still plugged")
