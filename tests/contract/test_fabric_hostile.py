"""Hostile lenders against the session, hostile borrowers and strangers against the server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from framework import hostile_peers as hostile
from framework.fabric_lender import Pair, SmallLender
from framework.hostile_peers import HostileLender, RawBorrower, raw_client
from vmcoal.errors import ConflictError, DeadlineError, PrerequisiteError, RefusedError, UnreachableError, VmcoalError
from vmcoal.fabric import channel
from vmcoal.fabric import messages as m
from vmcoal.fabric.identity import BorrowerRecord, load_identity
from vmcoal.fabric.server import Limits, Peer
from vmcoal.fabric.session import LenderSession
from vmcoal.model.lease import ResourceKind

pytestmark = [pytest.mark.contract, pytest.mark.timeout(60)]

CALLS: dict[str, Callable[..., Awaitable[object]]] = {
    "ping": lambda session, **options: session.ping(**options),
    "offer": lambda session, **options: session.offer(**options),
    "request": lambda session, **options: session.request(ResourceKind.MEMORY, 2 << 20, token="t", **options),
    "report": lambda session, **options: session.report("l1", 1, "attach", **options),
    "renew": lambda session, **options: session.renew([("l1", 1)], **options),
    "resize": lambda session, **options: session.resize("l1", 1, 0, **options),
    "resume": lambda session, **options: session.resume("l1", 1, **options),
    "release": lambda session, **options: session.release("l1", 1, **options),
    "sample": lambda session, **options: session.sample_link(3, **options),
}


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


async def connect(pair: Pair, lender: HostileLender, *, deadline: float = 5) -> LenderSession:
    return await LenderSession.connect(pair.record(lender.port), pair.borrower, "vm1", deadline=deadline)


async def ending(session: LenderSession) -> VmcoalError | None:
    return await asyncio.wait_for(asyncio.shield(session.closed), 10)


# Lenders


async def test_a_lender_that_refuses_is_quoted_without_its_control_characters(pair: Pair) -> None:
    async with HostileLender(pair.lender, hostile.refuses) as lender:
        with pytest.raises(RefusedError) as caught:
            await connect(pair, lender)
    assert (caught.value.message, caught.value.hint, caught.value.host) == ("go ?[2J away", "no", "small")


@pytest.mark.parametrize(
    "program",
    [
        hostile.closes_instead_of_welcome,
        hostile.closes_in_the_middle_of_welcome,
        hostile.cuts_instead_of_welcome,
        hostile.answers_before_welcome,
        hostile.greets_with_a_path_as_its_name,
    ],
)
async def test_a_greeting_that_is_none(pair: Pair, program: hostile.Program) -> None:
    async with HostileLender(pair.lender, program) as lender:
        with pytest.raises(UnreachableError, match="the greeting broke off") as caught:
            await connect(pair, lender)
    assert caught.value.host == "small"


async def test_no_greeting(pair: Pair) -> None:
    async with HostileLender(pair.lender, hostile.says_nothing) as lender:
        with pytest.raises(DeadlineError, match=r"no session with 127\.0\.0\.1:\d+ within 0\.5 s"):
            await connect(pair, lender, deadline=0.5)


async def test_a_lender_of_a_newer_protocol(pair: Pair) -> None:
    async with HostileLender(pair.lender, hostile.speaks_a_newer_protocol) as lender:
        with pytest.raises(PrerequisiteError, match=r"the lender speaks protocol 99 \(vmcoal 9\.9\)") as caught:
            await connect(pair, lender)
    assert caught.value.hint == "upgrade vmcoal on this host"


@pytest.mark.parametrize("count", [0, 1, 17, None], ids=["nothing", "one-byte", "17-bytes", "all-but-the-end"])
@pytest.mark.parametrize("cut", [False, True], ids=["closes", "cuts"])
@pytest.mark.parametrize("call", CALLS)
async def test_closing_in_the_middle_of_every_answer(pair: Pair, call: str, cut: bool, count: int | None) -> None:
    async with HostileLender(pair.lender, hostile.closes_after(count, cut=cut)) as lender:
        session = await connect(pair, lender)
        with pytest.raises(UnreachableError, match="broke off") as caught:
            await CALLS[call](session)
        assert caught.value.host == "small"
        assert isinstance(await ending(session), UnreachableError)
        await session.close()


@pytest.mark.parametrize("call", CALLS)
async def test_a_lender_that_never_answers(pair: Pair, call: str) -> None:
    async with HostileLender(pair.lender, hostile.never_answers) as lender:
        session = await connect(pair, lender)
        with pytest.raises(DeadlineError, match=r"within 0\.05 s") as caught:
            await CALLS[call](session, deadline=0.05)
        assert caught.value.host == "small"
        assert not session.closed.done()
        await session.close()


async def test_an_answer_that_comes_too_late_is_ignored(pair: Pair) -> None:
    async def late(wire: hostile.Wire) -> None:
        await wire.line()
        wire.send(hostile.WELCOME)
        first, second = await wire.request(), await wire.request()
        wire.send(hostile.honest_answer(first))
        wire.send(hostile.honest_answer(second))
        await wire.until_closed()

    async with HostileLender(pair.lender, late) as lender:
        session = await connect(pair, lender)
        with pytest.raises(DeadlineError):
            await session.offer(deadline=0.02)
        assert await session.ping() > 0
        await session.close()


@pytest.mark.parametrize("name", hostile.PROTOCOL_BREAKERS)
async def test_a_lender_that_breaks_the_protocol(pair: Pair, name: str) -> None:
    async with HostileLender(pair.lender, hostile.PROTOCOL_BREAKERS[name]) as lender:
        session = await connect(pair, lender)
        with pytest.raises(UnreachableError, match="the lender broke the protocol") as caught:
            await session.ping()
        assert caught.value.host == "small"
        assert len(caught.value.message) < 1200
        assert len(session._exchange.channel._lines._rest) <= m.MAX_LINE  # type: ignore[union-attr]
        with pytest.raises(UnreachableError):
            await session.offer()
        await session.close()


async def test_a_lender_that_ends_the_session_with_its_own_error(pair: Pair) -> None:
    async with HostileLender(pair.lender, hostile.refuses_to_go_on) as lender:
        session = await connect(pair, lender)
        with pytest.raises(ConflictError, match="shutting down"):
            await session.ping()
        await session.close()


@pytest.mark.parametrize(
    ("call", "name"),
    [("request", name) for name in hostile.LYING_GRANTS]
    # A resumed lease may have any size and kind: whoever resumes it compares it with the journal.
    + [("resume", name) for name in hostile.LYING_GRANTS if name not in ("less-memory", "more-memory")],
)
async def test_a_grant_that_is_not_what_was_asked_for(pair: Pair, call: str, name: str) -> None:
    async with HostileLender(pair.lender, hostile.LYING_GRANTS[name]) as lender:
        session = await connect(pair, lender)
        with pytest.raises(UnreachableError, match="the lender broke the protocol"):
            await CALLS[call](session)
        assert isinstance(await ending(session), UnreachableError)
        await session.close()


@pytest.mark.parametrize("call", ["report", "renew", "resize", "resume", "release"])
async def test_an_answer_about_another_lease(pair: Pair, call: str) -> None:
    def about_another(request: dict[str, Any]) -> bytes:
        return hostile.encode(hostile.honest_answer(request)).replace(b'"id":"l1"', b'"id":"l2"')

    async with HostileLender(pair.lender, hostile._answers(about_another)) as lender:
        session = await connect(pair, lender)
        with pytest.raises(UnreachableError, match="the lender broke the protocol"):
            await CALLS[call](session)
        await session.close()


async def test_sessions_that_failed_leave_no_socket(pair: Pair) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with HostileLender(pair.lender, hostile.cuts_instead_of_welcome) as lender:
        for _ in range(5):
            with pytest.raises(UnreachableError):
                await connect(pair, lender)
    async with HostileLender(pair.lender, hostile.says_nothing) as lender:
        for _ in range(5):
            with pytest.raises(DeadlineError):
                await connect(pair, lender, deadline=0.1)
    async with asyncio.timeout(20):  # the lender's ends are closed when their tasks have run
        while len(list(Path("/proc/self/fd").iterdir())) > before:
            gc.collect()
            await asyncio.sleep(0.02)


# Borrowers with a paired key


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x00\xff\n", "not a message of protocol 1"),
        (b'{"type":"Ping","id":1}\n', "first message must be Hello"),
        (b'{"type":"Nothing"}\n', "not a message of protocol 1"),
        (b"[" * 60_000 + b"\n", "not a message of protocol 1"),
        (b"x" * (m.MAX_LINE + 1), "longer than 65536 bytes"),
        (b'{"type":"Hello","protocol":1,"software":"","vm":"../x","boot_id":""}\n', "ill-formed VM name"),
        (b'{"type":"Hello","protocol":7,"novelty":true}\n', "borrower speaks protocol 7"),
    ],
)
async def test_a_session_that_begins_wrong(pair: Pair, data: bytes, why: str) -> None:
    lender = SmallLender()
    async with (
        pair.serving(lender) as server,
        RawBorrower.connected(pair.borrower, server.port, hello=False) as borrower,
    ):
        borrower.send(data)
        assert why in (await borrower.refusal())["message"]
    assert lender.peers == []


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\n",
        b'{"type":"Pong","id":1}\n',
        b'{"type":"Hello","protocol":1,"software":"","vm":"vm1","boot_id":""}\n',
        b'{"type":"Ping","id":1,"more":2}\n',
        b'{"type":"Ping","id":0}\n',
        b"\n",
        b"y" * (m.MAX_LINE + 1),
    ],
)
async def test_a_borrower_that_breaks_the_protocol(pair: Pair, data: bytes) -> None:
    lender = SmallLender()
    async with (
        pair.serving(lender) as server,
        RawBorrower.connected(pair.borrower, server.port) as borrower,
    ):
        borrower.send(data)
        assert (await borrower.refusal())["kind"] == "RefusedError"
        assert [peer.closed for peer in lender.peers] == [True]
    assert lender.seen == []


async def test_a_message_out_of_range_is_refused_alone(pair: Pair) -> None:
    lender = SmallLender()
    async with (
        pair.serving(lender) as server,
        RawBorrower.connected(pair.borrower, server.port) as borrower,
    ):
        for number, (name, value) in enumerate(
            [("amount", -1), ("amount", 1 << 60), ("committed", 5), ("ttl", -1), ("grace", 1e12), ("token", "a b")], 1
        ):
            request = {"type": "Request", "id": number, "token": "t", "kind": "memory", "amount": 4, "committed": 4}
            borrower.send(json.dumps(request | {"ttl": 1, "grace": 1} | {name: value}).encode() + b"\n")
            answer = await borrower.request()
            assert (answer["type"], answer["id"]) == ("Refuse", number)
        borrower.send(m.Ping(id=99))
        assert await borrower.request() == {"type": "Pong", "id": 99}
    assert lender.seen == []


async def test_a_session_that_does_not_begin(pair: Pair) -> None:
    async with pair.serving(SmallLender(), limits=Limits(hello_seconds=1.5)) as server:
        async with RawBorrower.connected(pair.borrower, server.port, hello=False) as borrower:
            borrower.send(b'{"type":"Hel')
            assert (await borrower.refusal())["kind"] == "DeadlineError"
        async with raw_client(pair.borrower, server.port) as connection:
            await asyncio.wait_for(connection.wait_closed(), 20)


async def test_a_borrower_that_does_not_read_is_cut_off(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "SEND_LIMIT", 64 * 1024)
    most = 0
    original = channel.LineChannel._backlog

    def backlog(self: channel.LineChannel[Any]) -> int:
        nonlocal most
        waiting = original(self)
        most = max(most, waiting)
        return waiting

    monkeypatch.setattr(channel.LineChannel, "_backlog", backlog)
    over = asyncio.Event()

    async def talks(peer: Peer) -> None:
        while not peer.closed:
            peer.send(m.Notice(text="x" * 8000))
            await asyncio.sleep(0)
        over.set()

    async with (
        pair.serving(talks) as server,
        RawBorrower.connected(pair.borrower, server.port) as borrower,
    ):
        borrower._reader.channel.pause_reading()
        await asyncio.wait_for(over.wait(), 10)
        assert 64 * 1024 < most < 128 * 1024


async def test_a_borrower_that_stops_reading_its_socket_is_cut_off(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of the channel is wide open, so that only the TCP connection holds the lender back."""
    monkeypatch.setattr(channel, "SEND_LIMIT", 64 * 1024)
    over = asyncio.Event()

    async def until_the_end(peer: Peer) -> None:
        while not peer.closed:
            peer.send(m.Notice(text="x" * 8000))
            await asyncio.sleep(0)
        over.set()

    async with pair.serving(until_the_end) as server, raw_client(pair.borrower, server.port) as connection:
        stdin, stdout, _ = await connection.open_session(subsystem="vmcoal", encoding=None, window=1 << 30)
        borrower = RawBorrower(stdout, stdin, connection)
        borrower.send(RawBorrower.HELLO)
        connection._transport.pause_reading()
        await asyncio.wait_for(over.wait(), 10)


