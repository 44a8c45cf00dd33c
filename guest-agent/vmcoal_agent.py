#!/usr/bin/env python3
"""vmcoal guest agent: does inside the guest what the host cannot do from outside.

It answers one host at a time on the virtio-serial port org.vmcoal.agent.0 with one line of JSON for each frame
(docs/internals/agent-protocol.md). One process, one thread and one epoll loop; whatever the kernel may block on (going
online and offline, PCI slots) runs in a forked worker that its own timer ends, so that no call holds up another.
Needs Linux, Python 3.9 or later and nothing else. One file on purpose: it is carried into guests as a file of a
cloud-init seed, of an initramfs, or by hand, where there is no package to install. From the top: frames, arguments,
what /sys and /proc say, the calls that a worker does, and the sources of the loop with the commands and the port.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import gc
import json
import os
import re
import select
import signal
import socket
import stat
import struct
import sys
import termios
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    Item = dict[str, Any]
    Step = Callable[..., None]

VERSION = "0.1.0"
PROTOCOL = 1
PORT_NAME = "org.vmcoal.agent.0"

MAX_FRAME = 256 * 1024
MAX_JOBS = 16
MAX_EXECS = 32
MAX_ITEMS = 16384
MAX_WINDOW = 1 << 20
MAX_INPUT = 256 * 1024
CHUNK = 16 * 1024
EXEC_ROOM = 64 * 1024  # commands are read only while less than this waits to be sent
JOB_ROOM = 1 << 20
DEFAULT_DEADLINE = 30.0
MAX_DEADLINE = 3600.0
KILL_GRACE = 2.0
IDLE_CHECK = 2.0
FIXED_ZONE_TRIES = 3

SYSCTLS = {
    "kernel.numa_balancing": "rw",
    "vm.compact_memory": "w",
    "vm.drop_caches": "w",
    "vm.lowmem_reserve_ratio": "rw",
    "vm.min_free_kbytes": "rw",
    "vm.numa_zonelist_order": "r",
    "vm.swappiness": "rw",
    "vm.watermark_scale_factor": "rw",
    "vm.zone_reclaim_mode": "rw",
    "memory.auto_online_blocks": "rw",  # not a sysctl: /sys/devices/system/memory/auto_online_blocks
}


class CallError(Exception):
    """A call that fails: ``code`` an errno name, or unsupported, unseen, bad_args, unknown_call, no_session."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def from_os(error: OSError, what: str) -> CallError:
    """Return ``error`` with what was tried."""
    code = errno.errorcode.get(error.errno or 0, "EIO")
    return CallError(code, f"{what}: {error.strerror or error}")


def log(text: str) -> None:
    """Write one line to stderr, which is the journal or the console."""
    try:
        os.write(2, f"vmcoal-agent: {text}\n".encode("utf-8", "replace")[:1000])
    except OSError:
        pass


# ---------------------------------------------------------------- frames


class FrameReader:
    """Cuts a byte stream into lines of at most ``limit`` bytes; a longer one is dropped up to its newline."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self.buffer = bytearray()
        self.dropping = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Take ``data`` and yield the lines that it completes, empty ones left out."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            line = b"" if self.dropping or len(self.buffer) + len(part) > self.limit else bytes(self.buffer) + part
            self.dropping = False
            self.buffer.clear()
            line = line.strip()
            if line:
                yield line
        if self.dropping:
            return
        if len(self.buffer) + len(rest) > self.limit:
            self.buffer.clear()
            self.dropping = True
        else:
            self.buffer += rest


def small_int(text: str) -> int:
    """Return an integer of JSON; huge ones, which take quadratic time, are refused."""
    if len(text) > 20:
        raise ValueError("integer too large")
    return int(text)


def parse(line: bytes) -> Item | None:
    """Return the object on a line, or ``None`` if it is not one."""
    try:
        value = json.loads(line.decode("utf-8"), parse_int=small_int)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def encode(frame: Item) -> bytes:
    """Return a frame as its line."""
    return json.dumps(frame, separators=(",", ":")).encode() + b"\n"


# ---------------------------------------------------------------- arguments


def get_int(args: Item, name: str, low: int, high: int, default: int | None = None) -> int:
    """Return an integer argument within bounds."""
    value = args.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise CallError("bad_args", f"{name} must be an integer from {low} to {high}")
    return value


def get_bool(args: Item, name: str, default: bool = False) -> bool:
    """Return a true or false argument."""
    value = args.get(name, default)
    if not isinstance(value, bool):
        raise CallError("bad_args", f"{name} must be true or false")
    return value


def get_text(args: Item, name: str, limit: int = 4096) -> str:
    """Return a text argument without NUL."""
    value = args.get(name)
    if not isinstance(value, str) or not value or len(value) > limit or "\0" in value:
        raise CallError("bad_args", f"{name} must be a text of 1 to {limit} characters")
    return value


def get_list(args: Item, name: str, limit: int) -> list[Any]:
    """Return a list argument of 1 to ``limit`` members."""
    value = args.get(name)
    if not isinstance(value, list) or not 1 <= len(value) <= limit:
        raise CallError("bad_args", f"{name} must be a list of 1 to {limit} members")
    return value


def get_deadline(args: Item) -> float:
    """Return how many seconds the call may take."""
    value = args.get("deadline", DEFAULT_DEADLINE)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= MAX_DEADLINE:
        raise CallError("bad_args", f"deadline must be more than 0 and at most {MAX_DEADLINE:.0f} seconds")
    return float(value)


# ---------------------------------------------------------------- the system


def read(path: str) -> str | None:
    """Return a small file's text without its last newline, or ``None`` where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20).strip()
    except OSError:
        return None


def read_int(path: str) -> int | None:
    """Return the number in a file, or ``None``."""
    try:
        return int(read(path) or "")
    except ValueError:
        return None


def write(path: str, text: str) -> None:
    """Write to a file that exists in one system call, as sysfs wants it; raises `OSError`."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def numbered(folder: str, prefix: str) -> list[int]:
    """Return N for every ``prefixN`` in a folder, sorted."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(name[len(prefix) :]) for name in names if re.fullmatch(prefix + r"\d{1,9}", name))


