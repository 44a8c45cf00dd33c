"""The lender's end: an SSH server that knows paired keys, one subsystem and the messages of `vmcoal.fabric.messages`.

A key that is not paired gets nothing but a refusal: there is no password, shell, command, file transfer, forwarding or
agent, and no configuration of the user's is read. What a stranger can cost is bounded: connections that have not logged
in, in all and for each source, failed logins for each source, and the time for each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import asyncssh
import msgspec

from vmcoal import __version__
from vmcoal.errors import ConflictError, InternalError, PrerequisiteError, VmcoalError
from vmcoal.fabric.channel import ServerChannel, server_options
from vmcoal.fabric.identity import DEFAULT_PORT, BorrowerRecord, Identity
from vmcoal.fabric.login import Login
from vmcoal.fabric.peer import Peer
from vmcoal.fabric.probe import boot_id

__all__ = ["FabricServer", "Handler", "Limits", "Lookup", "Peer", "Window"]

log = logging.getLogger("vmcoal.fabric.server")

_SOURCES = 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What peers may cost.

    ``waiting`` connections that have not logged in, or only to pair, in all and ``waiting_by_source`` (an IPv4 address
    or an IPv6 /64); ``sessions`` logged in, and ``sessions_by_borrower`` of one key; after ``failures`` failed logins
    within ``failure_seconds`` a source is not heard until they are older; ``login_seconds`` to log in,
    ``hello_seconds`` from there to `Hello`.
    """

    waiting: int = 32
    waiting_by_source: int = 8
    sessions: int = 256
    sessions_by_borrower: int = 64
    failures: int = 20
    failure_seconds: float = 60.0
    login_seconds: float = 10.0
    hello_seconds: float = 10.0


class Window(Protocol):
    """A pairing window as the server sees it (`vmcoal.fabric.pairing.PairingWindow`)."""

    @property
    def is_open(self) -> bool:
        """Whether strangers may log in to pair."""

    async def serve(
        self, channel: ServerChannel[bytes], *, lender: str, host_key: str, borrower_key: str, source: str
    ) -> None:
        """Run one exchange."""


Handler = Callable[[Peer], Awaitable[None]]
Lookup = Callable[[str], BorrowerRecord | None]


