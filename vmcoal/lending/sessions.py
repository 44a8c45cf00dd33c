"""What a borrower may say in its session, and what the desk answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from vmcoal.errors import InternalError, RefusedError, VmcoalError
from vmcoal.fabric import messages as m
from vmcoal.fabric.identity import BorrowerRecord
from vmcoal.fabric.peer import Peer
from vmcoal.lending.desk import Desk, Server
from vmcoal.lending.entry import Entry
from vmcoal.model.gpu import GpuServer
from vmcoal.model.lease import Lease

log = logging.getLogger("vmcoal.lending")

AT_ONCE = 8
"""Requests of one session that may be under way; heartbeats do not wait for them."""

_Slow = m.Request | m.Resume | m.Release


class Sessions:
    """The sessions of all borrowers. ``lookup`` finds the record of a public key, or ``None`` if it was forgotten."""

    def __init__(self, desk: Desk, lookup: Callable[[str], BorrowerRecord | None]) -> None:
        self._desk = desk
        self._lookup = lookup
        self._peers: dict[Peer, set[asyncio.Task[None]]] = {}

    async def serve(self, peer: Peer) -> None:
        """Answer one session until it ends."""
        log.info("%r: session began", peer)
        self._desk.book.came(peer.borrower.name, peer.vm, peer.address)
        slow = self._peers[peer] = set()
        if self._desk.book.cordoned:
            self._tell_cordon(peer)
        for entry in self._desk.book.live():  # what an earlier session may not have been told
            if entry.revoke_by is not None and self._same(peer, entry.lease.borrower, entry.lease.vm):
                self._tell_revoked(peer, entry, entry.revoke_by - self._desk.now())
        gate = asyncio.Semaphore(AT_ONCE)
        try:
            async for message in peer:
                if isinstance(message, _Slow):
                    await gate.acquire()
                    task = asyncio.create_task(self._answer(peer, message))
                    slow.add(task)
                    task.add_done_callback(slow.discard)
                    task.add_done_callback(lambda _: gate.release())
                else:
                    await self._answer(peer, message)
        finally:
            del self._peers[peer]
            for task in slow:
                task.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
            log.info("%r: session ended", peer)
            if not any(self._same(other, peer.borrower.name, peer.vm) for other in self._peers):
                self._desk.book.lost(self._desk.now(), peer.borrower.name, peer.vm)

    def connected(self, borrower: str) -> list[Peer]:
        """Return the open sessions of ``borrower``."""
        return [peer for peer in self._peers if peer.borrower.name == borrower]

    async def settle(self, deadline: float) -> None:
        """Wait for the requests under way, at most ``deadline`` seconds, so that their answers get out."""
        if tasks := set().union(*self._peers.values()):
            await asyncio.wait(tasks, timeout=deadline)

    async def dismiss(self, borrower: str, deadline: float) -> None:
        """End the sessions of a borrower that was forgotten."""
        await self.settle(deadline)
        error = RefusedError("the lender forgot this borrower", host=self._desk.book.lender, hint="pair again")
        await asyncio.gather(*(peer.close(error, deadline=deadline) for peer in self.connected(borrower)))

    def revoked(self, entry: Entry, deadline: float) -> None:
        """Tell a borrower that a lease is wanted back."""
        for peer in self._peers:
            if self._same(peer, entry.lease.borrower, entry.lease.vm):
                self._tell_revoked(peer, entry, deadline)

    def notice(self) -> None:
        """Tell every borrower whether the lender is cordoned."""
        for peer in self._peers:
            self._tell_cordon(peer)

    def _tell_cordon(self, peer: Peer) -> None:
        book = self._desk.book
        peer.send(m.Notice(text=f"{book.lender} lends nothing new" if book.cordoned else ""))

    @staticmethod
    def _same(peer: Peer, borrower: str, vm: str) -> bool:
        return (peer.borrower.name, peer.vm) == (borrower, vm)

    @staticmethod
    def _tell_revoked(peer: Peer, entry: Entry, deadline: float) -> None:
        lease = entry.lease
        peer.send(m.Revoke(lease=lease.id, epoch=lease.epoch, deadline=max(0.0, deadline), reason=entry.reason))

    async def _answer(self, peer: Peer, message: m.FromBorrower) -> None:
        try:
            peer.send(await self._reply(peer, message))
        except VmcoalError as error:
            log.info("%r: refused %s: %s", peer, type(message).__name__, error)
            self._desk.metrics.refused(type(error).__name__)
            peer.refuse(getattr(message, "id", 0), error)
        except Exception:
            log.exception("%r: %s failed", peer, type(message).__name__)
            defect = InternalError("the lender failed to answer", host=self._desk.book.lender, hint="see its log")
            peer.refuse(getattr(message, "id", 0), defect)

    async def _reply(self, peer: Peer, message: m.FromBorrower) -> m.FromLender:
        desk, book, borrower = self._desk, self._desk.book, peer.borrower.name
        match message:
            case m.GetOffer():
                return m.OfferReply(id=message.id, offer=book.offer(same_host=peer.same_host))
            case m.Renew():
                return m.Renewed(id=message.id, leases=book.renew(desk.now(), borrower, peer.vm, message.leases))
            case m.Request():
                return _granted(message.id, *await desk.grant(self._requested(peer, message)))
            case m.Resume():
                entry = book.owned(desk.now(), message.lease, message.epoch, borrower)
                return _granted(message.id, *await desk.resume(entry))
            case m.Report():
                entry = book.report(desk.now(), message.lease, message.epoch, borrower, message.event)
                return m.LeaseReply(id=message.id, lease=entry.lease)
            case m.Resize():
                return m.LeaseReply(
                    id=message.id, lease=desk.resize(message.lease, message.epoch, borrower, message.committed)
                )
            case m.Release():
                return m.LeaseReply(id=message.id, lease=await desk.release(message.lease, message.epoch, borrower))
        raise InternalError(f"a {type(message).__name__} came through")

    def _requested(self, peer: Peer, message: m.Request) -> Entry:
        record = self._lookup(peer.borrower.public_key)
        if record is None:
            raise RefusedError("this borrower was forgotten", host=self._desk.book.lender, hint="pair again")
        return self._desk.book.request(
            self._desk.now(),
            borrower=peer.borrower.name,
            vm=peer.vm,
            grants=record.grants,
            same_host=peer.same_host,
            token=message.token,
            kind=message.kind,
            amount=message.amount,
            committed=message.committed,
            ttl=message.ttl,
            grace=message.grace,
            peer=peer.address,
        )


def _granted(id: int, lease: Lease, server: Server | None) -> m.Granted:  # noqa: A002
    if isinstance(server, GpuServer):
        return m.Granted(id=id, lease=lease, gpu=server)
    return m.Granted(id=id, lease=lease, memory=server)