def table_entries(path: str, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield type and bytes of every entry of an ACPI table (ACPI 6.5, 5.2.12 and 5.2.16)."""
    try:
        with open(path, "rb") as file:
            data = file.read(1 << 20)
    except OSError:
        return
    while start + 2 <= len(data):
        kind, size = data[start], data[start + 1]
        if size < 2 or start + size > len(data):
            return
        yield kind, data[start : start + size]
        start += size


class System:
    """The guest's kernel, through sysfs and procfs."""

    def __init__(self, sysfs: str = "/sys", procfs: str = "/proc", poweroff: str | None = None) -> None:
        self.sysfs = sysfs
        self.procfs = procfs
        self.poweroff_program = poweroff
        self.cpus = sysfs + "/devices/system/cpu"
        self.memory = sysfs + "/devices/system/memory"
        self.nodes = sysfs + "/devices/system/node"
        # Both tables are fixed at boot and list the absent CPUs too: they name CPUs that are offline, for which
        # Linux has no topology folder.
        self.apic_of_uid: dict[int, int] = {}
        self.domain_of_apic: dict[int, int] = {}
        tables = sysfs + "/firmware/acpi/tables/"
        for kind, entry in table_entries(tables + "APIC", 44):
            if kind == 0 and len(entry) >= 8:
                self.apic_of_uid[entry[2]] = entry[3]
            elif kind == 9 and len(entry) >= 16:
                apic, _flags, uid = struct.unpack_from("<III", entry, 4)
                self.apic_of_uid[uid] = apic
        for kind, entry in table_entries(tables + "SRAT", 48):
            if kind == 0 and len(entry) >= 16 and entry[4] & 1:
                self.domain_of_apic[entry[3]] = entry[2] | int.from_bytes(entry[9:12], "little") << 8
            elif kind == 2 and len(entry) >= 24:
                domain, apic, flags = struct.unpack_from("<III", entry, 4)
                if flags & 1:
                    self.domain_of_apic[apic] = domain

    # -- processors

    def _apic_id(self, number: int) -> int | None:
        """Return the APIC id of a CPU through its ACPI processor: _UID, or the index in QEMU's name of it (C00A)."""
        folder = f"{self.cpus}/cpu{number}/firmware_node/"
        uid = read_int(folder + "uid")
        if uid is None:
            match = re.search(r"\.C([0-9A-F]{3,4})$", read(folder + "path") or "")
            if not match:
                return None
            uid = int(match[1], 16)
        return self.apic_of_uid.get(uid)

    def _package_shift(self, online: Iterable[tuple[int, int]]) -> int | None:
        """Return how many low bits of an APIC id are not the socket.

        The largest number that agrees with every online CPU, given as (APIC id, socket), and puts no socket into two
        proximity domains.
        """
        known = list(online)
        best = None
        for shift in range(17):
            domains: dict[int, int] = {}
            if all(apic >> shift == socket_id for apic, socket_id in known) and all(
                domains.setdefault(apic >> shift, domain) == domain for apic, domain in self.domain_of_apic.items()
            ):
                best = shift
        return best if known and self.domain_of_apic else None

    def online_cpus(self) -> set[int]:
        """Return the numbers of the online CPUs. The file of each CPU does not tell: it is made after its folder."""
        online: set[int] = set()
        for part in (read(self.cpus + "/online") or "").split(","):
            first, _, last = part.partition("-")
            if first.isdigit():
                online.update(range(int(first), int(last or first) + 1))
        return online

    def cpu_table(self, only: list[int] | None = None) -> list[Item]:
        """Return every present CPU: number, online, socket, core, node; what is not known is ``None``.

        Online CPUs tell by themselves. For the others the APIC id tells socket and core (one thread for each core, as
        vmcoal builds its machines), and the node link or else the SRAT tells the node. ``only``: of online ones.
        """
        table = []
        apics: dict[Any, int | None] = {}
        known = []
        all_online = self.online_cpus()
        for number in numbered(self.cpus, "cpu") if only is None else only:
            folder = f"{self.cpus}/cpu{number}"
            online = number in all_online
            socket_id = read_int(folder + "/topology/physical_package_id") if online else None
            core = read_int(folder + "/topology/core_id") if online else None
            nodes = numbered(folder, "node")
            apics[number] = apic = self._apic_id(number)
            if apic is not None and socket_id is not None:
                known.append((apic, socket_id))
            node = nodes[0] if nodes else None
            table.append({"number": number, "online": online, "socket": socket_id, "core": core, "node": node})
        shift = self._package_shift(known)
        for cpu in table:
            ident = apics[cpu["number"]]
            if ident is None:
                continue
            if cpu["socket"] is None and shift is not None:
                cpu["socket"], cpu["core"] = ident >> shift, ident & ((1 << shift) - 1)
            if cpu["node"] is None:
                cpu["node"] = self.domain_of_apic.get(ident)
        return table

    # -- memory

    def block_size(self) -> int:
        """Return the bytes of one memory block, or 0 where memory is not hotpluggable."""
        try:
            return int(read(self.memory + "/block_size_bytes") or "0", 16)
        except ValueError:
            return 0

    def block(self, number: int) -> Item:
        """Return one memory block: state, node, zone (of an online one) and whether it says it can go offline."""
        folder = f"{self.memory}/memory{number}"
        state = read(folder + "/state") or "gone"
        nodes = numbered(folder, "node")
        # Not of a block that is just being added: before it has its node, reading this is an oops of Linux 6.1.
        zones = (read(folder + "/valid_zones") or "").split() if state == "online" and nodes else []
        zone = zones[0] if zones and zones[0] != "none" else ""
        removable = read_int(folder + "/removable") != 0
        return {"number": number, "state": state, "node": nodes[0] if nodes else None, "zone": zone, "rem": removable}

    def blocks_of(self, args: Item) -> tuple[list[int], int | None]:
        """Return the present blocks of a node or of a physical range, and how many there must be where known."""
        size = self.block_size()
        if not size:
            raise CallError("unsupported", "this kernel has no memory hotplug")
        if args.get("node") is not None:
            node = get_int(args, "node", 0, 1023)
            return numbered(f"{self.nodes}/node{node}", "memory"), None
        start = get_int(args, "start", 0, 1 << 62)
        length = get_int(args, "size", 1, 1 << 50)
        if start % size or length % size:
            raise CallError("EINVAL", f"the range is not made of whole memory blocks of {size} bytes")
        first, count = start // size, length // size
        if count > MAX_ITEMS:
            raise CallError("bad_args", f"the range has more than {MAX_ITEMS} blocks")
        there = [n for n in range(first, first + count) if os.path.exists(f"{self.memory}/memory{n}")]
        return there, count

    def zones(self) -> dict[int, Item]:
        """Return what /proc/zoneinfo says of each node, in pages.

        ``reserve`` is the part of totalreserve_pages (mm/page_alloc.c): high watermark and the largest lowmem reserve
        of each zone; ``cache`` and ``slab`` are what reclaim can free.
        """
        nodes: dict[int, Item] = {}
        node: Item = {}
        zone: Item = {}

        def close() -> None:
            if zone:
                node["reserve"] += min(zone.get("managed", 0), zone.get("high", 0) + zone.get("protection", 0))
                node["low"] += zone.get("low", 0)
                node["free"] += zone.get("free", 0)
                node["managed"] += zone.get("managed", 0)
                zone.clear()

        for line in (read(self.procfs + "/zoneinfo") or "").splitlines():
            head = re.match(r"Node (\d+), zone\s+(\w+)", line)
            if head:
                close()
                empty = {"reserve": 0, "low": 0, "free": 0, "managed": 0, "cache": 0, "slab": 0}
                node = nodes.setdefault(int(head[1]), empty)
                zone["managed"] = 0
                continue
            words = line.replace("(", " ").replace(")", " ").replace(",", " ").replace(":", " ").split()
            if not node or len(words) < 2 or not words[-1].isdigit():
                continue
            name, value = words[-2], int(words[-1])
            if words[0] == "protection":
                zone["protection"] = max(int(word) for word in words[1:])
            elif words[:2] == ["pages", "free"]:
                zone["free"] = value
            elif len(words) == 2 and name in ("low", "high", "managed") and name not in zone.keys() - {"managed"}:
                zone[name] = value
            elif name in ("nr_inactive_file", "nr_active_file"):
                node["cache"] += value
            elif name in ("nr_slab_reclaimable", "nr_kernel_misc_reclaimable"):
                node["slab"] += value
        close()
        return nodes

    def meminfo(self, path: str) -> dict[str, int]:
        """Return a meminfo file in bytes by name."""
        values = {}
        for line in (read(path) or "").splitlines():
            match = re.search(r"(\w+(?:\(\w+\))?):\s+(\d+)(?: kB)?$", line)
            if match:
                values[match[1]] = int(match[2]) * 1024
        return values


# ---------------------------------------------------------------- calls that run in a worker
#
# Each takes the system, the arguments, the monotonic time by which it must be done, and `step`, which reports one item
# as an event. The agent collects the items, so that a worker that is ended has still told what it did.


def call_info(system: System, args: Item, until: float, step: Step) -> Item:
    """Return which system this is."""
    release = {}
    for line in (read("/etc/os-release") or read("/usr/lib/os-release") or "").splitlines():
        name, _, value = line.partition("=")
        release[name] = value.strip("\"'")
    uname = os.uname()
    uptime = (read(system.procfs + "/uptime") or "0").split()[0]
    return {
        "release": uname.release,
        "os": release.get("PRETTY_NAME", uname.sysname),
        "hostname": uname.nodename,
        "boot_id": read(system.procfs + "/sys/kernel/random/boot_id") or "",
        "uptime": float(uptime),
    }


def call_topology(system: System, args: Item, until: float, step: Step) -> Item:
    """Return CPUs, nodes and memory blocks; blocks are packed as runs of equal ones."""
    runs: list[list[Any]] = []
    for number in numbered(system.memory, "memory"):
        block = system.block(number)
        rest = [block["state"], block["node"], block["zone"], block["rem"]]
        if runs and runs[-1][0] + runs[-1][1] == number and runs[-1][2:] == rest:
            runs[-1][1] += 1
        else:
            runs.append([number, 1, *rest])
    online = numbered(system.nodes, "node")
    nodes = []
    for node in online:
        memory = system.meminfo(f"{system.nodes}/node{node}/meminfo")
        row = [int(word) for word in (read(f"{system.nodes}/node{node}/distance") or "").split()]
        nodes.append([node, memory.get("MemTotal", 0), memory.get("MemFree", 0), list(map(list, zip(online, row)))])
    cpus = [[c["number"], c["online"], c["socket"], c["core"], c["node"]] for c in system.cpu_table()]
    return {"block_size": system.block_size(), "cpus": cpus, "nodes": nodes, "blocks": runs}


def pause(seconds: float, until: float) -> bool:
    """Wait, and return whether there is time left."""
    left = until - time.monotonic()
    if left > 0:
        time.sleep(min(seconds, left))
    return left > seconds


def wanted_cpus(args: Item) -> list[tuple[int | None, int | None, int | None]]:
    """Return the CPUs of a call as (number, socket, core)."""
    wanted: list[tuple[int | None, int | None, int | None]] = []
    for name in get_list(args, "cpus", 4096):
        if not isinstance(name, dict):
            raise CallError("bad_args", "a CPU is an object with number, or with socket and core")
        if name.get("number") is not None:
            wanted.append((get_int(name, "number", 0, 1 << 20), None, None))
        else:
            wanted.append((None, get_int(name, "socket", 0, 1 << 20), get_int(name, "core", 0, 1 << 20)))
    return wanted


def set_cpu(system: System, cpu: Item, online: bool) -> Item | None:
    """Bring one CPU online or offline; return it as it is then or with the error, ``None`` if it is not ready yet."""
    item = dict(cpu)
    if cpu["online"] == online:
        return item
    path = f"{system.cpus}/cpu{cpu['number']}/online"
    try:
        write(path, "1" if online else "0")
    except FileNotFoundError:
        if online:
            return None
        item.update(error="EPERM", message=f"CPU {cpu['number']} cannot go offline")
    except OSError as error:
        failure = from_os(error, path)
        item.update(error=failure.code, message=failure.message)
    else:
        item["online"] = online
    return item


def call_cpu_set(system: System, args: Item, until: float, step: Step) -> Item:
    """Bring CPUs online or offline; waits for those that are not seen yet. One item for each CPU."""
    online = get_bool(args, "online", True)
    left = wanted_cpus(args)
    total = len(left)
    done = 0
    while True:
        table = system.cpu_table()
        by_number = {cpu["number"]: cpu for cpu in table}
        by_place = {(cpu["socket"], cpu["core"]): cpu for cpu in table if cpu["socket"] is not None}
        missing = []
        # A CPU's folder comes before its files and the link that tells which one it is: then look again soon.
        incomplete = any(cpu["socket"] is None for cpu in table) and bool(system.apic_of_uid)
        for name in left:
            number, socket_id, core = name
            cpu = by_number.get(number) if number is not None else by_place.get((socket_id, core))
            item = set_cpu(system, cpu, online) if cpu is not None else None
            if item is None:
                incomplete = incomplete or cpu is not None
                missing.append(name)
                continue
            if online and "error" not in item:
                # Its own topology is the proof, not what the firmware tables made us expect.
                item = system.cpu_table([item["number"]])[0]
                if number is None and (item["socket"], item["core"]) != (socket_id, core):
                    item.update(error="EXDEV", message=f"CPU {item['number']} came up in another place than announced")
            done += 1
            step(done, total, item)
        left = missing
        if not left:
            return {}
        delay = 0.01
        while pause(delay, until):
            if incomplete or len(numbered(system.cpus, "cpu")) != len(table):
                break
            delay = min(delay * 1.5, 0.1)
        else:
            break
    for number, socket_id, core in left:
        done += 1
        where = f"CPU {number}" if number is not None else f"the CPU of socket {socket_id}, core {core}"
        item = {"number": number, "socket": socket_id, "core": core, "node": None, "online": False}
        item.update(error="unseen", message=f"{where} has not appeared")
        step(done, total, item)
    return {}


def call_park_far(system: System, args: Item, until: float, step: Step) -> Item:
    """Take the CPUs of every socket above ``keep`` offline. One item for each."""
    keep = get_int(args, "keep", 0, 1 << 20, 0)
    far = [cpu for cpu in system.cpu_table() if cpu["online"] and (cpu["socket"] or 0) > keep]
    for done, cpu in enumerate(far, 1):
        step(done, len(far), set_cpu(system, cpu, False))
    return {}


def set_block(system: System, number: int, online: bool) -> Item | None:
    """Bring one memory block online as movable or offline; return ``None``, or the error as an item."""
    path = f"{system.memory}/memory{number}/state"
    block = system.block(number)
    for _ in range(3):
        try:
            if not online:
                if block["state"] not in ("offline", "gone"):
                    write(path, "offline")
                return None
            if block["state"] == "online":
                if block["zone"] == "Movable":
                    return None
                # The kernel put it online by itself (auto_online_blocks), where it may never come off again.
                write(path, "offline")
            write(path, "online_movable")
        except OSError as error:
            before, block = block, system.block(number)
            # EINVAL is how Linux says that it is so already: it went online or offline by itself in the meantime.
            if error.errno == errno.EINVAL and block["state"] != before["state"]:
                continue
            failure = from_os(error, f"memory block {number} in zone {block['zone'] or '?'}")
            return {"error": failure.code, "message": failure.message, "zone": block["zone"]}
        block = system.block(number)
    return {"error": "EXDEV", "message": f"block {number} stays {block['state']} in zone {block['zone'] or '?'}"}


def call_memory_set(system: System, args: Item, until: float, step: Step) -> Item:
    """Bring the memory blocks of a node or range online as movable, or offline, one after the other.

    A movable block that is busy is tried again until the deadline: what keeps it is mostly transient (pages under
    write-back, references that migration waits for). One in another zone is not: it may hold the kernel's own data.
    """
    online = get_bool(args, "online", True)
    blocks, expected = system.blocks_of(args)
    while online and (len(blocks) < expected if expected is not None else not blocks):
        if not pause(0.01, until):
            seen = f"{len(blocks)} of {expected} blocks have" if expected is not None else "no block has"
            raise CallError("unseen", f"{seen} appeared")
        blocks, expected = system.blocks_of(args)
    if not online:
        # The highest first: the kernel hands out low ones first, so these are the ones most likely to be free.
        blocks.reverse()
    total = len(blocks)
    done = 0
    errors: dict[int, Item] = {}
    tries: dict[int, int] = {}
    delay = 0.05
    while blocks:
        busy = []
        for number in blocks:
            failure = set_block(system, number, online)
            if failure is None:
                errors.pop(number, None)
                done += 1
                block = system.block(number)
                step(done, total, [number, block["state"], block["node"], block["zone"]])
            else:
                zone = failure.pop("zone", "")
                errors[number] = failure
                tries[number] = tries.get(number, 0) + 1
                # ENOENT: a block's folder comes before its files.
                transient = failure["error"] in ("EBUSY", "EAGAIN", "EINTR") or (
                    online and failure["error"] == "ENOENT"
                )
                if transient and (zone in ("Movable", "") or tries[number] < FIXED_ZONE_TRIES):
                    busy.append(number)
        blocks = busy
        if not blocks:
            break
        step(done, total, None, note=f"{len(blocks)} of {total} blocks are busy; trying again")
        if not pause(delay, until):
            break
        delay = min(delay * 2, 1.0)
    for number in sorted(errors):
        step(done, total, dict(errors[number], number=number))
    return {"total": total}


def call_room(system: System, args: Item, until: float, step: Step) -> Item:
    """Estimate whether what is in use on a node or range fits into what stays. All numbers in bytes.

    needed: what is in use there without clean file cache, since that can be dropped instead of kept. For a part of a
    node nobody knows which pages are in use, so the worst case counts: all that is in use on the node, up to the
    size of the part.
    available: on the nodes that stay, free pages and reclaimable cache and slab as in MemAvailable (half of each, or
    what exceeds the low watermark, may be counted), less the kernel's reserve. Swap is told apart, not counted.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    size = system.block_size()
    leaving: dict[int, int] = {}
    for number in system.blocks_of(args)[0]:
        block = system.block(number)
        if block["state"] != "offline":
            node = block["node"] if block["node"] is not None else 0
            leaving[node] = leaving.get(node, 0) + size // page
    zones = system.zones()
    needed = available = 0
    for number, node in zones.items():
        cache = node["cache"] - min(node["cache"] // 2, node["low"])
        slab = node["slab"] - min(node["slab"] // 2, node["low"])
        used = max(0, node["managed"] - node["free"])
        gone = min(leaving.get(number, 0), node["managed"])
        if not gone:
            available += max(0, node["free"] + cache + slab - node["reserve"])
            continue
        moved = min(gone, used)
        needed += max(0, moved - min(cache, moved))
        stays = node["managed"] - gone
        if stays:
            available += max(0, stays - (used - moved) - node["reserve"])
    memory = system.meminfo(system.procfs + "/meminfo")
    swap = memory.get("SwapFree", 0)
    needed, available = needed * page, available * page
    mib = 1 << 20
    text = f"{needed // mib} MiB in use must move; {available // mib} MiB are free or reclaimable elsewhere"
    if swap:
        text += f", and {swap // mib} MiB of swap are free"
    return {"fits": needed <= available, "needed": needed, "available": available, "swap": swap, "explanation": text}


def call_pressure(system: System, args: Item, until: float, step: Step) -> Item:
    """Return load averages, PSI (percent of the last 10 s) and memory in bytes."""
    result: Item = {}
    for name in ("cpu", "memory", "io"):
        match = re.search(r"^some avg10=([\d.]+)", read(f"{system.procfs}/pressure/{name}") or "", re.MULTILINE)
        result[name] = float(match[1]) if match else None
    result["load"] = [float(word) for word in (read(system.procfs + "/loadavg") or "0 0 0").split()[:3]]
    memory = system.meminfo(system.procfs + "/meminfo")
    result["memory_available"] = memory.get("MemAvailable", memory.get("MemFree", 0))
    result["memory_total"] = memory.get("MemTotal", 0)
    return result


PCI_ADDRESS = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def get_pci(value: Any) -> str:
    """Return a full PCI address."""
    if not isinstance(value, str) or not PCI_ADDRESS.fullmatch(value):
        raise CallError("bad_args", "a PCI address is written as 0000:00:1f.2")
    return value


def call_pci_fix_node(system: System, args: Item, until: float, step: Step) -> Item:
    """Write the NUMA node of PCI devices and of everything behind them. One item for each device."""
    node = get_int(args, "node", 0, 1023)
    devices = []
    for address in map(get_pci, get_list(args, "addresses", 256)):
        top = os.path.realpath(f"{system.sysfs}/bus/pci/devices/{address}")
        if not os.path.isdir(top):
            raise CallError("ENODEV", f"there is no PCI device {address}")
        for folder, folders, _files in os.walk(top):
            folders[:] = [name for name in folders if PCI_ADDRESS.fullmatch(name)]
            devices.append(folder)
    for done, folder in enumerate(devices, 1):
        item: Item = {"address": os.path.basename(folder), "node": node}
        try:
            # Each write taints the kernel (firmware workaround), so only what is wrong is written.
            if read_int(folder + "/numa_node") != node:
                write(folder + "/numa_node", str(node))
        except OSError as error:
            failure = from_os(error, f"numa_node of {item['address']}")
            item.update(error=failure.code, message=failure.message)
        step(done, len(devices), item)
    return {}


def call_pci_power_off(system: System, args: Item, until: float, step: Step) -> Item:
    """Switch off the hotplug slot of a PCI device; spares the five seconds of the attention button."""
    address = get_pci(args.get("address"))
    slots = system.sysfs + "/bus/pci/slots"
    try:
        names = os.listdir(slots)
    except OSError:
        names = []
    for name in names:
        if read(f"{slots}/{name}/address") != address.rpartition(".")[0]:
            continue
        while read(f"{slots}/{name}/power") != "0":
            try:
                write(f"{slots}/{name}/power", "0")
                break
            except OSError as error:
                # pciehp answers ENODEV while the slot is on its way on or off.
                if error.errno != errno.ENODEV or not pause(0.05, until):
                    raise from_os(error, f"slot {name} of {address}") from error
        return {"slot": name}
    raise CallError("ENODEV", f"no hotplug slot holds {address}")


def sysctl_path(system: System, name: str, mode: str) -> str:
    """Return the file of an allowed setting."""
    if mode not in SYSCTLS.get(name, ""):
        raise CallError("EPERM", f"{name} is not a setting that the agent {'writes' if mode == 'w' else 'reads'}")
    if name.startswith("memory."):
        return f"{system.memory}/{name.partition('.')[2]}"
    return f"{system.procfs}/sys/{name.replace('.', '/')}"


def call_sysctl(system: System, args: Item, until: float, step: Step) -> Item:
    """Read a kernel setting, or write it and return what it was before."""
    name = get_text(args, "name", 64)
    value = get_text(args, "value", 256) if args.get("value") is not None else None
    path = sysctl_path(system, name, "r" if value is None else "w")
    before = read(path) if "r" in SYSCTLS[name] else None
    if not os.path.exists(path):
        raise CallError("unsupported", f"this kernel has no {name}")
    if value is None:
        return {"value": before}
    try:
        write(path, value)
    except OSError as error:
        raise from_os(error, name) from error
    return {"value": read(path) if "r" in SYSCTLS[name] else value, "before": before}


def call_migrate(system: System, args: Item, until: float, step: Step) -> Item:
    """Move the pages of a process between nodes, migrate_pages(2); returns how many pages could not be moved."""
    import ctypes
    import platform

    calls = {"x86_64": 256, "aarch64": 238, "riscv64": 238}
    if platform.machine() not in calls:
        raise CallError("unsupported", f"migrate_pages is not known on {platform.machine()}")
    pid = get_int(args, "pid", 1, 1 << 22)
    masks = []
    for name in ("source", "target"):
        bits = sum(1 << node for node in {get_int({name: node}, name, 0, 1023) for node in get_list(args, name, 1024)})
        masks.append((ctypes.c_uint64 * 17)(*[bits >> (64 * word) & (1 << 64) - 1 for word in range(17)]))
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(calls[platform.machine()], pid, 1025, masks[0], masks[1])
    if result < 0:
        code = ctypes.get_errno()
        raise from_os(OSError(code, os.strerror(code)), f"migrate_pages of process {pid}")
    return {"left": result}


def call_poweroff(system: System, args: Item, until: float, step: Step) -> Item:
    """Power the guest off through its init; ``force``: sync and switch off at once."""
    if system.poweroff_program:
        commands = [[system.poweroff_program]]
    elif get_bool(args, "force"):
        commands = []
    elif os.path.isdir("/run/systemd/system"):
        commands = [["systemctl", "--no-block", "poweroff"], ["poweroff"]]
    else:
        commands = [["poweroff"]]
    for command in commands:
        # Not by subprocess: importing it takes a guest without KVM half a second.
        if os.spawnvp(os.P_WAIT, command[0], command) == 0:
            return {"how": command[0]}
    if commands and not get_bool(args, "force"):
        raise CallError("EIO", f"no way to power off worked; tried {', '.join(c[0] for c in commands)}")
    import ctypes

    os.sync()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.reboot(0x4321FEDC):
        code = ctypes.get_errno()
        raise from_os(OSError(code, os.strerror(code)), "reboot(RB_POWER_OFF)")
    return {"how": "reboot"}


JOBS: dict[str, Callable[[System, Item, float, Step], Item]] = {
    "info": call_info,
    "topology": call_topology,
    "cpu_set": call_cpu_set,
    "park_far": call_park_far,
    "memory_set": call_memory_set,
    "room": call_room,
    "pressure": call_pressure,
    "pci_fix_node": call_pci_fix_node,
    "pci_power_off": call_pci_power_off,
    "sysctl": call_sysctl,
    "migrate": call_migrate,
    "poweroff": call_poweroff,
}
CALLS = [*JOBS, "ping", "cancel", "exec", "exec_input", "exec_ack", "exec_resize"]


def run_worker(system: System, name: str, args: Item, pipe: int) -> None:
    """Do one call in a forked worker: events and the answer go to ``pipe``; does not return."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        deadline = get_deadline(args)
        signal.setitimer(signal.ITIMER_REAL, deadline)

        def say(frame: Item) -> None:
            data = encode(frame)
            while data:
                data = data[os.write(pipe, data) :]

        def step(done: int, total: int, item: Any, note: str | None = None) -> None:
            frame = {"event": "step", "done": done, "total": total, "item": item, "note": note}
            say({key: value for key, value in frame.items() if value is not None})

        try:
            until = time.monotonic() + deadline - min(0.25, deadline / 10)
            answer: Item = {"ok": JOBS[name](system, args, until, step)}
        except CallError as error:
            answer = {"error": {"code": error.code, "message": error.message}}
        except OSError as error:
            failure = from_os(error, name)
            answer = {"error": {"code": failure.code, "message": failure.message}}
        except Exception as error:  # one call's defect must not look like a broken channel
            answer = {"error": {"code": "internal", "message": f"{name}: {type(error).__name__}: {error}"}}
        say(answer)
        code = 0
    finally:
        os._exit(code)


# ---------------------------------------------------------------- the loop's sources


class Source:
    """A descriptor in the loop; `mask` is asked before every wait, 0 leaves it out."""

    fd = -1
    registered = 0

    def mask(self) -> int:
        """Return the epoll events that are of use now."""
        return select.EPOLLIN

    def ready(self, events: int) -> None:
        """Do what the events allow, without blocking."""
        raise NotImplementedError


class Job(Source):
    """One call in a worker: relays its events, collects its items, answers."""

    def __init__(self, agent: Agent, rid: Any, name: str, args: Item) -> None:
        self.agent = agent
        self.rid = rid
        self.name = name
        self.frames = FrameReader()
        self.items: list[Any] = []
        self.answer: Item | None = None
        self.fd, pipe = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self.fd)
            os.close(pipe)
            raise
        if self.pid == 0:
            agent.close_inherited(keep=pipe)
            run_worker(agent.system, name, args, pipe)
        os.close(pipe)
        os.set_blocking(self.fd, False)
        agent.children[self.pid] = self

    def mask(self) -> int:
        """Wait while the host does not read."""
        return select.EPOLLIN if self.agent.waiting < JOB_ROOM else 0

    def ready(self, events: int) -> None:
        """Relay what the worker says."""
        self.pump()

    def pump(self) -> bool:
        """Read once; return whether there may be more."""
        if self.fd < 0:
            return False
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return False
        for line in self.frames.feed(data):
            frame = parse(line)
            if frame is None:
                continue
            if frame.get("event") == "step":
                if "item" in frame and len(self.items) < MAX_ITEMS:
                    self.items.append(frame["item"])
                self.agent.send(dict(frame, id=self.rid))
            else:
                self.answer = frame
        if not data:
            self.agent.drop(self)
        return bool(data)

    def exited(self, status: int) -> None:
        """The worker ended: answer."""
        while self.pump():
            pass
        self.agent.drop(self)
        self.agent.jobs.pop(self.rid, None)
        ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if self.answer is None and self.name == "poweroff" and ended_by == signal.SIGTERM:
            self.answer = {"ok": {"how": "init"}}  # init is ending every process already
        if self.answer is None:
            late = ended_by == signal.SIGALRM
            code, text = ("ETIMEDOUT", "was not done in time") if late else ("EINTR", "was ended")
            self.answer = {"error": {"code": code, "message": f"{self.name} {text}"}}
        if self.items:
            for body in self.answer.values():
                body["items"] = self.items
        self.agent.send(dict(self.answer, id=self.rid))

    def cancel(self) -> None:
        """End the worker; a write to sysfs that blocks in the kernel backs off on the signal."""
        kill(self.pid, signal.SIGKILL)