async def test_a_flood_of_requests_waits_for_the_handler(pair: Pair) -> None:
    inboxes: list[int] = []

    async def slow(peer: Peer) -> None:
        while not peer._channel._paused:
            await asyncio.sleep(0)
        inboxes.append(len(peer._channel._inbox))
        async for message in peer:
            peer.refuse(message.id, RefusedError("no"))  # type: ignore[union-attr]

    count = 5_000
    flood = b"".join(hostile.encode(m.GetOffer(id=number)) for number in range(1, count + 1))
    async with (
        pair.serving(slow) as server,
        RawBorrower.connected(pair.borrower, server.port) as borrower,
    ):
        borrower.send(flood)
        answers = [(await borrower.request())["id"] for _ in range(count)]
    assert answers == list(range(1, count + 1))
    assert inboxes[0] < channel.INBOX_LIMIT + 32 * 1024 // len('{"type":"GetOffer","id":1}')


# Anything but the subsystem


@pytest.mark.parametrize(
    "attempt",
    [
        lambda connection: connection.create_process("id"),
        lambda connection: connection.create_process(),
        lambda connection: connection.create_process(term_type="xterm"),
        lambda connection: connection.start_sftp_client(),
        lambda connection: connection.open_session(subsystem="vmcoal-pair"),
        lambda connection: connection.open_connection("127.0.0.1", 22),
        lambda connection: connection.open_unix_connection("/run/x.sock"),
        lambda connection: connection.start_server(lambda *_: None, "127.0.0.1", 0),
        lambda connection: connection.start_unix_server(lambda *_: None, "/tmp/vmcoal-x.sock"),
        lambda connection: connection.open_tun(),
    ],
    ids=["exec", "shell", "pty", "sftp", "pairing", "tcp", "unix", "tcp-listener", "unix-listener", "tun"],
)
async def test_a_paired_key_gets_no_more_than_the_subsystem(pair: Pair, attempt: Callable[[Any], Any]) -> None:
    async with pair.serving(SmallLender()) as server, raw_client(pair.borrower, server.port) as connection:
        with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ChannelListenError, asyncssh.ConnectionLost)):
            await attempt(connection)


