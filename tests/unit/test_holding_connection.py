"""The client's end of the holder protocol, against a peer that does as it likes."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vmcoal.errors import DeadlineError, NotFoundError, RefusedError, UnreachableError
from vmcoal.holding.client import Holder
from vmcoal.holding.connection import Connection
from vmcoal.holding.wire import Packet

pytestmark = pytest.mark.unit


class Peer:
    """A connection whose other end the test holds."""

    def __init__(self) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.socket.setblocking(False)
        self.events: list[Packet] = []
        self.losses: list[UnreachableError] = []
        self.connection = Connection(ours, self.events.append, self.losses.append)

    def answer(self, *fields: str, fds: tuple[int, ...] = ()) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg(["".join(f"{field}\0" for field in fields).encode()], control)

    async def asked(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, 1 << 16)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    yield peer
    peer.connection.close()
    peer.socket.close()


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_answers_come_in_order_with_events_between(peer: Peer) -> None:
    first = asyncio.ensure_future(peer.connection.request(b"one\0"))
    second = asyncio.ensure_future(peer.connection.request(b"two\0"))
    assert (await peer.asked(), await peer.asked()) == (b"one\0", b"two\0")
    peer.answer("event", "type=exit")
    peer.answer("ok", "n=1")
    peer.answer("event", "type=exit")
    peer.answer("ok", "n=2")
    assert ((await first).get("n"), (await second).get("n")) == ("1", "2")
    assert len(peer.events) == 2


async def test_a_cancelled_request_leaves_the_others_their_answers(peer: Peer) -> None:
    reading, writing = os.pipe()
    before = open_fds()
    gone = asyncio.ensure_future(peer.connection.request(b"one\0"))
    stays = asyncio.ensure_future(peer.connection.request(b"two\0"))
    assert (await peer.asked(), await peer.asked()) == (b"one\0", b"two\0")
    gone.cancel()
    peer.answer("ok", "n=1", fds=(reading, writing))
    peer.answer("ok", "n=2")
    assert (await stays).get("n") == "2"
    assert gone.cancelled()
    assert open_fds() == before, "descriptors nobody waits for are closed"
    os.close(reading)
    os.close(writing)


async def test_an_answer_in_the_moment_of_cancellation_is_closed(peer: Peer) -> None:
    before = open_fds()
    request = asyncio.ensure_future(peer.connection.request(b"one\0"))
    await peer.asked()
    peer.answer("ok", fds=(0,))
    peer.connection._readable()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert open_fds() == before


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"ok", "the holder sent a packet that does not end in NUL"),
        (b"ok\0nonsense\0", "the holder sent 'nonsense' where a key=value belongs"),
        (b"ok\0", "the holder answered what was not asked"),
        (b"event\0nonsense\0", "the holder sent 'nonsense' where a key=value belongs"),
        (b"", "the holder ended or hung up"),
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_left(peer: Peer, packet: bytes, message: str) -> None:
    before = open_fds()
    control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))] if packet else []
    peer.socket.sendmsg([packet], control)
    peer.connection._readable()
    assert [loss.message for loss in peer.losses] == [message]
    with pytest.raises(UnreachableError, match=message[:20]):
        await peer.connection.request(b"one\0")
    assert open_fds() == before - 1, "its own socket is closed, and what came along"


async def test_a_request_waits_for_room_and_fails_with_the_connection(peer: Peer) -> None:
    packet = b"x" * 60_000 + b"\0"
    requests = [asyncio.ensure_future(peer.connection.request(packet)) for _ in range(20)]
    received = 0
    while received < 10:
        assert len(await peer.asked()) == len(packet)
        peer.answer("ok", f"n={received}")
        received += 1
    assert [(await request).get("n") for request in requests[:10]] == [str(n) for n in range(10)]
    peer.socket.close()
    for request in requests[10:]:
        with pytest.raises(UnreachableError):
            await request
    assert len(peer.losses) == 1


async def test_closing_is_no_loss_but_ends_requests(peer: Peer) -> None:
    request = asyncio.ensure_future(peer.connection.request(b"one\0"))
    await peer.asked()
    peer.connection.close()
    peer.connection.close()
    with pytest.raises(UnreachableError, match="was closed"):
        await request
    assert peer.losses == []


@pytest.fixture
async def listener(surroundings: Path) -> AsyncIterator[tuple[socket.socket, Path]]:
    path = surroundings / "sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.setblocking(False)
        yield listener, path


async def connect_to(listener: socket.socket, path: Path, *fields: str) -> Holder:
    loop = asyncio.get_running_loop()
    connecting = asyncio.ensure_future(Holder.connect(path, deadline=5))
    accepted, _ = await loop.sock_accept(listener)
    with accepted:
        await loop.sock_recv(accepted, 1 << 16)
        await loop.sock_sendall(accepted, "".join(f"{field}\0" for field in fields).encode())
        return await connecting


async def test_nobody_at_the_socket(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="No such file or directory"):
        await Holder.connect(tmp_path / "none", deadline=1)


async def test_a_holder_that_does_not_answer(listener: tuple[socket.socket, Path]) -> None:
    with pytest.raises(DeadlineError, match=r"did not answer within 0\.05 s"):
        await Holder.connect(listener[1], deadline=0.05)


async def test_a_full_backlog_is_no_holder(surroundings: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as full, socket.socket(full.family, full.type) as first:
        full.bind(str(surroundings / "sock"))
        full.listen(0)
        first.connect(str(surroundings / "sock"))
        with pytest.raises(UnreachableError, match="Resource temporarily unavailable"):
            await Holder.connect(surroundings / "sock", deadline=1)


async def test_a_holder_of_another_version(listener: tuple[socket.socket, Path]) -> None:
    with pytest.raises(RefusedError, match="only version 2"):
        await connect_to(*listener, "error", "errno=EPROTONOSUPPORT", "message=only version 2 is spoken here")


async def test_an_answer_of_another_kind(listener: tuple[socket.socket, Path]) -> None:
    with pytest.raises(UnreachableError, match="answered 'perhaps'"):
        await connect_to(*listener, "perhaps")
    with pytest.raises(UnreachableError, match="has no name"):
        await connect_to(*listener, "ok", "version=1")


async def test_a_lost_holder_tells_everyone(listener: tuple[socket.socket, Path]) -> None:
    holder = await connect_to(*listener, "ok", "name=x")
    assert (holder.name, holder.pid) == ("x", os.getpid())
    await asyncio.wait_for(holder.wait_lost(), 5)
    with pytest.raises(UnreachableError):
        await holder.watch(lambda event: None)
    with pytest.raises((UnreachableError, NotFoundError)):
        await holder.wait("a", 1)
    await holder.shutdown(1)
    await holder.close()
