"""The host's end of the agent channel against guests that lie, flood, stall or hang up."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.fake_sysfs import load_agent
from framework.hostile_guest import Peer, guest_on
from vmcoal.errors import DeadlineError, RefusedError, UnreachableError, VmcoalError
from vmcoal.guest import agent_link
from vmcoal.guest.agent_link import Budget, FrameReader, Link, guest_words, open_link
from vmcoal.guest.channel import VmcoalAgent, wait_agent
from vmcoal.layout import VmFolders
from vmcoal.model.guest import CommandInput, CpuName, GuestCommand, MemorySpan

pytestmark = pytest.mark.unit
AGENT = load_agent()


# -- frames, on both sides


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in at})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@pytest.mark.parametrize("reader", [FrameReader, AGENT.FrameReader], ids=["host", "agent"])
@given(data=st.binary(max_size=400), at=st.lists(st.integers(0, 400), max_size=20))
def test_frames_do_not_depend_on_how_the_bytes_arrive(reader: Any, data: bytes, at: list[int]) -> None:
    frames = reader(limit=16)
    got = [line for chunk in cut(data, at) for line in frames.feed(chunk)]
    want = [line.strip() for line in data.split(b"\n")[:-1] if len(line) <= 16 and line.strip()]
    assert got == want


@pytest.mark.parametrize("reader", [FrameReader, AGENT.FrameReader], ids=["host", "agent"])
def test_a_line_without_end_takes_no_memory(reader: Any) -> None:
    frames = reader(limit=100)
    for _ in range(100):
        assert list(frames.feed(b"x" * 1000)) == []
    assert list(frames.feed(b"\n{}\n")) == [b"{}"]


@given(data=st.binary(max_size=300), at=st.lists(st.integers(0, 300), max_size=5))
def test_dropped_bytes_are_counted(data: bytes, at: list[int]) -> None:
    frames = FrameReader(limit=8)
    for chunk in cut(data + b"\n", at):
        list(frames.feed(chunk))
    lines = (data + b"\n").split(b"\n")[:-1]
    empty = sum(not line.strip() for line in lines if len(line) <= 8)
    assert frames.dropped == 16 * empty + sum(len(line) for line in lines if len(line) > 8)


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\xff\xfe", b'{"a":' * 50_000, b"9" * 100_000, b"null", b"{", b"[]"])
def test_the_agent_takes_no_frame_that_is_none(line: bytes) -> None:
    assert AGENT.parse(line) is None


@given(st.text())
def test_words_of_the_guest_are_one_printable_line(text: str) -> None:
    words = guest_words(text, 50)
    assert words.isprintable()
    assert len(words) <= 50


def test_a_budget_refills() -> None:
    budget = Budget(size=100, rate=1 << 40)
    assert budget.spend(100)
    assert budget.spend(100)
    assert not Budget(size=100, rate=0).spend(101)


# -- hostile guests


@pytest.fixture
def folders(tmp_path: Path) -> VmFolders:
    return VmFolders(tmp_path / "r", tmp_path / "s")


async def connected(folders: VmFolders) -> VmcoalAgent:
    agent = await wait_agent(folders, deadline=10)
    assert isinstance(agent, VmcoalAgent)
    return agent


async def forever(peer: Peer) -> None:
    await asyncio.Event().wait()


async def test_no_socket(folders: VmFolders) -> None:
    with pytest.raises(UnreachableError, match="no agent answers"):
        await wait_agent(folders, deadline=0.2)
    with pytest.raises(UnreachableError, match="cannot connect"):
        await open_link(folders.agent_socket)


async def test_a_guest_that_never_says_hello(folders: VmFolders) -> None:
    async with guest_on(folders.agent_socket, forever):
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="no agent answers") as caught:
            await wait_agent(folders, deadline=0.4)
        assert time.monotonic() - started < 5
        assert "console" in (caught.value.hint or "")


async def test_hello_is_said_again_with_the_same_session_when_the_port_opens(folders: VmFolders) -> None:
    sessions: list[str] = []
    opened = asyncio.Event()

    async def guest(peer: Peer) -> None:
        for _ in range(3):
            sessions.append((await peer.frame())["hello"]["session"])
            opened.set()
        await peer.send({"hello": {"version": 1, "session": sessions[-1], "agent": "1"}})
        await forever(peer)

    async with guest_on(folders.agent_socket, guest):
        agent = await wait_agent(folders, deadline=20, vserport=opened)
        assert len(set(sessions)) == 1
        await agent.close()


async def test_what_comes_before_the_hello_is_dropped(folders: VmFolders) -> None:
    async def guest(peer: Peer) -> None:
        await peer.send(
            b'\x00\xff{"half":', b"\n", {"id": 1, "ok": {}}, {"hello": 3}, {"event": "x", "id": 1}, b"[1]\n"
        )
        await peer.send({"hello": {"version": 1, "session": "0123456789abcdef", "agent": "stale"}})
        await peer.send(b"z" * (300 << 10), b"\n")
        await peer.greet()
        request = await peer.request()
        await peer.send({"id": request["id"], "ok": {}})

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        assert agent.version == "6.6.6"
        await agent.ping()
        await agent.close()


async def test_no_common_version(folders: VmFolders) -> None:
    async def guest(peer: Peer) -> None:
        session = (await peer.frame())["hello"]["session"]
        await peer.send({"hello": {"error": "version", "versions": [7, 8], "session": session}})
        await forever(peer)

    async with guest_on(folders.agent_socket, guest):
        with pytest.raises(RefusedError, match=r"versions \[7, 8\]"):
            await wait_agent(folders, deadline=10)


async def test_a_guest_that_hangs_up_fails_what_waits(folders: VmFolders) -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        await peer.request()
        await peer.send(b'{"id": 1, "ok')

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        with pytest.raises(UnreachableError, match="hung up"):
            await agent.topology()
        assert isinstance(await agent.wait_lost(), UnreachableError)
        with pytest.raises(UnreachableError):
            await agent.ping()
        await agent.close()


async def floods(peer: Peer, data: bytes) -> None:
    sent = 0
    try:
        while sent < 1 << 30:
            await peer.send(data)
            sent += len(data)
    finally:
        assert sent < 64 << 20


@pytest.mark.parametrize(
    "data",
    [
        b"x" * 65536,
        b"x\n" * 32768,
        b"\n" * 65536,
        b'{"id":1,"ok":{}}\n' * 1000,
        b'{"event":"step","id":1,"done":0,"total":1}\n' * 1000,
        b'{"event":"output","id":1,"stream":1,"data":"AAAA"}\n' * 1000,
        b'{"hello":{}}\n' * 1000,
    ],
    ids=["no newline", "no JSON", "empty", "answers", "steps", "output", "hellos"],
)
async def test_a_flood_is_hung_up_on(folders: VmFolders, data: bytes) -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        await peer.request()
        await floods(peer, data)

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        with contextlib.suppress(VmcoalError):
            await agent.info(deadline=20)
        lost = await asyncio.wait_for(agent.wait_lost(), 30)
        assert "floods" in lost.message
        await agent.close()


async def test_a_flood_of_output_is_held_to_the_window(folders: VmFolders) -> None:
    chunk = base64.b64encode(bytes(16384)).decode()

    async def guest(peer: Peer) -> None:
        await peer.greet()
        await peer.request()
        await floods(peer, b'{"event":"output","id":1,"stream":1,"data":"' + chunk.encode() + b'"}\n')

    taken = 0

    async def on_output(stream: int, data: bytes) -> None:
        nonlocal taken
        taken += len(data)
        await asyncio.Event().wait()

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        command = asyncio.create_task(agent.exec(GuestCommand(argv=("yes",)), on_output=on_output))
        assert "floods" in (await asyncio.wait_for(agent.wait_lost(), 30)).message
        command.cancel()
        await asyncio.gather(command, return_exceptions=True)
        assert taken <= 16384
        await agent.close()


async def test_a_flood_of_beginnings_is_hung_up_on(folders: VmFolders) -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        await peer.request()
        await floods(peer, b'{"event":"started","id":1}\n' * 1000)

    async def on_output(stream: int, data: bytes) -> None:
        pass

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        with pytest.raises(UnreachableError, match="floods"):
            await agent.exec(GuestCommand(argv=("yes",)), on_output=on_output, deadline=60)
        await agent.close()


@pytest.mark.parametrize("step", [b'"done":%s,"total":1' % (b"9" * 400), b'"done":-1,"total":1', b'"done":1'])
async def test_progress_that_makes_no_sense_is_dropped(folders: VmFolders, step: bytes) -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        rid = (await peer.request())["id"]
        await peer.send(b'{"event":"step","id":%d,%s}\n' % (rid, step), {"id": rid, "ok": {"items": []}})
        await forever(peer)

    told: list[float] = []
    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        await agent.memory_set(1, True, progress=lambda done, total, note: told.append(done / max(1, total)))
        await agent.close()
    assert told == []


@pytest.mark.parametrize("end", [{"code": 1 << 40}, {"code": -1}, {"code": 0, "signal": -200}, {}])
async def test_an_end_that_makes_no_sense(folders: VmFolders, end: dict[str, Any]) -> None:
    async def on_output(stream: int, data: bytes) -> None:
        pass

    async def guest(peer: Peer) -> None:
        await peer.greet()
        await peer.send({"id": (await peer.request())["id"], "ok": end})
        await forever(peer)

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        with pytest.raises(RefusedError, match="makes no sense"):
            await agent.exec(GuestCommand(argv=("yes",)), on_output=on_output, deadline=60)
        await agent.close()


async def test_wrong_ids_are_nobodys_answer(folders: VmFolders) -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        rid = (await peer.request())["id"]
        for wrong in (rid + 1, -1, "1", None, True, [rid], {"a": 1}, 1 << 70, float(rid) + 0.5):
            await peer.send({"id": wrong, "ok": {"x": 1}})
        await peer.send({"id": rid, "ok": 5}, {"id": rid, "error": "no"}, {"id": rid})
        await forever(peer)

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        with pytest.raises(DeadlineError, match="did not answer to info"):
            await agent.info(deadline=0.5)
        await agent.close()


async def test_a_late_answer_is_not_the_next_ones(folders: VmFolders) -> None:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        first = (await peer.request())["id"]
        assert (await peer.request())["call"] == "cancel"
        second = await peer.request()
        await peer.send({"id": first, "ok": {"value": "old"}}, {"id": second["id"], "ok": {"value": "new"}})

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        with pytest.raises(DeadlineError):
            await agent.sysctl("vm.swappiness", deadline=0.2)
        assert await agent.sysctl("vm.swappiness") == "new"
        await agent.close()


async def answered(folders: VmFolders, answer: dict[str, Any], call: str, *args: Any) -> Any:
    async def guest(peer: Peer) -> None:
        await peer.greet()
        request = await peer.request()
        await peer.send({"id": request["id"], **answer})
        await forever(peer)

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        try:
            return await getattr(agent, call)(*args)
        finally:
            await agent.close()


@pytest.mark.parametrize(
    ("call", "args", "answer"),
    [
        ("info", (), {"release": 5}),
        ("info", (), {}),
        ("topology", (), {"block_size": -1, "cpus": [], "nodes": [], "blocks": []}),
        ("topology", (), {"block_size": 1, "cpus": [[1, True]], "nodes": [], "blocks": []}),
        ("topology", (), {"block_size": 1, "cpus": [], "nodes": [], "blocks": [[0, 1 << 30, "online", 0, "", True]]}),
        ("room", (1,), {"fits": "yes", "needed": 1, "available": 1}),
        ("room", (1,), {"fits": True, "needed": -5, "available": 1}),
        ("pressure", (), {"load": [1]}),
        ("pressure", (), {"load": [1, 1, 1], "memory_available": 1 << 63}),
        ("pressure", (), {"load": [1, 1, 1], "memory_total": -1}),
        ("cpu_set", ([CpuName(number=1)], True), {"items": 7}),
        ("cpu_set", ([CpuName(number=1)], True), {"items": [7]}),
        ("memory_set", (1, True), {"items": [[1]]}),
        ("memory_set", (MemorySpan(0, 1), True), {"items": [{"number": "x"}]}),
        ("migrate", (1, [0], [1]), {"left": "all"}),
    ],
)
async def test_answers_that_make_no_sense(folders: VmFolders, call: str, args: Any, answer: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match=r"makes no sense|claims more than"):
        await answered(folders, {"ok": answer}, call, *args)


async def test_the_guests_words_cannot_drive_the_terminal(folders: VmFolders) -> None:
    error = {"error": {"code": "EB\x1b[2JUSY", "message": "no\x1b]0;owned\x07\n\r way" + "y" * 5000, "items": "x"}}
    with pytest.raises(RefusedError) as caught:
        await answered(folders, error, "room", 1)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    assert str(caught.value.details["code"]).isprintable()


async def test_errors_of_the_agent(folders: VmFolders) -> None:
    with pytest.raises(RefusedError, match="does not know") as caught:
        await answered(folders, {"error": {"code": "unknown_call", "message": "does not know it"}}, "room", 1)
    assert "install the agent" in (caught.value.hint or "")
    with pytest.raises(DeadlineError, match="did not finish"):
        await answered(folders, {"error": {"code": "ETIMEDOUT", "message": "x"}}, "room", 1)
    with pytest.raises(UnreachableError, match="restarted"):
        await answered(folders, {"error": {"code": "no_session", "message": "x"}}, "room", 1)
    assert RefusedError.from_wire(caught.value.to_wire()).exit_code == 6


async def test_a_guest_that_does_not_read(folders: VmFolders) -> None:
    async def guest(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await forever(peer)

    async with guest_on(folders.agent_socket, guest):
        link = await open_link(folders.agent_socket)
        with pytest.raises(UnreachableError, match="stopped reading"):
            for _ in range(100):
                link.begin("info", {"x": "y" * 100_000})
        await link.close()


async def test_cancelling_a_call_tells_the_agent(folders: VmFolders) -> None:
    calls: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def guest(peer: Peer) -> None:
        await peer.greet()
        while True:
            calls.put_nowait(await peer.request())

    async with guest_on(folders.agent_socket, guest):
        agent = await connected(folders)
        task = asyncio.create_task(agent.memory_set(1, False, deadline=60))
        request = await calls.get()
        assert request["args"] == {"node": 1, "online": False, "deadline": 58.0}
        task.cancel()
        cancel = await calls.get()
        assert (cancel["call"], cancel["args"]) == ("cancel", {"id": request["id"]})
        await asyncio.gather(task, return_exceptions=True)
        queue: asyncio.Queue[CommandInput] = asyncio.Queue()

        async def on_output(stream: int, data: bytes) -> None:
            pass

        task = asyncio.create_task(agent.exec(GuestCommand(argv=("cat",)), on_output=on_output, stdin=queue))
        request = await calls.get()
        queue.put_nowait(CommandInput(data=b"x"))
        assert (await calls.get())["call"] == "exec_input"
        task.cancel()
        assert (await calls.get())["args"] == {"id": request["id"]}
        await asyncio.gather(task, return_exceptions=True)
        await agent.close()


async def test_a_link_can_be_closed_at_any_moment(folders: VmFolders) -> None:
    async with guest_on(folders.agent_socket, forever):
        link = await open_link(folders.agent_socket)
        hello = asyncio.create_task(link.hello(wait=30))
        _, future = link.begin("info", {})
        await link.close()
        with pytest.raises(UnreachableError):
            await hello
        with pytest.raises(UnreachableError):
            await future
        await link.close()
        link.notify("exec_ack", {})
        assert isinstance(link, Link)


def test_the_two_sides_agree() -> None:
    assert AGENT.PROTOCOL == agent_link.PROTOCOL
    assert AGENT.MAX_FRAME == agent_link.MAX_FRAME
