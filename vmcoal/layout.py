"""Where vmcoal keeps things on disk: the folders and file names that are its contract (docs/layout.md).

Folders follow the XDG Base Directory Specification. Socket paths must fit ``sun_path`` (108 bytes), so names of VMs and
lenders are bounded and the runtime folder is kept short.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmcoal.errors import PrerequisiteError, UsageError

if TYPE_CHECKING:
    import socket

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
RESERVED_LENDERS = frozenset({"home", "local"})
"""What stands for this host where a lender is named: memory that is home, and a copy in a local file."""

_SUN_PATH_MAX = 107
_LONGEST_SOCKET = "control.sock"


def check_name(name: str, what: str = "VM") -> str:
    """Return ``name`` if it can name a VM or lender, else raise `UsageError`."""
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a {what} name",
            hint="use 1 to 32 lower-case letters, digits and hyphens, beginning and ending with a letter or digit",
        )
    if what == "lender" and name in RESERVED_LENDERS:
        raise UsageError(f"{name} stands for the borrower's own host", hint="give the lender another name: --name")
    return name


def _xdg(variable: str, default: str) -> Path:
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default


def state_home() -> Path:
    """Return the folder of what must survive a reboot: specs, journals, keys, overlays, logs."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "vmcoal"


def cache_home() -> Path:
    """Return the folder of what can be made again: images and packages."""
    return _xdg("XDG_CACHE_HOME", ".cache") / "vmcoal"


def config_home() -> Path:
    """Return the folder of what the user writes: config.toml."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "vmcoal"


def config_file() -> Path:
    """Return the user's defaults for boot, lend and attach (configs/config.toml describes it)."""
    return config_home() / "config.toml"


def crash_home() -> Path:
    """Return the folder of tracebacks of defects; the newest few are kept."""
    return state_home() / "crashes"


def runtime_home() -> Path:
    """Return the folder of sockets: ``$XDG_RUNTIME_DIR/vmcoal``, else /run/vmcoal for root, else /tmp/vmcoal-UID."""
    value = os.environ.get("XDG_RUNTIME_DIR", "")
    if value.startswith("/"):
        return Path(value) / "vmcoal"
    return Path("/run/vmcoal") if os.geteuid() == 0 else Path(f"/tmp/vmcoal-{os.geteuid()}")  # noqa: S108


def shm_home() -> Path:
    """Return the tmpfs folder of lent bytes and of borrowed pages: ``$VMCOAL_SHM_DIR``, else /dev/shm/vmcoal-UID."""
    value = os.environ.get("VMCOAL_SHM_DIR", "")
    return Path(value) if value.startswith("/") else Path(f"/dev/shm/vmcoal-{os.geteuid()}")  # noqa: S108


def make_private(folder: Path) -> Path:
    """Create ``folder`` with mode 0700 and check that nobody else owns or can enter it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = folder.lstat()
    except OSError as error:
        raise PrerequisiteError(
            f"cannot create {folder}: {error.strerror}", hint="check its owner, its mode and the free space"
        ) from error
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise PrerequisiteError(
            f"{folder} must be a folder of mode 0700 that belongs to user {os.geteuid()}",
            hint=f"remove it, or: chown {os.geteuid()} {folder} && chmod 700 {folder}",
        )
    return folder


def check_listener(sock: socket.socket, path: Path) -> None:
    """Raise `PrerequisiteError` unless the connected Unix socket ``sock`` leads to this user, or to root.

    Where there is no XDG_RUNTIME_DIR the sockets are below /tmp, and somebody else may have been there first
    (SO_PEERCRED, unix(7)).
    """
    import socket
    import struct

    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.geteuid()):
        raise PrerequisiteError(
            f"user {uid} listens at {path}, not user {os.geteuid()}", hint="set XDG_RUNTIME_DIR to a folder of your own"
        )


@dataclass(frozen=True)
class Folders:
    """The runtime and state folders of one VM or one lender."""

    runtime: Path
    state: Path

    def make(self) -> None:
        """Create both folders, private, and check that a socket path fits."""
        if len(os.fsencode(self.runtime / _LONGEST_SOCKET)) > _SUN_PATH_MAX:
            raise PrerequisiteError(
                f"{self.runtime} is too long for a Unix socket", hint="set XDG_RUNTIME_DIR to a shorter folder"
            )
        for folder in (self.runtime, self.state):
            for parent in (folder.parent.parent, folder.parent, folder):
                make_private(parent)

    @property
    def control_socket(self) -> Path:
        """Unix stream socket of the controller or lender: newline-delimited JSON."""
        return self.runtime / "control.sock"

    @property
    def holder_socket(self) -> Path:
        """Unix seqpacket socket of the holder."""
        return self.runtime / "holder.sock"

    @property
    def journal(self) -> Path:
        """SQLite journal."""
        return self.state / "journal.sqlite"

    @property
    def exits(self) -> Path:
        """One line for each ended child, written by the holder."""
        return self.state / "exits.log"


class QemuFolders(Folders):
    """The folders of what runs as a QEMU: a VM, or a host of the lab."""

    @property
    def console_log(self) -> Path:
        """What its system wrote to its serial console; bounded, one older part beside it as ``.1``."""
        return self.state / "console.log"

    @property
    def qemu_log(self) -> Path:
        """QEMU's stderr."""
        return self.state / "qemu.log"

    @property
    def qmp_log(self) -> Path:
        """QMP transcript, one JSON object a line."""
        return self.state / "qmp.log"


