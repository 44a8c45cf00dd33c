"""Pairing: two hosts that have never met pin each other's keys, proven by a short code that a person carries over.

The lender's operator opens a `PairingWindow` and reads its code to the borrower's user. While it is open, strangers may
log in, to the pairing subsystem only. Both ends run SPAKE2 (RFC 9382, package ``spake2``) with the code as password and
the SSH keys each *sees* as identities, then prove to each other, borrower first, that they came to the same key over
the same transcript: both SSH keys, both names, the grants and the protocol version. Somebody between the two has other
keys, so the transcripts differ and the proof fails.

Nine digits (30 bits) are enough: a code cannot be tried offline, each exchange is one guess, and a window counts each
exchange before it answers and closes after three, at its timeout, or when one succeeded. A stranger on the network can
so use up the tries of an open window, not get in: the operator sees it and opens another one.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

from vmcoal import __version__
from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    RefusedError,
    UnreachableError,
    UsageError,
    VmcoalError,
)
from vmcoal.fabric.identity import BorrowerRecord, Identity, LenderRecord, RecordStore
from vmcoal.fabric.messages import PROTOCOL
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
from vmcoal.fabric.wire import ProtocolBreach, encode
from vmcoal.layout import check_name
from vmcoal.model.lease import ResourceKind

if TYPE_CHECKING:
    from vmcoal.fabric.channel import ServerChannel

__all__ = ["DEFAULT_GRANTS", "MEANING", "PairingWindow", "explain", "new_code", "pair", "parse_code"]

log = logging.getLogger("vmcoal.fabric.pairing")

TRIES = 3
_EXCHANGE_SECONDS = 40.0

DEFAULT_GRANTS = (ResourceKind.MEMORY,)

MEANING: dict[ResourceKind, str] = {
    ResourceKind.MEMORY: (
        "memory: parts of the guest's RAM are kept on the lender, sealed by the page engine, so that nobody there can "
        "read or change them; a VM that falls back to FUSE (vmcoal status) has them there unsealed"
    ),
    ResourceKind.CPU: (
        "cpu: a lender that executes a vCPU of the guest can read and change all of the guest's RAM; a vCPU of engine "
        "local executes on this host and gives the lender nothing"
    ),
    ResourceKind.GPU: "gpu: the lender sees, and can change, every buffer that the guest computes on there",
}
"""What borrowing each kind means for the borrower's trust in the lender, for people."""


def explain(grants: Iterable[ResourceKind]) -> tuple[str, ...]:
    """Return what each grant lets the lender do, one line each."""
    return tuple(MEANING[kind] for kind in ResourceKind if kind in set(grants))


