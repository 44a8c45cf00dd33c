"""The state of a QEMU machine and what its commands do to it: objects, DIMMs, virtio-mem, vCPUs, PCI devices.

It knows what hotplug uses, and refuses with QEMU's own classes and words. What its guest does is a `FakeGuest`'s.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRAIN = 2 << 20
DEVICE_MEMORY = 4 << 30
CPU_TYPE = "max-x86_64-cpu"
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_EJECT_REQUEST, _SUCCESS, _BUSY, _IN_PROGRESS = 3, 0, 130, 132
_BACKENDS = ("memory-backend-ram", "memory-backend-file", "memory-backend-memfd")


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
    """A plugged device. ``place``: slot of a DIMM, (node, core) of a vCPU, (port, devfn) of a PCI device."""

    driver: str
    place: Any
    node: int = 0
    memdev: str = ""
    addr: int = 0
    size: int = 0
    requested: int = 0


class FakeMachine:
    """A q35 machine with far nodes; see `FakeMonitor` for how it is used."""

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
        guest: FakeGuest | None = None,
    ) -> None:
        self.version = version
        self.accel = accel
        self.guest = guest or FakeGuest()
        self.status = "running" if self.guest.booted else "prelaunch"
        self.objects: dict[str, Backend] = {"near": Backend(_BACKENDS[0], near_memory, False, user="machine")}
        self.devices: dict[str, Device] = {}
        self._nodes, self._cores, self._near_cpus = nodes, cores, near_cpus
        self._near_memory, self._room, self._slots = near_memory, max_memory - near_memory, slots
        far = {f"far{node}-{port}": node for node in range(1, nodes) for port in ("mem", "port0", "port1")}
        self._ports = dict(ports or far)

    def emit(self, name: str, **data: Any) -> None:
        """Announce an event."""
        raise NotImplementedError

    def disconnect(self, reason: str = "QEMU closed the connection") -> None:
        """End the connection."""
        raise NotImplementedError

    def carry_out(self, command: str, arguments: dict[str, Any]) -> Any:
        """Do ``command`` and return its answer, or raise `RefusalError`."""
        if command not in _COMMANDS:
            raise RefusalError(f"The command {command} has not been found", "CommandNotFound")
        required = _COMMANDS[command]
        for name in required:
            if name not in arguments:
                raise RefusalError(f"Parameter '{name}' is missing")
        if command not in _OPEN:
            _no_surprise(arguments, required)
        return getattr(self, "_" + command.replace("-", "_"))(arguments)

    # Questions.

    def _query_version(self, _a: Any) -> Any:
        major, minor = self.version
        return {"qemu": {"major": major, "minor": minor, "micro": 0}, "package": ""}

    def _query_status(self, _a: Any) -> Any:
        return {"running": self.status == "running", "status": self.status}

    def _query_kvm(self, _a: Any) -> Any:
        return {"present": True, "enabled": self.accel == "kvm"}

    def _cpus(self) -> dict[tuple[int, int], str]:
        near = {(0, core): f"/machine/unattached/device[{core or ''}]" for core in range(self._near_cpus)}
        far = {
            device.place: f"/machine/peripheral/{name}"
            for name, device in self.devices.items()
            if device.driver == CPU_TYPE
        }
        return near | far

    def _query_cpus_fast(self, _a: Any) -> Any:
        return [
            {
                "cpu-index": node * self._cores + core,
                "qom-path": path,
                "thread-id": 1,
                "props": _place(node, core),
                "target": "x86_64",
            }
            for (node, core), path in sorted(self._cpus().items())
        ]

    def _query_hotpluggable_cpus(self, _a: Any) -> Any:
        taken = self._cpus()
        places = [(node, core) for node in range(self._nodes) for core in range(self._cores)]
        return [
            {"type": CPU_TYPE, "vcpus-count": 1, "props": _place(*place)}
            | ({"qom-path": taken[place]} if place in taken else {})
            for place in reversed(places)
        ]

    def _query_memory_devices(self, _a: Any) -> Any:
        answer = []
        for name, device in sorted(self._memory().items(), key=lambda item: item[1].addr):
            memdev = f"/objects/{device.memdev}"
            if device.driver == "pc-dimm":
                data = {"id": name, "size": device.size, "addr": device.addr, "slot": device.place, "node": device.node}
                data |= {"memdev": memdev, "hotplugged": True, "hotpluggable": True}
                answer.append({"type": "dimm", "data": data})
            else:
                data = {"id": name, "size": device.size, "requested-size": device.requested, "block-size": GRAIN}
                data |= {"max-size": self.objects[device.memdev].size, "node": device.node}
                data |= {"memdev": memdev, "memaddr": device.addr}
                answer.append({"type": "virtio-mem", "data": data})
        return answer

    def _query_memory_size_summary(self, _a: Any) -> Any:
        return {
            "base-memory": self._near_memory,
            "plugged-memory": sum(device.size for device in self._memory().values()),
        }

    def _query_memdev(self, _a: Any) -> Any:
        common = {"merge": True, "dump": True, "prealloc": False, "policy": "default", "host-nodes": []}
        return [{"id": name, "size": one.size, "share": one.share, **common} for name, one in self.objects.items()]

    def _qom_list(self, a: Any) -> Any:
        kinds = {
            "/objects": {name: one.kind for name, one in self.objects.items()},
            "/machine/peripheral": {name: one.driver for name, one in self.devices.items()}
            | dict.fromkeys(self._ports, "pcie-root-port"),
        }
        kinds |= {f"/machine/peripheral/{port}/{port}": {} for port in self._ports}
        if a["path"] not in kinds:
            raise not_found(a["path"])
        if not kinds[a["path"]]:
            behind = enumerate(self._behind(a["path"]))
            return [{"name": f"child[{n}]", "type": f"link<{self.devices[name].driver}>"} for n, name in behind]
        children = [{"name": name, "type": f"child<{kind}>"} for name, kind in kinds[a["path"]].items()]
        return [{"name": "type", "type": "string"}, *children]

    def _behind(self, bus: str) -> list[str]:
        """The ids of the devices on a root port's bus, ``/machine/peripheral/PORT/PORT``."""
        port = bus.rpartition("/")[2]
        pci = {name: one.place[0] for name, one in self.devices.items() if isinstance(one.place, tuple)}
        return [name for name, place in pci.items() if place == port]

    def _qom_get(self, a: Any) -> Any:
        if a["property"].startswith("child["):
            return f"/machine/peripheral/{self._behind(a['path'])[int(a['property'][6:-1])]}"
        _name, device = self._device(a["path"])
        values: dict[str, Any] = {"hotplugged": True, "realized": True}
        if device.driver == "virtio-mem-pci":
            values |= {
                "requested-size": device.requested,
                "size": device.size,
                "block-size": GRAIN,
                "node": device.node,
            }
        elif device.driver == "pc-dimm":
            values |= {"size": device.size, "addr": device.addr, "slot": device.place, "node": device.node}
        elif device.driver != CPU_TYPE:
            values |= {"addr": device.place[1]}
        if a["property"] not in values:
            raise RefusalError(f"Property '{device.driver}.{a['property']}' not found")
        return values[a["property"]]

    # Objects.

    def _object_add(self, a: Any) -> Any:
        kind, name = a["qom-type"], a["id"]
        if kind not in _BACKENDS:
            raise RefusalError(f"Parameter 'qom-type' does not accept value '{kind}'")
        if "size" not in a:
            raise RefusalError("Parameter 'size' is missing")
        known = {"qom-type", "id", "size", "share", "prealloc", "merge", "dump", "reserve", "policy", "host-nodes"}
        _no_surprise(a, known | ({"mem-path", "pmem", "align", "discard-data"} if "file" in kind else {"seal"}))
        if not isinstance(a["size"], int):
            raise RefusalError("Parameter 'size' expects uint64")
        if not _ID.fullmatch(name):
            raise RefusalError("Parameter 'id' expects an identifier")
        if name in self.objects:
            raise RefusalError(f"attempt to add duplicate property '{name}' to object (type 'container')")
        if a["size"] == 0:
            raise RefusalError(f"property 'size' of {kind} doesn't take value '0'")
        if a["size"] < 0:
            self.disconnect()  # QEMU aborts
        if a["size"] >= 1 << 45:
            raise RefusalError(f"cannot set up guest memory '{name}': Cannot allocate memory")
        if kind == "memory-backend-file":
            _open_backing(a)
        self.objects[name] = Backend(kind, a["size"], bool(a.get("share", "memfd" in kind)))
        return {}

    def _object_del(self, a: Any) -> Any:
        name = a["id"]
        if name not in self.objects:
            raise RefusalError(f"object '{name}' not found")
        if self.objects[name].user:
            raise RefusalError(f"object '{name}' is in use, can not be deleted")
        del self.objects[name]
        return {}

    # Plugging.

    def _device_add(self, a: Any) -> Any:
        driver, name = a["driver"], a.get("id", "")
        props = {key: value for key, value in a.items() if key not in ("driver", "id")}
        if self.version < (9, 2) and not _ID.fullmatch(name):
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
        device = Device(driver, (bus, devfn), self._ports[bus])
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
        self._later(self._follow, name)

    def _backend(self, props: dict[str, Any]) -> tuple[Backend, str]:
        if "memdev" not in props:
            raise RefusalError("'memdev' property must be set")
        memdev = props["memdev"]
        if memdev in self.devices or memdev in self._ports:
            raise RefusalError("Invalid parameter type for 'memdev', expected: memory-backend")
        if memdev not in self.objects:
            raise not_found(memdev)
        return self.objects[memdev], memdev

    def _memory(self) -> dict[str, Device]:
        return {name: device for name, device in self.devices.items() if device.memdev}

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

    # Changing and unplugging.

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
        if isinstance(device.place, tuple) and device.driver != CPU_TYPE and not self.guest.booted:
            self._gone(name)  # the slot has no power yet: nobody needs to be asked
        else:
            self._later(self._answer_unplug, name)
        return {}

    def _check_virtio_mem_unplug(self, device: Device) -> None:
        if self.version < (8, 2):
            raise RefusalError("virtio based memory devices cannot be unplugged.")
        if device.requested:
            raise RefusalError("virtio-mem device cannot get unplugged while 'requested-size' != '0'")
        if device.size:
            raise RefusalError("virtio-mem device cannot get unplugged while some of its memory is still plugged")

    def _answer_unplug(self, name: str) -> None:
        device = self.devices.get(name)
        wish = self.guest.unplug.get(name, self.guest.default)
        if device is None or wish == "ignore":
            return
        slot_type = {"pc-dimm": "DIMM", CPU_TYPE: "CPU"}.get(device.driver)
        slot = self._acpi_slot(device)
        if slot_type == "DIMM":
            self._ost(slot, slot_type, _IN_PROGRESS, name)
        if wish == "refuse":
            if slot_type:
                self._ost(slot, slot_type, _BUSY, name)
            else:
                self.emit("DEVICE_UNPLUG_GUEST_ERROR", device=name, path=f"/machine/peripheral/{name}")
            return
        if device.driver == CPU_TYPE and self.accel == "tcg":
            self.disconnect()  # QEMU corrupts its heap and dies
            return
        self._gone(name)
        if slot_type:
            self._ost(slot, slot_type, _SUCCESS, None)

    def _acpi_slot(self, device: Device) -> int:
        slot: int = device.place[0] * self._cores + device.place[1] if device.driver == CPU_TYPE else device.place
        return slot

    def _ost(self, slot: int, slot_type: str, status: int, device: str | None) -> None:
        info = {"slot": str(slot), "slot-type": slot_type, "source": _EJECT_REQUEST, "status": status}
        self.emit("ACPI_DEVICE_OST", info=info | ({"device": device} if device else {}))

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
        if device is None:
            return
        size = max(device.requested, min(self.guest.stuck.get(name, 0), device.size))
        size = min(size, self.objects[device.memdev].size)
        if size != device.size:
            device.size = size
            path = f"/machine/peripheral/{name}/virtio-backend"
            self.emit("MEMORY_DEVICE_SIZE_CHANGE", **{"id": name, "size": size, "qom-path": path})

    def _later(self, action: Any, name: str) -> None:
        if self.guest.booted:
            asyncio.get_running_loop().call_later(self.guest.delay, action, name)

    def _device(self, path: str) -> tuple[str, Device]:
        name = path.removeprefix("/machine/peripheral/")
        if name not in self.devices:
            raise not_found(path)
        return name, self.devices[name]

    # The machine.

    def _cont(self, _a: Any) -> Any:
        if self.status != "running":
            self.status = "running"
            self.emit("RESUME")
        return {}

    def _stop(self, _a: Any) -> Any:
        if self.status == "running":
            self.status = "paused"
            self.emit("STOP")
        return {}

    def _system_powerdown(self, _a: Any) -> Any:
        self.emit("POWERDOWN")
        return {}

    def _quit(self, _a: Any) -> Any:
        self.emit("SHUTDOWN", guest=False, reason="host-qmp-quit")
        self.disconnect()
        return {}


