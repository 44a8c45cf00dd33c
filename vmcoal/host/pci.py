"""PCI functions of this host: reads what decides whether a guest can have one, gives it to vfio-pci and takes it back.

Everything is files of sysfs, procfs and /dev (Linux Documentation/ABI/testing/sysfs-bus-pci and vfio.rst). Writes go
through a process of their own: a driver that does not let go blocks its writer in the kernel, beyond any signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vmcoal.errors import DeadlineError, ExecutionError
from vmcoal.model.pci import DRIVER, Bar, HostDriver, PassthroughFacts, PciFunction
from vmcoal.policy.passthrough import check_address, no_such

_IO, _MEMORY, _PREFETCHABLE, _WIDE = 0x100, 0x200, 0x2000, 0x100000  # linux/ioport.h
_BARS = 6
_DISPLAYS = (0x03, 0x12)  # PCI Code and ID Assignment Specification: display controllers, processing accelerators
_CAP_IPC_LOCK = 1 << 14
_IFF_UP = 1
_IDS = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")
_DEADLINE = 15.0


class PciBus:
    """The PCI bus of this host. ``sysfs``, ``procfs`` and ``dev`` are other folders in a test."""

    def __init__(self, sysfs: str = "/sys", procfs: str = "/proc", dev: str = "/dev") -> None:
        self._bus = Path(sysfs, "bus/pci")
        self._sys, self._proc, self._dev = Path(sysfs), Path(procfs), Path(dev)

    # -- looking

    def function(self, address: str) -> PciFunction:
        """Return function ``address``; raises `NotFoundError`, `UsageError`."""
        folder = self._folder(address)
        if not folder.is_dir():
            raise no_such(address)
        vendor, device = _hex(folder / "vendor"), _hex(folder / "device")
        driver = _link(folder / "driver")
        return PciFunction(
            address=folder.name,
            vendor=vendor,
            device=device,
            pci_class=_hex(folder / "class"),
            name=_name(vendor, device),
            driver=driver,
            override=_override(folder),
            group=_link(folder / "iommu_group"),
            numa_node=int(_read(folder / "numa_node") or -1),
            boot_vga=_read(folder / "boot_vga") == "1",
            resets=tuple(_read(folder / "reset_method").split())
            or (("device",) if (folder / "reset").exists() else ()),
            bars=tuple(_bars(_read(folder / "resource"))),
            integrated=folder.resolve().parent.name.startswith("pci"),
            uses=tuple(self._uses(folder)) if driver not in (None, DRIVER) else (),
        )

    def displays(self) -> list[str]:
        """Return the addresses of all functions that are displays, 3D controllers and accelerators for computing."""
        found = self._bus.glob("devices/*/class")
        return sorted(path.parent.name for path in found if _hex(path) >> 16 in _DISPLAYS)

    def facts(self, address: str, *, qemu: int | None = None, opened: bool = False) -> PassthroughFacts:
        """Return what decides whether a guest can have function ``address``; it takes some 10 ms.

        ``qemu`` is the process that will lock the guest's memory; ``opened``: it has the group open already. Raises
        `NotFoundError`, `UsageError`.
        """
        function = self.function(address)
        groups = self._sys / "kernel/iommu_groups"
        members: list[PciFunction] = []
        unsafe, opens = False, None
        if function.group is not None:
            group = groups / function.group
            names = sorted(path.name for path in (group / "devices").iterdir()) if group.is_dir() else []
            members = [self.function(name) for name in names if (self._bus / "devices" / name).is_dir()]
            unsafe = _read(group / "name") == "vfio-noiommu"
            if not opened and all(x.driver in (None, DRIVER) for x in members if not x.is_bridge):
                opens = _cannot_open(self._dev / "vfio" / function.group)
        return PassthroughFacts(
            function=function,
            group=tuple(members),
            iommu=groups.is_dir() and any(groups.iterdir()),
            unsafe=unsafe,
            vfio=self._has_driver(),
            writable=os.access(self._folder(address) / "driver_override", os.W_OK),
            opens=opens,
            memlock=None if qemu is None else self._memlock(qemu),
        )

    def _folder(self, address: str) -> Path:
        return self._bus / "devices" / check_address(address)

    def _has_driver(self) -> bool:
        if (self._bus / "drivers" / DRIVER).is_dir():
            return True
        modules = Path("/lib/modules", os.uname().release)
        known = (modules / "modules.dep", modules / "modules.builtin")
        return any("/vfio-pci.ko" in _read(path, 1 << 22) for path in known)

    def _memlock(self, pid: int) -> int | None:
        """Return how many bytes process ``pid`` may be allowed to lock: its hard limit, which its owner can raise the
        soft one to; ``None`` for any."""
        capabilities = next(_fields(_read(self._proc / str(pid) / "status", 1 << 16), "CapEff:"), ["0"])
        if int(capabilities[0], 16) & _CAP_IPC_LOCK:
            return None
        limits = next(_fields(_read(self._proc / str(pid) / "limits", 1 << 16), "Max locked memory"), [])
        return int(limits[1]) if len(limits) > 1 and limits[1].isdigit() else None

    def _uses(self, folder: Path) -> Iterator[str]:
        """Name what of this host works through the function in ``folder`` or what is behind it."""
        yield from self._consoles(folder)
        names = set()
        for block in (*folder.glob("**/block/*"), *folder.glob("**/nvme*n*")):
            if block.is_dir() and (block / "dev").exists():
                parts = [block, *(path.parent for path in block.glob("*/partition"))]
                names |= {part.name for part in parts if self._disk_in_use(part)}
        for name in sorted(names):
            yield f"disk {name} is mounted or in use"
        for net in sorted(folder.glob("**/net/*")):
            flags = _read(net / "flags")
            if flags and int(flags, 16) & _IFF_UP:
                yield f"network interface {net.name} is up (ip link set {net.name} down)"
        opened = self._openers(self._nodes(folder))
        for node, programs in sorted(opened.items()):
            yield f"{', '.join(sorted(programs))} has {node} open"

    def _consoles(self, folder: Path) -> Iterator[str]:
        for frame in sorted(folder.glob("graphics/fb*")):
            for console in sorted((self._sys / "class/vtconsole").glob("vtcon*")):
                # every frame buffer shares one console driver; the dummy and the text one have none
                if _read(console / "bind") == "1" and "frame buffer" in _read(console / "name"):
                    yield (
                        f"its console is on it, {frame.name} (echo 0 > /sys/class/vtconsole/{console.name}/bind "
                        "as root ends that)"
                    )

    def _disk_in_use(self, part: Path) -> bool:
        number = _read(part / "dev")
        holders = part / "holders"
        mounts = (line.split() for line in _read(self._proc / "self/mountinfo", 1 << 22).splitlines())
        swaps = [line.split()[0] for line in _read(self._proc / "swaps").splitlines()[1:] if line.split()]
        return (
            any(len(words) > 2 and words[2] == number for words in mounts)
            or f"/dev/{part.name}" in swaps
            or (holders.is_dir() and any(holders.iterdir()))
            or _claimed(self._dev / part.name)
        )

    def _nodes(self, folder: Path) -> set[str]:
        """Return the names of the device files of a display."""
        nodes = {f"dri/{path.name}" for path in folder.glob("drm/*") if path.name.startswith(("card", "renderD"))}
        for path in (self._proc / "driver/nvidia/gpus" / folder.name).glob("information"):
            minors = _fields(_read(path), "Device Minor:")
            nodes |= {f"nvidia{words[0]}" for words in minors if words}
        return nodes

    def _openers(self, nodes: set[str]) -> dict[str, set[str]]:
        """Return which programs have device files open; those of other users are seen by root only."""
        found: dict[str, set[str]] = {}
        if not nodes:
            return found
        for process in self._proc.glob("[0-9]*"):
            with contextlib.suppress(OSError):
                for fd in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        node = str(fd.readlink()).removeprefix("/dev/")
                        if node in nodes:
                            found.setdefault(f"/dev/{node}", set()).add(_read(process / "comm") or process.name)
        return found

    # -- changing

    async def take(self, functions: Sequence[PciFunction], *, deadline: float = _DEADLINE) -> None:
        """Give ``functions`` to vfio-pci, loading it where needed. What was taken before a failure stays taken.

        Raises `ExecutionError`, `DeadlineError`.
        """
        if functions and not (self._bus / "drivers" / DRIVER).is_dir():
            await self._load(deadline)
        for function in functions:
            folder = self._folder(function.address)
            await self._write(folder / "driver_override", DRIVER, deadline)
            if function.driver is not None:
                await self._write(folder / "driver/unbind", function.address, deadline)
            await self._write(self._bus / "drivers_probe", function.address, deadline)
            if (driver := _link(folder / "driver")) != DRIVER:
                raise ExecutionError(
                    f"{DRIVER} did not take {function.address}, which has driver {driver or 'none'}",
                    hint="the host's kernel log says why: dmesg | tail",
                )

    async def give_back(self, functions: Iterable[HostDriver], *, deadline: float = _DEADLINE) -> None:
        """Give functions back to the drivers they had; idempotent, and nothing for one that is gone.

        No guest may have them any more: the kernel waits for it. Raises `ExecutionError`, `DeadlineError`.
        """
        for function in functions:
            folder = self._folder(function.address)
            if not folder.is_dir():
                continue
            if _override(folder) != function.override:
                await self._write(folder / "driver_override", function.override or "\n", deadline)
            driver = _link(folder / "driver")
            if driver == function.driver:
                continue
            if driver is not None:
                await self._write(folder / "driver/unbind", function.address, deadline)
            if function.driver is None:
                continue
            await self._write(self._bus / "drivers_probe", function.address, deadline)
            if _link(folder / "driver") != function.driver:
                await self._write(self._bus / "drivers" / function.driver / "bind", function.address, deadline)

    def allow_locking(self, pid: int, size: int) -> None:
        """Let process ``pid`` lock ``size`` bytes and more, as far as its hard limit goes; raises `ExecutionError`."""
        try:
            soft, hard = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
            if soft != resource.RLIM_INFINITY and soft < size:
                resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (hard, hard))
        except (OSError, ValueError) as error:
            raise ExecutionError(
                f"cannot raise how much memory QEMU (process {pid}) may lock: {error}",
                hint=f"sudo prlimit --memlock={size} --pid {pid}",
            ) from error

    async def _load(self, deadline: float) -> None:
        if code := await _run(["modprobe", DRIVER], deadline, f"load {DRIVER}"):
            raise ExecutionError(f"modprobe {DRIVER} ended with {code}", hint=f"as root: modprobe {DRIVER}")

    async def _write(self, path: Path, text: str, deadline: float) -> None:
        """Write to a file of sysfs; raises `ExecutionError` or `DeadlineError`."""
        doing = f"write {text.strip()!r} to {path}"
        if code := await _run(["/bin/sh", "-c", 'printf %s "$1" > "$2"', "sh", text, str(path)], deadline, doing):
            raise ExecutionError(
                f"cannot {doing} (exit code {code})", hint="as root? the kernel log may say more: dmesg"
            )


async def _run(argv: Sequence[str], deadline: float, doing: str) -> int:
    """Run a program and return its exit code."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise ExecutionError(f"cannot run {argv[0]}: {error.strerror}") from error
    try:
        return await asyncio.wait_for(process.wait(), deadline)
    except TimeoutError:
        raise DeadlineError(
            f"the kernel did not {doing} within {deadline:g} s",
            left="it may still do it: the driver waits for whoever uses the function",
            hint="see the host's kernel log: dmesg | tail; end what uses the function",
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            with contextlib.suppress(TimeoutError):  # one that the kernel holds ends later
                await asyncio.wait_for(process.wait(), 1.0)


def _read(path: Path, limit: int = 1 << 14) -> str:
    """Return a small file's text, or an empty one."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(limit).strip()
    except OSError:
        return ""


def _hex(path: Path) -> int:
    return int(_read(path) or "0", 16)


def _link(path: Path) -> str | None:
    try:
        return path.readlink().name
    except OSError:
        return None


def _override(folder: Path) -> str:
    text = _read(folder / "driver_override")
    return "" if text == "(null)" else text


def _fields(text: str, label: str) -> Iterator[list[str]]:
    """Return the words after ``label`` of each line that begins with it."""
    for line in text.splitlines():
        if line.startswith(label):
            yield line.removeprefix(label).split()


def _bars(text: str) -> Iterator[Bar]:
    for number, line in enumerate(text.splitlines()[:_BARS]):
        start, end, flags = (int(word, 16) for word in line.split())
        if flags & (_IO | _MEMORY):
            yield Bar(
                number=number,
                size=end - start + 1,
                prefetchable=bool(flags & _PREFETCHABLE),
                wide=bool(flags & _WIDE),
                io=bool(flags & _IO),
            )


def _claimed(path: Path) -> bool:
    """Whether the kernel itself has a block device in use, also for a mount that this process cannot see (open(2),
    O_EXCL on block devices)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _cannot_open(path: Path) -> str | None:
    """Return why the file of an IOMMU group cannot be opened; a group has one opener at a time."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return None
    except OSError as error:
        return "another program has it" if error.errno == errno.EBUSY else str(error.strerror)
    return None


def _name(vendor: int, device: int) -> str:
    """Return what the distribution's list of PCI ids calls a function, or an empty text."""
    for file in _IDS:
        found = ""
        with contextlib.suppress(OSError), open(file, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith(f"{vendor:04x}  "):
                    found = line[6:].strip()
                elif found and line.startswith(f"\t{device:04x}  "):
                    return f"{found} {line[7:].strip()}"
                elif found and not line.startswith(("\t", "#")):
                    return ""
    return ""