async def test_one_channel_for_each_login_and_no_agent(pair: Pair) -> None:
    async with pair.serving(SmallLender()) as server, raw_client(pair.borrower, server.port) as connection:
        first = await connection.open_session(subsystem="vmcoal", encoding=None)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_session(subsystem="vmcoal", encoding=None)
        first[0].close()


@pytest.mark.parametrize("user", ["root", "", "vmcoal-pair", "x" * 500])
async def test_only_one_user_name_logs_in(pair: Pair, user: str) -> None:
    async with pair.serving(SmallLender()) as server:
        with pytest.raises((asyncssh.PermissionDenied, asyncssh.DisconnectError)):
            async with raw_client(pair.borrower, server.port, user=user):
                pass


async def test_a_password_is_not_even_asked_for(pair: Pair) -> None:
    asked = []

    class Client(asyncssh.SSHClient):
        def password_auth_requested(self) -> str:
            asked.append("password")
            return "secret"

        def kbdint_auth_requested(self) -> str:
            asked.append("kbdint")
            return ""

    async with pair.serving(SmallLender()) as server:
        with pytest.raises(asyncssh.PermissionDenied):
            await asyncssh.connect(
                "127.0.0.1",
                server.port,
                client_factory=Client,
                username="vmcoal",
                known_hosts=None,
                client_keys=None,
                config=None,
                agent_path=None,
            )
    assert asked == []


