"""The exchange of pairing without a network: what proves what, and that nothing else comes out of bad input."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcoal.errors import UnreachableError, UsageError, VmcoalError
from vmcoal.fabric.pairing_exchange import (
    PairAnswer,
    Paired,
    PairProof,
    PairStart,
    Secret,
    new_code,
    ordered,
    parse_code,
    receive,
)
from vmcoal.fabric.wire import ProtocolBreach
from vmcoal.model.lease import ResourceKind

pytestmark = pytest.mark.unit

CODE = "123-456-789"
ALL = tuple(ResourceKind)


async def exchange(lender: dict[str, Any], borrower: dict[str, Any]) -> tuple[Secret, Secret]:
    """Run both sides, each as it sees the other."""
    both = {"code": CODE, "host_key": "host", "borrower_key": "key", "name": "bob", "wanted": None, "lender": "small"}
    a, b = both | borrower, both | lender
    one = Secret(a["code"], lender=False, host_key=a["host_key"], borrower_key=a["borrower_key"])
    two = Secret(b["code"], lender=True, host_key=b["host_key"], borrower_key=b["borrower_key"])
    share_one, share_two = await one.share(), await two.share()

    def start(x: dict[str, Any]) -> PairStart:
        return PairStart(protocol=1, software="", borrower=x["name"], wanted=x["wanted"], share=share_one)

    def answer(x: dict[str, Any]) -> PairAnswer:
        return PairAnswer(protocol=1, software="", lender=x["lender"], share=share_two)

    await one.finish(start(a), answer(a), share_two)
    await two.finish(start(b), answer(b), share_one)
    return one, two


async def test_the_same_code_over_the_same_transcript_proves_itself() -> None:
    one, two = await exchange({}, {"code": "123456789"})
    assert one.borrower_proof() == two.borrower_proof()
    assert one.lender_proof("bob", ALL) == two.lender_proof("bob", ALL)
    assert one.lender_proof("bob", ALL) != two.lender_proof("bob", (ResourceKind.MEMORY,))
    assert one.lender_proof("bob", ALL) != two.lender_proof("eve", ALL)
    assert one.borrower_proof() != one.lender_proof("bob", ALL)


@pytest.mark.parametrize(
    "different",
    [
        {"code": "123-456-780"},
        {"host_key": "interceptor"},
        {"borrower_key": "interceptor"},
        {"name": "eve"},
        {"wanted": (ResourceKind.GPU,)},
        {"lender": "other"},
    ],
)
async def test_any_difference_breaks_the_proofs(different: dict[str, Any]) -> None:
    one, two = await exchange({}, different)
    assert one.borrower_proof() != two.borrower_proof()
    assert one.lender_proof("bob", ALL) != two.lender_proof("bob", ALL)


async def test_a_share_is_not_taken_back() -> None:
    secret = Secret(CODE, lender=True, host_key="h", borrower_key="b")
    share = await secret.share()
    reflected = "41" + share[2:]
    start = PairStart(protocol=1, software="", borrower="bob", wanted=None, share=reflected)
    answer = PairAnswer(protocol=1, software="", lender="small", share=share)
    with pytest.raises(ProtocolBreach):
        await secret.finish(start, answer, reflected)


# The identity, a point of small order, a point off the curve, the wrong side.
@pytest.mark.parametrize(
    "share", ["4101" + "00" * 31, "41" + "00" * 32, "4102" + "00" * 31, "42" + "00" * 32, "5a" * 33]
)
async def test_shares_that_give_nothing_away(share: str) -> None:
    await _finish(share)


@settings(max_examples=25, deadline=None)
@given(st.binary(min_size=33, max_size=33))
def test_shares_of_any_kind(share: bytes) -> None:
    asyncio.run(_finish(share.hex(), valid_too=True))


async def _finish(share: str, *, valid_too: bool = False) -> None:
    secret = Secret(CODE, lender=True, host_key="h", borrower_key="b")
    answer = PairAnswer(protocol=1, software="", lender="small", share=await secret.share())
    start = PairStart(protocol=1, software="", borrower="bob", wanted=None, share=share)
    try:
        await secret.finish(start, answer, share)
    except ProtocolBreach:
        return
    assert valid_too


class Lines:
    failure = None

    def __init__(self, *lines: bytes) -> None:
        self.lines = list(lines)

    async def receive(self) -> bytes | None:
        return self.lines.pop(0) if self.lines else None


async def take(line: bytes, message: Any) -> Any:
    return await receive(Lines(line), message, peer="the peer", own="this side", host="h")  # type: ignore[arg-type]


MESSAGES = [
    PairStart(protocol=1, software="x", borrower="bob", wanted=(ResourceKind.CPU,), share="41" * 33),
    PairAnswer(protocol=1, software="x", lender="small", share="42" * 33),
    PairProof(proof="0" * 64),
    Paired(borrower="bob", grants=ALL, proof="f" * 64),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
async def test_messages_come_back(message: msgspec.Struct) -> None:
    assert await take(msgspec.json.encode(message), type(message)) == message


@given(st.sampled_from(MESSAGES), st.data())
def test_anything_else_is_a_known_error(message: msgspec.Struct, data: st.DataObject) -> None:
    line = bytearray(msgspec.json.encode(message))
    if data.draw(st.booleans()):
        line = bytearray(data.draw(st.binary(max_size=100)))
    for _ in range(data.draw(st.integers(0, 3)) if line else 0):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    try:
        received = asyncio.run(take(bytes(line), type(message)))
    except VmcoalError:
        return
    assert isinstance(received, type(message))


async def test_the_peer_going_away_and_refusing() -> None:
    with pytest.raises(UnreachableError, match="the peer broke the pairing off"):
        await receive(Lines(), PairProof, peer="the peer", own="this side", host="h")  # type: ignore[arg-type]
    refusal = b'{"type":"Refuse","error":{"kind":"ConflictError","message":"busy\\u001b"}}'
    with pytest.raises(VmcoalError, match=r"busy\?") as caught:
        await take(refusal, PairProof)
    assert caught.value.host == "h"


def test_codes() -> None:
    codes = {new_code() for _ in range(50)}
    assert len(codes) == 50
    assert all(len(parse_code(code)) == 9 for code in codes)
    assert parse_code(" 123 456.789\n") == parse_code("123-456-789") == "123456789"
    for bad in ("", "12345678", "1234567890", "12345678a", "１23456789"):
        with pytest.raises(UsageError):
            parse_code(bad)


def test_grants_have_one_order() -> None:
    assert ordered([ResourceKind.GPU, ResourceKind.MEMORY, ResourceKind.GPU]) == (ResourceKind.MEMORY, ResourceKind.GPU)
