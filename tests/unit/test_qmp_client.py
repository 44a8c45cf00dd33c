from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from framework.fake_qemu import GREETING, Peer, qmp_server
from vmcoal_qmp import (
    Event,
    QmpClient,
    QmpCommandError,
    QmpDisconnectedError,
    QmpProtocolError,
    QmpTimeoutError,
    Transcript,
)

pytestmark = pytest.mark.unit


def event(name: str, **data: object) -> dict[str, object]:
    return {"event": name, "data": data, "timestamp": {"seconds": 7, "microseconds": 500000}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


async def test_negotiates_executes_and_closes(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.answer({"running": True})
        assert request is not None
        assert (request["execute"], request["arguments"]) == ("query-status", {"a": 1})
        await peer.until_gone()

    async with qmp_server(path, script):
        async with await QmpClient.connect(path) as client:
            assert client.version.triple == (7, 2, 0)
            assert await client.execute("query-status", {"a": 1}) == {"running": True}
        assert "this side" in (await client.disconnected).reason
        with pytest.raises(QmpDisconnectedError, match="query-status: the connection was closed on this side"):
            await client.execute("query-status")
        await client.close()


async def test_takes_over_a_connected_socket(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(1)

    async with qmp_server(path, script):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        async with await QmpClient.connect(sock) as client:
            assert await client.execute("x") == 1


async def test_a_refusal_carries_its_fields(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive()
        assert request is not None
        await peer.send({"error": {"class": "DeviceNotFound", "desc": "no such thing"}, "id": request["id"]})
        await peer.answer({})

    async with qmp_server(path, script), await QmpClient.connect(path) as client:
        with pytest.raises(QmpCommandError) as caught:
            await client.execute("device_del", {"id": "x"})
        error = caught.value
        assert (error.command, error.arguments) == ("device_del", {"id": "x"})
        assert (error.qmp_class, error.desc) == ("DeviceNotFound", "no such thing")
        assert str(error) == "device_del: no such thing"
        assert await client.execute("next") == {}


async def test_a_late_answer_is_dropped_and_the_connection_stays_in_step(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        slow = await peer.receive()
        assert slow is not None
        await release.wait()
        await peer.send({"return": "late", "id": slow["id"]})
        await peer.answer("prompt")
        await peer.until_gone()

    caplog.set_level(logging.INFO)
    async with qmp_server(path, script), await QmpClient.connect(path) as client:
        with pytest.raises(QmpTimeoutError) as caught:
            await client.execute("slow", deadline=0.02)
        assert (caught.value.command, caught.value.deadline) == ("slow", 0.02)
        assert str(caught.value) == "slow: no answer within 0.02 s"
        release.set()
        assert await client.execute("quick") == "prompt"
    assert caplog.records == []


async def test_a_qemu_that_never_answers_is_not_sent_commands_for_ever(path: Path) -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await release.wait()
        for _ in range(256):
            await peer.answer("late")
        await peer.send(event("DONE"))
        await peer.answer("prompt")

    async with qmp_server(path, script), await QmpClient.connect(path) as client, client.events("DONE") as stream:
        slow = [client.execute("slow", deadline=0.2) for _ in range(256)]
        given_up = await asyncio.gather(*slow, return_exceptions=True)
        assert {type(error) for error in given_up} == {QmpTimeoutError}
        with pytest.raises(QmpTimeoutError):
            await client.execute("slow", deadline=60)
        release.set()
        await stream.wait_for(deadline=5)
        assert await client.execute("quick") == "prompt"


async def test_cancellation_passes_through_and_costs_nothing(path: Path) -> None:
    got_it = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        slow = await peer.receive()
        got_it.set()
        await peer.answer("prompt")
        assert slow is not None
        await peer.send({"return": "late", "id": slow["id"]})
        await peer.answer("again")

    async with qmp_server(path, script), await QmpClient.connect(path) as client:
        task = asyncio.create_task(client.execute("slow"))
        await got_it.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.execute("quick") == "prompt"
        assert await client.execute("quick") == "again"


async def test_concurrent_commands_get_their_own_answers(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        requests = [await peer.receive() for _ in range(10)]
        for request in reversed(requests):
            assert request is not None
            await peer.send({"return": request["arguments"]["n"], "id": request["id"]})

    async with qmp_server(path, script), await QmpClient.connect(path) as client:
        answers = await asyncio.gather(*(client.execute("echo", {"n": n}) for n in range(10)))
        assert answers == list(range(10))


async def test_losing_the_connection_fails_every_waiter(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.receive()
        await peer.send(event("STOP"))

    async with qmp_server(path, script), await QmpClient.connect(path) as client, client.events() as stream:
        waiting = asyncio.create_task(stream.wait_for(lambda e: e.name == "NEVER", deadline=5))
        one, two = (asyncio.create_task(client.execute(name)) for name in ("one", "two"))
        for task, name in ((one, "one"), (two, "two")):
            with pytest.raises(QmpDisconnectedError) as caught:
                await task
            assert caught.value.command == name
        with pytest.raises(QmpDisconnectedError) as caught:
            await waiting
        assert caught.value.command is None
        assert (await client.disconnected).reason == "QEMU closed the connection"
        with pytest.raises(QmpDisconnectedError):
            await client.execute("three")
        async with client.events() as late:
            with pytest.raises(QmpDisconnectedError):
                await late.wait_for(deadline=5)


async def test_the_answer_to_quit_arrives_though_the_connection_ends_with_it(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer({})

    async with qmp_server(path, script), await QmpClient.connect(path) as client:
        assert await client.execute("quit") == {}
        await client.disconnected


async def test_cancelling_who_waits_for_the_end_leaves_it_to_others(path: Path) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await go.wait()

    async with qmp_server(path, script), await QmpClient.connect(path) as client:

        async def watch() -> str:
            return (await client.disconnected).reason

        first, second = asyncio.create_task(watch()), asyncio.create_task(watch())
        await asyncio.sleep(0)
        first.cancel()
        go.set()
        assert await second == "QEMU closed the connection"


async def test_closing_fails_the_command_under_way(path: Path) -> None:
    got_it = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        got_it.set()
        await peer.until_gone()

    async with qmp_server(path, script):
        client = await QmpClient.connect(path)
        task = asyncio.create_task(client.execute("slow"))
        await got_it.wait()
        await client.close()
        with pytest.raises(QmpDisconnectedError, match="this side"):
            await task


async def test_arguments_that_are_not_json_are_refused_before_anything_is_sent(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer("fine")

    async with qmp_server(path, script), await QmpClient.connect(path) as client:
        with pytest.raises(TypeError):
            await client.execute("x", {"path": Path("/")})
        for bad in (float("nan"), "\ud800"):
            with pytest.raises(ValueError):
                await client.execute("x", {"value": bad})
        assert await client.execute("x") == "fine"


# Hostile or broken peers, one violation each.


async def test_nothing_listens(path: Path) -> None:
    with pytest.raises(QmpDisconnectedError, match="No such file"):
        await QmpClient.connect(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(QmpDisconnectedError, match="Connection refused"):
        await QmpClient.connect(path)


async def test_nobody_greets(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.until_gone()

    async with qmp_server(path, script):
        with pytest.raises(QmpTimeoutError) as caught:
            await QmpClient.connect(path, deadline=0.05)
        assert caught.value.command == "connect"


async def test_connecting_can_be_cancelled(path: Path) -> None:
    there = asyncio.Event()

    async def script(peer: Peer) -> None:
        there.set()
        await peer.until_gone()

    async with qmp_server(path, script):
        task = asyncio.create_task(QmpClient.connect(path))
        await there.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_hang_up_instead_of_a_greeting(path: Path) -> None:
    async def script(peer: Peer) -> None:
        peer.hang_up()

    async with qmp_server(path, script):
        with pytest.raises(QmpDisconnectedError, match="before its greeting"):
            await QmpClient.connect(path)


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH\r\n", b'{"hello": 1}\n', b"[]\n", b"\xff\xfe\n"])
async def test_not_a_qmp_greeting(path: Path, greeting: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.send_raw(greeting)
        await peer.until_gone()

    async with qmp_server(path, script):
        with pytest.raises(QmpProtocolError):
            await QmpClient.connect(path)


async def test_negotiation_refused(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.send(GREETING)
        await peer.receive()
        await peer.send({"error": {"class": "GenericError", "desc": "no"}})
        await peer.until_gone()

    async with qmp_server(path, script):
        with pytest.raises(QmpProtocolError):
            await QmpClient.connect(path)


@pytest.mark.parametrize(
    "answer", [b"{}", b'"', b"[1]", b'{"error": {"class": "X", "desc": "cannot parse"}}', b"x" * (11 << 20)]
)
async def test_an_unroutable_answer_ends_the_connection(path: Path, answer: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        if answer == b"{}":
            peer.hang_up()
        else:
            await peer.send_raw(answer + b"\n")
            await peer.until_gone()

    async with qmp_server(path, script), await QmpClient.connect(path) as client:
        with pytest.raises(QmpDisconnectedError):
            await client.execute("x")


@pytest.mark.parametrize("answer", [{}, {"error": {}}, {"error": "text"}, {"error": {"class": 1, "desc": 2}}])
async def test_an_answer_that_is_none_is_a_protocol_error(path: Path, answer: dict[str, object]) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive()
        assert request is not None
        await peer.send({**answer, "id": request["id"]})
        await peer.answer("fine")

    async with qmp_server(path, script), await QmpClient.connect(path) as client:
        with pytest.raises(QmpProtocolError):
            await client.execute("x")
        assert await client.execute("y") == "fine"


async def test_answers_to_nobody_and_shapeless_events_are_ignored(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive()
        assert request is not None
        await peer.send({"return": 1, "id": "stranger"}, {"event": None}, {"event": "E", "timestamp": 3})
        await peer.send(event("GOOD"), {"return": "fine", "id": request["id"]})

    async with qmp_server(path, script), await QmpClient.connect(path) as client, client.events("GOOD") as stream:
        assert await client.execute("x") == "fine"
        assert (await stream.wait_for(deadline=5)).name == "GOOD"


# Events.


async def test_events_before_the_answer_are_not_missed(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive()
        assert request is not None
        await peer.send(event("DEVICE_DELETED", device="a"), event("STOP"), event("DEVICE_DELETED", device="b"))
        await peer.send({"return": {}, "id": request["id"]})
        await peer.until_gone()

    async with (
        qmp_server(path, script),
        await QmpClient.connect(path) as client,
        client.events("DEVICE_DELETED", match=lambda e: e.data["device"] == "b") as mine,
        client.events() as everything,
    ):
        await client.execute("device_del", {"id": "b"})
        assert await mine.wait_for(deadline=5) == Event("DEVICE_DELETED", {"device": "b"}, 7.5)
        assert [(await everything.wait_for(deadline=5)).name for _ in range(3)] == [
            "DEVICE_DELETED",
            "STOP",
            "DEVICE_DELETED",
        ]
        with pytest.raises(QmpTimeoutError, match="no DEVICE_DELETED within") as caught:
            await mine.wait_for(deadline=0.01)
        assert (caught.value.command, caught.value.events) == (None, ("DEVICE_DELETED",))


async def test_a_flood_drops_the_oldest_and_says_how_many(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive()
        assert request is not None
        await peer.send(*(event("FLOOD", n=n) for n in range(1500)), {"return": {}, "id": request["id"]})

    async with qmp_server(path, script), await QmpClient.connect(path) as client, client.events("FLOOD") as stream:
        await client.execute("x")
        assert stream.dropped == 1500 - 1024
        last = await stream.wait_for(lambda e: e.data["n"] == 1499, deadline=5)
        assert last.name == "FLOOD"


async def test_iteration_ends_with_the_connection(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer({})
        await peer.send(event("ONE"), event("TWO"))

    async with qmp_server(path, script), await QmpClient.connect(path) as client, client.events() as stream:
        await client.execute("go")
        names = aiter(stream)
        assert [(await anext(names)).name, (await anext(names)).name] == ["ONE", "TWO"]
        with pytest.raises(QmpDisconnectedError):
            await anext(names)


async def test_iteration_stops_when_this_side_closes(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.until_gone()

    async with qmp_server(path, script):
        client = await QmpClient.connect(path)
        async with client.events() as stream:
            await client.close()
            assert [item async for item in stream] == []
            with pytest.raises(QmpDisconnectedError, match="while waiting"):
                await stream.wait_for(deadline=5)


async def test_a_failing_match_fails_its_own_stream_only(path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive()
        assert request is not None
        await peer.send(event("E"), {"return": {}, "id": request["id"]})
        await peer.until_gone()

    async with (
        qmp_server(path, script),
        await QmpClient.connect(path) as client,
        client.events(match=lambda e: bool(e.data["absent"])) as bad,
        client.events() as good,
    ):
        await client.execute("x")
        with pytest.raises(KeyError):
            await bad.wait_for(deadline=5)
        assert (await good.wait_for(deadline=5)).name == "E"


async def test_the_transcript_holds_what_was_said(path: Path, tmp_path: Path) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer({"x": 1})

    transcript = Transcript(tmp_path / "qmp.log")
    async with qmp_server(path, script), await QmpClient.connect(path, transcript=transcript) as client:
        await client.execute("go")
        await client.disconnected
    transcript.close()
    lines = [json.loads(line) for line in (tmp_path / "qmp.log").read_text().splitlines()]
    assert [(line["dir"], sorted(set(line["msg"]) - {"id"})) for line in lines] == [
        ("in", ["QMP"]),
        ("out", ["arguments", "execute"]),
        ("in", ["return"]),
        ("out", ["execute"]),
        ("in", ["return"]),
    ]


def test_importing_the_package_loads_neither_asyncio_nor_the_library() -> None:
    code = "import sys, vmcoal_qmp; print(sorted({'asyncio', 'qemu', 'msgspec'} & set(sys.modules)))"
    path = [str(Path(__file__).parents[2] / "qmp")]
    out = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path}; {code}"], check=True, capture_output=True, text=True
    )
    assert out.stdout.strip() == "[]"
