"""The state of a QEMU machine and what its commands do to it: objects, DIMMs, virtio-mem, vCPUs, PCI devices.

It knows what hotplug uses, and refuses with QEMU's own classes and words. What its guest does is a `FakeGuest`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from framework.fake_plug import GRAIN, IDENTIFIER, Plugging
from framework.fake_state import CPU_TYPE, RAM, Backend, FakeGuest, RefusalError, not_found

__all__ = ["FakeGuest", "FakeMachine", "RefusalError"]
_BACKENDS = (RAM, "memory-backend-file", "memory-backend-memfd")


class FakeMachine(Plugging):
    """A q35 machine with far nodes; see `framework.fake_monitor` for how it is used."""

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

    def port_slot(self, port: str) -> int:
        """The number by which a guest knows root port ``port``."""
        return list(self._ports).index(port) + 1

    def _behind(self, bus: str) -> list[str]:
        """The ids of the devices on a root port's bus, ``/machine/peripheral/PORT/PORT``."""
        port = bus.rpartition("/")[2]
        pci = {name: one.place[0] for name, one in self.devices.items() if isinstance(one.place, tuple)}
        return [name for name, place in pci.items() if place == port]

    def _qom_get(self, a: Any) -> Any:
        if a["property"].startswith("child["):
            return f"/machine/peripheral/{self._behind(a['path'])[int(a['property'][6:-1])]}"
        if a["property"] == "slot" and (port := a["path"].rpartition("/")[2]) in self._ports:
            return self.port_slot(port)
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
        if not IDENTIFIER.fullmatch(name):
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
