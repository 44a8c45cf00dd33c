"""One connection to a lender: who it is, and the one channel it gets."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import TYPE_CHECKING

import asyncssh

from vmcoal.errors import DeadlineError
from vmcoal.fabric.channel import PAIR_SUBSYSTEM, PAIR_USER, SUBSYSTEM, USER, ServerChannel
from vmcoal.fabric.identity import BorrowerRecord
from vmcoal.fabric.messages import PROTOCOL, FromBorrower, Hello, Ping, Pong, Refuse, Welcome
from vmcoal.fabric.peer import Peer
from vmcoal.fabric.probe import same_boot
from vmcoal.fabric.wire import ProtocolBreach, check_version, clean, decode_from_borrower

if TYPE_CHECKING:
    from vmcoal.fabric.server import FabricServer

log = logging.getLogger("vmcoal.fabric.server")

_ATTEMPTS = 4


class Login(asyncssh.SSHServer):
    """One connection: ``source`` it comes from, whether it ``logged_in``."""

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

    @property
    def waiting(self) -> bool:
        """Whether it counts against what strangers may take: it has not logged in, or only to pair."""
        return not self.logged_in or self._stranger is not None

    @property
    def borrower(self) -> str | None:
        """The name of the borrower whose key it showed."""
        return self._borrower.name if self._borrower is not None else None

    @property
    def spoke(self) -> bool:
        """Whether a banner came (RFC 4253, 4.2)."""
        return self._connection is not None and bool(self._connection.get_extra_info("client_version"))

    def abort(self) -> None:
        """End the connection at once."""
        if self._connection is not None:
            self._connection.abort()

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Hear the connection, or drop it (asyncssh calls this and the next ones)."""
        self._connection = conn
        self._address = _address(conn, "peername")
        self.source = _source(self._address)
        if not self._server.admit(self):
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        if self._timer is not None:
            self._timer.cancel()
        self._server.gone(self)

    def begin_auth(self, username: str) -> bool:
        """Return that everybody must log in."""
        return True

    def public_key_auth_supported(self) -> bool:
        """Return that keys are the way in; every other way is off."""
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Return whether this key may log in; asked for each try, before its signature is checked."""
        self._attempts += 1
        if self._attempts > _ATTEMPTS:
            asyncio.get_running_loop().call_soon(self.abort)
            return False
        public = " ".join(key.export_public_key("openssh").decode().split()[:2])
        self._borrower = self._server.find_borrower(public) if username == USER else None
        self._stranger = public if username == PAIR_USER and self._server.open_window() is not None else None
        return self._borrower is not None or self._stranger is not None

    def auth_completed(self) -> None:
        """Note the login; the session must begin soon."""
        self.logged_in = True
        if self._borrower is not None and not self._server.has_room(self):
            asyncio.get_running_loop().call_soon(self.abort)
            return
        seconds = self._server.limits.hello_seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self._late, seconds)

    def session_requested(self) -> ServerChannel[FromBorrower] | ServerChannel[bytes] | bool:
        """Give the login its one channel."""
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
                log.warning("%r ended its session: %s", self._peer, clean(error.message))
                self._end()
                return None
        return message

    def _end(self) -> None:
        if self._channel is not None:
            self._channel.close()

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
        server.greeted(self._peer)

    def _take_pairing(self, line: bytes) -> bytes:
        window = self._server.open_window()
        if not self._pairing and window is not None and self._stranger is not None:
            self._pairing = True
            channel: ServerChannel[bytes] = self._channel  # type: ignore[assignment]
            self._server.begin_pairing(window, channel, self._stranger, self.source)
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
