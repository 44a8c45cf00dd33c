"""The borrower's end: one session with one lender, requests as methods; how they find their answers is `Exchange`'s.

Cheap to import: asyncssh is imported when a session is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING

import msgspec

from vmcoal import __version__
from vmcoal.errors import DeadlineError, UnreachableError, VmcoalError
from vmcoal.fabric import messages as m
from vmcoal.fabric.exchange import Exchange
from vmcoal.fabric.identity import Identity, LenderRecord
from vmcoal.fabric.probe import boot_id, connect_rtt, kernel_rtt, same_boot, sample_link
from vmcoal.fabric.wire import ProtocolBreach, clean
from vmcoal.layout import check_name
from vmcoal.model.gpu import GpuServer
from vmcoal.model.lease import Lease, LeaseTerms, Offer, ResourceKind
from vmcoal.model.link import LinkSample

if TYPE_CHECKING:
    import asyncssh

    from vmcoal.fabric.channel import ClientChannel

_DEADLINE = 10.0
_CLEANUP = 2.0
_CONNECT = 3.0


class LenderSession:
    """A session with one lender for one VM; made by `connect`.

    Every request has a deadline in seconds and raises `DeadlineError` when it is over, `UnreachableError` when the
    session ends before the answer, and the lender's own error when it refuses; each names the lender. An answer that
    does not fit its request ends the session. ``welcome`` is what the lender said of itself; ``peer_address`` the IP
    address connected to, where its data planes listen too; ``same_host`` whether both ends run on one kernel;
    ``closed`` is done when the session is over, with the reason, or ``None`` after `close`; wait with `wait_closed`, as
    a cancelled waiter cancels a future for all.
    """

    welcome: m.Welcome
    peer_address: str
    same_host: bool

    def __init__(self, record: LenderRecord, vm: str, *, software: str) -> None:
        self.record = record
        self.vm = vm
        self._software = software
        self._exchange = Exchange(record.name, software=software)
        self.closed = self._exchange.closed
        self._connection: asyncssh.SSHClientConnection | None = None
        self._left = False
        self._watcher: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"LenderSession({self.name} for {self.vm}{', closed' if self._exchange.ended.is_set() else ''})"

    @property
    def name(self) -> str:
        """The lender's name here."""
        return self.record.name

    @property
    def grants(self) -> tuple[ResourceKind, ...]:
        """The kinds this host may borrow, as the lender said at the beginning of this session."""
        return self.welcome.grants

    @classmethod
    async def connect(
        cls,
        record: LenderRecord,
        identity: Identity,
        vm: str,
        *,
        deadline: float = _DEADLINE,
        software: str = __version__,
    ) -> LenderSession:
        """Connect to ``record``'s lender for VM ``vm`` within ``deadline`` seconds; nothing is left open on failure.

        Raises `UnreachableError` (nothing listens, no route, broke off), `PrerequisiteError` (its host key changed, or
        it speaks another protocol version), `RefusedError` (not paired, or it said no) and `DeadlineError`.
        """
        session = cls(record, check_name(vm), software=software)
        try:
            async with asyncio.timeout(deadline):
                await session._open(identity, deadline)
        except TimeoutError:
            await session._drop()
            raise DeadlineError(
                f"no session with {record.address} within {deadline:g} s",
                host=record.name,
                hint="check that it is up: vmcoal ping, or give it more time",
            ) from None
        except BaseException:
            await session._drop()
            raise
        return session

    async def offer(self, *, deadline: float = _DEADLINE) -> Offer:
        """Return what the lender would lend now."""
        message = m.GetOffer(id=self._exchange.id())
        reply = await self._exchange.call(message, m.OfferReply, "asking for the offer", deadline)
        return msgspec.structs.replace(reply.offer, lender=self.name, same_host=self.same_host)

    async def request(
        self,
        kind: ResourceKind,
        amount: int,
        *,
        committed: int | None = None,
        terms: LeaseTerms | None = None,
        token: str,
        deadline: float = _DEADLINE,
    ) -> m.Granted:
        """Ask for a lease of ``amount`` bytes, vCPUs or GPUs, of which ``committed`` (default: all) count as in use.

        ``terms`` are wishes; the lease says what they became. The same ``token`` gets the same lease, in this session
        or a later one, so a request may be repeated after it broke off.
        """
        wish = terms or LeaseTerms()
        message = m.Request(
            id=self._exchange.id(),
            token=token,
            kind=kind,
            amount=amount,
            committed=amount if committed is None else committed,
            ttl=wish.ttl,
            grace=wish.grace,
        )
        granted = await self._exchange.call(message, m.Granted, f"asking for {kind}", deadline)
        lease = granted.lease
        if lease.kind is not kind or lease.amount != amount or lease.vm != self.vm:
            raise self._exchange.breach("a grant of something else than was asked for")
        return self._granted(granted)

    async def report(self, lease: str, epoch: int, event: str, *, deadline: float = _DEADLINE) -> Lease:
        """Tell a lease's progress: ``attach``, ``plugged`` or ``drain``."""
        message = m.Report(id=self._exchange.id(), lease=lease, epoch=epoch, event=event)
        return await self._lease(message, f"reporting {event} of lease {lease}", deadline)

    async def renew(self, leases: Iterable[tuple[str, int]], *, deadline: float = _DEADLINE) -> tuple[Lease, ...]:
        """Heartbeat for (lease, epoch) pairs; returns those that live on, one that is missing is gone."""
        asked = tuple(leases)
        message = m.Renew(id=self._exchange.id(), leases=asked)
        reply = await self._exchange.call(message, m.Renewed, "renewing leases", deadline)
        if not {lease.id for lease in reply.leases} <= {lease for lease, _ in asked}:
            raise self._exchange.breach("a renewal of a lease that is not ours")
        return tuple(self._named(lease) for lease in reply.leases)

    async def resize(self, lease: str, epoch: int, committed: int, *, deadline: float = _DEADLINE) -> Lease:
        """Change the committed bytes of a granular memory lease."""
        message = m.Resize(id=self._exchange.id(), lease=lease, epoch=epoch, committed=committed)
        return await self._lease(message, f"resizing lease {lease}", deadline)

    async def resume(self, lease: str, epoch: int, *, deadline: float = _DEADLINE) -> m.Granted:
        """Ask, in a new session, for the server of a lease made in an earlier one."""
        message = m.Resume(id=self._exchange.id(), lease=lease, epoch=epoch)
        granted = await self._exchange.call(message, m.Granted, f"resuming lease {lease}", deadline)
        if granted.lease.id != lease or granted.lease.vm != self.vm:
            raise self._exchange.breach("an answer about another lease")
        return self._granted(granted)

    async def release(self, lease: str, epoch: int, *, deadline: float = _DEADLINE) -> Lease:
        """Give a lease back. Idempotent."""
        message = m.Release(id=self._exchange.id(), lease=lease, epoch=epoch)
        return await self._lease(message, f"releasing lease {lease}", deadline)

    async def ping(self, *, deadline: float = _DEADLINE) -> float:
        """Return the round trip of one message in seconds."""
        begin = time.perf_counter()
        await self._exchange.call(m.Ping(id=self._exchange.id()), m.Pong, "a ping", deadline)
        return time.perf_counter() - begin

    async def sample_link(self, count: int = 10, *, deadline: float = _DEADLINE) -> LinkSample:
        """Measure the link with ``count`` round trips of messages, and what the kernels see of new connections."""
        try:
            async with asyncio.timeout(deadline):
                return await sample_link(lambda: self.ping(deadline=deadline), self._kernel_rtt, count)
        except TimeoutError:
            raise self._exchange.late(f"measuring {count} round trips", deadline) from None

    def events(self) -> AsyncIterator[m.Revoke | m.Notice]:
        """Yield what the lender tells unasked, as `Exchange.events`."""
        return self._exchange.events()

    def data_address(self, server: m.MemoryServer | GpuServer) -> str:
        """Return the IP address of a lease's server."""
        return server.address or self.peer_address

    async def wait_closed(self) -> VmcoalError | None:
        """Wait until the session is over; return the reason, or ``None`` after `close`."""
        return await self._exchange.wait_ended()

    async def close(self, *, deadline: float = 3.0) -> None:
        """End the session; its leases live on until they are released or expire. Idempotent."""
        self._left = True
        if self._exchange.channel is not None:
            self._exchange.channel.close()
            await self._exchange.channel.wait_ended(deadline)
        await self._drop()

    async def _open(self, identity: Identity, deadline: float) -> None:
        import asyncssh

        from vmcoal.fabric.channel import SUBSYSTEM, USER, ClientChannel, PinnedClient, open_client

        host, port = self.record.host, self.record.port
        client = PinnedClient(self.record.host_key)
        self._connection = await open_client(host, port, identity, USER, client, name=self.name, deadline=deadline)
        self.peer_address = str(self._connection.get_extra_info("peername")[0])
        channel = self._exchange.channel = ClientChannel[None](self._exchange.take)
        try:
            await self._connection.create_session(lambda: channel, subsystem=SUBSYSTEM, encoding=None)
        except (asyncssh.Error, OSError) as error:
            raise UnreachableError(
                "the lender let us log in but opened no session", host=self.name, hint="see the lender's log"
            ) from error
        self._watcher = asyncio.create_task(self._watch(channel), name=f"lender-session-{self.name}")
        own_boot = boot_id()
        self.welcome = welcome = await self._exchange.greet(
            m.Hello(protocol=m.PROTOCOL, software=self._software, vm=self.vm, boot_id=own_boot)
        )
        self.same_host = same_boot(welcome.boot_id, own_boot)

    async def _drop(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLEANUP):
                    await self._connection.wait_closed()
        if self._watcher is not None:
            await asyncio.wait({self._watcher}, timeout=_CLEANUP)
        self._exchange.end(None)

    async def _watch(self, channel: ClientChannel[None]) -> None:
        await asyncio.shield(channel.ended)
        self._exchange.end(self._reason(channel))

    def _reason(self, channel: ClientChannel[None]) -> VmcoalError | None:
        failure = channel.failure
        if self._exchange.refused is not None:
            return self._exchange.refused
        if isinstance(failure, ProtocolBreach):
            return self._exchange.broke(failure)
        if failure is not None:
            failure.host = self.name
            return failure
        if self._left:
            return None
        why = f": {clean(str(channel.lost))}" if channel.lost is not None else ""
        return UnreachableError(
            f"the lender ended the session{why}", host=self.name, hint=f"check that it is up: vmcoal ping {self.name}"
        )

    async def _lease(self, message: m.Report | m.Resize | m.Release, what: str, deadline: float) -> Lease:
        reply = await self._exchange.call(message, m.LeaseReply, what, deadline)
        if reply.lease.id != message.lease:
            raise self._exchange.breach("an answer about another lease")
        return self._named(reply.lease)

    def _named(self, lease: Lease) -> Lease:
        return msgspec.structs.replace(lease, lender=self.name)

    def _granted(self, granted: m.Granted) -> m.Granted:
        return msgspec.structs.replace(granted, lease=self._named(granted.lease))

    async def _kernel_rtt(self) -> float | None:
        rtt = await connect_rtt(self.peer_address, self.record.port, deadline=_CONNECT)
        if rtt is not None:
            return rtt
        sock = self._connection.get_extra_info("socket") if self._connection is not None else None
        return kernel_rtt(sock) if sock is not None else None
