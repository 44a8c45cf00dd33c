"""Memory engines by name, what decides between them, and what excludes them: plain data."""

from __future__ import annotations

import enum

import msgspec


class MemoryEngineName(enum.StrEnum):
    """What a VM is told to use: the page engine, the FUSE engine, or the better one of those that can be had."""

    AUTO = "auto"
    PAGER = "pager"
    FUSE = "fuse"


class Feature(enum.StrEnum):
    """Something of a machine that a memory engine may not stand beside."""

    VFIO = "vfio"
    VHOST_USER = "vhost-user"
    VIRTIOFS = "virtiofs"
    FREE_PAGE_REPORTING = "free-page reporting"
    MIGRATION_FAULTS = "background snapshots"
    LOCKED_MEMORY = "locked memory"


class FaultFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What userfaultfd gives this user, found by asking for one that takes the kernel's faults too (KVM, system calls).

    ``by``: what gives it, ``None`` where nothing does, ``refused`` then what the kernel said; ``features``:
    UFFD_FEATURE bits of linux/userfaultfd.h.
    """

    by: str | None
    refused: str | None = None
    features: int = 0


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What of a host decides whether it can run the page engine.

    ``kernel`` its release; ``missing`` a program or part that is not there; ``files`` the type of the file system that
    regions are on, ``room`` bytes that are free there; ``qemu`` why that QEMU would not take a preload library.
    """

    kernel: str
    faults: FaultFacts
    missing: str | None = None
    files: str = "tmpfs"
    room: int = 1 << 62
    qemu: str | None = None


class Obstacle(msgspec.Struct, frozen=True):
    """Why an engine cannot be had, and what to do about it."""

    reason: str
    remedy: str


class EngineChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The engine of a VM, why it is that one, and where it is not the better one, what would make it so."""

    name: MemoryEngineName
    reason: str
    remedy: str | None = None
