"""Pairing over loopback: the right code, wrong ones, somebody in between, and windows that end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from framework.fabric_lender import Pair, SmallLender
from framework.hostile_peers import FalseProver, Interceptor, raw_client
from vmcoal.errors import ConflictError, DeadlineError, RefusedError, UnreachableError, UsageError
from vmcoal.fabric.identity import BorrowerRecord, LenderRecord, borrower_store, lender_store, load_identity
from vmcoal.fabric.pairing import PairingWindow, explain, new_code, pair
from vmcoal.fabric.pairing_exchange import PairStart, Secret
from vmcoal.fabric.server import FabricServer, Limits
from vmcoal.fabric.session import LenderSession
from vmcoal.fabric.wire import encode
from vmcoal.model.lease import ResourceKind

pytestmark = [pytest.mark.contract, pytest.mark.timeout(60)]

CODE = "314-159-265"
WRONG = "314-159-266"


class Place:
    """A lender and a borrower that do not know each other yet."""

    def __init__(self, folder: Path) -> None:
        self.keys = Pair(folder)
        self.keys.known.clear()
        self.borrowers = borrower_store(folder / "borrowers.json")
        self.lenders = lender_store(folder / "lenders.json")
        self.told: list[str] = []

    def window(self, server: FabricServer, *grants: ResourceKind, **options: object) -> PairingWindow:
        options = {"tell": self.told.append} | options
        window = PairingWindow(CODE, self.borrowers, grants or (ResourceKind.MEMORY,), **options)  # type: ignore[arg-type]
        server.open_pairing(window)
        return window

    async def pair(self, port: int, code: str = CODE, **options: object) -> LenderRecord:
        return await pair(
            "127.0.0.1",
            port,
            code,
            **({"identity": self.keys.borrower, "borrower": "bob", "store": self.lenders} | options),  # type: ignore[arg-type]
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_both_pin_each_other_and_a_session_follows(place: Place) -> None:
    async with place.keys.serving(SmallLender(), borrowers=place.borrowers.by_key) as server:
        window = place.window(server)
        assert window.is_open
        record = await place.pair(server.port, "314 159 265")
        paired = await window.wait()
        assert not window.is_open
        assert (record.name, record.host_key, record.grants) == (
            "small",
            place.keys.lender.public,
            (ResourceKind.MEMORY,),
        )
        assert (paired.name, paired.public_key) == ("bob", place.keys.borrower.public)
        assert place.lenders.load() == [record]
        assert place.borrowers.load() == [paired]
        session = await LenderSession.connect(record, place.keys.borrower, "vm1")
        assert session.grants == (ResourceKind.MEMORY,)
        await session.close()


async def test_wrong_codes_close_the_window(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server)
        for left in ("2 tries left", "1 try left", "another one"):
            with pytest.raises(RefusedError, match="code is wrong") as caught:
                await place.pair(server.port, WRONG)
            assert left in (caught.value.hint or "")
        with pytest.raises(RefusedError, match="3 exchanges failed"):
            await window.wait()
        with pytest.raises(RefusedError, match="no pairing window is open"):
            await place.pair(server.port)
    assert place.lenders.load() == []
    assert place.borrowers.load() == []
    assert len(place.told) == 3
    for code in (CODE, WRONG):
        assert code not in caplog.text
        assert code.replace("-", "") not in caplog.text


async def test_the_last_try_may_be_right(place: Place) -> None:
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server)
        for _ in range(2):
            with pytest.raises(RefusedError):
                await place.pair(server.port, WRONG)
        assert window.tries_left == 1
        await place.pair(server.port)
        assert (await window.wait()).name == "bob"


async def test_no_window(place: Place) -> None:
    async with place.keys.serving(SmallLender()) as server:
        with pytest.raises(RefusedError, match="no pairing window is open") as caught:
            await place.pair(server.port)
        assert "vmcoal lend pair" in (caught.value.hint or "")


async def test_an_expired_and_a_closed_window(place: Place) -> None:
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server, timeout=0.01)
        with pytest.raises(DeadlineError, match="nobody paired"):
            await window.wait()
        with pytest.raises(RefusedError, match="no pairing window is open"):
            await place.pair(server.port)
        window = place.window(server)
        with pytest.raises(ConflictError, match="open already"):
            place.window(server)
        window.close()
        with pytest.raises(ConflictError, match="was closed"):
            await window.wait()
        with pytest.raises(RefusedError, match="no pairing window is open"):
            await place.pair(server.port)


async def test_a_window_that_closes_in_the_middle_pins_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server)
        check = place.lenders.check

        def closes(record: LenderRecord) -> None:
            window.close()
            check(record)

        monkeypatch.setattr(place.lenders, "check", closes)
        with pytest.raises(RefusedError, match="window is closed"):
            await place.pair(server.port)
    assert place.lenders.load() == []
    assert place.borrowers.load() == []


async def test_somebody_in_between_is_found_out(place: Place, tmp_path: Path) -> None:
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server)
        async with Interceptor(load_identity(tmp_path / "interceptor"), server.port) as interceptor:
            with pytest.raises(RefusedError, match="somebody is between"):
                await place.pair(interceptor.port)
            assert interceptor.relayed >= 3
        assert window.tries_left == 2
        assert place.borrowers.load() == []
        assert place.lenders.load() == []


async def test_a_lender_that_does_not_know_the_code_is_not_pinned(place: Place) -> None:
    async with place.keys.serving(SmallLender()) as server:
        server.open_pairing(FalseProver())
        with pytest.raises(RefusedError, match="does not know the code"):
            await place.pair(server.port)
    assert place.lenders.load() == []


async def test_grants_are_asked_for_and_given_apart(place: Place) -> None:
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server, ResourceKind.MEMORY, ResourceKind.CPU)
        with pytest.raises(RefusedError, match="grants memory, cpu, and gpu was asked for"):
            await place.pair(server.port, wanted=[ResourceKind.GPU])
        assert window.tries_left == 3
        record = await place.pair(server.port, wanted=[ResourceKind.CPU])
        assert record.grants == (ResourceKind.CPU,)
        assert (await window.wait()).grants == (ResourceKind.CPU,)
    assert "unsealed" in explain([ResourceKind.MEMORY])[0]
    assert len(explain(ResourceKind)) == 3


async def test_pairing_again_replaces_the_record(place: Place) -> None:
    async with place.keys.serving(SmallLender()) as server:
        place.window(server)
        await place.pair(server.port, name="attic")
        place.window(server, ResourceKind.CPU)
        record = await place.pair(server.port, borrower="robert")
        assert (record.name, record.grants) == ("attic", (ResourceKind.CPU,))
        (borrower,) = place.borrowers.load()
        assert (borrower.name, borrower.grants) == ("bob", (ResourceKind.CPU,))
        place.window(server, borrower_name="robert")
        await place.pair(server.port)
        assert [borrower.name for borrower in place.borrowers.load()] == ["robert"]
        assert len(place.lenders.load()) == 1


async def test_a_reinstalled_lender_is_pinned_anew_but_names_are_not_stolen(place: Place, tmp_path: Path) -> None:
    other = load_identity(tmp_path / "other").public
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server)
        elsewhere = LenderRecord(name="small", host="127.0.0.1", port=server.port + 1, host_key=other, grants=())
        place.lenders.add(elsewhere)
        with pytest.raises(ConflictError, match="another lender is paired as 'small'"):
            await place.pair(server.port)
        assert window.tries_left == 2
        assert place.borrowers.load() == []
        assert place.lenders.load() == [elsewhere]
        here = LenderRecord(name="small", host="127.0.0.1", port=server.port, host_key=other, grants=())
        place.lenders.add(here, replace=True)
        assert (await place.pair(server.port)).host_key == place.keys.lender.public
        assert [record.host_key for record in place.lenders.load()] == [place.keys.lender.public]


async def test_a_name_that_another_borrower_has(place: Place, tmp_path: Path) -> None:
    other = load_identity(tmp_path / "other").public
    place.borrowers.add(BorrowerRecord(name="bob", public_key=other, grants=(), paired_at=1.0))
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server)
        with pytest.raises(ConflictError, match="another borrower is paired as 'bob'"):
            await place.pair(server.port)
        assert place.lenders.load() == []
        assert window.tries_left == 3
        await place.pair(server.port, borrower="bobby")
    assert [borrower.name for borrower in place.borrowers.load()] == ["bob", "bobby"]


async def test_two_at_once_have_one_winner(place: Place, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server)
        results = await asyncio.gather(
            place.pair(server.port), other.pair(server.port, borrower="eve"), return_exceptions=True
        )
        winners = [result for result in results if isinstance(result, LenderRecord)]
        assert len(winners) == 1
        assert all(isinstance(result, LenderRecord | RefusedError) for result in results)
        assert [(await window.wait()).name] == [borrower.name for borrower in place.borrowers.load()]


@pytest.mark.parametrize("code", ["", "987-654-32", "987-654-3210", "12a-456-789", "１２３-456-789"])
async def test_a_code_that_is_none_costs_no_try_and_is_not_repeated(place: Place, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        await place.pair(1, code)
    assert not code or code not in f"{caught.value} {caught.value.hint}"


async def test_a_lender_that_never_answers(place: Place) -> None:
    class Silent:
        is_open = True

        async def serve(self, channel: object, **_: object) -> None:
            await asyncio.get_running_loop().create_future()

    async with place.keys.serving(SmallLender()) as server:
        server.open_pairing(Silent())
        with pytest.raises(DeadlineError, match=r"within 0\.5 s"):
            await place.pair(server.port, deadline=0.5)


async def test_strangers_that_only_log_in_are_few_and_leave_soon(place: Place) -> None:
    limits = Limits(waiting_by_source=2, hello_seconds=3.0)
    async with place.keys.serving(SmallLender(), limits=limits) as server:
        window = place.window(server)
        async with (
            raw_client(place.keys.borrower, server.port, user="vmcoal-pair") as first,
            raw_client(place.keys.borrower, server.port, user="vmcoal-pair") as second,
        ):
            with pytest.raises(UnreachableError, match="before login was done"):
                await place.pair(server.port)
            await asyncio.wait_for(asyncio.gather(first.wait_closed(), second.wait_closed()), 20)
        await place.pair(server.port)
        assert (await window.wait()).name == "bob"


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\n",
        b'{"type":"PairProof","proof":"' + b"0" * 64 + b'"}\n',
        b'{"type":"PairStart","protocol":1,"software":"","borrower":"../x","wanted":null,"share":"'
        + b"00" * 33
        + b'"}\n',
        b'{"type":"PairStart","protocol":1,"software":"","borrower":"eve","wanted":null,"share":"'
        + b"00" * 33
        + b'"}\n',
        b'{"type":"PairStart","protocol":9}\n',
        b"x" * 70_000,
    ],
)
async def test_a_stranger_that_does_not_pair_as_a_borrower_does(place: Place, data: bytes) -> None:
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server)
        async with raw_client(place.keys.borrower, server.port, user="vmcoal-pair") as connection:
            stdin, stdout, _ = await connection.open_session(subsystem="vmcoal-pair", encoding=None)
            stdin.write(data)
            assert (await stdout.readline()).startswith(b'{"type":"Refuse"')
            assert await stdout.read() == b""
        await place.pair(server.port)
        assert (await window.wait()).name == "bob"


async def test_a_stranger_that_breaks_off_costs_a_try_and_the_operator_hears_of_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcoal.fabric.pairing._EXCHANGE_SECONDS", 0.3)
    async with place.keys.serving(SmallLender()) as server:
        window = place.window(server)
        secret = Secret(WRONG, lender=False, host_key="h", borrower_key="b")
        start = PairStart(protocol=1, software="", borrower="eve", wanted=None, share=await secret.share())
        for wait in (False, True):
            async with raw_client(place.keys.borrower, server.port, user="vmcoal-pair") as connection:
                stdin, stdout, _ = await connection.open_session(subsystem="vmcoal-pair", encoding=None)
                stdin.write(encode(start))
                assert b"PairAnswer" in await stdout.readline()
                if wait:
                    assert b"DeadlineError" in await stdout.read()
        assert window.tries_left == 1
        await place.pair(server.port)
    assert place.told == [
        "127.0.0.1 began to pair and broke off; 2 tries left",
        "127.0.0.1 began to pair and broke off; 1 try left",
    ]


async def test_nobody_there(place: Place) -> None:
    with pytest.raises(UnreachableError, match="nothing listens"):
        await place.pair(1)


def test_codes_are_nine_digits_in_groups() -> None:
    codes = {new_code() for _ in range(50)}
    assert len(codes) == 50
    assert all(len(code) == 11 and code.replace("-", "").isdigit() for code in codes)