def kill(pid: int, number: int) -> None:
    """Signal a child and its group, whichever exist."""
    for target in (os.kill, os.killpg):
        try:
            target(pid, number)
        except OSError:
            pass


class Output(Source):
    """One output stream of a command."""

    def __init__(self, command: Command, fd: int, stream: int) -> None:
        self.command = command
        self.fd = fd
        self.stream = stream

    def mask(self) -> int:
        """Read only what the host has room for, so that a flood stays in the command's own pipe."""
        return select.EPOLLIN if self.command.can_send() else 0

    def ready(self, events: int) -> None:
        """Send a chunk; at the end, or when nothing is left after the command's exit, close."""
        command = self.command
        if not command.can_send():
            return
        try:
            data = os.read(self.fd, min(CHUNK, command.credit))
        except BlockingIOError:
            if command.status is not None:
                command.agent.drop(self)
            return
        except OSError:  # EIO: the last process with this terminal is gone
            data = b""
        if not data:
            command.agent.drop(self)
            return
        command.credit -= len(data)
        text = base64.b64encode(data).decode()
        command.agent.send({"event": "output", "id": command.rid, "stream": self.stream, "data": text})


class Input(Source):
    """The standard input of a command; each chunk is acknowledged when the command's pipe took it."""

    def __init__(self, command: Command, fd: int) -> None:
        self.command = command
        self.fd = fd
        self.queue: deque[tuple[Any, bytes, bool]] = deque()
        self.size = 0
        self.ending = False

    def put(self, rid: Any, data: bytes, eof: bool) -> None:
        """Queue a chunk."""
        if self.ending:
            raise CallError("EPIPE", "standard input is closed")
        if self.size + len(data) > MAX_INPUT:
            raise CallError("ENOBUFS", "more input than the command reads")
        self.ending = eof
        if eof and self.command.tty:
            data += b"\x04"
        self.queue.append((rid, data, eof))
        self.size += len(data)

    def mask(self) -> int:
        """Write only what there is."""
        return select.EPOLLOUT if self.queue else 0

    def ready(self, events: int) -> None:
        """Write what the pipe takes."""
        while self.queue:
            rid, data, eof = self.queue.popleft()
            try:
                count = os.write(self.fd, data) if data else 0
            except BlockingIOError:
                count = 0
            except OSError:
                self.close("EPIPE", rid)
                return
            self.size -= count
            if count < len(data):
                self.queue.appendleft((rid, data[count:], eof))
                return
            self.command.agent.reply(rid, {})
            if eof and not self.command.tty:
                self.close("EPIPE")
                return

    def close(self, code: str, rid: Any = None) -> None:
        """Close the pipe and refuse what waits."""
        self.command.agent.drop(self)
        waiting = [rid] if rid is not None else []
        waiting += [entry[0] for entry in self.queue]
        self.queue.clear()
        self.size = 0
        self.ending = True
        for entry in waiting:
            self.command.agent.fail(entry, code, "the command does not read its standard input")


