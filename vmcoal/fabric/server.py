"""The lender's end: an SSH server that knows paired keys, one subsystem and the messages of `vmcoal.fabric.messages`.

A key that is not paired gets nothing but a refusal: there is no password, shell, command, file transfer, forwarding or
agent, and no configuration of the user's is read. What a stranger can cost is bounded: connections that have not logged
in, in all and for each source, failed logins for each source, and the time for each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import asyncssh
import msgspec

from vmcoal import __version__
from vmcoal.errors import ConflictError, DeadlineError, InternalError, PrerequisiteError, VmcoalError
from vmcoal.fabric.channel import PAIR_SUBSYSTEM, PAIR_USER, SUBSYSTEM, USER, ServerChannel, server_options
from vmcoal.fabric.identity import DEFAULT_PORT, BorrowerRecord, Identity
from vmcoal.fabric.messages import PROTOCOL, FromBorrower, FromLender, Hello, Ping, Pong, Refuse, Welcome
from vmcoal.fabric.probe import boot_id, same_boot
from vmcoal.fabric.wire import ProtocolBreach, check_version, decode_from_borrower, encode

log = logging.getLogger("vmcoal.fabric.server")

_SOURCES = 1024
_ATTEMPTS = 4


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What peers may cost.

    ``waiting`` connections that have not logged in, in all and ``waiting_by_source`` (an IPv4 address or an IPv6 /64);
    ``sessions`` logged in; after ``failures`` failed logins within ``failure_seconds`` a source is not heard until they
    are older; ``login_seconds`` to log in, ``hello_seconds`` from there to `Hello`.
    """

    waiting: int = 32
    waiting_by_source: int = 8
    sessions: int = 256
    failures: int = 20
    failure_seconds: float = 60.0
    login_seconds: float = 10.0
    hello_seconds: float = 10.0


class Window(Protocol):
    """A pairing window as the server sees it (`vmcoal.fabric.pairing.PairingWindow`)."""

    @property
    def is_open(self) -> bool:
        """Whether strangers may log in to pair."""

    async def serve(self, channel: ServerChannel[bytes], *, host_key: str, borrower_key: str, source: str) -> None:
        """Run one exchange."""