class PairingWindow:
    """The time in which a lender lets one stranger pair, who proves the ``code``.

    ``grants`` what it may borrow from then on; ``borrower_name`` what to call it, else the name it proposes (or the one
    it has here already); ``store`` where it is pinned; ``tell`` gets a line for the operator for each failed try. The
    window opens when it is made, in a running loop, and lasts ``timeout`` seconds; give it to
    `vmcoal.fabric.server.FabricServer.open_pairing` and `wait` for it.
    """

    def __init__(
        self,
        code: str,
        store: RecordStore[BorrowerRecord],
        grants: Iterable[ResourceKind] = DEFAULT_GRANTS,
        *,
        borrower_name: str | None = None,
        timeout: float = 300.0,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        if borrower_name is not None:
            check_name(borrower_name, "borrower")
        self.grants = ordered(grants)
        if not self.grants:
            raise UsageError("a pairing that grants nothing", hint="grant memory, cpu or gpu")
        self.timeout = timeout
        self._code = parse_code(code)
        self._store = store
        self._name = borrower_name
        self._tell = tell
        self._tries = TRIES
        self._running = 0
        loop = asyncio.get_running_loop()
        self._result: asyncio.Future[BorrowerRecord] = loop.create_future()
        self._timer = loop.call_later(timeout, self._expire)

    def __repr__(self) -> str:
        return f"PairingWindow({'open' if self.is_open else 'closed'}, {self._tries} tries left)"

    @property
    def is_open(self) -> bool:
        """Whether strangers may log in to pair."""
        return not self._result.done() and self._tries > 0

    @property
    def tries_left(self) -> int:
        """How many more exchanges may begin."""
        return self._tries

    async def wait(self) -> BorrowerRecord:
        """Return the borrower that paired.

        Raises `DeadlineError` when the time is over, `RefusedError` after too many tries, `ConflictError` if the
        operator closed the window.
        """
        return await asyncio.shield(self._result)

    def close(self) -> None:
        """Close the window. Idempotent."""
        self._end(ConflictError("the pairing window was closed"))

    async def serve(
        self, channel: ServerChannel[bytes], *, lender: str, host_key: str, borrower_key: str, source: str
    ) -> None:
        """Run one exchange with a stranger; whatever happens in it stays in it."""
        self._running += 1
        try:
            async with asyncio.timeout(_EXCHANGE_SECONDS):
                await self._exchange(channel, lender, host_key, borrower_key, source)
        except TimeoutError:
            channel.fail(DeadlineError(f"the pairing did not finish within {_EXCHANGE_SECONDS:g} s"))
        except VmcoalError as error:
            channel.fail(error)
        finally:
            self._running -= 1
            channel.close()
            if self._tries <= 0 and not self._running:
                self._end(
                    RefusedError(
                        f"{TRIES} exchanges failed, the window is closed",
                        hint="open another one, with a fresh code: vmcoal lend pair",
                    )
                )

    async def _exchange(
        self, channel: ServerChannel[bytes], lender: str, host_key: str, borrower_key: str, source: str
    ) -> None:
        start = await receive(channel, PairStart, peer="the borrower", own="the lender")
        if not self.is_open:
            raise _closed()
        self._tries -= 1
        secret = Secret(self._code, lender=True, host_key=host_key, borrower_key=borrower_key)
        answer = PairAnswer(protocol=PROTOCOL, software=__version__, lender=lender, share=await secret.share())
        await secret.finish(start, answer, start.share)
        channel.send(encode(answer))
        try:
            proof = await receive(channel, PairProof, peer="the borrower", own="the lender")
        except (VmcoalError, asyncio.CancelledError):
            self._say(f"{source} began to pair and broke off; {self._left()}")
            raise
        if not hmac.compare_digest(secret.borrower_proof().encode(), proof.proof.encode()):
            self._say(f"{source} tried a wrong code; {self._left()}")
            raise RefusedError(
                "the code is wrong, or somebody is between the two hosts",
                hint=f"{self._left()}: type the code again" if self.is_open else _closed().hint,
            )
        if self._result.done():
            raise _closed()
        try:
            record = self._pin(start, borrower_key)
        except VmcoalError:
            self._tries += 1
            raise
        channel.send(
            encode(
                Paired(
                    borrower=record.name, grants=record.grants, proof=secret.lender_proof(record.name, record.grants)
                )
            )
        )
        log.info("paired with %s (%s) from %s", record.name, ", ".join(record.grants), source)
        self._timer.cancel()
        self._result.set_result(record)

    def _pin(self, start: PairStart, borrower_key: str) -> BorrowerRecord:
        wanted = self.grants if start.wanted is None else ordered(start.wanted)
        if not wanted or not set(wanted) <= set(self.grants):
            raise RefusedError(
                f"this window grants {', '.join(self.grants)}, and {', '.join(wanted) or 'nothing'} was asked for",
                hint="ask for less, or ask its operator to open another one: vmcoal lend pair --grant",
            )
        known = self._store.by_key(borrower_key)
        name = self._name or (known.name if known is not None else start.borrower)
        record = BorrowerRecord(name=name, public_key=borrower_key, grants=wanted, paired_at=time.time())
        if known is not None and known.name != name:
            self._store.remove(known.name)
        self._store.add(record, replace=self._name is not None)
        return record

    def _left(self) -> str:
        return f"{self._tries} {'try' if self._tries == 1 else 'tries'} left"

    def _say(self, line: str) -> None:
        log.warning("%s", line)
        if self._tell is not None:
            self._tell(line)

    def _expire(self) -> None:
        self._end(DeadlineError(f"nobody paired within {self.timeout:g} s", hint="open another one: vmcoal lend pair"))

    def _end(self, error: VmcoalError) -> None:
        self._timer.cancel()
        if not self._result.done():
            self._result.set_exception(error)
            self._result.exception()  # whoever waits gets it; nobody needs to


async def pair(
    host: str,
    port: int,
    code: str,
    *,
    identity: Identity,
    borrower: str,
    store: RecordStore[LenderRecord],
    name: str | None = None,
    wanted: Iterable[ResourceKind] | None = None,
    deadline: float = 60.0,
) -> LenderRecord:
    """Pair with the lender at ``host``, whose window shows ``code``, and pin it in ``store``.

    ``borrower`` the name to propose for this host; ``name`` what to call the lender here, else the name it has here
    already or gives itself; ``wanted`` the kinds to be granted, ``None``: all that the window grants. What was granted
    is in the record; `explain` says what it means. Raises `UsageError` (code, names), `RefusedError` (no window, wrong
    code, grants), `ConflictError` (name taken), `PrerequisiteError` (protocol version), `UnreachableError` and
    `DeadlineError`.
    """
    code = parse_code(code)
    check_name(borrower, "borrower")
    if name is not None:
        check_name(name, "lender")
    asked = None if wanted is None else ordered(wanted)
    try:
        async with asyncio.timeout(deadline):
            return await _pair(host, port, code, identity, borrower, store, name, asked, deadline)
    except TimeoutError:
        raise DeadlineError(
            f"pairing did not finish within {deadline:g} s", host=host, hint="check the link and try again"
        ) from None


async def _pair(
    host: str,
    port: int,
    code: str,
    identity: Identity,
    borrower: str,
    store: RecordStore[LenderRecord],
    name: str | None,
    wanted: tuple[ResourceKind, ...] | None,
    deadline: float,
) -> LenderRecord:
    import asyncssh

    from vmcoal.fabric.channel import PAIR_SUBSYSTEM, PAIR_USER, ClientChannel, PinnedClient, open_client

    client = PinnedClient(None)
    connection = await open_client(host, port, identity, PAIR_USER, client, name=host, deadline=deadline)
    try:
        assert client.saw is not None
        channel = ClientChannel[bytes](lambda line: line)
        try:
            await connection.create_session(lambda: channel, subsystem=PAIR_SUBSYSTEM, encoding=None)
        except asyncssh.Error as error:
            raise UnreachableError("it let us log in but not pair", host=host, hint="try again") from error
        try:
            secret = Secret(code, lender=False, host_key=client.saw, borrower_key=identity.public)
            start = PairStart(
                protocol=PROTOCOL,
                software=__version__,
                borrower=borrower,
                wanted=wanted,
                share=await secret.share(),
            )
            channel.send(encode(start))
            answer = await receive(channel, PairAnswer, peer="the lender", own="this host", host=host)
            record, replace = _record(host, port, client.saw, store, name or answer.lender, named=name is not None)
            await secret.finish(start, answer, answer.share)
            channel.send(encode(PairProof(proof=secret.borrower_proof())))
            paired = await receive(channel, Paired, peer="the lender", own="this host", host=host)
            expected = secret.lender_proof(paired.borrower, paired.grants)
            if not hmac.compare_digest(expected.encode(), paired.proof.encode()):
                raise RefusedError(
                    "the other side does not know the code: nothing was pinned",
                    host=host,
                    hint="check the address; somebody may be between the two hosts",
                )
        except ProtocolBreach as breach:
            channel.fail(breach)
            raise UnreachableError(f"it does not pair as a lender does: {breach.message}", host=host) from breach
        record = msgspec.structs.replace(record, grants=paired.grants)
        store.add(record, replace=replace)
        channel.close()
        return record
    finally:
        connection.abort()
        await connection.wait_closed()


def _record(
    host: str, port: int, host_key: str, store: RecordStore[LenderRecord], name: str, *, named: bool
) -> tuple[LenderRecord, bool]:
    """Return the record to pin, without grants, and whether it replaces one: checked before anything is proven."""
    known = store.by_key(host_key)
    if known is not None and not named:
        name = known.name
    record = LenderRecord(name=name, host=host, port=port, host_key=host_key, grants=())
    try:
        old = store.get(name)
    except NotFoundError:
        old = None
    reinstalled = old is not None and (old.host, old.port) == (host, port)
    if not reinstalled:
        store.check(record)
    return record, reinstalled


def _closed() -> RefusedError:
    return RefusedError("the pairing window is closed", hint="its operator opens another one: vmcoal lend pair")