def _place(node: int, core: int) -> dict[str, int]:
    return {"node-id": node, "socket-id": node, "core-id": core, "thread-id": 0}


def _no_surprise(arguments: dict[str, Any], known: Any) -> None:
    for name in arguments:
        if name not in known:
            raise RefusalError(f"Parameter '{name}' is unexpected")


def _open_backing(a: dict[str, Any]) -> None:
    if "mem-path" not in a:
        raise RefusalError("Parameter 'mem-path' is missing")
    path = Path(a["mem-path"])
    if not path.parent.is_dir():
        raise RefusalError(f"can't open backing store {path} for guest RAM: No such file or directory")
    size = path.stat().st_size if path.exists() else 0
    if 0 < size < a["size"]:
        raise RefusalError(f"backing store size 0x{size:x} does not match 'size' option 0x{a['size']:x}")
    if not size:
        with path.open("ab") as file:
            file.truncate(a["size"])


_OPEN = ("object-add", "device_add")  # they take properties
_COMMANDS: dict[str, tuple[str, ...]] = {
    "query-version": (),
    "query-status": (),
    "query-kvm": (),
    "query-cpus-fast": (),
    "query-hotpluggable-cpus": (),
    "query-memory-devices": (),
    "query-memory-size-summary": (),
    "query-memdev": (),
    "qom-list": ("path",),
    "qom-get": ("path", "property"),
    "qom-set": ("path", "property", "value"),
    "object-add": ("qom-type", "id"),
    "object-del": ("id",),
    "device_add": ("driver",),
    "device_del": ("id",),
    "stop": (),
    "cont": (),
    "system_powerdown": (),
    "quit": (),
}