class Started(Source):
    """Tells whether the exec itself worked: its pipe closes on success."""

    def __init__(self, command: Command, fd: int) -> None:
        self.command = command
        self.fd = fd

    def ready(self, events: int) -> None:
        """Note the failure, or tell that the command runs."""
        try:
            data = os.read(self.fd, 4096)
        except BlockingIOError:
            return
        command = self.command
        command.agent.drop(self)
        if data:
            number, _, what = data.decode("utf-8", "replace").partition(" ")
            failure = from_os(OSError(int(number), os.strerror(int(number))), what)
            command.failure = {"code": failure.code, "message": failure.message}
        else:
            command.agent.send({"event": "started", "id": command.rid, "pid": command.pid})


def set_size(fd: int, rows: int, columns: int) -> None:
    """Set the size of a terminal."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Command:
    """One command that runs in the guest."""

    def __init__(self, agent: Agent, rid: Any, args: Item) -> None:
        argv = get_list(args, "argv", 4096)
        env = args.get("env") or {}
        if not all(isinstance(word, str) and "\0" not in word for word in argv):
            raise CallError("bad_args", "argv must be texts")
        if not isinstance(env, dict) or not all(
            isinstance(value, str) and key and "=" not in key and "\0" not in key + value for key, value in env.items()
        ):
            raise CallError("bad_args", "env must map names to texts")
        cwd = get_text(args, "cwd") if args.get("cwd") is not None else None
        rows, columns = get_int(args, "rows", 1, 65535, 24), get_int(args, "columns", 1, 65535, 80)
        self.credit = get_int(args, "window", 1, MAX_WINDOW, 128 * 1024)
        self.agent = agent
        self.rid = rid
        self.tty = get_bool(args, "tty")
        self.status: int | None = None
        self.failure: Item | None = None
        self.kill_at: float | None = None
        wants_input = get_bool(args, "stdin") or self.tty

        ours: list[int] = []
        theirs: list[int] = []

        def pipe(*, child_reads: bool) -> tuple[int, int]:
            """Return our and the child's end."""
            pair = os.pipe()
            mine, other = (pair[1], pair[0]) if child_reads else pair
            ours.append(mine)
            theirs.append(other)
            return mine, other

        try:
            status, status_in = pipe(child_reads=False)
            if self.tty:
                master, slave = os.openpty()
                ours.append(master)
                theirs.append(slave)
                set_size(master, rows, columns)
                ours.append(os.dup(master))
                stdin, outputs, child = ours[-1], [(master, 1)], (slave, slave, slave)
            else:
                stdin, stdin_end = pipe(child_reads=True) if wants_input else (-1, os.open(os.devnull, os.O_RDONLY))
                if not wants_input:
                    theirs.append(stdin_end)
                out, out_end = pipe(child_reads=False)
                err, err_end = pipe(child_reads=False)
                outputs, child = [(out, 1), (err, 2)], (stdin_end, out_end, err_end)
            self.pid = os.fork()
            if self.pid == 0:
                self._run(argv, env, cwd, child, status_in)
        except OSError as error:
            for fd in ours:
                os.close(fd)
            raise from_os(error, "exec") from error
        finally:
            for fd in theirs:
                os.close(fd)
        for fd in ours:
            os.set_blocking(fd, False)
        self.outputs = [Output(self, fd, stream) for fd, stream in outputs]
        self.input = Input(self, stdin) if stdin >= 0 else None
        self.started = Started(self, status)
        agent.children[self.pid] = self
        agent.sources += [self.started, *self.outputs, *([self.input] if self.input else [])]

    def _run(self, argv: list[str], env: dict[str, str], cwd: str | None, std: tuple[int, int, int], out: int) -> None:
        """Become the command; does not return."""
        what = argv[0]
        try:
            signal.set_wakeup_fd(-1)
            for number in range(1, signal.NSIG):
                try:
                    signal.signal(number, signal.SIG_DFL)
                except (OSError, ValueError):
                    pass
            os.setsid()
            if self.tty:
                fcntl.ioctl(std[0], termios.TIOCSCTTY, 0)
            # Descriptors 0 to 2 of the agent may be closed, so the ends may lie there themselves.
            safe = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (*std, out)]
            out = safe[3]
            for target in range(3):
                os.dup2(safe[target], target)
            if read("/proc/self/oom_score_adj") != "0":
                write("/proc/self/oom_score_adj", "0")
            base = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
            for name in ("PATH", "HOME", "LANG", "USER", "LOGNAME", "SHELL"):
                if name in os.environ:
                    base[name] = os.environ[name]
            if self.tty:
                base["TERM"] = "xterm-256color"
            base.update(env)
            folder = cwd or (base["HOME"] if os.path.isdir(base["HOME"]) else "/")
            what = folder
            os.chdir(folder)
            what = argv[0]
            os.execvpe(argv[0], argv, base)
        except OSError as error:
            os.write(out, f"{error.errno or errno.EIO} {what}".encode("utf-8", "replace")[:4000])
        except Exception as error:
            os.write(out, f"{errno.EINVAL} {what}: {error}".encode("utf-8", "replace")[:4000])
        finally:
            os._exit(127)

    def can_send(self) -> bool:
        """Return whether the host has room for more output."""
        return self.credit > 0 and self.agent.waiting < EXEC_ROOM

    def exited(self, status: int) -> None:
        """The process ended; its output may still be under way."""
        self.status = status
        if self.started.fd >= 0:
            self.started.ready(0)

    def settle(self) -> None:
        """Answer once the output that the command left has been sent.

        What it left running may hold its pipes open: like a shell, we wait for the command and not for those.
        """
        if self.status is None:
            return
        for output in self.outputs:
            if output.fd >= 0:
                output.ready(0)
        if any(output.fd >= 0 for output in self.outputs):
            return
        if self.input and self.input.fd >= 0:
            self.input.close("EPIPE")
        self.agent.commands.pop(self.rid, None)
        if self.failure:
            self.agent.fail(self.rid, self.failure["code"], self.failure["message"])
        elif os.WIFSIGNALED(self.status):
            self.agent.reply(self.rid, {"code": None, "signal": os.WTERMSIG(self.status)})
        else:
            self.agent.reply(self.rid, {"code": os.WEXITSTATUS(self.status), "signal": None})

    def cancel(self) -> None:
        """End the command: hang up, and kill what has not gone after a grace."""
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCONT):
            kill(self.pid, number)
        self.kill_at = time.monotonic() + KILL_GRACE