class VmFolders(QemuFolders):
    """The folders of one VM."""

    @property
    def spec(self) -> Path:
        """The machine as it was asked for (`vmcoal.model.machine.MachineSpec`, JSON)."""
        return self.state / "machine.json"

    @property
    def qmp_socket(self) -> Path:
        """QMP monitor of the controller."""
        return self.runtime / "qmp.sock"

    @property
    def agent_socket(self) -> Path:
        """Host end of the vmcoal agent's virtio-serial port."""
        return self.runtime / "agent.sock"

    @property
    def qga_socket(self) -> Path:
        """Host end of qemu-guest-agent's virtio-serial port."""
        return self.runtime / "qga.sock"

    @property
    def pager_socket(self) -> Path:
        """What the page engine is told through, while memory is borrowed."""
        return self.runtime / "pager.sock"

    @property
    def pages(self) -> Path:
        """Return the tmpfs folder of the borrowed pages that are on this host: a folder for each region."""
        return shm_home() / f"vm-{self.state.name}"

    @property
    def console_socket(self) -> Path:
        """Serial console."""
        return self.runtime / "console.sock"

    @property
    def controller_log(self) -> Path:
        """The controller's log; bounded, one older part beside it as ``.1``."""
        return self.state / "controller.log"

    @property
    def pager_log(self) -> Path:
        """The page engine's stderr; bounded, one older part beside it as ``.1``; gone with the last borrowed memory."""
        return self.state / "pager.log"

    @property
    def overlay(self) -> Path:
        """The VM's own qcow2 layer over the user's image."""
        return self.state / "overlay.qcow2"

    @property
    def seed(self) -> Path:
        """NoCloud seed (ISO 9660, label ``cidata``)."""
        return self.state / "seed.iso"

    @property
    def uefi_vars(self) -> Path:
        """The VM's own copy of the UEFI variable store."""
        return self.state / "uefi-vars.fd"

    @property
    def ssh_key(self) -> Path:
        """Private key that ``vmcoal ssh`` uses."""
        return self.state / "ssh_key"

    def gpu_socket(self, lease: str) -> Path:
        """Return the Unix socket of the host side of a GPU lease's port."""
        return self.runtime / f"gpu-{lease}.sock"

    def gpu_meter(self, lease: str) -> Path:
        """Return the file in which the calls of a GPU lease are counted."""
        return self.runtime / f"gpu-{lease}.meter"

    def mount(self, lease: str) -> Path:
        """Return the FUSE mount point of a memory lease."""
        return self.runtime / f"mem-{lease}"

    def local_copy(self, region: str) -> Path:
        """Return the file that has a copy of a region of borrowed memory, sealed."""
        return self.state / f"copy-{region}.mem"


class LenderFolders(Folders):
    """The folders of one lender."""

    @property
    def host_key(self) -> Path:
        """The lender's SSH host key."""
        return self.state / "host_key"

    @property
    def borrowers(self) -> Path:
        """Paired borrowers and what each was granted, JSON."""
        return self.state / "borrowers.json"

    @property
    def log(self) -> Path:
        """The lender's log; bounded, one older part beside it as ``.1``."""
        return self.state / "lender.log"

    def memory(self, lease: str, generation: str) -> Path:
        """Return the tmpfs file that holds a lease's bytes."""
        return shm_home() / f"{self.state.name}-{lease}-{generation}.mem"


class LabHostFolders(QemuFolders):
    """The folders of one host of the lab."""

    @property
    def spec(self) -> Path:
        """The host as it runs (`vmcoal.lab.host_spec.HostSpec`, JSON)."""
        return self.state / "host.json"

    def socket(self, name: str) -> Path:
        """Return the socket ``name``: qmp, console, or agent0 and up, a control channel each."""
        return self.runtime / f"{name}.sock"


def vm_folders(name: str) -> VmFolders:
    """Return the folders of VM ``name``; nothing is created."""
    check_name(name)
    return VmFolders(runtime_home() / "vm" / name, state_home() / "vm" / name)


def lender_folders(name: str) -> LenderFolders:
    """Return the folders of lender ``name``; nothing is created."""
    check_name(name, "lender")
    return LenderFolders(runtime_home() / "lend" / name, state_home() / "lend" / name)


def lab_state(lab: str) -> Path:
    """Return the state folder of lab ``lab``; nothing is created."""
    return state_home() / "lab" / check_name(lab, "lab")


def lab_runtime(lab: str) -> Path:
    """Return the runtime folder of lab ``lab``; nothing is created."""
    return runtime_home() / "lab" / check_name(lab, "lab")


def lab_host_folders(name: str, lab: str = "lab") -> LabHostFolders:
    """Return the folders of host ``name`` of lab ``lab``; nothing is created."""
    check_name(name, "host")
    return LabHostFolders(lab_runtime(lab) / name, lab_state(lab) / name)


def known_vms() -> list[str]:
    """Return the names of the VMs that have a spec, sorted."""
    return sorted(path.parent.name for path in (state_home() / "vm").glob("*/machine.json"))


def identity_key() -> Path:
    """Return the borrower's private key."""
    return state_home() / "identity"


def known_lenders() -> Path:
    """Return the file of paired lenders: address, pinned host key, grants."""
    return state_home() / "lenders.json"
