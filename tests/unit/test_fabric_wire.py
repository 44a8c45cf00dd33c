"""The codec: whatever was encoded comes back, and whatever else arrives is refused and nothing worse."""

from __future__ import annotations

import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcoal.errors import InternalError, PrerequisiteError, RefusedError, VmcoalError, WireError
from vmcoal.fabric import messages as m
from vmcoal.fabric.wire import (
    SHORTEST_HEARTBEAT,
    LineBuffer,
    ProtocolBreach,
    check_version,
    clean,
    clean_error,
    decode_from_borrower,
    decode_from_lender,
    encode,
)
from vmcoal.model.gpu import GpuDevice, GpuKind, GpuServer
from vmcoal.model.lease import Lease, LeaseState, LeaseTerms, Offer, ResourceKind

pytestmark = pytest.mark.unit

ids = st.integers(1, (1 << 53) - 1)
names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", fullmatch=True)
lease_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
epochs = st.integers(0, (1 << 53) - 1)
seconds = st.floats(0, 366 * 86400.0)
positive = st.floats(SHORTEST_HEARTBEAT, 366 * 86400.0)
amounts = st.integers(1, 1 << 52)
software = st.from_regex(r"[ -~]{0,64}", fullmatch=True)
boot_ids = st.just("") | st.uuids().map(str)
kinds = st.sampled_from(ResourceKind)
ports = st.integers(1, 65535)
exports = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}", fullmatch=True)
keys = st.binary(min_size=16, max_size=64).map(bytes.hex)
terms = st.builds(LeaseTerms, positive, positive, seconds)
texts = st.text(max_size=50)
errors = st.builds(WireError, texts, texts, st.none() | texts, st.none() | texts, st.none() | texts)


@st.composite
def leases(draw: st.DrawFn, kind: st.SearchStrategy[ResourceKind] = kinds) -> Lease:
    amount = draw(amounts)
    return Lease(
        draw(lease_ids),
        draw(kind),
        amount,
        draw(st.integers(0, amount)),
        draw(st.sampled_from(LeaseState)),
        draw(epochs),
        draw(names),
        draw(names),
        draw(names),
        draw(terms),
    )


@st.composite
def offers(draw: st.DrawFn) -> Offer:
    gpus = draw(st.lists(devices, max_size=4).map(tuple))
    totals = [*(draw(st.integers(0, 1 << 52)) for _ in range(2)), draw(st.integers(len(gpus), 64))]
    free = [*(draw(st.integers(0, total)) for total in totals[:2]), len(gpus)]
    pairs = [value for both in zip(free, totals, strict=True) for value in both]
    return Offer(draw(names), *pairs, gpus=gpus, cordoned=draw(st.booleans()), same_host=draw(st.booleans()))


texts = st.text(st.characters(categories=["L", "N", "P"]), max_size=128)
devices = st.builds(
    GpuDevice,
    name=texts,
    kind=st.sampled_from(GpuKind),
    memory=st.integers(0, 1 << 52),
    vendor=texts,
    driver=texts,
    platform=st.integers(0, 16),
    index=st.integers(0, 16),
)
addresses = st.none() | st.ip_addresses().map(str).filter(lambda x: "%" not in x)


@st.composite
def grants(draw: st.DrawFn) -> m.Granted:
    lease = draw(leases())
    server = {
        ResourceKind.MEMORY: ("memory", st.builds(m.MemoryServer, ports, exports, exports, keys, addresses)),
        ResourceKind.GPU: ("gpu", st.builds(GpuServer, ports, exports, keys, devices, addresses)),
    }.get(lease.kind)
    return m.Granted(id=draw(ids), lease=lease, **({server[0]: draw(server[1])} if server else {}))


@st.composite
def requests(draw: st.DrawFn) -> m.Request:
    amount = draw(amounts)
    return m.Request(
        id=draw(ids),
        token=draw(lease_ids),
        kind=draw(kinds),
        amount=amount,
        committed=draw(st.integers(0, amount)),
        ttl=draw(seconds),
        grace=draw(seconds),
    )


