"""What the servers of leases have in common, whatever they lend: a key each, children of the holder, a port."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

from vmcoal.backends import nbd
from vmcoal.holding.client import Holder
from vmcoal.layout import LenderFolders
from vmcoal.lending import cgroup, connections
from vmcoal.lending.entry import Entry
from vmcoal.model.gpu import GpuServer
from vmcoal.model.lease import MemoryServer

_GRACE = 1.0


_Server = TypeVar("_Server", MemoryServer, GpuServer)


class LeaseServers(ABC, Generic[_Server]):
    """Starts, finds and ends the servers of one lender's leases of one kind.

    ``holder`` may be replaced when it was lost; ``host`` is the address they listen on (``None``: all); ``ports`` the
    data ports to choose from (empty: any); ``cgroups`` the folder of their groups, or ``None``.
    """

    def __init__(
        self,
        holder: Holder,
        folders: LenderFolders,
        *,
        host: str | None,
        ports: range = range(0),
        cgroups: Path | None = None,
    ) -> None:
        self.holder = holder
        self._folders = folders
        self._host = host
        self._ports = ports
        self._cgroups = cgroups

    @abstractmethod
    async def start(self, entry: Entry) -> _Server:
        """Start the server of a requested lease; raises `ExecutionError` and leaves nothing behind if it fails."""

    @abstractmethod
    async def find(self, entry: Entry) -> _Server:
        """Return the server of a granted lease, started again on its port if it does not run.

        Raises `NotFoundError` if what it served or its key is gone, `ConflictError` if another program has the port.
        """

    @abstractmethod
    async def stop(self, entry: Entry) -> None:
        """End a lease's server and remove what it had. Idempotent; raises `DeadlineError` if it does not end."""

    @abstractmethod
    async def sweep(self, entries: list[Entry]) -> list[str]:
        """End servers that belong to none of ``entries``; return the ids of their children."""

    @abstractmethod
    def _describe(self, entry: Entry, port: int, psk: str) -> _Server:
        """Return how to reach the server on ``port`` with the key ``psk``."""

    def describe(self, entry: Entry) -> _Server | None:
        """Return how to reach the server of a granted lease, or ``None`` if its key is gone."""
        psk = self._read_psk(entry.lease.id)
        return None if psk is None else self._describe(entry, entry.port, psk)

    def in_use(self, entry: Entry) -> bool:
        """Return whether the lease's borrower is connected to its server."""
        return bool(entry.port and entry.peer and connections.plain(entry.peer) in connections.peers_of(entry.port))

    # For each kind

    async def _live(self) -> set[str]:
        """Return the ids of the children that the holder keeps alive."""
        return {child.id for child in await self.holder.list() if child.live}

    async def _end(self, child: str) -> None:
        """End a child; raises `NotFoundError` if the holder does not know it."""
        await self.holder.stop(child, _GRACE)
        await self.holder.forget(child)

    async def _end_others(self, prefix: str, entries: list[Entry]) -> list[str]:
        """End the children ``prefix`` + lease whose lease is none of ``entries``; return those leases."""
        leases = {entry.lease.id for entry in entries}
        found = []
        for child in await self.holder.list():
            lease = child.id.removeprefix(prefix)
            if child.id.startswith(prefix) and lease not in leases:
                await self._end(child.id)
                found.append(lease)
        return found

    def _remove(self, lease: str, *children: str) -> None:
        """Remove a lease's key and group, and the logs of its children, which have ended."""
        nbd.remove_file(self._psk_file(lease))
        for child in children:
            for log in (self._log(child), self._log(child).with_suffix(".log.1")):
                nbd.remove_file(log)
        if self._cgroups is not None:
            cgroup.remove_group(self._cgroups / lease)

    def _psk_file(self, lease: str) -> Path:
        return self._folders.runtime / f"{lease}.psk"

    def _read_psk(self, lease: str) -> str | None:
        try:
            return self._psk_file(lease).read_text().strip().partition(":")[2] or None
        except FileNotFoundError:
            return None

    def _log(self, child: str) -> Path:
        return self._folders.state / f"{child}.log"

    def _tail(self, child: str) -> str:
        try:
            return self._log(child).read_text(errors="replace")[-1000:].strip()
        except FileNotFoundError:
            return ""