class Wakeup(Source):
    """Signals, turned into something to read."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.fd, self.end = os.pipe()
        for fd in (self.fd, self.end):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self.end, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)

    def ready(self, events: int) -> None:
        """Collect ended children; end on SIGTERM and SIGINT."""
        try:
            data = os.read(self.fd, 4096)
        except BlockingIOError:
            return
        if signal.SIGTERM in data or signal.SIGINT in data:
            self.agent.running = False
        self.agent.reap()


class Port(Source):
    """The virtio-serial port, or what stands in for it.

    A virtio-serial port whose host side is closed reads as end of file and stays ready for ever; the loop then waits
    for the next change only (EPOLLET), which the driver signals when the host comes back.
    """

    def __init__(self, agent: Agent, path: str | None, sysfs: str, name: str) -> None:
        self.agent = agent
        self.path = path
        self.sysfs = sysfs
        self.name = name
        self.idle = False
        self.retry_at = 0.0
        self.delay = 0.05
        self.said = ""

    def _find(self) -> str:
        """Return the device of the port; makes its node where no udev does."""
        if self.path:
            return self.path
        usual = f"/dev/virtio-ports/{self.name}"
        if os.path.exists(usual):
            return usual
        folder = self.sysfs + "/class/virtio-ports"
        for port in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
            if read(f"{folder}/{port}/name") == self.name:
                node = f"/dev/{port}"
                if not os.path.exists(node):
                    major, _, minor = (read(f"{folder}/{port}/dev") or "").partition(":")
                    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(int(major), int(minor)))
                return node
        raise FileNotFoundError(errno.ENOENT, "no such virtio-serial port", self.name)

    def open(self) -> None:
        """Open the port, or try again later."""
        try:
            path = self._find()
            if path.startswith("unix:"):
                link = socket.socket(socket.AF_UNIX)
                link.connect(path[5:])
                self.fd = link.detach()
            else:
                self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
                if os.isatty(self.fd):
                    make_raw(self.fd)
            os.set_blocking(self.fd, False)
        except (OSError, ValueError) as error:
            if str(error) != self.said:
                self.said = str(error)
                log(f"waiting for the port: {error}")
            self.retry_at = time.monotonic() + self.delay
            self.delay = min(self.delay * 2, IDLE_CHECK)
            return
        self.said = ""
        self.idle = False
        self.delay = 0.05
        self.agent.sources.append(self)

    def close(self) -> None:
        """Close it, to be opened again."""
        self.agent.drop(self)
        self.agent.end_session()
        self.retry_at = time.monotonic() + self.delay

    def mask(self) -> int:
        """Wait for input, for room while there is something to send, or for the host."""
        if self.idle:
            return select.EPOLLIN | select.EPOLLET
        return select.EPOLLIN | (select.EPOLLOUT if self.agent.queue else 0)

    def ready(self, events: int) -> None:
        """Read frames and write what waits."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            data = None
        except OSError as error:
            log(f"the port broke: {error}")
            self.close()
            return
        if data == b"":
            if self.path:
                self.close()
                return
            if not self.idle:
                self.idle = True
                self.agent.end_session()
            self.retry_at = time.monotonic() + IDLE_CHECK
            return
        self.idle = False
        if data:
            self.agent.receive(data)
        self.flush()

    def flush(self) -> None:
        """Write what the port takes."""
        agent = self.agent
        while agent.queue and self.fd >= 0:
            data = agent.queue[0]
            try:
                count = os.write(self.fd, data)
            except BlockingIOError:
                return
            except OSError as error:
                log(f"the port broke: {error}")
                self.close()
                return
            agent.waiting -= count
            if count == len(data):
                agent.queue.popleft()
            else:
                agent.queue[0] = data[count:]


