"""The exchange of pairing: its code, its messages, and the proof that both ends know the one and saw the same keys."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from vmcoal import __version__
from vmcoal.errors import UNREADABLE, UnreachableError, UsageError, VmcoalError
from vmcoal.fabric.messages import PROTOCOL, Refuse
from vmcoal.fabric.wire import ProtocolBreach, check_version, clean, clean_error
from vmcoal.layout import NAME_PATTERN
from vmcoal.model.lease import ResourceKind

if TYPE_CHECKING:
    from vmcoal.fabric.channel import LineChannel

_DIGITS = 9
_HEX_SHARE = re.compile(r"(?:[0-9a-f]{2}){33}")
_HEX_PROOF = re.compile(r"[0-9a-f]{64}")


def new_code() -> str:
    """Return a fresh code: three groups of three digits."""
    digits = f"{secrets.randbelow(10**_DIGITS):0{_DIGITS}d}"
    return "-".join(digits[i : i + 3] for i in range(0, _DIGITS, 3))


def parse_code(text: str) -> str:
    """Return the digits of a code as typed, separators dropped; raises `UsageError` (which does not repeat them)."""
    digits = re.sub(r"[\s.-]", "", text)
    if not re.fullmatch(rf"[0-9]{{{_DIGITS}}}", digits):
        raise UsageError(
            f"a pairing code has {_DIGITS} digits", hint="type it as vmcoal lend pair shows it: 123-456-789"
        )
    return digits


class _Pairing(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True, kw_only=True):
    pass


class PairStart(_Pairing, frozen=True, kw_only=True):
    """Borrower: the name it proposes for itself, the kinds it wants (``None``: what there is), its SPAKE2 share."""

    protocol: int
    software: str
    borrower: str
    wanted: tuple[ResourceKind, ...] | None
    share: str


class PairAnswer(_Pairing, frozen=True, kw_only=True):
    """Lender: its own name and its SPAKE2 share."""

    protocol: int
    software: str
    lender: str
    share: str


class PairProof(_Pairing, frozen=True, kw_only=True):
    """Borrower: the proof that it knows the code and sees the keys that the lender sees."""

    proof: str


class Paired(_Pairing, frozen=True, kw_only=True):
    """Lender: the same proof, also over what it pinned: the borrower's name there and its grants."""

    borrower: str
    grants: tuple[ResourceKind, ...]
    proof: str


M = TypeVar("M", PairStart, PairAnswer, PairProof, Paired)


class Secret:
    """One side's SPAKE2 run, and the proofs made from it.

    ``host_key`` and ``borrower_key`` are the SSH keys as this side sees them. Raises `UsageError` for an ill-formed
    code.
    """

    def __init__(self, code: str, *, lender: bool, host_key: str, borrower_key: str) -> None:
        import spake2

        run = spake2.SPAKE2_B if lender else spake2.SPAKE2_A
        self._run = run(parse_code(code).encode(), idA=borrower_key.encode(), idB=host_key.encode())
        self._keys = (host_key, borrower_key)
        self._key = b""
        self._transcript: list[object] = []

    async def share(self) -> str:
        """Return this side's message; it takes milliseconds of arithmetic in Python, so off the loop."""
        message: bytes = await asyncio.to_thread(self._run.start)
        return message.hex()

    async def finish(self, start: PairStart, answer: PairAnswer, theirs: str) -> None:
        """Derive the key from ``theirs``, the other side's share; raises `ProtocolBreach` if it is none."""
        try:
            self._key = await asyncio.to_thread(self._run.finish, bytes.fromhex(theirs))
        except Exception as error:  # ValueError, AssertionError and its own errors: all say that the share is bad
            raise ProtocolBreach("not a SPAKE2 share") from error
        self._transcript = ["vmcoal pairing", PROTOCOL, *self._keys, start, answer]

    def borrower_proof(self) -> str:
        """Return the borrower's proof."""
        return self._proof("borrower", [])

    def lender_proof(self, borrower: str, grants: tuple[ResourceKind, ...]) -> str:
        """Return the lender's proof, over what it pinned."""
        return self._proof("lender", [borrower, grants])

    def _proof(self, who: str, more: list[object]) -> str:
        key = hmac.digest(self._key, f"vmcoal pairing {who}".encode(), hashlib.sha256)
        return hmac.digest(key, msgspec.json.encode([*self._transcript, *more]), hashlib.sha256).hex()


async def receive(channel: LineChannel[bytes], message: type[M], *, peer: str, own: str, host: str | None = None) -> M:
    """Return the next message, which must be a ``message``; ``peer`` and ``own`` the sides in words.

    Raises `ProtocolBreach`, `UnreachableError` if the peer is gone, `PrerequisiteError` if it speaks another version,
    and the error of a `Refuse`; ``host`` is named in them.
    """
    line = await channel.receive()
    if line is None:
        raise channel.failure or UnreachableError(f"{peer} broke the pairing off", host=host, hint="try again")
    check_version(line, message.__name__, peer=peer, own=own, software=__version__)
    try:
        received: M | Refuse = msgspec.json.decode(line, type=message | Refuse)
    except UNREADABLE as error:
        raise ProtocolBreach(f"not a message of pairing: {clean(str(error))}") from None
    if isinstance(received, Refuse):
        refusal = VmcoalError.from_wire(clean_error(received.error))
        refusal.host = host
        raise refusal
    _check(received)
    return received


def _check(message: PairStart | PairAnswer | PairProof | Paired) -> None:
    match message:
        case PairStart(borrower=name) | PairAnswer(lender=name):
            if not NAME_PATTERN.fullmatch(name) or not _HEX_SHARE.fullmatch(message.share):
                raise ProtocolBreach("an ill-formed name or share")
        case PairProof(proof=proof):
            if not _HEX_PROOF.fullmatch(proof):
                raise ProtocolBreach("an ill-formed proof")
        case Paired(proof=proof, borrower=name, grants=grants):
            if not _HEX_PROOF.fullmatch(proof) or not NAME_PATTERN.fullmatch(name) or grants != ordered(grants):
                raise ProtocolBreach("an ill-formed proof, name or grant")


def ordered(grants: Iterable[ResourceKind]) -> tuple[ResourceKind, ...]:
    """Return kinds of resources without repetition, in one order."""
    chosen = set(grants)
    return tuple(kind for kind in ResourceKind if kind in chosen)
