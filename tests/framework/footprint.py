"""What a VM and its lender hold on this host, for comparing: nothing of it may grow from one attach to the next."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.path import Scene, until
from vmcoal.control.client import call
from vmcoal.controller.api import AttachResult, DetachResult
from vmcoal.model.attachment import AttachRequest, DetachRequest
from vmcoal.model.units import MIB

GROWN = AttachRequest(cpus=2, memory=256 * MIB, node=1, deadline=60.0)
ALL = DetachRequest(everything=True, deadline=60.0)
PATIENCE = 90.0


@dataclass(frozen=True)
class Footprint:
    """Everything is a count or a set of names; ``descriptors`` by process."""

    processes: Counter[str]
    descriptors: dict[str, Counter[str]]
    mounts: frozenset[str]
    files: frozenset[str]
    objects: frozenset[str]
    memory_slots: tuple[str, ...]
    guest: str

    def changed(self, before: Footprint) -> dict[str, tuple[Any, Any]]:
        """Return what is not as it was: what → (then, now)."""
        then, now = before._flat(), self._flat()
        return {key: (then.get(key), now.get(key)) for key in then.keys() | now.keys() if then.get(key) != now.get(key)}

    def _flat(self) -> dict[str, Any]:
        flat: dict[str, Any] = {f"processes {name}": count for name, count in self.processes.items()}
        for process, counts in self.descriptors.items():
            flat |= {f"{process}: descriptors {name}": count for name, count in counts.items()}
        for what in ("mounts", "files", "objects", "memory_slots"):
            flat |= dict.fromkeys((f"{what} {name}" for name in getattr(self, what)), 1)
        return flat | {"guest": self.guest}


class Cycles:
    """One VM called ``web`` and one lender called ``attic``, attached and detached again and again."""

    def __init__(self, made: Scene) -> None:
        self.scene = made
        # A second monitor, because the controller holds the first one.
        monitor = made.home / "q.sock"
        qemu = made.home / "qemu"
        qemu.write_text(f'#!/bin/sh\nexec qemu-system-x86_64 "$@" -qmp unix:{monitor},server=on,wait=off\n')
        qemu.chmod(0o755)
        made.lend("attic")
        made.boot("web", "--qemu", str(qemu))
        self._monitor = _Monitor(monitor)

    def run(self, count: int) -> None:
        """Attach and detach ``count`` times, through the controller's socket."""
        for _ in range(count):
            attached = self._call("attach", GROWN, AttachResult)
            assert attached.verified
            detached = self._call("detach", ALL, DetachResult)
            assert (detached.cpus_removed, detached.memory_removed) == (2, GROWN.memory)
            assert detached.remaining == ()
            self._monitor.ask("query-status")  # takes the events away too

    def footprint(self) -> Footprint:
        """Return what is there once it is the same twice: the other end of our last call closes after its answer."""
        guest = self.scene.shell(
            "cd /sys/devices/system; cat node/online cpu/online cpu/present; ls -d memory/memory* | wc -l"
        )
        looks = [self._look(guest)]

        def settled() -> bool:
            looks.append(self._look(guest))
            return looks[-1] == looks[-2]

        until(settled, "a footprint that stays as it is")
        return looks[-1]

    def _look(self, guest: str) -> Footprint:
        names = {pid: name for pid in self.scene.pids() if (name := _name(pid))}
        slots = tuple(device["data"]["id"] for device in self._monitor.ask("query-memory-devices"))
        objects = {
            f"{folder}/{item['name']}"
            for folder in ("/objects", "/machine/peripheral", "/machine/peripheral-anon")
            for item in self._monitor.ask("qom-list", path=folder)
        }
        return Footprint(
            processes=Counter(names.values()),
            descriptors={name: _descriptors(pid) for pid, name in names.items()},
            mounts=frozenset(
                mount
                for line in Path("/proc/self/mountinfo").read_text().splitlines()
                if (mount := line.split()[4]).startswith(f"{self.scene.home}/")
            ),
            files=frozenset(
                str(path.relative_to(folder))
                for folder in (self.scene.home, self.scene.shm)
                for path in folder.rglob("*")
            ),
            objects=frozenset(objects),
            memory_slots=slots,
            guest=guest,
        )

    def resident(self) -> dict[str, int]:
        """Return the resident bytes of controller and lender."""
        pids = {
            "controller": self.scene.pid("vmcoal.controller", " web"),
            "lender": self.scene.lender_pid("attic"),
        }
        return {name: _resident(pid) for name, pid in pids.items()}

    def close(self) -> None:
        """Hang up on QEMU."""
        self._monitor.close()

    def _call(self, method: str, params: Any, result: type[Any]) -> Any:
        socket_ = self.scene.folders.control_socket
        return call(socket_, method, params, result=result, peer="the controller", deadline=PATIENCE)


class _Monitor:
    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10.0)
        self._socket.connect(os.fspath(path))
        self._file = self._socket.makefile("rwb")
        self._file.readline()
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._file.flush()
        while "return" not in (answer := json.loads(self._file.readline())):
            assert "error" not in answer, answer
        return answer["return"]

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _name(pid: int) -> str:
    """Return what tells a process from the others, or an empty text if it has ended."""
    try:
        argv = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    if "-m" in argv:
        return argv[argv.index("-m") + 1]
    name = Path(argv[0]).name
    return f"{name} {argv[argv.index('--name') + 1]}" if "holder" in name else name


def _descriptors(pid: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for link in (Path("/proc") / str(pid) / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[re.sub(r"\d+", "N", str(link.readlink()))] += 1
    return found


def _resident(pid: int) -> int:
    for line in (Path("/proc") / str(pid) / "status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has ended")
