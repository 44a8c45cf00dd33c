"""A guest's /sys and /proc as plain files, and the kernel behind them, for the real agent to run against.

`Tree` builds and changes the files; `kernel_write` does what Linux does when the agent writes to one. Run as a program
this file is the real agent with that kernel: ``fake_sysfs.py --port … --sysfs … --procfs …``.

Control files beside a file that is written to: ``.refuse`` (an errno name), ``.busy`` (so many times EBUSY), ``.hang``.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import signal
import struct
import sys
from pathlib import Path
from types import ModuleType

AGENT = Path(__file__).parents[2] / "guest-agent" / "vmcoal_agent.py"
BLOCK = 128 << 20


def load_agent() -> ModuleType:
    """Import the agent from its file."""
    spec = importlib.util.spec_from_file_location("vmcoal_agent", AGENT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["vmcoal_agent"] = module
    spec.loader.exec_module(module)
    return module


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def acpi_table(start: int, entries: list[bytes]) -> bytes:
    body = b"".join(entries)
    return b"TEST" + struct.pack("<I", start + len(body)) + bytes(start - 8) + body


class Tree:
    """A machine of ``nodes`` sockets with ``cores`` CPUs each, all of socket 0 online; node N is socket N."""

    def __init__(self, root: Path, *, nodes: int = 3, cores: int = 2, memory_blocks: int = 4) -> None:
        self.root = root
        self.sys = root / "sys"
        self.proc = root / "proc"
        self.cores = cores
        self.bits = max(1, (cores - 1).bit_length()) if cores > 1 else 0
        self.nodes = nodes
        self.cpu_dir = self.sys / "devices/system/cpu"
        self.memory_dir = self.sys / "devices/system/memory"
        self.node_dir = self.sys / "devices/system/node"
        madt, srat = [], []
        for index in range(nodes * cores):
            socket, core = divmod(index, cores)
            apic = socket << self.bits | core
            madt.append(struct.pack("<BBBBI", 0, 8, index, apic, 1))
            srat.append(struct.pack("<BBBBI", 0, 16, socket, apic, 1) + bytes(8))
        tables = self.sys / "firmware/acpi/tables"
        tables.mkdir(parents=True)
        (tables / "APIC").write_bytes(acpi_table(44, madt))
        (tables / "SRAT").write_bytes(acpi_table(48, srat))
        put(self.memory_dir / "block_size_bytes", f"{BLOCK:x}")
        put(self.memory_dir / "auto_online_blocks", "offline")
        self.add_node(0)
        for core in range(cores):
            self.add_cpu(core, 0, core, online=True)
        for number in range(memory_blocks):
            self.add_block(number, 0, "online", "Normal")
        put(self.proc / "sys/kernel/random/boot_id", "8b2ab4b8-0000-4000-8000-000000000001")
        put(self.proc / "sys/vm/swappiness", "60")
        put(self.proc / "uptime", "12.50 20.00")
        put(self.proc / "loadavg", "0.50 0.25 0.10 1/100 1234")
        put(self.proc / "pressure/cpu", "some avg10=1.50 avg60=0.00 avg300=0.00 total=1")
        put(self.proc / "meminfo", "MemTotal: 1048576 kB\nMemFree: 524288 kB\nMemAvailable: 600000 kB\nSwapFree: 0 kB")
        self.zone(0, "Normal", managed=131072, free=65536)

    # -- what the machine does

    def add_node(self, node: int) -> None:
        folder = self.node_dir / f"node{node}"
        put(folder / "meminfo", f"Node {node} MemTotal: 524288 kB\nNode {node} MemFree: 262144 kB")
        online = sorted({int(path.name[4:]) for path in self.node_dir.glob("node*")})
        for one in online:
            row = " ".join("10" if one == other else str(10 + 10 * max(one, other)) for other in online)
            put(self.node_dir / f"node{one}" / "distance", row)

    def add_cpu(self, number: int, socket: int, core: int, *, online: bool = False) -> None:
        """A CPU appears; its files are complete when its folder is seen."""
        folder = self.root / f".cpu{number}"
        put(folder / "firmware_node/path", f"\\_SB_.CPUS.C{socket * self.cores + core:03X}")
        put(folder / ".place", f"{socket} {core}")
        put(folder / "online", "0")
        self.cpu_dir.mkdir(parents=True, exist_ok=True)
        folder.rename(self.cpu_dir / f"cpu{number}")
        if online:
            self.write_cpu(self.cpu_dir / f"cpu{number}", "1")
        else:
            self.list_online(self.cpu_dir)

    def add_block(self, number: int, node: int, state: str = "offline", zone: str = "") -> None:
        if not (self.node_dir / f"node{node}").exists():
            self.add_node(node)
        folder = self.root / f".memory{number}"
        put(folder / "state", state)
        put(folder / "valid_zones", zone or "Normal Movable")
        put(folder / "removable", "1")
        (folder / f"node{node}").symlink_to(f"../../node/node{node}")
        self.memory_dir.mkdir(parents=True, exist_ok=True)
        folder.rename(self.memory_dir / f"memory{number}")
        (self.node_dir / f"node{node}" / f"memory{number}").symlink_to(f"../../memory/memory{number}")

    def zone(self, node: int, zone: str, *, managed: int, free: int, cache: int = 0, high: int = 100) -> None:
        """Append a zone to /proc/zoneinfo; counts in pages."""
        path = self.proc / "zoneinfo"
        before = path.read_text() if path.exists() else ""
        text = (
            f"Node {node}, zone {zone:>8}\n  per-node stats\n      nr_inactive_file {cache}\n      nr_active_file 0\n"
            f"      nr_slab_reclaimable 0\n  pages free     {free}\n        boost    0\n        min      {high // 2}\n"
            f"        low      {high}\n        high     {high}\n        promo    {high}\n        spanned  {managed}\n"
            f"        present  {managed}\n        managed  {managed}\n        protection: (0, 0, 0, 0, 0)\n"
            f"  pagesets\n    cpu: 0\n              count: 0\n              high:  14\n              batch: 1\n"
        )
        put(path, before + text)

    # -- what the test injects

    def refuse_cpu(self, number: int, code: str) -> None:
        put(self.cpu_dir / f"cpu{number}" / "online.refuse", code)

    def hang_cpu(self, number: int) -> None:
        put(self.cpu_dir / f"cpu{number}" / "online.hang", "")

    def refuse_block(self, number: int, code: str) -> None:
        put(self.memory_dir / f"memory{number}" / "state.refuse", code)

    def busy_block(self, number: int, times: int) -> None:
        put(self.memory_dir / f"memory{number}" / "state.busy", str(times))

    def hang_block(self, number: int) -> None:
        put(self.memory_dir / f"memory{number}" / "state.hang", "")

    # -- what the kernel does on a write

    @staticmethod
    def list_online(folder: Path) -> None:
        online = [path.parent.name[3:] for path in folder.glob("cpu*/online") if path.read_text().strip() == "1"]
        new = folder / ".online"
        put(new, ",".join(sorted(online, key=int)))
        new.rename(folder / "online")

    @staticmethod
    def write_cpu(folder: Path, text: str) -> None:
        socket, core = (folder / ".place").read_text().split()
        put(folder / "online", text)
        if text == "1":
            put(folder / "topology/physical_package_id", socket)
            put(folder / "topology/core_id", core)
            node = folder.parent.parent / "node" / f"node{socket}"
            if node.exists() and not (folder / f"node{socket}").exists():
                (folder / f"node{socket}").symlink_to(f"../../node/node{socket}")
        else:
            shutil.rmtree(folder / "topology", ignore_errors=True)
        Tree.list_online(folder.parent)

    @staticmethod
    def write_block(folder: Path, text: str) -> None:
        if text == "offline":
            put(folder / "state", "offline")
            put(folder / "valid_zones", "Normal Movable")
        elif (folder / "state").read_text().strip() == "offline":
            put(folder / "state", "online")
            put(folder / "valid_zones", "Movable" if text == "online_movable" else "Normal")


def kernel_write(path: str, text: str) -> None:
    """Do what Linux does when ``text`` is written to ``path``; raises `OSError`."""
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    refuse, hang, busy = (file.with_name(f"{file.name}.{what}") for what in ("refuse", "hang", "busy"))
    if hang.exists():
        signal.pause()
    if refuse.exists():
        code = getattr(errno, refuse.read_text().strip())
        raise OSError(code, os.strerror(code))
    if busy.exists():
        left = int(busy.read_text())
        if left > 0:
            put(busy, str(left - 1))
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    if file.name == "online":
        Tree.write_cpu(file.parent, text)
    elif file.name == "state":
        Tree.write_block(file.parent, text)
    else:
        put(file, text)


if __name__ == "__main__":
    agent = load_agent()
    agent.write = kernel_write
    agent.main()
