"""One SSH channel that carries lines, from either end, and the SSH options both ends share.

Importing this imports asyncssh (about 0.3 s): modules that must be cheap to import import it inside functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import asyncssh

from vmcoal.errors import (
    PrerequisiteError,
    RefusedError,
    UnreachableError,
    VmcoalError,
)
from vmcoal.fabric.identity import Identity, address_text, fingerprint
from vmcoal.fabric.messages import Refuse
from vmcoal.fabric.wire import LineBuffer, ProtocolBreach, clean, encode

if TYPE_CHECKING:
    from asyncssh.channel import SSHChannel
    from asyncssh.connection import SSHConnection

USER = "vmcoal"
PAIR_USER = "vmcoal-pair"
SUBSYSTEM = "vmcoal"
PAIR_SUBSYSTEM = "vmcoal-pair"

INBOX_LIMIT = 64
"""Messages that wait for their reader before the peer is told to stop sending."""

SEND_LIMIT = 1 << 20
"""Bytes that may wait for a peer that reads slowly; then it is dropped."""

LINGER = 1.0
"""Seconds that a peer gets to read the last message and close by itself."""

_WINDOW = 256 * 1024
_PACKET = 32 * 1024

_COMMON: dict[str, Any] = {
    "config": None,
    "kex_algs": ["curve25519-sha256"],
    "encryption_algs": ["chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com"],
    "compression_algs": None,
    "signature_algs": ["ssh-ed25519"],
    "x509_trusted_certs": None,
    "gss_host": None,
    "gss_kex": False,
    "gss_auth": False,
    "host_based_auth": False,
    "password_auth": False,
    "kbdint_auth": False,
    "public_key_auth": True,
    "agent_forwarding": False,
    "x11_forwarding": False,
    "encoding": None,
    "window": _WINDOW,
    "max_pktsize": _PACKET,
    "keepalive_interval": 15,
    "keepalive_count_max": 3,
}

T = TypeVar("T")

# It tells of every connection, with names that strangers choose.
logging.getLogger("asyncssh").setLevel(logging.WARNING)


def server_options(host_key: Identity, login_seconds: float) -> dict[str, Any]:
    """Return asyncssh's options of a lender: public keys only, one subsystem, nothing else."""
    return {
        **_COMMON,
        "server_version": "vmcoal",
        "server_host_keys": [host_key.key],
        "login_timeout": login_seconds,
        "allow_pty": False,
        "line_editor": False,
        "rdns_lookup": False,
        "allow_scp": False,
        "sftp_factory": None,
        "authorized_client_keys": None,
    }


def client_options(identity: Identity, user: str, login_seconds: float) -> dict[str, Any]:
    """Return asyncssh's options of a borrower: one key, no agent, no configuration, no known_hosts of the user."""
    return {
        **_COMMON,
        "client_version": "vmcoal",
        "client_keys": [identity.key],
        "username": user,
        "known_hosts": ([], [], []),
        "server_host_key_algs": ["ssh-ed25519"],
        "preferred_auth": ["publickey"],
        "disable_trivial_auth": True,
        "agent_path": None,
        "login_timeout": login_seconds,
        "tunnel": None,
        "proxy_command": None,
    }


class PinnedClient(asyncssh.SSHClient):
    """Accepts one host key, or any if ``expected`` is ``None`` (pairing); remembers the one it ``saw``."""

    def __init__(self, expected: str | None) -> None:
        self.expected = expected
        self.saw: str | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """Return whether the key the server proves to have is the pinned one."""
        self.saw = " ".join(key.export_public_key("openssh").decode().split()[:2])
        return self.expected is None or self.saw == self.expected


