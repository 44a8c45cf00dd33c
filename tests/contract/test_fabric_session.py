"""Server and session over loopback: what both ends do when both behave, and who may come in at all."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from framework.delay_link import delay_link
from framework.fabric_lender import Pair, SmallLender
from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    InternalError,
    PrerequisiteError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from vmcoal.fabric import messages as m
from vmcoal.fabric.exchange import EVENTS_LIMIT
from vmcoal.fabric.identity import load_identity
from vmcoal.fabric.probe import connect_rtt
from vmcoal.fabric.server import FabricServer, Limits, Peer
from vmcoal.fabric.session import LenderSession
from vmcoal.model.lease import LeaseState, LeaseTerms, ResourceKind

pytestmark = [pytest.mark.contract, pytest.mark.timeout(30)]

MIB = 1 << 20


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


async def connect(pair: Pair, server: FabricServer, vm: str = "vm1") -> LenderSession:
    return await LenderSession.connect(pair.record(server.port), pair.borrower, vm, deadline=5)


async def test_a_lease_from_request_to_release(pair: Pair) -> None:
    lender = SmallLender()
    async with pair.serving(lender) as server:
        session = await connect(pair, server)
        assert session.same_host
        assert session.peer_address == "127.0.0.1"
        assert session.grants == tuple(ResourceKind)
        offer = await session.offer()
        assert (offer.lender, offer.same_host, offer.memory_free) == ("small", True, 1 << 30)
        granted = await session.request(
            ResourceKind.MEMORY, 64 * MIB, committed=2 * MIB, terms=LeaseTerms(30, 1, 15), token="t1"
        )
        lease = granted.lease
        assert (lease.amount, lease.committed, lease.terms.ttl, lease.terms.grace) == (64 * MIB, 2 * MIB, 30, 15)
        assert granted.memory is not None
        assert session.data_address(granted.memory) == "127.0.0.1"
        assert (await session.report(lease.id, lease.epoch, "attach")).state is LeaseState.ATTACHING
        assert (await session.report(lease.id, lease.epoch, "plugged")).state is LeaseState.ACTIVE
        assert (await session.resize(lease.id, lease.epoch, 4 * MIB)).committed == 4 * MIB
        assert [x.id for x in await session.renew([(lease.id, lease.epoch), ("gone", 1)])] == [lease.id]
        assert (await session.resume(lease.id, lease.epoch)).lease.id == lease.id
        assert (await session.release(lease.id, lease.epoch)).state is LeaseState.RELEASED
        again = await session.request(ResourceKind.MEMORY, 64 * MIB, token="t1")
        assert again.lease.id == lease.id
        (peer,) = lender.peers
        assert (peer.borrower.name, peer.vm, peer.same_host, peer.address) == ("bob", "vm1", True, "127.0.0.1")
        assert peer.local_address == "127.0.0.1"
        await session.close()
        assert session.closed.result() is None
        with pytest.raises(UnreachableError, match="closed here"):
            await session.offer()


async def test_a_refusal_is_the_lenders_own_error_and_the_session_goes_on(pair: Pair) -> None:
    async with pair.serving(SmallLender()) as server:
        session = await connect(pair, server)
        with pytest.raises(RefusedError, match="less than that") as caught:
            await session.request(ResourceKind.MEMORY, 1 << 41, token="t")
        assert (caught.value.host, caught.value.hint) == ("small", "ask for less")
        with pytest.raises(RefusedError, match="amount out of range"):
            await session.request(ResourceKind.MEMORY, -1, token="t")
        with pytest.raises(RefusedError, match="ill-formed lease id"):
            await session.release("../../etc", 1)
        assert await session.ping() > 0
        await session.close()


async def test_answers_find_their_requests_in_any_order(pair: Pair) -> None:
    async def backwards(peer: Peer) -> None:
        first = await anext(peer)
        second = await anext(peer)
        small = SmallLender()
        for message in (second, first):
            peer.send(small.answer(peer, message))
        await anext(peer, None)

    async with pair.serving(backwards) as server:
        session = await connect(pair, server)
        offer, granted = await asyncio.gather(session.offer(), session.request(ResourceKind.CPU, 1, token="t"))
        assert offer.cpus_total == 4
        assert granted.lease.kind is ResourceKind.CPU
        await session.close()


async def test_pings_and_the_kernel_measure_the_link(pair: Pair) -> None:
    async with pair.serving(SmallLender()) as server:
        session = await connect(pair, server)
        sample = await session.sample_link(20)
        assert len(sample.pings) == 20
        assert all(0 < ping < 1 for ping in sample.pings)
        assert sample.kernel is not None
        assert 0 < sample.kernel <= min(sample.pings)
        await session.close()


async def test_measuring_counts_as_no_failed_login(pair: Pair) -> None:
    async with pair.serving(SmallLender(), limits=Limits(failures=2)) as server:
        session = await connect(pair, server)
        for _ in range(3):
            await session.sample_link(1)
        await session.close()
        again = await connect(pair, server)
        await again.close()


@pytest.mark.root
async def test_a_link_that_gets_worse_is_measured_anew() -> None:
    listen = (
        "import socket, sys; s = socket.create_server(('', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    with delay_link(0.002) as link:
        process = await asyncio.create_subprocess_exec(
            *link.command(sys.executable, "-c", listen), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 10))
        before = await connect_rtt(link.there, port, deadline=10)
        link.rtt = 0.2
        after = await connect_rtt(link.there, port, deadline=10)
        await asyncio.wait_for(process.communicate(b""), 10)
    assert before is not None
    assert after is not None
    assert 0.002 <= before < 0.2 <= after


async def test_events_arrive_unasked_and_end_with_the_session(pair: Pair) -> None:
    async def tells(peer: Peer) -> None:
        peer.send(m.Notice(text="cordoned \x1b[31m\nnow"))
        peer.send(m.Revoke(lease="l1", epoch=3, deadline=5, reason="drain"))
        await anext(peer, None)

    async with pair.serving(tells) as server:
        session = await connect(pair, server)
        events = session.events()
        assert await anext(events) == m.Notice(text="cordoned ?[31m now")
        assert await anext(events) == m.Revoke(lease="l1", epoch=3, deadline=5, reason="drain")
        await session.close()
        assert await anext(events, None) is None


async def test_events_that_nobody_reads_are_bounded(pair: Pair) -> None:
    async def tells(peer: Peer) -> None:
        for number in range(1000):
            peer.send(m.Notice(text=str(number)))
            peer.send(m.Revoke(lease=f"l{number % 3}", epoch=1, deadline=float(number), reason=""))
        async for message in peer:
            peer.refuse(message.id, RefusedError("no"))  # type: ignore[union-attr]

    async with pair.serving(tells) as server:
        session = await connect(pair, server)
        with pytest.raises(RefusedError):
            await session.offer()
        await session.close()
        events = [event async for event in session.events()]
    assert len(events) == EVENTS_LIMIT
    assert events[-2] == m.Notice(text="999")
    revoked = [event.deadline for event in events if isinstance(event, m.Revoke)]
    assert revoked == [997.0, 998.0, 999.0]


async def test_a_cancelled_waiter_does_not_disturb_the_session(pair: Pair) -> None:
    async with pair.serving(SmallLender()) as server:
        session = await connect(pair, server)

        async def waits() -> None:
            await session.closed

        for waiter in (asyncio.create_task(waits()), asyncio.create_task(session.wait_closed())):
            await asyncio.sleep(0)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
        assert await session.ping() > 0
        await session.close()
        assert await session.wait_closed() is None
        with pytest.raises(UnreachableError, match="closed here"):
            await session.ping()


async def test_the_borrower_closing_ends_the_lenders_iteration(pair: Pair) -> None:
    ended = asyncio.Event()

    async def until_the_end(peer: Peer) -> None:
        async for _ in peer:
            pass
        ended.set()

    async with pair.serving(until_the_end) as server:
        session = await connect(pair, server)
        await session.close()
        await asyncio.wait_for(ended.wait(), 5)


async def test_an_error_of_the_handler_is_told(pair: Pair) -> None:
    async def cordoned(peer: Peer) -> None:
        raise RefusedError("this lender is shutting down", hint="ask another")

    async with pair.serving(cordoned) as server:
        session = await connect(pair, server)
        reason = await asyncio.wait_for(asyncio.shield(session.closed), 5)
        assert isinstance(reason, RefusedError)
        assert (reason.message, reason.host) == ("this lender is shutting down", "small")
        with pytest.raises(RefusedError, match="shutting down"):
            await session.offer()
        await session.close()


async def test_a_defect_of_the_handler_does_not_end_the_lender(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def defective(peer: Peer) -> None:
        raise ZeroDivisionError

    async with pair.serving(defective) as server:
        for _ in range(2):
            session = await connect(pair, server)
            assert isinstance(await asyncio.wait_for(asyncio.shield(session.closed), 5), InternalError)
            await session.close()
    assert "ZeroDivisionError" in caplog.text


async def test_closing_the_server_ends_its_sessions(pair: Pair) -> None:
    async with pair.serving(SmallLender()) as server:
        session = await connect(pair, server)
        request = asyncio.create_task(session.ping(deadline=5))
        await request
        await server.close()
        assert isinstance(await asyncio.wait_for(asyncio.shield(session.closed), 5), UnreachableError)
        assert server.peers == ()
        await session.close()


async def test_a_key_that_is_not_paired_gets_a_refusal(pair: Pair, tmp_path: Path) -> None:
    stranger = load_identity(tmp_path / "stranger")
    async with pair.serving(SmallLender()) as server:
        with pytest.raises(RefusedError, match="not paired") as caught:
            await LenderSession.connect(pair.record(server.port), stranger, "vm1")
        assert stranger.fingerprint in caught.value.message
        assert "vmcoal pair" in (caught.value.hint or "")


async def test_unpairing_takes_effect_at_the_next_session(pair: Pair) -> None:
    async with pair.serving(SmallLender()) as server:
        await (await connect(pair, server)).close()
        pair.known.clear()
        with pytest.raises(RefusedError, match="not paired"):
            await connect(pair, server)


async def test_another_host_key_is_told_apart(pair: Pair, tmp_path: Path) -> None:
    other = load_identity(tmp_path / "other")
    async with pair.serving(SmallLender()) as server:
        with pytest.raises(PrerequisiteError, match="key changed") as caught:
            await LenderSession.connect(pair.record(server.port, host_key=other.public), pair.borrower, "vm1")
        assert other.fingerprint in caught.value.message
        assert pair.lender.fingerprint in caught.value.message
        assert f"vmcoal pair 127.0.0.1:{server.port}" in (caught.value.hint or "")


async def test_nothing_listens(pair: Pair) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError, match="nothing listens") as caught:
            await LenderSession.connect(pair.record(unused.getsockname()[1]), pair.borrower, "vm1")
    assert caught.value.host == "small"


async def test_a_name_that_does_not_resolve(pair: Pair) -> None:
    with pytest.raises(UnreachableError, match="cannot be resolved"):
        await LenderSession.connect(pair.record(1, host="no-such-host.invalid"), pair.borrower, "vm1")


async def test_a_host_that_accepts_and_says_nothing(pair: Pair) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(DeadlineError, match=r"within 0\.3 s"):
            await LenderSession.connect(pair.record(silent.getsockname()[1]), pair.borrower, "vm1", deadline=0.3)


async def test_a_bad_vm_name_is_refused_before_anything_is_sent(pair: Pair) -> None:
    with pytest.raises(UsageError):
        await LenderSession.connect(pair.record(1), pair.borrower, "../x")


@pytest.mark.parametrize("theirs", [m.PROTOCOL - 1, m.PROTOCOL + 1])
async def test_another_protocol_version_is_refused_with_what_to_upgrade(
    pair: Pair, theirs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair.serving(SmallLender()) as server:
        monkeypatch.setattr("vmcoal.fabric.session.m", _protocol(theirs))
        with pytest.raises(PrerequisiteError, match=rf"borrower speaks protocol {theirs} \(vmcoal 0.1.0\)") as caught:
            await connect(pair, server)
        older = "borrower" if theirs < m.PROTOCOL else "lender"
        assert caught.value.hint == f"upgrade vmcoal on the {older}"
        assert caught.value.host == "small"


def _protocol(version: int) -> object:
    class Other:
        PROTOCOL = version

        def __getattr__(self, name: str) -> object:
            return getattr(m, name)

    return Other()


async def test_a_taken_port_and_a_foreign_address(pair: Pair) -> None:
    async with pair.serving(SmallLender()) as server:
        with pytest.raises(ConflictError, match="is taken"):
            async with pair.serving(SmallLender(), port=server.port):
                pass
    with pytest.raises(PrerequisiteError, match="not an address of this host"):
        async with pair.serving(SmallLender(), host="192.0.2.1"):
            pass


async def test_an_inherited_socket_is_used(pair: Pair) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    async with pair.serving(SmallLender(), sock=listener) as server:
        assert server.port == port
        await (await connect(pair, server)).close()


@pytest.mark.parametrize(
    ("listen", "connect_to", "address"),
    [("::1", "::1", "::1"), ("::", "127.0.0.1", "127.0.0.1"), (None, "localhost", None)],
)
async def test_addresses_have_one_form(pair: Pair, listen: str | None, connect_to: str, address: str | None) -> None:
    lender = SmallLender()
    if listen == "::":
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        options: dict[str, object] = {"sock": listener}
    else:
        options = {"host": listen}
    async with pair.serving(lender, **options) as server:
        session = await LenderSession.connect(pair.record(server.port, host=connect_to), pair.borrower, "vm1")
        (peer,) = lender.peers
        assert peer.address == session.peer_address
        assert address in (None, peer.address)
        await session.close()


async def test_the_window_of_failed_logins(pair: Pair, tmp_path: Path) -> None:
    stranger = load_identity(tmp_path / "stranger")
    async with pair.serving(SmallLender(), limits=Limits(failures=2)) as server:
        for _ in range(2):
            with pytest.raises(RefusedError):
                await LenderSession.connect(pair.record(server.port), stranger, "vm1")
        with pytest.raises(UnreachableError, match="before login was done"):
            await connect(pair, server)


@pytest.mark.parametrize("module", ["session", "pairing", "identity", "probe", "wire"])
def test_importing_is_cheap(module: str) -> None:
    check = f"import sys, vmcoal.fabric.{module}; sys.exit('asyncssh' in sys.modules or 'spake2' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
