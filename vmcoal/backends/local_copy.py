"""A copy of borrowed memory on this host's disk: a file and an nbdkit of its own under the VM's holder.

The page engine writes to it as to a lender's server, sealed and over TLS on 127.0.0.1, so that there is one kind of
place for pages. The file is worth nothing without the engine's key, and goes with the memory.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection
from pathlib import Path

from vmcoal.backends import nbd, strays
from vmcoal.backends.base import runtime_file
from vmcoal.errors import ExecutionError, NotFoundError, RefusedError, UnreachableError
from vmcoal.holding.client import Holder
from vmcoal.layout import VmFolders
from vmcoal.model.lease import MemoryServer
from vmcoal.model.units import GIB, format_size

ADDRESS = "127.0.0.1"

_SPARE = GIB
"""Bytes that stay free on the disk: the VM's own layer grows on it."""

_GRACE = 1.0


class LocalCopies:
    """Starts and ends the copies of one VM. A copy is named by its region."""

    def __init__(self, holder: Holder, folders: VmFolders) -> None:
        self._holder = holder
        self._folders = folders

    def check_room(self, size: int) -> None:
        """Raise `RefusedError` unless the disk has room for a copy of ``size`` bytes."""
        folder = self._folders.state
        info = os.statvfs(folder)
        free = info.f_bavail * info.f_frsize - _SPARE
        if free < size:
            raise RefusedError(
                f"{format_size(size)} do not fit on the disk of {folder}: {format_size(max(0, free))} can be used",
                hint="free space there, or have the copy on another lender: --replica-on NAME",
            )

    async def start(self, region: str, size: int) -> MemoryServer:
        """Reserve a file of ``size`` bytes and serve it at `ADDRESS`.

        Raises `RefusedError` without room, `ExecutionError` if the file or nbdkit fails; `stop` takes away what there
        is then.
        """
        self.check_room(size)
        await self.stop(region)
        psk = nbd.new_psk()
        nbd.write_psk(self._psk(region), region, psk)
        file = self._folders.local_copy(region)
        await self._reserve(file, size)
        with socket.create_server((ADDRESS, 0), backlog=64) as listener:
            port = int(listener.getsockname()[1])
            argv = nbd.server_argv(file, _export(region), self._psk(region), threads=1)
            await self._holder.spawn(nbd.server_spec(_child(region), argv, listener, self._log(region)))
        return MemoryServer(port=port, export=_export(region), psk_identity=region, psk=psk)

    async def stop(self, region: str) -> None:
        """End a copy and remove its bytes. Idempotent."""
        try:
            await self._holder.stop(_child(region), _GRACE)
            await self._holder.forget(_child(region))
        except (NotFoundError, UnreachableError):  # a holder that is gone takes its children with it, or tries to
            await strays.end(f"file={self._folders.local_copy(region)}", deadline=5.0)
        log = self._log(region)
        for path in (self._folders.local_copy(region), self._psk(region), log, log.with_suffix(".log.1")):
            nbd.remove_file(path)

    async def sweep(self, regions: Collection[str]) -> None:
        """Take away what a controller that was killed left of copies of other regions than ``regions``."""
        for path in self._folders.state.glob(self._folders.local_copy("*").name):
            region = path.stem.removeprefix("copy-")
            if region not in regions:
                await self.stop(region)

    async def _reserve(self, path: Path, size: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await nbd.reserve(descriptor, size)
        except OSError as error:
            raise ExecutionError(
                f"{format_size(size)} cannot be reserved in {path.parent}: {error.strerror}", hint="free space there"
            ) from error
        finally:
            os.close(descriptor)

    def _psk(self, region: str) -> Path:
        return runtime_file(self._folders.runtime, _child(region), "psk")

    def _log(self, region: str) -> Path:
        return self._folders.state / f"{_child(region)}.log"


def _child(region: str) -> str:
    return f"copy-{region}"


def _export(region: str) -> str:
    return nbd.export_name(region, 0, "local")