about_lease = {"id": ids, "lease": lease_ids, "epoch": epochs}
refusals = st.builds(m.Refuse, id=st.just(0) | ids, error=errors)
MESSAGES: dict[type[msgspec.Struct], st.SearchStrategy[msgspec.Struct]] = {
    m.Hello: st.builds(m.Hello, protocol=st.just(m.PROTOCOL), software=software, vm=names, boot_id=boot_ids),
    m.Welcome: st.builds(
        m.Welcome,
        protocol=st.just(m.PROTOCOL),
        software=software,
        lender=names,
        boot_id=boot_ids,
        borrower=names,
        grants=st.lists(kinds, max_size=3).map(tuple),
    ),
    m.Refuse: refusals,
    m.Ping: st.builds(m.Ping, id=ids),
    m.Pong: st.builds(m.Pong, id=ids),
    m.GetOffer: st.builds(m.GetOffer, id=ids),
    m.OfferReply: st.builds(m.OfferReply, id=ids, offer=offers()),
    m.Request: requests(),
    m.Granted: grants(),
    m.Report: st.builds(m.Report, **about_lease, event=st.sampled_from(["attach", "plugged", "drain"])),
    m.Renew: st.builds(m.Renew, id=ids, leases=st.lists(st.tuples(lease_ids, epochs), max_size=20).map(tuple)),
    m.Renewed: st.builds(m.Renewed, id=ids, leases=st.lists(leases(), max_size=5).map(tuple)),
    m.Resize: st.builds(m.Resize, **about_lease, committed=st.integers(0, 1 << 52)),
    m.Resume: st.builds(m.Resume, **about_lease),
    m.Release: st.builds(m.Release, **about_lease),
    m.LeaseReply: st.builds(m.LeaseReply, id=ids, lease=leases()),
    m.Revoke: st.builds(m.Revoke, lease=lease_ids, epoch=epochs, deadline=seconds, reason=texts),
    m.Notice: st.builds(m.Notice, text=texts),
}
FROM_BORROWER = typing.get_args(m.FromBorrower)
FROM_LENDER = typing.get_args(m.FromLender)
DECODERS = [decode_from_borrower, decode_from_lender]


def test_every_message_has_a_strategy() -> None:
    assert set(MESSAGES) == {*FROM_BORROWER, *FROM_LENDER}


@given(st.one_of(*(MESSAGES[kind] for kind in FROM_BORROWER)))
def test_what_a_borrower_sends_arrives(message: msgspec.Struct) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert decode_from_borrower(line[:-1]) == message


@given(st.one_of(*(MESSAGES[kind] for kind in FROM_LENDER)))
def test_what_a_lender_sends_arrives(message: msgspec.Struct) -> None:
    assert decode_from_lender(encode(message)[:-1]) == message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = sorted({field for kind in MESSAGES for field in kind.__struct_fields__})


@st.composite
def nearly_messages(draw: st.DrawFn) -> bytes:
    """A real message with some fields replaced by anything, dropped or added."""
    data = msgspec.to_builtins(draw(st.one_of(*MESSAGES.values())))
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        if draw(st.booleans()):
            data[field] = draw(json_values)
        else:
            data.pop(field, None)
    return msgspec.json.encode(data)


@st.composite
def damaged_messages(draw: st.DrawFn) -> bytes:
    """A real message, cut off or with a few bytes changed."""
    line = bytearray(msgspec.json.encode(draw(st.one_of(*MESSAGES.values()))))
    for _ in range(draw(st.integers(0, 3))):
        line[draw(st.integers(0, len(line) - 1))] = draw(st.integers(0, 255))
    return bytes(line[: draw(st.integers(0, len(line)))])


@pytest.mark.parametrize("decode", DECODERS)
@given(line=st.binary(max_size=200) | json_values.map(msgspec.json.encode) | nearly_messages() | damaged_messages())
def test_anything_else_is_refused_and_nothing_worse(decode: typing.Callable[[bytes], object], line: bytes) -> None:
    try:
        message = decode(line)
    except ProtocolBreach as breach:
        assert len(breach.message) < 1200
        assert breach.message.isprintable()
        assert VmcoalError.from_wire(breach.to_wire()).exit_code == RefusedError.exit_code
    else:
        assert isinstance(message, tuple(MESSAGES))