class Peer:
    """One borrower's VM in one session.

    ``borrower`` its record; ``vm`` the VM's name there; ``address`` the IP address it came from and ``local_address``
    the one it came to; ``same_host`` whether both ends run on one kernel. Iterating yields its messages until it ends;
    `Ping` is answered here and does not appear. While nobody iterates, at most a few dozen messages wait, then the peer
    is slowed down; a message out of range is refused here.
    """

    def __init__(
        self,
        channel: ServerChannel[FromBorrower],
        borrower: BorrowerRecord,
        hello: Hello,
        *,
        address: str,
        local_address: str,
        same_host: bool,
    ) -> None:
        self.borrower = borrower
        self.vm = hello.vm
        self.software = hello.software
        self.address = address
        self.local_address = local_address
        self.same_host = same_host
        self._channel = channel

    def __repr__(self) -> str:
        return f"Peer({self.borrower.name}/{self.vm} from {self.address})"

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._channel.closing

    def send(self, message: FromLender) -> None:
        """Send a message; it is dropped if the session is over.

        A peer that lets a megabyte of them wait is cut off. Raises `InternalError` for a message of more than a line.
        """
        self._channel.send(encode(message))

    def refuse(self, request: int, error: VmcoalError) -> None:
        """Answer ``request`` with an error; the session goes on."""
        self.send(Refuse(id=request, error=error.to_wire()))

    def __aiter__(self) -> AsyncIterator[FromBorrower]:
        return self

    async def __anext__(self) -> FromBorrower:
        message = await self._channel.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    async def close(self, error: VmcoalError | None = None, *, deadline: float = 3.0) -> None:
        """End the session, telling ``error`` to the borrower if given. Idempotent."""
        if error is None:
            self._channel.close()
        else:
            self._channel.fail(error)
        await self._channel.wait_ended(deadline)


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
        self._connections: set[_Connection] = set()
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
            if sock is not None:
                acceptor = await asyncssh.listen(sock=sock, server_factory=server._connection, **options)
            else:
                acceptor = await asyncssh.listen(host or "", port, server_factory=server._connection, **options)
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

    def _connection(self) -> _Connection:
        return _Connection(self)

    def _admit(self, connection: _Connection) -> bool:
        now = asyncio.get_running_loop().time()
        failures = self._failures.get(connection.source)
        while failures and failures[0] < now - self.limits.failure_seconds:
            failures.popleft()
        waiting = [other for other in self._connections if not other.logged_in]
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

    def _gone(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if not connection.logged_in:
            failures = self._failures.setdefault(connection.source, deque(maxlen=self.limits.failures))
            failures.append(asyncio.get_running_loop().time())
            while len(self._failures) > _SOURCES:
                del self._failures[next(iter(self._failures))]

    def _find(self, public: str) -> BorrowerRecord | None:
        return self._lookup(public)

    def _open_window(self) -> Window | None:
        return self._window if self._window is not None and self._window.is_open else None

    def _greeted(self, peer: Peer) -> None:
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

    def _pair(self, window: Window, channel: ServerChannel[bytes], borrower_key: str, source: str) -> None:
        task = asyncio.create_task(
            window.serve(channel, host_key=self.host_key.public, borrower_key=borrower_key, source=source),
            name="fabric-pairing",
        )
        self._tasks.add(task)
        task.add_done_callback(self._paired)

    def _paired(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("pairing failed", exc_info=task.exception())


class _Connection(asyncssh.SSHServer):
    """One connection: login, then one channel."""

    def __init__(self, server: FabricServer) -> None:
        self.source = ""
        self.logged_in = False
        self._server = server
        self._connection: asyncssh.SSHServerConnection | None = None
        self._borrower: BorrowerRecord | None = None
        self._stranger: str | None = None
        self._attempts = 0
        self._timer: asyncio.TimerHandle | None = None
        self._channel: ServerChannel[FromBorrower] | ServerChannel[bytes] | None = None
        self._peer: Peer | None = None
        self._pairing = False

    def abort(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._address = _address(conn, "peername")
        self.source = _source(self._address)
        if not self._server._admit(self):
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._server._gone(self)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._attempts += 1
        if self._attempts > _ATTEMPTS:
            asyncio.get_running_loop().call_soon(self.abort)
            return False
        public = " ".join(key.export_public_key("openssh").decode().split()[:2])
        self._borrower = self._server._find(public) if username == USER else None
        self._stranger = public if username == PAIR_USER and self._server._open_window() is not None else None
        return self._borrower is not None or self._stranger is not None

    def auth_completed(self) -> None:
        self.logged_in = True
        seconds = self._server.limits.hello_seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._late, seconds)

    def session_requested(self) -> ServerChannel[FromBorrower] | ServerChannel[bytes] | bool:
        if self._channel is not None:
            return False
        if self._borrower is not None:
            self._channel = ServerChannel[FromBorrower](self._take, SUBSYSTEM)
        elif self._stranger is not None:
            self._channel = ServerChannel[bytes](self._take_pairing, PAIR_SUBSYSTEM)
        return self._channel or False

    def _late(self, seconds: float) -> None:
        if self._peer is not None or self._pairing:
            return
        if self._channel is not None:
            self._channel.fail(DeadlineError(f"the session did not begin within {seconds:g} s"))
        elif self._connection is not None:
            self._connection.close()

    def _take(self, line: bytes) -> FromBorrower | None:
        if self._peer is None:
            self._greet(line)
            return None
        try:
            message = decode_from_borrower(line)
        except ProtocolBreach as breach:
            if breach.id == 0:
                raise
            self._peer.refuse(breach.id, breach)
            return None
        match message:
            case Ping(id=number):
                self._peer.send(Pong(id=number))
                return None
            case Hello():
                raise ProtocolBreach("a second Hello")
            case Refuse(error=error):
                log.warning("%r ended its session: %s", self._peer, error.message)
                self._peer._channel.close()
                return None
        return message

    def _greet(self, line: bytes) -> None:
        server = self._server
        check_version(line, "Hello", peer="the borrower", own="the lender", software=server.software)
        hello = decode_from_borrower(line)
        if not isinstance(hello, Hello):
            raise ProtocolBreach("the first message must be Hello")
        assert self._borrower is not None
        assert self._connection is not None
        assert isinstance(self._channel, ServerChannel)
        channel: ServerChannel[FromBorrower] = self._channel  # type: ignore[assignment]
        self._peer = Peer(
            channel,
            self._borrower,
            hello,
            address=self._address,
            local_address=_address(self._connection, "sockname"),
            same_host=same_boot(hello.boot_id, server.boot_id),
        )
        self._peer.send(
            Welcome(
                protocol=PROTOCOL,
                software=server.software,
                lender=server.name,
                boot_id=server.boot_id,
                borrower=self._borrower.name,
                grants=self._borrower.grants,
            )
        )
        server._greeted(self._peer)

    def _take_pairing(self, line: bytes) -> bytes:
        window = self._server._open_window()
        if not self._pairing and window is not None and self._stranger is not None:
            self._pairing = True
            channel: ServerChannel[bytes] = self._channel  # type: ignore[assignment]
            self._server._pair(window, channel, self._stranger, self.source)
        return line


def _address(connection: asyncssh.SSHServerConnection, what: str) -> str:
    name = connection.get_extra_info(what)
    if not name:
        return ""
    address = ipaddress.ip_address(str(name[0]).partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or name[0])


def _source(address: str) -> str:
    if ":" in address:
        return str(ipaddress.ip_network(f"{address.partition('%')[0]}/64", strict=False))
    return address


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
