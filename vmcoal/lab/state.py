"""What is known of a lab on disk: its spec, its folders, and the lock that lets one command change it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from vmcoal.errors import UNREADABLE, ConflictError, ExecutionError, NotFoundError, PrerequisiteError, UsageError
from vmcoal.lab.network import LabLink
from vmcoal.layout import check_name, lab_runtime, lab_state, make_private, runtime_home, state_home
from vmcoal.model.machine import Accel

DEFAULT_LAB = "lab"


class LabSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A lab as it was asked for and made. ``memory`` bytes and ``cpus`` of each host; ``flavor`` Debian's release in
    the hosts, 12 or 13; ``iommu`` whether they have an emulated IOMMU; ``accel`` what runs them, by ``qemu``;
    ``created`` UTC; ``complete``: all of its hosts were up once."""

    name: str
    hosts: tuple[str, ...]
    links: tuple[LabLink, ...]
    memory: int
    cpus: int
    flavor: str
    iommu: bool
    qemu: str
    accel: Accel
    accel_reason: str
    created: str
    complete: bool = False


def left_hosts(name: str) -> list[str]:
    """Return the hosts of lab ``name`` that have a runtime folder, running or not, sorted."""
    return sorted(path.name for path in lab_runtime(name).glob("*") if path.is_dir())


def known_labs() -> list[str]:
    """Return the names of the labs that something is left of, running or not, sorted."""
    found = {path.name for home in (state_home(), runtime_home()) for path in (home / "lab").glob("*") if path.is_dir()}
    return sorted(found)


def resolve_lab(name: str | None) -> str:
    """Return the lab a command is about: ``name``, else the only one. Raises `NotFoundError`, `UsageError`."""
    known = known_labs()
    if name is not None:
        if check_name(name, "lab") not in known:
            hint = f"there is {', '.join(known)}" if known else "vmcoal lab up"
            raise NotFoundError(f"there is no lab {name!r}", hint=hint)
        return name
    if not known:
        raise NotFoundError("there is no lab", hint="vmcoal lab up")
    if len(known) > 1 and DEFAULT_LAB not in known:
        raise UsageError("there are several labs", hint=f"give --name, one of {', '.join(known)}")
    return known[0] if len(known) == 1 else DEFAULT_LAB


def read_lab(name: str) -> LabSpec | None:
    """Return the spec of a lab, or ``None`` where it has none. Raises `PrerequisiteError` if it cannot be read."""
    path = lab_state(name) / "lab.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabSpec)
    except FileNotFoundError:
        return None
    except (OSError, *UNREADABLE) as error:
        raise PrerequisiteError(f"cannot read {path}: {error}", hint=f"vmcoal lab down --name {name}") from error


def write_lab(spec: LabSpec) -> None:
    """Write a lab's spec, all or nothing. Raises `ExecutionError` where the disk does not take it."""
    path = lab_state(spec.name) / "lab.json"
    part = path.with_suffix(".part")
    try:
        part.write_bytes(msgspec.json.format(msgspec.json.encode(spec), indent=2))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ExecutionError(f"cannot write {path}: {error.strerror}", hint="check the disk's space") from error


def make_lab_folders(name: str) -> None:
    """Create a lab's folders, private."""
    for folder in (lab_runtime(name), lab_state(name)):
        for each in (folder.parent.parent, folder.parent, folder):
            make_private(each)


def remove_lab_folders(name: str) -> None:
    """Remove everything a lab has on disk; its spec goes last, so that what stops the removal can be tried again.

    Raises `ExecutionError` where something cannot be removed.
    """
    state, runtime = lab_state(name), lab_runtime(name)
    try:
        if runtime.exists():
            shutil.rmtree(runtime)
        for path in sorted(state.glob("*"), key=lambda path: path.name == "lab.json"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if state.exists():
            state.rmdir()
        for folder in (runtime.parent, state.parent):
            with contextlib.suppress(OSError):  # another lab is in it
                folder.rmdir()
    except OSError as error:
        raise ExecutionError(
            f"cannot remove {error.filename}: {error.strerror}",
            left=f"what remains of {state} and {runtime}",
            hint="remove them by hand",
        ) from error


@contextlib.contextmanager
def changing(name: str) -> Iterator[None]:
    """Hold the lock under which lab ``name`` is changed. Raises `ConflictError` where another command has it.

    The lock is a lock of the state folder itself, which exists as long as the lab does and ends with its holder.
    """
    while True:
        make_lab_folders(name)
        folder = os.open(lab_state(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(
                    f"another command is changing lab {name}", hint="wait for it, or end it with Ctrl-C there"
                ) from None
            # Between opening and locking, the one before may have removed it.
            if not _is_still(folder, lab_state(name)):
                continue
            try:
                yield
            finally:
                _drop_if_empty(name)
            return
        finally:
            os.close(folder)


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _drop_if_empty(name: str) -> None:
    """Take the folders away again where the lab did not come to be."""
    for folder in (lab_runtime(name), lab_state(name)):
        for each in (folder, folder.parent):
            with contextlib.suppress(OSError):
                each.rmdir()
