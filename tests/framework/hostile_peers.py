"""Peers that do not behave, as named programs: hostile lenders, hostile borrowers, somebody in between.

A hostile lender is a coroutine over a `Wire`, run by `HostileLender` behind a real SSH login with the right host key. A
hostile borrower uses `RawBorrower`, which logs in with a paired key and then sends what it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self

import asyncssh
import msgspec

from vmcoal.fabric import messages as m
from vmcoal.fabric.channel import PAIR_SUBSYSTEM, PAIR_USER, SUBSYSTEM, USER
from vmcoal.fabric.identity import Identity
from vmcoal.fabric.pairing_exchange import PairAnswer, Paired, PairProof, PairStart, Secret, receive
from vmcoal.fabric.wire import encode
from vmcoal.model.lease import Lease, LeaseState, Offer, ResourceKind


class Wire:
    """The bytes of one channel, unchecked."""

    def __init__(self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes], connection: Any) -> None:
        self._reader = reader
        self._writer = writer
        self.connection = connection

    async def line(self) -> bytes:
        """Return the next line, empty at the end."""
        try:
            return await self._reader.readline()
        except (asyncssh.Error, OSError):
            return b""

    async def request(self) -> Any:
        """Return the next message as plain data with its id."""
        line = await self.line()
        return msgspec.json.decode(line) if line else {}

    def send(self, data: bytes | msgspec.Struct) -> None:
        """Send raw bytes, or a message as a line."""
        self._writer.write(data if isinstance(data, bytes) else encode(data))

    def close(self) -> None:
        """Close the channel politely."""
        self._writer.close()

    def abort(self) -> None:
        """Cut the connection."""
        self.connection.abort()

    async def until_closed(self) -> None:
        """Read until the peer is gone."""
        while await self.line():
            pass


Program = Callable[[Wire], Awaitable[None]]

WELCOME = m.Welcome(
    protocol=m.PROTOCOL, software="0", lender="evil", boot_id="", borrower="bob", grants=tuple(ResourceKind)
)


def lease(**changes: Any) -> Lease:
    """Return a lease as an honest lender would grant it for 2 MiB of memory, but for ``changes``."""
    honest = Lease("l1", ResourceKind.MEMORY, 2 << 20, 2 << 20, LeaseState.GRANTED, 1, "evil", "bob", "vm1")
    return msgspec.structs.replace(honest, **changes)


def granted(number: int, server: dict[str, Any] | None = None, **changes: Any) -> m.Granted:
    """Return a grant as an honest lender would, but for ``changes`` of the lease and ``server``."""
    fields = {"port": 10809, "export": "l1.1", "psk_identity": "vmcoal", "psk": "ab" * 32} | (server or {})
    return m.Granted(id=number, lease=lease(**changes), memory=m.MemoryServer(**fields))


def honest_answer(request: dict[str, Any]) -> m.FromLender:
    """Return what an honest lender answers."""
    number = request["id"]
    match request["type"]:
        case "Ping":
            return m.Pong(id=number)
        case "GetOffer":
            return m.OfferReply(id=number, offer=Offer("evil", 1, 1, 1 << 30, 1 << 30))
        case "Request" | "Resume":
            return granted(number)
        case "Renew":
            return m.Renewed(id=number, leases=(lease(),))
    return m.LeaseReply(id=number, lease=lease())


# Lenders: before and instead of the Welcome


async def refuses(wire: Wire) -> None:
    await wire.line()
    wire.send(b'{"type":"Refuse","id":0,"error":{"kind":"RefusedError","message":"go \\u001b[2J away","hint":"no"}}\n')
    await wire.until_closed()


async def says_nothing(wire: Wire) -> None:
    await wire.until_closed()


async def closes_instead_of_welcome(wire: Wire) -> None:
    await wire.line()
    wire.close()


async def closes_in_the_middle_of_welcome(wire: Wire) -> None:
    await wire.line()
    wire.send(encode(WELCOME)[:20])
    wire.close()


async def cuts_instead_of_welcome(wire: Wire) -> None:
    await wire.line()
    wire.abort()


async def speaks_a_newer_protocol(wire: Wire) -> None:
    await wire.line()
    wire.send(b'{"type":"Welcome","protocol":99,"software":"9.9","colour":"red"}\n')
    await wire.until_closed()


async def answers_before_welcome(wire: Wire) -> None:
    await wire.line()
    wire.send(m.Pong(id=1))
    await wire.until_closed()


async def greets_with_a_path_as_its_name(wire: Wire) -> None:
    await wire.line()
    wire.send(msgspec.structs.replace(WELCOME, lender="../../evil"))
    await wire.until_closed()


# Lenders: after an honest Welcome, one hostile answer to the first request


def _answers(reply: Callable[[dict[str, Any]], bytes | msgspec.Struct]) -> Program:
    async def program(wire: Wire) -> None:
        await wire.line()
        wire.send(WELCOME)
        request = await wire.request()
        if request:
            wire.send(reply(request))
        await wire.until_closed()

    return program


def closes_after(count: int | None, *, cut: bool = False) -> Program:
    """Return a lender that sends ``count`` bytes of its answer (``None``: all but the line's end), then goes away."""

    async def program(wire: Wire) -> None:
        await wire.line()
        wire.send(WELCOME)
        request = await wire.request()
        if request:
            wire.send(encode(honest_answer(request))[: -1 if count is None else count])
        if cut:
            wire.abort()
        else:
            wire.close()

    return program


async def never_answers(wire: Wire) -> None:
    await wire.line()
    wire.send(WELCOME)
    await wire.until_closed()


async def sends_an_endless_line(wire: Wire) -> None:
    await wire.line()
    wire.send(WELCOME)
    await wire.line()
    with contextlib.suppress(asyncssh.Error, OSError):
        while True:
            wire.send(b"x" * 8192)
            await wire._writer.drain()


async def floods_revocations(wire: Wire) -> None:
    await wire.line()
    wire.send(WELCOME)
    with contextlib.suppress(asyncssh.Error, OSError):
        for number in range(100_000):
            wire.send(m.Revoke(lease=f"l{number}", epoch=1, deadline=1, reason=""))
            await wire._writer.drain()
    await wire.until_closed()


async def writes_to_stderr(wire: Wire) -> None:
    await wire.line()
    wire.send(WELCOME)
    wire._writer.channel.write_stderr(b"hello\n")
    await wire.until_closed()


sends_garbage = _answers(lambda _: b"\x00\xff{not json\n")
sends_an_empty_line = _answers(lambda _: b"\n")
sends_deep_nesting = _answers(lambda _: b"[" * 60_000 + b"\n")
sends_an_unknown_tag = _answers(lambda request: b'{"type":"Surprise","id":%d}\n' % request["id"])
sends_an_unknown_field = _answers(lambda request: b'{"type":"Pong","id":%d,"more":1}\n' % request["id"])
sends_a_borrowers_message = _answers(lambda request: m.Ping(id=request["id"]))
answers_another_id = _answers(lambda request: m.Pong(id=request["id"] + 1000))
answers_id_zero = _answers(lambda _: b'{"type":"Pong","id":0}\n')
answers_another_type = _answers(lambda request: m.Renewed(id=request["id"], leases=()))
welcomes_twice = _answers(lambda _: WELCOME)
refuses_to_go_on = _answers(lambda _: b'{"type":"Refuse","error":{"kind":"ConflictError","message":"shutting down"}}\n')

PROTOCOL_BREAKERS: dict[str, Program] = {
    "garbage": sends_garbage,
    "empty-line": sends_an_empty_line,
    "endless-line": sends_an_endless_line,
    "deep-nesting": sends_deep_nesting,
    "unknown-tag": sends_an_unknown_tag,
    "unknown-field": sends_an_unknown_field,
    "borrowers-message": sends_a_borrowers_message,
    "another-id": answers_another_id,
    "id-zero": answers_id_zero,
    "another-type": answers_another_type,
    "second-welcome": welcomes_twice,
    "revocations": floods_revocations,
    "stderr": writes_to_stderr,
}

LYING_GRANTS: dict[str, Program] = {
    name: _answers(lambda request, changes=changes, server=server: granted(request["id"], server, **changes))
    for name, changes, server in (
        ("less-memory", {"amount": 1 << 20, "committed": 1 << 20}, None),
        ("more-memory", {"amount": 1 << 40}, None),
        ("absurd-memory", {"amount": 1 << 62}, None),
        ("negative-memory", {"amount": -1}, None),
        ("more-committed-than-there-is", {"committed": 1 << 40}, None),
        ("another-kind", {"kind": ResourceKind.GPU}, None),
        ("another-vm", {"vm": "vm2"}, None),
        ("a-path-as-id", {"id": "../../../tmp/x"}, None),
        ("an-option-as-id", {"id": "-rf"}, None),
        ("a-negative-epoch", {"epoch": -1}, None),
        ("port-zero", {}, {"port": 0}),
        ("port-too-high", {}, {"port": 65536}),
        ("a-line-break-in-the-key", {}, {"psk": "ab" * 32 + "\n"}),
        ("a-short-key", {}, {"psk": "ab"}),
        ("a-line-break-in-the-identity", {}, {"psk_identity": "a\nb:00"}),
        ("a-query-in-the-export", {}, {"export": "x?tls-psk-file=/etc/passwd"}),
        ("a-name-as-address", {}, {"address": "localhost"}),
        ("no-address", {}, {"address": ""}),
    )
}


class HostileLender:
    """Runs a `Program` for each session, behind an SSH login that accepts any key."""

    def __init__(self, host_key: Identity, program: Program) -> None:
        self._host_key = host_key
        self._program = program
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._acceptor: asyncssh.SSHAcceptor | None = None

    @property
    def port(self) -> int:
        assert self._acceptor is not None
        return self._acceptor.get_port()

    async def __aenter__(self) -> Self:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: _AnyKey(self._connections),
            server_host_keys=[self._host_key.key],
            session_factory=self._session,
            encoding=None,
            line_editor=False,
            config=None,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._acceptor is not None
        self._acceptor.close()
        for connection in list(self._connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._acceptor.wait_closed()

    def _session(
        self, stdin: asyncssh.SSHReader[bytes], stdout: asyncssh.SSHWriter[bytes], _: asyncssh.SSHWriter[bytes]
    ) -> None:
        wire = Wire(stdin, stdout, stdout.channel.get_connection())
        task = asyncio.ensure_future(self._program(wire))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _AnyKey(asyncssh.SSHServer):
    def __init__(self, connections: set[asyncssh.SSHServerConnection]) -> None:
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connections.add(conn)
        self._connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._connection)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return True


class Interceptor(HostileLender):
    """Somebody in between: takes the borrower's login with a key of its own and relays all lines to the lender."""

    def __init__(self, key: Identity, lender: int) -> None:
        super().__init__(key, self._relay)
        self._key = key
        self._lender = lender
        self.relayed = 0

    async def _relay(self, wire: Wire) -> None:
        async with raw_client(self._key, self._lender, user=PAIR_USER) as connection:
            stdin, stdout, _ = await connection.open_session(subsystem=PAIR_SUBSYSTEM, encoding=None)
            onward = Wire(stdout, stdin, connection)
            await asyncio.wait(
                {asyncio.create_task(self._pump(wire, onward)), asyncio.create_task(self._pump(onward, wire))}
            )

    async def _pump(self, source: Wire, sink: Wire) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            while line := await source.line():
                self.relayed += 1
                sink.send(line)
        sink.close()


class FalseProver:
    """A pairing window that does not know the code and claims that all is well."""

    is_open = True

    async def serve(self, channel: Any, *, lender: str, host_key: str, borrower_key: str, source: str) -> None:
        start = await receive(channel, PairStart, peer="p", own="o")
        secret = Secret("000-000-000", lender=True, host_key=host_key, borrower_key=borrower_key)
        answer = PairAnswer(protocol=m.PROTOCOL, software="", lender=lender, share=await secret.share())
        await secret.finish(start, answer, start.share)
        channel.send(encode(answer))
        await receive(channel, PairProof, peer="p", own="o")
        grants = tuple(ResourceKind)
        channel.send(encode(Paired(borrower="bob", grants=grants, proof=secret.lender_proof("bob", grants))))


@asynccontextmanager
async def raw_client(identity: Identity, port: int, *, user: str = USER) -> AsyncIterator[Any]:
    """Log in as a borrower does, then do as the caller likes."""
    connection = await asyncssh.connect(
        "127.0.0.1",
        port,
        username=user,
        client_keys=[identity.key],
        known_hosts=None,
        config=None,
        agent_path=None,
    )
    try:
        yield connection
    finally:
        connection.abort()
        await connection.wait_closed()


class RawBorrower(Wire):
    """A borrower with a paired key that sends what it likes."""

    HELLO = m.Hello(protocol=m.PROTOCOL, software="0", vm="vm1", boot_id="")

    @classmethod
    @asynccontextmanager
    async def connected(cls, identity: Identity, port: int, *, hello: bool = True) -> AsyncIterator[RawBorrower]:
        """Connect and, unless ``hello`` is false, get the Welcome."""
        async with raw_client(identity, port) as connection:
            stdin, stdout, _ = await connection.open_session(subsystem=SUBSYSTEM, encoding=None)
            borrower = cls(stdout, stdin, connection)
            if hello:
                borrower.send(cls.HELLO)
                await borrower.line()
            yield borrower

    async def refusal(self) -> dict[str, Any]:
        """Return the error of the next message, which must be a `Refuse`, and check that the session then ends."""
        message = await self.request()
        assert message["type"] == "Refuse", message
        assert await self.line() == b""
        error: dict[str, Any] = message["error"]
        return error