@pytest.mark.parametrize("heartbeat", [0.0, 1e-300, 0.001])
def test_a_lender_does_not_make_a_borrower_spin(heartbeat: float) -> None:
    lease = Lease(
        "l1", ResourceKind.CPU, 1, 1, LeaseState.GRANTED, 1, "a", "b", "vm", LeaseTerms(60.0, heartbeat, 60.0)
    )
    with pytest.raises(ProtocolBreach, match="too short"):
        decode_from_lender(encode(m.LeaseReply(id=1, lease=lease)))


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("line", [b"[" * 60000, b'{"a":' * 10000, b'"\xff"', b'"\\ud800"', b"1e999", b"", b"{}"])
def test_known_traps_of_json(decode: typing.Callable[[bytes], object], line: bytes) -> None:
    with pytest.raises(ProtocolBreach):
        decode(line)


def test_deep_details_of_an_error_are_refused() -> None:
    line = b'{"type":"Refuse","error":{"kind":"x","message":"y","details":{"a":' + b"[" * 20000 + b"]" * 20000 + b"}}}"
    with pytest.raises(ProtocolBreach):
        decode_from_lender(line)


def test_no_borrower_message_reaches_a_borrower_and_none_of_a_lender_a_lender() -> None:
    with pytest.raises(ProtocolBreach):
        decode_from_lender(encode(m.GetOffer(id=1))[:-1])
    with pytest.raises(ProtocolBreach):
        decode_from_borrower(encode(m.Pong(id=1))[:-1])


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=20), st.data())
def test_lines_do_not_depend_on_how_they_arrive(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    buffer = LineBuffer(30)
    got: list[bytes] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += buffer.feed(stream[:size])
        stream = stream[size:]
    assert got == lines


@pytest.mark.parametrize("chunks", [[b"x" * 11], [b"x" * 11 + b"\n"], [b"x" * 6, b"y" * 5], [b"x" * 10, b"y\n"]])
def test_a_line_that_is_too_long_ends_it_at_once(chunks: list[bytes]) -> None:
    buffer = LineBuffer(10)
    with pytest.raises(ProtocolBreach, match="longer than 10 bytes"):
        for chunk in chunks:
            list(buffer.feed(chunk))


def test_lines_before_one_that_is_too_long_count() -> None:
    buffer = LineBuffer(10)
    got = []
    with pytest.raises(ProtocolBreach):
        for line in buffer.feed(b"one\ntwo\n" + b"x" * 11):
            got.append(line)
    assert got == [b"one", b"two"]


def test_a_message_of_our_own_that_is_too_long_is_a_defect() -> None:
    with pytest.raises(InternalError, match="Notice message of"):
        encode(m.Notice(text="x" * m.MAX_LINE))


@pytest.mark.parametrize(("theirs", "upgrade"), [(0, "the borrower"), (2, "the lender")])
def test_versions_are_compared_before_anything_else_is_understood(theirs: int, upgrade: str) -> None:
    line = msgspec.json.encode({"type": "Hello", "protocol": theirs, "software": "9.9\x1b", "novelty": [1]})
    with pytest.raises(PrerequisiteError, match=rf"the borrower speaks protocol {theirs} \(vmcoal 9\.9\?\)") as caught:
        check_version(line, "Hello", peer="the borrower", own="the lender", software="0.1")
    assert caught.value.hint == f"upgrade vmcoal on {upgrade}"
    check_version(line, "Welcome", peer="", own="", software="")


@given(st.binary(max_size=100) | json_values.map(msgspec.json.encode))
def test_a_version_check_raises_nothing_else(line: bytes) -> None:
    try:
        check_version(line, "Hello", peer="a", own="b", software="")
    except PrerequisiteError:
        assert b"Hello" in line


@given(st.text(max_size=3000))
def test_cleaned_text_is_one_printable_line(text: str) -> None:
    cleaned = clean(text)
    assert len(cleaned) <= 1000
    assert not set(cleaned) & {chr(code) for code in [*range(9), *range(10, 32), *range(127, 160)]}


def test_right_to_left_overrides_are_not_text() -> None:
    assert clean("a\u202eb\u2066c\x9b31m\x1b[0m\td\u2028é") == "a?b?c?31m?[0m\td?é"


def test_details_of_a_peers_error_are_dropped() -> None:
    error = clean_error(WireError("RefusedError", "a\nb", "host", None, "\x07", {"deep": [1]}))
    assert error == WireError("RefusedError", "a b", None, None, "?")


def test_a_key_does_not_show_in_a_repr() -> None:
    assert "abab" not in repr(m.MemoryServer(1, "x", "y", "ab" * 16))