async def test_a_key_is_guessed_only_a_few_times_for_each_connection(pair: Pair, tmp_path: Path) -> None:
    keys = [load_identity(tmp_path / f"k{number}").key for number in range(6)]
    async with pair.serving(SmallLender()) as server:
        with pytest.raises((asyncssh.PermissionDenied, asyncssh.ConnectionLost, ConnectionError)):
            await asyncssh.connect(
                "127.0.0.1",
                server.port,
                username="vmcoal",
                known_hosts=None,
                config=None,
                agent_path=None,
                client_keys=[*keys, pair.borrower.key],
            )


# Strangers before login


async def test_one_borrower_does_not_take_all_sessions(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir(mode=0o700)
    other = load_identity(tmp_path / "other" / "identity")
    pair.known[other.public] = BorrowerRecord(
        name="ann", public_key=other.public, grants=tuple(ResourceKind), paired_at=0.0
    )
    async with pair.serving(SmallLender(), limits=Limits(sessions_by_borrower=2)) as server:
        record = pair.record(server.port)
        mine = [await LenderSession.connect(record, pair.borrower, "vm1") for _ in range(2)]
        with pytest.raises(UnreachableError):
            await LenderSession.connect(record, pair.borrower, "vm1")
        theirs = await LenderSession.connect(record, other, "vm1")
        assert await theirs.ping() > 0
        for session in [*mine, theirs]:
            assert await session.ping() > 0
            await session.close()


async def test_a_borrowers_last_words_are_one_line_of_the_log(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async with (
        pair.serving(SmallLender()) as server,
        RawBorrower.connected(pair.borrower, server.port) as borrower,
    ):
        borrower.send(b'{"type":"Refuse","id":0,"error":{"kind":"X","message":"bye\\n2026 INFO lent \\u001b[2J"}}\n')
        await asyncio.wait_for(borrower.until_closed(), 10)
    (said,) = [record.getMessage() for record in caplog.records if "ended its session" in record.getMessage()]
    assert said.endswith("bye 2026 INFO lent ?[2J")


async def test_a_slow_stranger_is_cut_off_and_others_get_in(pair: Pair) -> None:
    async with pair.serving(SmallLender(), limits=Limits(login_seconds=4.0, waiting_by_source=3)) as server:
        slow = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        for _, writer in slow:
            writer.write(b"SSH-2.0-slo")
        session = await LenderSession.connect(pair.record(server.port), pair.borrower, "vm1")
        for reader, writer in slow:
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(reader.read(), 30)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        assert await session.ping() > 0
        await session.close()


async def test_too_many_that_do_not_log_in_are_not_heard(pair: Pair) -> None:
    async with pair.serving(SmallLender(), limits=Limits(waiting_by_source=2, failures=100)) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        for reader, _ in held:
            assert await reader.readline() == b"SSH-2.0-vmcoal\r\n"
        with pytest.raises(UnreachableError, match="before login was done"):
            await LenderSession.connect(pair.record(server.port), pair.borrower, "vm1")
        for _, writer in held:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        deadline = asyncio.get_running_loop().time() + 20
        while True:
            try:
                session = await LenderSession.connect(pair.record(server.port), pair.borrower, "vm1")
            except UnreachableError:
                assert asyncio.get_running_loop().time() < deadline
            else:
                await session.close()
                return


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"SSH-1.0-old\r\n",
        b"SSH-2.0-\xff\xfe\r\n",
        b"x" * 100_000,
        b"SSH-2.0-x\r\n" + b"\xff" * 64,
    ],
    ids=["http", "ssh-1", "not-ascii", "endless", "huge-packet"],
)
async def test_a_stranger_that_does_not_speak_ssh(pair: Pair, data: bytes) -> None:
    async with pair.serving(SmallLender()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await asyncio.wait_for(reader.read(), 30)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        session = await LenderSession.connect(pair.record(server.port), pair.borrower, "vm1")
        await session.close()


async def test_a_listener_that_is_no_lender(pair: Pair) -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    web = await asyncio.start_server(http, "127.0.0.1", 0)
    async with web:
        port = web.sockets[0].getsockname()[1]
        with pytest.raises(UnreachableError) as caught:
            await LenderSession.connect(pair.record(port), pair.borrower, "vm1", deadline=5)
    assert caught.value.host == "small"
