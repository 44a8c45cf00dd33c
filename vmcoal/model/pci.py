"""PCI functions of the machine that runs the guest: what is known of one before the guest gets it."""

from __future__ import annotations

import msgspec

VFIO = "vfio"
"""The engine of a function that the guest has by itself, instead of calls that are carried to a lender."""

DRIVER = "vfio-pci"
"""The host's driver of functions that a guest has."""


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One base address register: its ``number``, ``size`` in bytes, whether it is ``prefetchable``, 64 bits ``wide``,
    and of the ``io`` space instead of memory."""

    number: int
    size: int
    prefetchable: bool = False
    wide: bool = False
    io: bool = False


class PciFunction(msgspec.Struct, frozen=True, kw_only=True):
    """One function, as sysfs shows it.

    ``address`` as ``0000:01:00.0``; ``pci_class`` 24 bits; ``driver`` that has it, and its ``override`` (empty: none);
    ``group`` its IOMMU group; ``boot_vga``: the firmware drew on it; ``resets`` the ways the kernel can reset it;
    ``integrated``: it sits on the root bus, so what shares its number is no card; ``uses``: what of this host would
    lose it, for people.
    """

    address: str
    vendor: int
    device: int
    pci_class: int
    name: str = ""
    driver: str | None = None
    override: str = ""
    group: str | None = None
    numa_node: int = -1
    boot_vga: bool = False
    resets: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()
    integrated: bool = False
    uses: tuple[str, ...] = ()

    @property
    def is_bridge(self) -> bool:
        """Whether it is a bridge of any kind, which stays the host's."""
        return self.pci_class >> 16 == 0x06

    @property
    def is_port(self) -> bool:
        """Whether it is a PCI-to-PCI bridge: its driver does not keep a group from a guest."""
        return self.pci_class >> 8 == 0x0604

    @property
    def slot(self) -> str:
        """The address without the function's number: functions of one card share it."""
        return self.address.rpartition(".")[0]

    @property
    def title(self) -> str:
        """What it is, for people."""
        return self.name or f"PCI function {self.vendor:04x}:{self.device:04x}"


class HostDriver(msgspec.Struct, frozen=True, kw_only=True):
    """What a function had before the guest got it: what giving it back restores."""

    address: str
    driver: str | None = None
    override: str = ""


class PassthroughFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of a host and its QEMU that decides whether a guest can have ``function``.

    ``group``: every function of its IOMMU group, itself too; ``iommu``: this host has one that is on, ``unsafe``: the
    kernel only pretends (no-IOMMU mode); ``vfio``: the kernel has or can load the driver; ``writable``: this user may
    rebind drivers; ``opens`` why the group's file cannot be opened, ``None`` where it can or is not there yet;
    ``memlock`` bytes that QEMU may lock at most, ``None`` for any.
    """

    function: PciFunction
    group: tuple[PciFunction, ...] = ()
    iommu: bool = True
    unsafe: bool = False
    vfio: bool = True
    writable: bool = True
    opens: str | None = None
    memlock: int | None = None


class GuestFunction(msgspec.Struct, frozen=True, kw_only=True):
    """A function as the guest sees it: ``bars`` are start and size of the six in order, zeros where there is none or
    none was given an address; ``node`` -1 for none."""

    address: str
    vendor: int
    device: int
    node: int
    driver: str = ""
    bars: tuple[tuple[int, int], ...] = ()
