"""A whole lender with real sessions, a real holder and real nbdkit; killed at will."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.error import URLError

import msgspec
import pytest

from framework.lender import (
    QUICK,
    Lending,
    borrow,
    kill,
    lender_holder,
    lending,
    session,
    start_lender,
    until,
)
from framework.lent import fuse_engine, region_file
from vmcoal.control.wire import Progress
from vmcoal.errors import (
    ConflictError,
    ExecutionError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
)
from vmcoal.fabric.identity import borrower_identity, lender_store, load_identity
from vmcoal.fabric.messages import Notice, Revoke
from vmcoal.fabric.pairing import pair
from vmcoal.fabric.session import LenderSession
from vmcoal.layout import shm_home
from vmcoal.lending.api import BorrowerView, DrainRequest, ForgetRequest, LenderStatus, PairRequest, ReclaimResult
from vmcoal.lending.journal import LenderJournal
from vmcoal.model.lease import LeaseState, ResourceKind
from vmcoal.model.units import MIB

pytestmark = pytest.mark.contract

MEMORY, CPU = ResourceKind.MEMORY, ResourceKind.CPU


@pytest.fixture
async def den() -> AsyncIterator[Lending]:
    async with lending() as lender:
        yield lender


@pytest.fixture
async def quick() -> AsyncIterator[Lending]:
    async with lending(limits=QUICK) as lender:
        yield lender


def lent_files() -> list[Path]:
    return list(shm_home().glob("den-*.mem"))


async def children(lender: Lending) -> list[str]:
    holder = await lender_holder(lender.folders)
    try:
        return sorted(child.id for child in await holder.list())
    finally:
        await holder.close()


async def revocation(opened: LenderSession) -> Revoke:
    """Return the next revocation that a borrower is told."""
    async with asyncio.timeout(10):
        async for event in opened.events():
            if isinstance(event, Revoke):
                return event
    raise AssertionError("the session ended")


# Leases


async def test_a_lease_from_request_to_release(den: Lending) -> None:
    async with session(await den.record()) as opened:
        assert (await opened.offer()).memory_free == 64 * MIB
        granted = await borrow(opened, 16 * MIB, plug=False)
        assert granted.memory
        lease = granted.lease
        assert lease.state is LeaseState.GRANTED
        assert (await opened.report(lease.id, lease.epoch, "attach")).state is LeaseState.ATTACHING
        assert (await opened.report(lease.id, lease.epoch, "plugged")).state is LeaseState.ACTIVE
        assert (await opened.offer()).memory_free == 48 * MIB
        status = await den.status()
        assert [(one.id, one.state) for one in status.leases] == [(lease.id, LeaseState.ACTIVE)]
        assert status.degraded == ()
        assert await children(den) == [f"serve-{lease.id}"]
        assert len(lent_files()) == 1
        assert (await opened.report(lease.id, lease.epoch, "drain")).state is LeaseState.DRAINING
        assert (await opened.release(lease.id, lease.epoch)).state is LeaseState.RELEASED
        assert not lent_files(), "its bytes are gone when the answer comes"
        assert await children(den) == []
        assert (await opened.release(lease.id, lease.epoch)).state is LeaseState.RELEASED
        assert (await opened.offer()).memory_free == 64 * MIB
        text = await den.ask("metrics", result=str)
        assert 'vmcoal_lender_lease_events_total{event="release",kind="memory",lender="den"} 1.0' in text


async def test_over_commitment_is_refused_under_concurrency(den: Lending) -> None:
    async with session(await den.record()) as opened:
        asked = [borrow(opened, 20 * MIB, plug=False) for _ in range(6)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 3
        assert all("free" in str(answer) for answer in answers if isinstance(answer, RefusedError))
        assert sum(path.stat().st_blocks * 512 for path in lent_files()) == 60 * MIB


async def test_a_repeated_request_gets_the_same_lease(den: Lending) -> None:
    record = await den.record()
    async with session(record) as opened:
        twice = await asyncio.gather(*(borrow(opened, token="once", plug=False) for _ in range(2)))
        assert (twice[0].lease, twice[0].memory) == (twice[1].lease, twice[1].memory)
    async with session(record) as opened:
        assert (await borrow(opened, token="once", plug=False)).lease.id == twice[0].lease.id
        assert len(await children(den)) == 1


async def test_cpus_are_accounted_and_only_for_this_host(den: Lending) -> None:
    async with session(await den.record()) as opened:
        granted = await borrow(opened, 1, kind=CPU)
        assert granted.memory is None
        assert (await opened.offer()).cpus_free == 1
        with pytest.raises(RefusedError, match="CPUs"):
            await borrow(opened, 2, kind=CPU)
        assert await children(den) == []


async def test_only_what_was_granted(den: Lending) -> None:
    async with session(await den.record(CPU)) as opened:
        with pytest.raises(RefusedError, match="does not lend memory"):
            await borrow(opened)


async def test_leases_of_others_cannot_be_touched(den: Lending, tmp_path: Path) -> None:
    other = load_identity(tmp_path / "k" / "bob")
    records = await den.record(), await den.record(borrower="bob", identity=other)
    async with session(records[0]) as ann, session(records[1], identity=other) as bob:
        lease = (await borrow(ann)).lease
        for attempt in (
            bob.release(lease.id, lease.epoch),
            bob.resume(lease.id, lease.epoch),
            bob.report(lease.id, lease.epoch, "drain"),
            bob.resize(lease.id, lease.epoch, 2 * MIB),
        ):
            with pytest.raises(NotFoundError):
                await attempt
        assert await bob.renew([(lease.id, lease.epoch)]) == ()
        with pytest.raises(RefusedError, match="epoch"):
            await ann.release(lease.id, lease.epoch + 1)


async def test_granular_memory_is_counted_by_what_is_committed(den: Lending) -> None:
    async with session(await den.record()) as opened:
        granted = await borrow(opened, 512 * MIB, committed=0)
        lease = granted.lease
        assert (await opened.resize(lease.id, lease.epoch, 32 * MIB)).committed == 32 * MIB
        with pytest.raises(RefusedError, match="free"):
            await opened.resize(lease.id, lease.epoch, 66 * MIB)
        (file,) = lent_files()
        with file.open("r+b") as bytes_:
            bytes_.write(b"x" * 16 * MIB)
        shrunk = await opened.resize(lease.id, lease.epoch, 4 * MIB)
        assert shrunk.committed == 16 * MIB, "what was not discarded still counts"
        assert (await opened.offer()).memory_free == 48 * MIB


async def test_a_borrower_that_takes_more_than_it_asked_for_loses_its_lease(quick: Lending) -> None:
    async with session(await quick.record()) as opened:
        lease = (await borrow(opened, 512 * MIB, committed=0)).lease
        (file,) = lent_files()
        with file.open("r+b") as bytes_:
            bytes_.write(b"x" * 8 * MIB)
        revoke = await revocation(opened)
        assert (revoke.lease, revoke.reason) == (lease.id, "it holds more bytes than it asked for")
        assert file.exists(), "there is room for it yet"
        with file.open("r+b") as bytes_:
            bytes_.write(b"x" * 72 * MIB)
        async with asyncio.timeout(20):
            while file.exists():  # long before the deadline that it was told
                await asyncio.sleep(0.05)


# Silence


async def test_a_silent_borrower_gives_everything_back(quick: Lending) -> None:
    record = await quick.record()
    async with session(record) as opened:
        used = (await borrow(opened, 8 * MIB)).lease
        unused = (await borrow(opened, 8 * MIB, plug=False)).lease
        cpu = (await borrow(opened, 1, kind=CPU)).lease
        states: list[LeaseState] = []

        async def over() -> bool:
            status = await quick.status()
            states.extend(lease.state for lease in status.leases if lease.id == used.id)
            return status.offer.memory_free == 64 * MIB and status.offer.cpus_free == 2

        await until(over, "giving back")
        assert LeaseState.UNREACHABLE in states
        assert not lent_files()
        assert await children(quick) == []
        every = [(lease.id, lease.epoch) for lease in (used, unused, cpu)]
        assert await opened.renew(every) == ()
        with pytest.raises(ConflictError, match="silent"):
            await opened.resume(used.id, used.epoch)


async def test_heartbeats_keep_a_lease_and_a_new_session_resumes_it(quick: Lending) -> None:
    record = await quick.record()
    async with session(record) as opened:
        granted = await borrow(opened, grace=20.0)
        lease = granted.lease
        for _ in range(5):
            assert len(await opened.renew([(lease.id, lease.epoch)])) == 1
            await asyncio.sleep(lease.terms.heartbeat)

    async def unreachable() -> bool:
        return [one.state for one in (await quick.status()).leases] == [LeaseState.UNREACHABLE]

    await until(unreachable, "noticing")
    async with session(record) as opened:
        again = await opened.resume(lease.id, lease.epoch)
        assert (again.lease.state, again.lease.epoch, again.memory) == (LeaseState.ACTIVE, lease.epoch, granted.memory)


async def test_a_silent_borrower_whose_data_connection_lives_keeps_everything(quick: Lending) -> None:
    record = await quick.record()
    async with session(record) as opened:
        memory, cpu = await borrow(opened, 8 * MIB), await borrow(opened, 1, kind=CPU)
        assert memory.memory is not None
        grace = memory.lease.terms.grace
        reader, writer = await asyncio.open_connection("127.0.0.1", memory.memory.port)
        await reader.readexactly(16)
    try:
        await asyncio.sleep(4 * grace)  # what is awaited is that nothing happens
        assert [one.state for one in (await quick.status()).leases] == [LeaseState.UNREACHABLE] * 2
        async with session(record) as opened:
            for lease in (memory.lease, cpu.lease):
                assert (await opened.resume(lease.id, lease.epoch)).lease.state is LeaseState.ACTIVE
    finally:
        writer.close()
        await writer.wait_closed()

    async def over() -> bool:
        return (await quick.status()).leases == ()

    await until(over, "giving back")
    await until(lambda: not lent_files(), "deleting the bytes")


# The operator


async def test_cordon_tells_and_refuses_and_is_remembered() -> None:
    async with lending() as den:
        async with session(await den.record()) as opened:
            assert (await den.ask("cordon", result=LenderStatus)).offer.cordoned
            assert await asyncio.wait_for(anext(aiter(opened.events())), 10) == Notice(text="den lends nothing new")
            with pytest.raises(RefusedError, match="cordoned"):
                await borrow(opened)
        await den.stop()
    async with lending() as den:
        assert (await den.status()).offer.cordoned
        assert not (await den.ask("uncordon", result=LenderStatus)).offer.cordoned
        await den.stop()
    async with lending() as den:
        assert not (await den.status()).offer.cordoned


async def test_drain_waits_for_the_polite_and_takes_from_the_others(den: Lending) -> None:
    record = await den.record()
    async with session(record) as polite, session(record, vm="rude") as rude:
        given, kept = (await borrow(polite)).lease, (await borrow(rude)).lease
        unused = (await borrow(rude, plug=False)).lease
        seen: list[Progress] = []
        draining = asyncio.create_task(
            den.ask("drain", DrainRequest(deadline=4.0), ReclaimResult, on_progress=seen.append)
        )
        revoke = await revocation(polite)
        assert (revoke.lease, revoke.reason) == (given.id, "the lender is drained")
        assert 0 < revoke.deadline <= 4
        await polite.release(given.id, given.epoch)
        result = await draining
        assert set(result.released) == {given.id, unused.id}
        assert result.taken == (kept.id,)
        assert seen[-1].text == "get leases back: 3 of 3"
        assert not lent_files()
        with pytest.raises(ConflictError, match="force_released"):
            await rude.report(kept.id, kept.epoch, "drain")
        assert (await den.status()).offer.cordoned


async def test_a_revocation_reaches_a_session_that_comes_later(den: Lending) -> None:
    record = await den.record()
    async with session(record) as opened:
        lease = (await borrow(opened, grace=60.0)).lease
    draining = asyncio.create_task(den.ask("drain", DrainRequest(deadline=20.0), ReclaimResult))

    async def drained() -> bool:
        return (await den.status()).offer.cordoned

    await until(drained, "the drain's begin")
    async with session(record) as opened:
        await opened.resume(lease.id, lease.epoch)
        revoke = await revocation(opened)
        assert 0 < revoke.deadline < 20
        await opened.release(lease.id, lease.epoch)
    assert (await draining).released == (lease.id,)


async def test_pairing_through_the_control_socket(den: Lending) -> None:
    codes: list[str] = []
    shown = asyncio.Event()
    loop = asyncio.get_running_loop()

    def progress(step: Progress) -> None:
        if step.detail:
            codes.append(step.detail)
            loop.call_soon_threadsafe(shown.set)

    pairing = asyncio.create_task(den.ask("pair", PairRequest(seconds=20), BorrowerView, on_progress=progress))
    await asyncio.wait_for(shown.wait(), 10)
    status = await den.status()
    assert status.pairing
    with pytest.raises(ConflictError, match="open already"):
        await den.ask("pair", PairRequest(), BorrowerView)
    host, _, port = status.addresses[0].rpartition(":")
    record = await pair(host, int(port), codes[0], identity=borrower_identity(), borrower="ann", store=lender_store())
    view = await pairing
    assert (view.name, view.grants) == ("ann", (MEMORY,))
    async with session(record) as opened:
        await borrow(opened)
        (seen,) = await den.ask("borrowers", result=tuple[BorrowerView, ...])
        assert seen.connected
        assert len(seen.leases) == 1


async def test_hanging_up_closes_the_pairing_window(den: Lending) -> None:
    reader, writer = await asyncio.open_unix_connection(den.folders.control_socket)
    writer.write(b'{"method": "pair", "params": {"seconds": 60}}\n')
    assert b"code" in await asyncio.wait_for(reader.readline(), 10)
    assert (await den.status()).pairing
    writer.close()
    await writer.wait_closed()

    async def closed() -> bool:
        return (await den.status()).pairing is None

    await until(closed, "closing the window")


async def test_a_forgotten_borrower(den: Lending) -> None:
    record = await den.record()
    async with session(record) as opened:
        lease = (await borrow(opened)).lease
        with pytest.raises(UsageError, match="0 s to 24 h"):  # and nothing is forgotten
            await den.ask("forget", ForgetRequest(name="ann", deadline=1e9), ReclaimResult)
        forgetting = asyncio.create_task(den.ask("forget", ForgetRequest(name="ann", deadline=20.0), ReclaimResult))
        await revocation(opened)
        with pytest.raises(RefusedError, match="forgotten"):
            await borrow(opened)
        await opened.release(lease.id, lease.epoch)
        assert (await forgetting).released == (lease.id,)
        await asyncio.wait_for(opened.wait_closed(), 10)
    with pytest.raises(RefusedError, match="not paired"):
        async with session(record):
            pass
    with pytest.raises(NotFoundError):
        await den.ask("forget", ForgetRequest(name="ann"), ReclaimResult)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("drain", DrainRequest(deadline=-1)),
        ("stop", DrainRequest(deadline=1e9)),
        ("pair", PairRequest(seconds=0)),
        ("pair", PairRequest(grants=())),
        ("pair", PairRequest(name="no/name")),
        ("nonsense", None),
    ],
)
async def test_commands_that_make_no_sense(den: Lending, method: str, params: msgspec.Struct | None) -> None:
    with pytest.raises(UsageError):
        await den.ask(method, params)
    assert not (await den.status()).offer.cordoned


# Death and return


async def test_killed_and_started_again_it_picks_its_leases_up() -> None:
    lender = await start_lender("--memory", "64M", "--cpus", "2", "--listen", "127.0.0.1:0")
    record = await lender.record()
    async with fuse_engine() as engine:
        async with session(record) as opened:
            granted = await borrow(opened, 8 * MIB, grace=60.0)
            assert granted.memory
            region = await engine.prepare(granted.lease, granted.memory, "127.0.0.1", deadline=20)
            cpu = (await borrow(opened, 1, kind=CPU, grace=60.0)).lease
            await kill(lender)
        with pytest.raises(UnreachableError):
            async with session(record):
                pass
        pattern = os.urandom(8 * MIB)
        await asyncio.to_thread(region_file(region).write_bytes, pattern)
        assert lent_files()[0].read_bytes() == pattern, "its server lives under the holder"

        lender = await start_lender()
        status = await lender.status()
        assert (status.offer.memory_total, status.offer.cpus_total) == (64 * MIB, 2)
        assert [lease.state for lease in status.leases] == [LeaseState.UNREACHABLE] * 2
        async with session(record) as opened:
            again = await opened.resume(granted.lease.id, granted.lease.epoch)
            assert again.memory == granted.memory
            assert again.lease.state is LeaseState.ACTIVE
            await engine.relink(again.lease, again.memory, "127.0.0.1", deadline=10)
            assert len(await opened.renew([(cpu.id, cpu.epoch)])) == 1
            newer = (await borrow(opened)).lease
            assert newer.epoch > cpu.epoch
            assert await asyncio.to_thread(region_file(region).read_bytes) == pattern
        await engine.remove(granted.lease.id, mapped_by=None, deadline=10)
    await lender.stop()
    assert not lent_files()


async def test_the_holder_dies_and_nothing_is_lost(den: Lending) -> None:
    async with session(await den.record()) as opened, fuse_engine() as engine:
        granted = await borrow(opened, 8 * MIB, grace=60.0)
        assert granted.memory
        region = await engine.prepare(granted.lease, granted.memory, "127.0.0.1", deadline=20)
        holder = (await den.status()).holder_pid
        assert holder
        os.kill(holder, signal.SIGKILL)
        pattern = os.urandom(8 * MIB)
        await asyncio.wait_for(asyncio.to_thread(region_file(region).write_bytes, pattern), 30)
        assert lent_files()[0].read_bytes() == pattern
        assert (await den.status()).holder_pid != holder
        await engine.remove(granted.lease.id, mapped_by=None, deadline=10)


async def test_a_lease_whose_bytes_are_gone_is_told(den: Lending) -> None:
    async with session(await den.record()) as opened:
        lease = (await borrow(opened)).lease
        lent_files()[0].unlink()
        with pytest.raises(RefusedError, match="gone"):
            await opened.resume(lease.id, lease.epoch)
        assert await opened.renew([(lease.id, lease.epoch)]) == ()


async def test_leases_from_before_a_reboot_are_over() -> None:
    lender = await start_lender("--memory", "64M", "--listen", "127.0.0.1:0")
    record = await lender.record()
    async with session(record) as opened:
        lease = (await borrow(opened, grace=600.0)).lease
        await kill(lender)
    journal = LenderJournal(lender.folders.journal)
    journal.set("boot_id", "another boot")
    journal.close()
    lender = await start_lender()
    assert (await lender.status()).leases == ()
    await until(lambda: not lent_files(), "giving back")
    async with session(record) as opened:
        with pytest.raises(ConflictError, match="started anew"):
            await opened.resume(lease.id, lease.epoch)
    await lender.stop()


async def test_past_its_grace_a_lease_is_dropped_after_a_crash() -> None:
    async with lending(limits=QUICK) as den:
        record = await den.record()
        async with session(record) as opened:
            await borrow(opened)
            den.cancel()
            with pytest.raises(asyncio.CancelledError):
                await den.end()
    assert len(lent_files()) == 1
    async with lending(limits=QUICK) as den:

        async def over() -> bool:
            return (await den.status()).offer.memory_free == 64 * MIB

        await until(over, "dropping it")
        assert not lent_files()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_asks_for_everything_back(number: signal.Signals) -> None:
    lender = await start_lender("--memory", "64M", "--listen", "127.0.0.1:0")
    async with session(await lender.record()) as opened:
        lease = (await borrow(opened)).lease
        os.kill(lender.pid, number)
        revoke = await revocation(opened)
        assert revoke.deadline == pytest.approx(30, abs=1)
        await opened.release(lease.id, lease.epoch)
        assert await lender.end() == 0
    assert not lender.folders.control_socket.exists()
    assert not lender.folders.holder_socket.exists()


async def test_a_second_signal_takes_everything() -> None:
    lender = await start_lender("--memory", "64M", "--listen", "127.0.0.1:0")
    async with session(await lender.record()) as opened:
        await borrow(opened)
        os.kill(lender.pid, signal.SIGTERM)
        await revocation(opened)
        os.kill(lender.pid, signal.SIGTERM)
        assert await lender.end() == 0
    assert not lent_files()


# Starts that fail


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--cpus", "0", "--memory", "0"], 2, "nothing to lend"),
        (["--cpus", "-1"], 2, "nothing to lend"),
        (["--cpus", "100000"], 3, "CPUs cannot be lent"),
        (["--memory", "1000T"], 3, "cannot be lent"),
        (["--memory", "lots"], 2, "not a size"),
        (["--memory", "64M", "--listen", "192.0.2.1:0"], 3, "no address of this host"),
        (["--memory", "64M", "--listen", "localhost:x"], 2, "not an address"),
        (["--memory", "64M", "--data-ports", "9-1"], 2, "not a range of ports"),
        (["--memory", "64M", "--listen", "127.0.0.1:0", "--metrics", "nowhere"], 2, "not an address"),
    ],
)
async def test_starts_that_are_refused(arguments: list[str], code: int, words: str) -> None:
    with pytest.raises(ChildProcessError) as caught:
        await start_lender(*arguments)
    assert caught.value.args[0] == code
    assert words in caught.value.args[1]
    assert "Traceback" not in caught.value.args[1]


async def test_without_nbdkit_it_lends_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nbdkit").write_text("#!/bin/sh\necho nbdkit 1.10.0\n")
    (tmp_path / "nbdkit").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ChildProcessError) as caught:
        await start_lender("--memory", "64M")
    assert "or newer is needed" in caught.value.args[1]
    assert "apt install" in caught.value.args[1]
    lender = await start_lender("--cpus", "1", "--memory", "0", "--listen", "127.0.0.1:0")
    await lender.stop()


async def test_ports_and_names_that_are_taken() -> None:
    lender = await start_lender("--cpus", "1", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
    with pytest.raises(ChildProcessError, match="runs already"):
        await start_lender("--cpus", "1")
    address = (await lender.status()).addresses[0]
    with pytest.raises(ChildProcessError, match="taken"):
        await start_lender("--cpus", "1", "--listen", address, name="other")
    with pytest.raises(ChildProcessError, match="taken"):
        await start_lender("--cpus", "1", "--listen", "127.0.0.1:0", "--metrics", address, name="other")
    await lender.stop()


async def test_it_comes_back_on_its_port(den: Lending) -> None:
    before = (await den.status()).addresses
    await den.stop()
    async with lending(listen=None) as again:
        assert (await again.status()).addresses == before


async def test_a_full_disk_refuses_leases_but_not_their_end(den: Lending, monkeypatch: pytest.MonkeyPatch) -> None:
    async with session(await den.record()) as opened:
        lease = (await borrow(opened)).lease

        def full(*arguments: object) -> None:
            raise ExecutionError("cannot write the journal: disk full", hint="free space in the state folder")

        with monkeypatch.context() as patch:
            patch.setattr(LenderJournal, "append", full)
            with pytest.raises(ExecutionError, match="disk full"):
                await borrow(opened)
            assert (await opened.release(lease.id, lease.epoch)).state is LeaseState.RELEASED
            assert "disk full" in (await den.status()).degraded[0]
            assert not lent_files()
        await borrow(opened)
        assert (await den.status()).degraded == ()


async def test_metrics_over_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with lending(metrics=f"127.0.0.1:{port}"):

        def fetch() -> bytes:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                data: bytes = answer.read()
                return data

        async def served() -> bool:
            try:
                return b'vmcoal_lender_memory_bytes{lender="den"} 6.7108864e+07' in await asyncio.to_thread(fetch)
            except URLError:
                return False

        await until(served, "serving metrics")