class FabricServer:
    """The listening lender; made by `start`, ended by `close`."""

    def __init__(
        self, name: str, host_key: Identity, borrowers: Lookup, handler: Handler, *, software: str, limits: Limits
    ) -> None:
        self.name = name
        self.host_key = host_key
        self.software = software
        self.limits = limits
        self.boot_id = boot_id()
        self._lookup = borrowers
        self._handler = handler
        self._window: Window | None = None
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._connections: set[Login] = set()
        self._peers: dict[Peer, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: dict[str, deque[float]] = {}

    @classmethod
    async def start(
        cls,
        *,
        name: str,
        host_key: Identity,
        borrowers: Lookup,
        handler: Handler,
        host: str | None = None,
        port: int = DEFAULT_PORT,
        sock: socket.socket | None = None,
        software: str = __version__,
        limits: Limits | None = None,
    ) -> FabricServer:
        """Listen on ``host`` (``None``: every address) and ``port`` (0: any), or on the listening socket ``sock``.

        ``borrowers`` finds the record of a public key (OpenSSH form without comment) at each login; ``handler`` runs
        for each session and ends it by returning, an error it raises is told to the borrower. Raises `ConflictError` if
        the port is taken and `PrerequisiteError` if the address cannot be used.
        """
        server = cls(name, host_key, borrowers, handler, software=software, limits=limits or Limits())
        options = server_options(host_key, server.limits.login_seconds)
        try:
            if sock is None and host is None:
                sock = _any_address(port)
            where = {"sock": sock} if sock is not None else {"host": host, "port": port}
            acceptor = await asyncssh.listen(**where, server_factory=lambda: Login(server), **options)
        except OSError as error:
            raise _listen_error(error, host, port) from error
        server._acceptor = acceptor
        return server

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """IP addresses and ports it listens on."""
        return [(address[0], address[1]) for address in self._acceptor.get_addresses()] if self._acceptor else []

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self.addresses[0][1] if self.addresses else 0

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The sessions under way."""
        return tuple(self._peers)

    def open_pairing(self, window: Window) -> None:
        """Let strangers log in to pair while ``window`` is open; raises `ConflictError` if another one is."""
        if self._window is not None and self._window.is_open:
            raise ConflictError("a pairing window is open already", hint="wait until it is over, or close it")
        self._window = window

    async def close(self, deadline: float = 5.0) -> None:
        """Stop listening, cancel the handlers and end every session within ``deadline`` seconds."""
        if self._acceptor is not None:
            self._acceptor.close()
        tasks = [*self._peers.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=deadline)
        for connection in list(self._connections):
            connection.abort()
        if self._acceptor is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._acceptor.wait_closed(), deadline)
            self._acceptor = None

    def admit(self, connection: Login) -> bool:
        """Return whether a new connection is heard (for `vmcoal.fabric.login`, as the next ones)."""
        now = asyncio.get_running_loop().time()
        failures = self._failures.get(connection.source)
        while failures and failures[0] < now - self.limits.failure_seconds:
            failures.popleft()
        waiting = [other for other in self._connections if other.waiting]
        beside = sum(other.source == connection.source for other in waiting)
        admitted = (
            len(waiting) < self.limits.waiting
            and beside < self.limits.waiting_by_source
            and len(self._connections) - len(waiting) < self.limits.sessions
            and (not failures or len(failures) < self.limits.failures)
        )
        if admitted:
            self._connections.add(connection)
        else:
            log.warning("too many connections or failed logins: one from %s was not heard", connection.source)
        return admitted

    def has_room(self, connection: Login) -> bool:
        """Return whether a borrower that has just logged in may stay: one alone must not take all the sessions."""
        beside = sum(other.borrower == connection.borrower and other.logged_in for other in self._connections)
        if beside <= self.limits.sessions_by_borrower:
            return True
        log.warning("too many sessions of %s: one from %s was ended", connection.borrower, connection.source)
        return False

    def gone(self, connection: Login) -> None:
        """Forget a connection that ended, and count it if it began to log in and did not.

        One that said nothing measured the link (`vmcoal.fabric.probe.connect_rtt`), and cost nothing.
        """
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if connection.spoke and not connection.logged_in:
            failures = self._failures.setdefault(connection.source, deque(maxlen=self.limits.failures))
            failures.append(asyncio.get_running_loop().time())
            while len(self._failures) > _SOURCES:
                del self._failures[next(iter(self._failures))]

    def find_borrower(self, public: str) -> BorrowerRecord | None:
        """Return the record of a key, or ``None`` if it is not paired."""
        return self._lookup(public)

    def open_window(self) -> Window | None:
        """Return the pairing window, or ``None`` if none is open."""
        return self._window if self._window is not None and self._window.is_open else None

    def greeted(self, peer: Peer) -> None:
        """Start the handler of a session."""
        task = asyncio.create_task(self._handle(peer), name=f"fabric-{peer.borrower.name}-{peer.vm}")
        self._peers[peer] = task
        task.add_done_callback(lambda _: self._peers.pop(peer, None))

    async def _handle(self, peer: Peer) -> None:
        error: VmcoalError | None = None
        try:
            await self._handler(peer)
        except VmcoalError as raised:
            error = raised
        except asyncio.CancelledError:
            await asyncio.shield(peer.close(deadline=1.0))
            raise
        except Exception:
            log.exception("a session's handler failed: %r", peer)
            error = InternalError("the lender failed to handle the session", hint="see its log")
        await peer.close(error)

    def begin_pairing(self, window: Window, channel: ServerChannel[bytes], borrower_key: str, source: str) -> None:
        """Start an exchange with a stranger."""
        task = asyncio.create_task(
            window.serve(
                channel, lender=self.name, host_key=self.host_key.public, borrower_key=borrower_key, source=source
            ),
            name="fabric-pairing",
        )
        self._tasks.add(task)
        task.add_done_callback(self._paired)

    def _paired(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("pairing failed", exc_info=task.exception())


def _any_address(port: int) -> socket.socket:
    # One socket for both families: with port 0 the event loop would give each family a port of its own.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _listen_error(error: OSError, host: str | None, port: int) -> VmcoalError:
    where = f"{host or 'any address'} port {port}"
    match error.errno:
        case errno.EADDRINUSE:
            return ConflictError(
                f"{where} is taken", hint="choose another one: --listen ADDR:PORT; who has it: ss -ltnp"
            )
        case errno.EACCES:
            return PrerequisiteError(f"{where} may not be used", hint="choose a port of 1024 or higher")
        case errno.EADDRNOTAVAIL:
            return PrerequisiteError(f"{host} is not an address of this host", hint="list them: ip -brief address")
    return PrerequisiteError(
        f"cannot listen on {where}: {error.strerror or error}", hint="check the address: ip -brief address"
    )