def make_raw(fd: int) -> None:
    """Switch off echo and line editing, where a terminal stands in for the port."""
    mode = termios.tcgetattr(fd)
    mode[0] = mode[1] = mode[3] = 0
    termios.tcsetattr(fd, termios.TCSANOW, mode)


class Agent:
    """The loop: one port, one session, its workers and commands."""

    def __init__(self, system: System, port: str | None, name: str = PORT_NAME) -> None:
        self.system = system
        self.running = True
        self.session: str | None = None
        self.frames = FrameReader()
        self.queue: deque[bytes] = deque()
        self.waiting = 0
        self.jobs: dict[Any, Job] = {}
        self.commands: dict[Any, Command] = {}
        self.children: dict[int, Job | Command] = {}
        self.epoll = select.epoll()
        self.sources: list[Source] = []
        self.sources.append(Wakeup(self))
        self.port = Port(self, port, system.sysfs, name)

    # -- sending

    def send(self, frame: Item) -> None:
        """Queue a frame; one that is too long becomes an error."""
        data = encode(frame)
        if len(data) > MAX_FRAME:
            data = encode({"id": frame.get("id"), "error": {"code": "EMSGSIZE", "message": "the answer is too long"}})
        self.queue.append(data)
        self.waiting += len(data)

    def reply(self, rid: Any, value: Item) -> None:
        """Answer a request; one without an id wants none."""
        if rid is not None:
            self.send({"id": rid, "ok": value})

    def fail(self, rid: Any, code: str, message: str) -> None:
        """Refuse a request."""
        if rid is not None:
            self.send({"id": rid, "error": {"code": code, "message": message[:2000]}})

    # -- receiving

    def receive(self, data: bytes) -> None:
        """Take bytes of the host."""
        for line in self.frames.feed(data):
            frame = parse(line)
            if frame is None:
                continue
            if "hello" in frame:
                self.hello(frame["hello"])
                continue
            rid = frame.get("id")
            if isinstance(rid, bool) or not isinstance(rid, (int, type(None))):
                continue
            try:
                self.request(rid, frame.get("call"), frame.get("args", {}))
            except CallError as error:
                self.fail(rid, error.code, error.message)
            except Exception as error:  # a defect in one call must not end the agent
                log(f"{frame.get('call')!r:.40} failed: {type(error).__name__}: {error}")
                self.fail(rid, "internal", f"{type(error).__name__}: {error}")

    def hello(self, hello: Any) -> None:
        """Begin a session; a hello that repeats the session's own changes nothing."""
        if not isinstance(hello, dict):
            return
        session, versions = hello.get("session"), hello.get("versions")
        if not isinstance(session, str) or not re.fullmatch("[0-9a-f]{16}", session) or not isinstance(versions, list):
            return
        if session != self.session:
            self.end_session()
        # What an earlier host left half read ends here.
        self.queue.append(b"\n")
        self.waiting += 1
        if PROTOCOL not in versions:
            self.send({"hello": {"error": "version", "versions": [PROTOCOL], "session": session, "agent": VERSION}})
            return
        self.session = session
        self.send(
            {
                "hello": {
                    "version": PROTOCOL,
                    "session": session,
                    "agent": VERSION,
                    "boot_id": read(self.system.procfs + "/sys/kernel/random/boot_id") or "",
                    "calls": CALLS,
                }
            }
        )

    def end_session(self) -> None:
        """End what the session left running and forget what it was to be told."""
        self.session = None
        self.queue.clear()
        self.waiting = 0
        for job in self.jobs.values():
            job.cancel()
            self.drop(job)
        for command in self.commands.values():
            for source in (command.started, *command.outputs, *([command.input] if command.input else [])):
                self.drop(source)
            command.cancel()
        self.jobs.clear()
        self.commands.clear()

    def request(self, rid: Any, name: Any, args: Any) -> None:
        """Begin one call."""
        if self.session is None:
            raise CallError("no_session", "say hello first")
        if not isinstance(name, str) or name not in CALLS:
            raise CallError("unknown_call", f"this agent ({VERSION}) does not know {name!r:.40}")
        if not isinstance(args, dict):
            raise CallError("bad_args", "args must be an object")
        if rid is not None and (rid in self.jobs or rid in self.commands):
            raise CallError("bad_args", f"request {rid} is still running")
        if name == "ping":
            self.reply(rid, {})
        elif name == "cancel":
            self.cancel(get_int(args, "id", 0, 1 << 62))
            self.reply(rid, {})
        elif name == "exec":
            if rid is None:
                raise CallError("bad_args", "exec needs an id")
            if sum(isinstance(child, Command) for child in self.children.values()) >= MAX_EXECS:
                raise CallError("EAGAIN", f"{MAX_EXECS} commands are running")
            self.commands[rid] = Command(self, rid, args)
        elif name.startswith("exec_"):
            self.request_exec(rid, name, args)
        else:
            get_deadline(args)
            if rid is None:
                raise CallError("bad_args", f"{name} needs an id")
            if sum(isinstance(child, Job) for child in self.children.values()) >= MAX_JOBS:
                raise CallError("EAGAIN", f"{MAX_JOBS} calls are running")
            self.jobs[rid] = job = Job(self, rid, name, args)
            self.sources.append(job)

    def request_exec(self, rid: Any, name: str, args: Item) -> None:
        """Steer a command that runs."""
        command = self.commands.get(get_int(args, "exec", 0, 1 << 62))
        if command is None:
            raise CallError("ESRCH", "that command has ended")
        if name == "exec_ack":
            command.credit = min(MAX_WINDOW, command.credit + get_int(args, "bytes", 1, MAX_WINDOW))
        elif name == "exec_resize":
            if command.tty and command.outputs[0].fd >= 0:
                set_size(command.outputs[0].fd, get_int(args, "rows", 1, 65535), get_int(args, "columns", 1, 65535))
        else:
            if command.input is None or command.input.fd < 0:
                raise CallError("EPIPE", "the command does not read its standard input")
            try:
                data = base64.b64decode(args.get("data", ""), validate=True)
            except (ValueError, TypeError):
                raise CallError("bad_args", "data must be base64") from None
            command.input.put(rid, data, get_bool(args, "eof"))
            return
        self.reply(rid, {})

    def cancel(self, rid: int) -> None:
        """End a call or command; it still answers."""
        running = self.jobs.get(rid) or self.commands.get(rid)
        if running:
            running.cancel()

    # -- children

    def close_inherited(self, keep: int) -> None:
        """Close, in a worker, what belongs to the agent."""
        self.epoll.close()
        for source in self.sources:
            if source.fd >= 0 and source.fd != keep:
                os.close(source.fd)

    def reap(self) -> None:
        """Collect the children that ended."""
        for pid, child in list(self.children.items()):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended, status = pid, 0
            if not ended:
                continue
            del self.children[pid]
            if self.jobs.get(child.rid) is child or self.commands.get(child.rid) is child:
                child.exited(status)

    def drop(self, source: Source) -> None:
        """Take a source out of the loop and close it."""
        if source.fd < 0:
            return
        if source.registered:
            self.epoll.unregister(source.fd)
            source.registered = 0
        os.close(source.fd)
        source.fd = -1
        self.sources = [other for other in self.sources if other is not source]

    # -- the loop

    def timeout(self) -> float:
        """Return how long the loop may sleep, and do what is due."""
        now = time.monotonic()
        times = []
        for child in self.children.values():
            if isinstance(child, Command) and child.kill_at is not None:
                if child.kill_at <= now:
                    kill(child.pid, signal.SIGKILL)
                    child.kill_at = now + KILL_GRACE
                times.append(child.kill_at)
        if self.port.fd < 0:
            if self.port.retry_at <= now:
                self.port.open()
            if self.port.fd < 0:
                times.append(self.port.retry_at)
        elif self.port.idle:
            if self.port.retry_at <= now:
                self.port.ready(0)
            times.append(self.port.retry_at)
        return max(0.0, min(times) - now) if times else -1

    def run(self) -> None:
        """Serve until SIGTERM."""
        while self.running:
            timeout = self.timeout()
            for command in list(self.commands.values()):
                command.settle()
            if self.port.fd >= 0 and not self.port.idle:
                self.port.flush()
            by_fd = {}
            for source in list(self.sources):
                mask = source.mask()
                if mask != source.registered:
                    if not source.registered:
                        self.epoll.register(source.fd, mask)
                    elif mask:
                        self.epoll.modify(source.fd, mask)
                    else:
                        self.epoll.unregister(source.fd)
                    source.registered = mask
                by_fd[source.fd] = source
            for fd, events in self.epoll.poll(timeout):
                source = by_fd[fd]
                if source.fd == fd:
                    source.ready(events)
        for job in self.jobs.values():
            if job.name == "poweroff":
                self.reply(job.rid, {"how": "init"})
        if self.port.fd >= 0:
            self.port.flush()
        self.end_session()


def main() -> None:
    """Start the agent."""
    options: dict[str, Any] = {"port": None, "sysfs": "/sys", "procfs": "/proc", "poweroff": None}
    name = PORT_NAME
    if len(sys.argv) > 1:
        import argparse

        parser = argparse.ArgumentParser(prog="vmcoal-agent", description=(__doc__ or "").partition("\n")[0])
        parser.add_argument("--version", action="version", version=VERSION)
        parser.add_argument("--name", default=PORT_NAME, help="name of its virtio-serial port")
        # For tests: what stands in for the port (a terminal, or unix:PATH), for /sys, /proc and the way to power off.
        for name, default in options.items():
            parser.add_argument(f"--{name}", default=default, help=argparse.SUPPRESS)
        options = vars(parser.parse_args())
        name = options["name"]
    try:
        write("/proc/self/oom_score_adj", "-900")
    except OSError:
        pass
    agent = Agent(System(options["sysfs"], options["procfs"], options["poweroff"]), options["port"], name)
    gc.freeze()  # a collection in a forked worker would copy every page that it looks at
    log(f"version {VERSION} is running")
    agent.run()


if __name__ == "__main__":
    main()
