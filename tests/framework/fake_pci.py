"""A host's PCI functions as plain files of /sys, /proc and /dev, and the kernel that moves them between drivers.

tree = PciTree(folder)
tree.add("0000:01:00.0", driver="nvidia", bars=[(0, 16 << 20, 0x200), (1, 256 << 20, 0x142208)])
bus = tree.bus()
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from vmcoal.errors import ExecutionError
from vmcoal.host.pci import PciBus

LOW, HIGH = 0x40200, 0x14220C
"""Flags of a 32-bit BAR, and of a prefetchable 64-bit one."""

GPU_BARS = ((0, 16 << 20, LOW), (1, 256 << 20, HIGH), (3, 32 << 20, HIGH), (5, 128, 0x40101))
"""What a graphics card without Resizable BAR has."""


async def _nothing(_what: str) -> None:
    """Nobody is told of a write."""


class PciTree:
    """A host with an IOMMU and vfio-pci loaded; `add` gives it functions."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sys, self.proc, self.dev = root / "sys", root / "proc", root / "dev"
        self.pci = self.sys / "bus/pci"
        self.default: dict[str, str | None] = {}
        """What driver a function gets where nothing overrides it."""
        for folder in ("devices", "drivers/vfio-pci"):
            (self.pci / folder).mkdir(parents=True)
        for folder in (self.sys / "kernel/iommu_groups", self.proc / "self", self.dev / "vfio"):
            folder.mkdir(parents=True)
        self.put(self.proc / "42/limits", "Limit  Soft  Hard  Units\nMax locked memory  unlimited  unlimited  bytes")
        self.put(self.proc / "42/status", "CapEff:\t0000000000000000")

    @staticmethod
    def put(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def folder(self, address: str) -> Path:
        return (self.pci / "devices" / address).resolve()

    def add(
        self,
        address: str,
        *,
        ids: tuple[int, int] = (0x10DE, 0x2204),
        pci_class: int = 0x030000,
        driver: str | None = None,
        group: str | None = "7",
        bars: Sequence[tuple[int, int, int]] = (),
        resets: str = "flr bus",
        port: str = "0000:00:01.0",
    ) -> Path:
        """Add a function behind ``port`` (empty: on the root bus) and return its folder; ``bars`` are number, size and
        flags."""
        real = self.sys / "devices/pci0000:00" / port / address
        real.mkdir(parents=True)
        for name, value in (("vendor", ids[0]), ("device", ids[1]), ("class", pci_class)):
            self.put(real / name, f"{value:#x}")
        self.put(real / "numa_node", "0")
        self.put(real / "driver_override", "(null)")
        if resets:
            self.put(real / "reset_method", resets)
        lines = ["0x0 0x0 0x0"] * 13
        for number, size, flags in bars:
            start = (number + 1) << 40
            lines[number] = f"{start:#x} {start + size - 1:#x} {flags:#x}"
        self.put(real / "resource", "\n".join(lines))
        (self.pci / "devices" / address).symlink_to(real)
        if group is not None:
            members = self.sys / "kernel/iommu_groups" / group / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(real)
            (real / "iommu_group").symlink_to(members.parent)
            self.put(self.dev / "vfio" / group, "")
        self.default[address] = driver
        self.probe(address)
        return real

    def driver(self, address: str) -> str | None:
        link = self.folder(address) / "driver"
        return link.readlink().name if link.is_symlink() else None

    def override(self, address: str) -> str:
        return (self.folder(address) / "driver_override").read_text().strip().replace("(null)", "")

    def drivers(self) -> dict[str, str | None]:
        """Return the driver of every function, and fail if any has an override that is not its driver."""
        for address in self.default:
            assert self.override(address) in ("", self.driver(address)), address
        return {address: self.driver(address) for address in self.default}

    def probe(self, address: str) -> None:
        """Give a function without a driver the one it should have."""
        driver = self.override(address) or self.default[address]
        link = self.folder(address) / "driver"
        if driver is not None and not link.is_symlink():
            (self.pci / "drivers" / driver).mkdir(exist_ok=True)
            link.symlink_to(self.pci / "drivers" / driver)

    def bus(self, told: Callable[[str], Awaitable[None]] = _nothing) -> PciBus:
        """Return the bus over these files; ``told`` of each write before it is done."""
        return FakePciBus(self, told)


class FakePciBus(PciBus):
    """A `PciBus` whose writes do what Linux does."""

    def __init__(self, tree: PciTree, told: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(str(tree.sys), str(tree.proc), str(tree.dev))
        self._tree, self._told = tree, told
        self.locked: list[tuple[int, int]] = []

    def allow_locking(self, pid: int, size: int) -> None:
        self.locked.append((pid, size))

    async def _load(self, deadline: float) -> None:
        (self._tree.pci / "drivers/vfio-pci").mkdir()

    async def _write(self, path: Path, text: str, deadline: float) -> None:
        await self._told(f"write {path.name}")
        if path.name == "driver_override":
            path.write_text(text.strip() + "\n" if text.strip() else "(null)\n")
        elif path.name == "unbind":
            if not path.parent.is_symlink():
                raise ExecutionError(f"no {path}")
            os.unlink(path.parent)  # noqa: PTH108
        elif path.name == "drivers_probe":
            self._tree.probe(text)
        else:
            raise ExecutionError(f"no {path}")