class LineChannel(Generic[T]):
    """One end of a channel of lines.

    ``take`` is called with each line as it arrives and returns what to keep for `receive`, or ``None`` if it is done
    with it. A `VmcoalError` from it ends the channel: the peer gets it as `Refuse`. ``ended`` is done when the channel
    is gone; ``failure`` then is what this end refused the peer for, ``lost`` what broke the connection.
    """

    def __init__(self, take: Callable[[bytes], T | None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure: VmcoalError | None = None
        self.lost: Exception | None = None
        self._take = take
        self._lines = LineBuffer()
        self._inbox: deque[T] = deque()
        self._arrived = asyncio.Event()
        self._closing = False
        self._paused = False
        self._channel: SSHChannel[bytes] | None = None
        self._connection: SSHConnection | None = None

    def connection_made(self, chan: SSHChannel[bytes]) -> None:
        """Keep the channel (asyncssh calls this)."""
        self._channel = chan
        self._connection = chan.get_connection()

    def data_received(self, data: bytes, datatype: int | None) -> None:
        """Split and take lines (asyncssh calls this)."""
        if self._closing:
            return
        try:
            if datatype is not None:
                raise ProtocolBreach("data came on another stream")
            for line in self._lines.feed(data):
                item = self._take(line)
                if self._closing:
                    return
                if item is not None:
                    self._inbox.append(item)
        except VmcoalError as error:
            self.fail(error)
        self._arrived.set()
        if len(self._inbox) >= INBOX_LIMIT and not self._paused and self._channel is not None:
            self._paused = True
            self._channel.pause_reading()

    def eof_received(self) -> bool:
        """End when the peer does (asyncssh calls this)."""
        self._shut()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end (asyncssh calls this)."""
        self._closing = True
        self._channel = None
        self.lost = exc
        if not self.ended.done():
            self.ended.set_result(None)
        self._arrived.set()
        if self._connection is not None:
            self._connection.close()

    @property
    def closing(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closing

    def send(self, line: bytes) -> None:
        """Send a line; it is dropped if the channel is closing. A peer that lets `SEND_LIMIT` bytes wait is cut off."""
        if self._closing or self._channel is None:
            return
        self._channel.write(line)
        if self._backlog() > SEND_LIMIT:
            self.failure = RefusedError("the peer does not read its messages")
            self.abort()

    async def receive(self) -> T | None:
        """Return the next item, or ``None`` when the channel has ended and all items were received."""
        while not self._inbox:
            if self._closing:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        item = self._inbox.popleft()
        if self._paused and len(self._inbox) <= INBOX_LIMIT // 2 and self._channel is not None:
            self._paused = False
            self._channel.resume_reading()
        return item

    def fail(self, error: VmcoalError) -> None:
        """Tell the peer why, and end."""
        if self._closing:
            return
        self.failure = error
        self.send(encode(Refuse(error=error.to_wire())))
        self._shut()

    def close(self) -> None:
        """End after what was sent has gone out; the connection follows once the peer closes, after `LINGER` anyway."""
        self._shut()

    def abort(self) -> None:
        """End at once; what was not sent is lost."""
        self._closing = True
        self._arrived.set()
        if self._connection is not None:
            self._connection.abort()

    async def wait_ended(self, deadline: float) -> None:
        """Wait for the end, at most ``deadline`` seconds; then `abort`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await asyncio.shield(self.ended)
                return
        self.abort()

    def _shut(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._arrived.set()
        if self._channel is not None and self._connection is not None:
            self._channel.close()
            asyncio.get_running_loop().call_later(LINGER, self._connection.close)

    def _backlog(self) -> int:
        # asyncssh ignores the transport's back-pressure and has no public view of either buffer.
        waiting = int(getattr(self._channel, "_send_buf_len", 0))
        transport = getattr(self._connection, "_transport", None)
        return waiting + (transport.get_write_buffer_size() if isinstance(transport, asyncio.WriteTransport) else 0)


class ClientChannel(LineChannel[T], asyncssh.SSHClientSession[bytes]):
    """The borrower's end."""


class ServerChannel(LineChannel[T], asyncssh.SSHServerSession[bytes]):
    """The lender's end: one subsystem, no shell, no command, no terminal."""

    def __init__(self, take: Callable[[bytes], T | None], subsystem: str) -> None:
        super().__init__(take)
        self._subsystem = subsystem

    def subsystem_requested(self, subsystem: str) -> bool:
        """Return whether this is the one subsystem that this login may use."""
        return subsystem == self._subsystem


async def open_client(
    host: str, port: int, identity: Identity, user: str, client: PinnedClient, *, name: str, deadline: float
) -> asyncssh.SSHClientConnection:
    """Connect and log in; ``name`` is the lender's name for errors.

    Raises `UnreachableError`, `PrerequisiteError` (another host key), `RefusedError` (not paired); the deadline is the
    caller's `asyncio.timeout`, ``deadline`` bounds the login itself.
    """
    try:
        connection, _ = await asyncssh.create_connection(
            lambda: client, host, port, **client_options(identity, user, deadline)
        )
    except asyncssh.HostKeyNotVerifiable as error:
        if client.expected is None or client.saw is None:
            raise UnreachableError("the host key cannot be verified", host=name) from error
        raise PrerequisiteError(
            f"its key changed: expected {fingerprint(client.expected)}, got {fingerprint(client.saw)}",
            host=name,
            hint=f"if it was reinstalled: vmcoal pair {address_text(host, port)}; else somebody else answers there",
        ) from error
    except asyncssh.PermissionDenied as error:
        if user == PAIR_USER:
            raise RefusedError(
                "no pairing window is open", host=name, hint="its operator opens one with: vmcoal lend pair"
            ) from error
        raise RefusedError(
            f"this host is not paired with it (our key is {identity.fingerprint})",
            host=name,
            hint=f"vmcoal pair {address_text(host, port)}, while its operator holds open: vmcoal lend pair",
        ) from error
    except (asyncssh.Error, OSError, ValueError) as error:
        raise connection_error(error, host, port, name) from error
    return connection


def connection_error(error: Exception, host: str, port: int, name: str) -> VmcoalError:
    """Return what a failed connection means, with the next step."""
    where = f"{host} port {port}"
    hint = "check that vmcoal lend runs there and that no firewall is between"
    match error:
        case ConnectionRefusedError():
            return UnreachableError(f"nothing listens at {where}", host=name, hint="start it there: vmcoal lend")
        case socket.gaierror():
            return UnreachableError(
                f"the name {host} cannot be resolved", host=name, hint="check the name, or pair with its IP address"
            )
        case TimeoutError():
            return UnreachableError(f"no answer from {where}", host=name, hint=hint)
        case asyncssh.ConnectionLost() | ConnectionResetError() | BrokenPipeError():
            return UnreachableError(
                f"{where} closed the connection before login was done",
                host=name,
                hint="it may be limiting connections: try again in a minute; else check that vmcoal lend runs there",
            )
        case OSError():
            return UnreachableError(f"no connection to {where}: {error.strerror or error}", host=name, hint=hint)
        case asyncssh.Error():
            return UnreachableError(
                f"{where} does not speak as a lender does: {clean(error.reason)}",
                host=name,
                hint="check that vmcoal lend runs there, of the same version",
            )
    return PrerequisiteError(f"cannot connect to {where}: {error}", host=name)
