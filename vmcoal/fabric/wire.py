"""Messages to and from lines, and the checks that types alone do not make.

Nothing here trusts the peer: a line is bounded, decoding is strict, numbers have ranges, and every text that becomes a
file name, an export name or a line on a terminal has a bounded alphabet. Whatever a peer sends, the only error that
comes out of here is `ProtocolBreach`.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from vmcoal.errors import UNREADABLE, InternalError, PrerequisiteError, RefusedError, WireError
from vmcoal.fabric import messages as m
from vmcoal.layout import NAME_PATTERN
from vmcoal.model.gpu import GpuDevice
from vmcoal.model.lease import Lease, LeaseTerms, Offer, ResourceKind

LARGEST_AMOUNT = 1 << 52
LONGEST_SECONDS = 366 * 86400.0
SHORTEST_HEARTBEAT = 0.01
"""Seconds; a borrower sends them as often as its lender wants."""
_LONGEST_TEXT = 1000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_EXPORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_GPUS_MAX, _GPU_TEXT_MAX = 16, 128
_PSK = re.compile(r"(?:[0-9a-fA-F]{2}){16,64}")
_WORD = re.compile(r"[a-z][a-z-]{0,31}")
_SOFTWARE = re.compile(r"[ -~]{0,64}")
_BOOT_ID = re.compile(r"[0-9a-f-]{0,36}")
_UNPRINTABLE = re.compile(r"[^\t -~\u00a0-\u2027\u2030-\u2065\u2070-\ud7ff\ue000-\ufdcf\ufdf0-\ufff0]")


class ProtocolBreach(RefusedError):  # noqa: N818 - it crosses the wire as what it is, a refusal
    """The peer broke the protocol; ``id`` of the request in question where one can be told, else 0."""

    def __init__(self, message: str, *, request: int = 0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.id = request

    def to_wire(self) -> WireError:
        """Return the breach as the `RefusedError` that it is for the peer."""
        return WireError("RefusedError", self.message, None, None, self.hint)


class LineBuffer:
    """Splits a byte stream into lines of at most ``limit`` bytes; what is kept is never longer than that."""

    def __init__(self, limit: int = m.MAX_LINE) -> None:
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each complete line of ``data``, without its end; raises `ProtocolBreach` for one that is too long."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if len(self._rest) + end - start > self._limit:
                raise ProtocolBreach(f"a message is longer than {self._limit} bytes")
            line = bytes(self._rest) + data[start:end]
            self._rest.clear()
            start = end + 1
            yield line
        if len(self._rest) + len(data) - start > self._limit:
            raise ProtocolBreach(f"a message is longer than {self._limit} bytes")
        self._rest += data[start:]


def encode(message: msgspec.Struct) -> bytes:
    """Return ``message`` as one line; raises `InternalError` for one that no peer would accept."""
    line = msgspec.json.encode(message)
    if len(line) > m.MAX_LINE:
        raise InternalError(f"a {type(message).__name__} message of {len(line)} bytes does not fit into a line")
    return line + b"\n"


class _Opening(msgspec.Struct):
    type: str = ""
    protocol: int | None = None
    software: str = ""


_opening = msgspec.json.Decoder(_Opening)
_from_borrower: msgspec.json.Decoder[m.FromBorrower] = msgspec.json.Decoder(m.FromBorrower)
_from_lender: msgspec.json.Decoder[m.FromLender] = msgspec.json.Decoder(m.FromLender)


_M = TypeVar("_M", m.FromBorrower, m.FromLender)


def _decode(decoder: msgspec.json.Decoder[_M], line: bytes) -> _M:
    try:
        message = decoder.decode(line)
    except UNREADABLE as error:
        raise ProtocolBreach(f"not a message of protocol {m.PROTOCOL}: {clean(str(error))}") from None
    _check(message)
    return message


def decode_from_borrower(line: bytes) -> m.FromBorrower:
    """Return the message of one line from a borrower; raises `ProtocolBreach`."""
    return _decode(_from_borrower, line)


def decode_from_lender(line: bytes) -> m.FromLender:
    """Return the message of one line from a lender; raises `ProtocolBreach`."""
    return _decode(_from_lender, line)


def check_version(line: bytes, opening: str, *, peer: str, own: str, software: str) -> None:
    """Check the version in a first message, which may come from another version and so have fields unknown here.

    ``opening`` the tag that carries a version, lines with another tag pass; ``peer`` and ``own`` the sides in words.
    Raises `PrerequisiteError` naming both versions and which side to upgrade.
    """
    try:
        first = _opening.decode(line)
    except UNREADABLE:
        return
    if first.type == opening and first.protocol is not None:
        check_protocol(first.protocol, first.software, peer=peer, own=own, software=software)


def check_protocol(protocol: int, theirs: str, *, peer: str, own: str, software: str) -> None:
    """Raise `PrerequisiteError` if the ``peer`` speaks another protocol version than this side, ``own``."""
    if protocol == m.PROTOCOL:
        return
    older = peer if protocol < m.PROTOCOL else own
    raise PrerequisiteError(
        f"{peer} speaks protocol {protocol} (vmcoal {clean(theirs) or 'unknown'}), "
        f"{own} speaks protocol {m.PROTOCOL} (vmcoal {software})",
        hint=f"upgrade vmcoal on {older}",
    )


def clean(text: str) -> str:
    """Return ``text`` from a peer as one bounded line that does nothing to a terminal."""
    text = _UNPRINTABLE.sub("?", text.replace("\n", " "))
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def clean_error(error: WireError) -> WireError:
    """Return an error from a peer with `clean` texts and without details."""
    return WireError(
        error.kind,
        clean(error.message),
        None,
        None if error.left is None else clean(error.left),
        None if error.hint is None else clean(error.hint),
    )


@functools.singledispatch
def _check(message: object) -> None:
    """Check ranges and alphabets of one message; the base case has nothing to check."""


def _need(truth: bool, what: str, request: int = 0) -> None:
    if not truth:
        raise ProtocolBreach(f"the message has {what}", request=request)


def _need_id(request: int) -> None:
    _need(0 < request < 1 << 53, "a request id out of range")


def _need_epoch(epoch: int, request: int = 0) -> None:
    _need(0 <= epoch < 1 << 53, "an epoch out of range", request)


def _need_lease_id(lease: str, request: int = 0) -> None:
    _need(_ID.fullmatch(lease) is not None, "an ill-formed lease id", request)


def _need_seconds(value: float, request: int = 0) -> None:
    _need(0 <= value <= LONGEST_SECONDS, "a duration out of range", request)


def _check_terms(terms: LeaseTerms) -> None:
    for value in (terms.ttl, terms.heartbeat, terms.grace):
        _need_seconds(value)
    _need(terms.ttl > 0 and terms.heartbeat >= SHORTEST_HEARTBEAT, "a TTL or heartbeat that is too short")


def _check_lease(lease: Lease) -> None:
    _need_lease_id(lease.id)
    _need_epoch(lease.epoch)
    _need(0 <= lease.committed <= lease.amount <= LARGEST_AMOUNT and lease.amount > 0, "a lease's amount out of range")
    for name in (lease.lender, lease.borrower, lease.vm):
        _need(NAME_PATTERN.fullmatch(name) is not None, "an ill-formed name")
    _check_terms(lease.terms)


def _check_offer(offer: Offer) -> None:
    _need(NAME_PATTERN.fullmatch(offer.lender) is not None, "an ill-formed name")
    for free, total in (
        (offer.cpus_free, offer.cpus_total),
        (offer.memory_free, offer.memory_total),
        (offer.gpus_free, offer.gpus_total),
    ):
        _need(0 <= free <= total <= LARGEST_AMOUNT, "an offer out of range")
    _need(len(offer.gpus) == offer.gpus_free <= _GPUS_MAX, "an offer out of range")
    for device in offer.gpus:
        _check_gpu(device)


def _check_gpu(device: GpuDevice) -> None:
    for text in (device.name, device.vendor, device.driver, device.address):
        _need(len(text) <= _GPU_TEXT_MAX and text.isprintable(), "an ill-formed name of a GPU")
    _need(0 <= device.memory <= LARGEST_AMOUNT, "a GPU's memory out of range")
    _need(0 <= device.platform <= _GPUS_MAX and 0 <= device.index <= _GPUS_MAX, "a GPU's number out of range")
    _need(device.cuda is None or 0 <= device.cuda <= _GPUS_MAX, "a GPU's number out of range")
    _need(device.opencl or device.cuda is not None, "a GPU that nothing can use")


@_check.register
def _(message: m.Hello) -> None:
    _need(_SOFTWARE.fullmatch(message.software) is not None, "an ill-formed software version")
    _need(NAME_PATTERN.fullmatch(message.vm) is not None, "an ill-formed VM name")
    _need(_BOOT_ID.fullmatch(message.boot_id) is not None, "an ill-formed boot id")


@_check.register
def _(message: m.Welcome) -> None:
    _need(_SOFTWARE.fullmatch(message.software) is not None, "an ill-formed software version")
    _need(_BOOT_ID.fullmatch(message.boot_id) is not None, "an ill-formed boot id")
    for name in (message.lender, message.borrower):
        _need(NAME_PATTERN.fullmatch(name) is not None, "an ill-formed name")


@_check.register(m.Ping)
@_check.register(m.Pong)
@_check.register(m.GetOffer)
def _(message: m.Ping | m.Pong | m.GetOffer) -> None:
    _need_id(message.id)


@_check.register
def _(message: m.Refuse) -> None:
    _need(0 <= message.id < 1 << 53, "a request id out of range")


@_check.register
def _(message: m.OfferReply) -> None:
    _need_id(message.id)
    _check_offer(message.offer)


@_check.register
def _(message: m.Request) -> None:
    _need_id(message.id)
    _need(_ID.fullmatch(message.token) is not None, "an ill-formed token", message.id)
    _need(0 < message.amount <= LARGEST_AMOUNT, "an amount out of range", message.id)
    _need(0 <= message.committed <= message.amount, "committed bytes out of range", message.id)
    _need_seconds(message.ttl, message.id)
    _need_seconds(message.grace, message.id)


@_check.register
def _(message: m.Granted) -> None:
    _need_id(message.id)
    _check_lease(message.lease)
    for one, kind in ((message.memory, ResourceKind.MEMORY), (message.gpu, ResourceKind.GPU)):
        _need((one is not None) == (message.lease.kind is kind), "a grant without its server", message.id)
    if message.memory is not None:
        _need(_EXPORT.fullmatch(message.memory.export) is not None, "an ill-formed export name", message.id)
    if message.gpu is not None:
        _check_gpu(message.gpu.device)
    server = message.memory or message.gpu
    if server is not None:
        _need(0 < server.port < 1 << 16, "a port out of range", message.id)
        _need(_EXPORT.fullmatch(server.psk_identity) is not None, "an ill-formed key identity", message.id)
        _need(_PSK.fullmatch(server.psk) is not None, "an ill-formed key", message.id)
        if server.address is not None:
            _need(_is_address(server.address), "an ill-formed address", message.id)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


@_check.register(m.Report)
@_check.register(m.Resize)
@_check.register(m.Resume)
@_check.register(m.Release)
def _(message: m.Report | m.Resize | m.Resume | m.Release) -> None:
    _need_id(message.id)
    _need_lease_id(message.lease, message.id)
    _need_epoch(message.epoch, message.id)
    if isinstance(message, m.Report):
        _need(_WORD.fullmatch(message.event) is not None, "an ill-formed event", message.id)
    elif isinstance(message, m.Resize):
        _need(0 <= message.committed <= LARGEST_AMOUNT, "committed bytes out of range", message.id)


@_check.register
def _(message: m.Renew) -> None:
    _need_id(message.id)
    for lease, epoch in message.leases:
        _need_lease_id(lease, message.id)
        _need_epoch(epoch, message.id)


@_check.register
def _(message: m.Renewed) -> None:
    _need_id(message.id)
    for lease in message.leases:
        _check_lease(lease)


@_check.register
def _(message: m.LeaseReply) -> None:
    _need_id(message.id)
    _check_lease(message.lease)


@_check.register
def _(message: m.Revoke) -> None:
    _need_lease_id(message.lease)
    _need_epoch(message.epoch)
    _need_seconds(message.deadline)
