"""A well-behaved lender over loopback for tests: it grants whatever is asked and keeps the leases in a dict."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from vmcoal.errors import NotFoundError, RefusedError
from vmcoal.fabric import messages as m
from vmcoal.fabric.identity import BorrowerRecord, Identity, LenderRecord, load_identity
from vmcoal.fabric.server import FabricServer, Peer
from vmcoal.model.lease import Lease, LeaseState, LeaseTerms, Offer, ResourceKind

EVERYTHING = tuple(ResourceKind)


class SmallLender:
    """Answers every request the way a lender does; ``peers`` that came, ``seen`` messages that arrived."""

    def __init__(self) -> None:
        self.leases: dict[str, Lease] = {}
        self.tokens: dict[str, str] = {}
        self.peers: list[Peer] = []
        self.seen: list[m.FromBorrower] = []

    async def __call__(self, peer: Peer) -> None:
        self.peers.append(peer)
        async for message in peer:
            self.seen.append(message)
            try:
                peer.send(self.answer(peer, message))
            except (RefusedError, NotFoundError) as error:
                peer.refuse(message.id, error)

    def answer(self, peer: Peer, message: m.FromBorrower) -> m.FromLender:
        match message:
            case m.GetOffer(id=number):
                return m.OfferReply(id=number, offer=Offer("small", 2, 4, 1 << 30, 2 << 30))
            case m.Request(id=number, token=token, kind=kind, amount=amount, committed=committed):
                if amount > 1 << 40:
                    raise RefusedError("it has less than that", hint="ask for less")
                lease = self.tokens.setdefault(token, f"l{len(self.leases) + 1}")
                self.leases.setdefault(
                    lease,
                    Lease(
                        lease,
                        kind,
                        amount,
                        committed,
                        LeaseState.GRANTED,
                        1,
                        "small",
                        peer.borrower.name,
                        peer.vm,
                        LeaseTerms(message.ttl, 2.0, message.grace),
                    ),
                )
                return self.granted(number, lease)
            case m.Resume(id=number, lease=lease):
                self.find(lease)
                return self.granted(number, lease)
            case m.Report(id=number, lease=lease, event="plugged"):
                return m.LeaseReply(id=number, lease=self.change(lease, state=LeaseState.ACTIVE))
            case m.Report(id=number, lease=lease):
                return m.LeaseReply(id=number, lease=self.change(lease, state=LeaseState.ATTACHING))
            case m.Renew(id=number, leases=leases):
                return m.Renewed(
                    id=number, leases=tuple(self.leases[lease] for lease, _ in leases if lease in self.leases)
                )
            case m.Resize(id=number, lease=lease, committed=committed):
                return m.LeaseReply(id=number, lease=self.change(lease, committed=committed))
            case m.Release(id=number, lease=lease):
                return m.LeaseReply(id=number, lease=self.change(lease, state=LeaseState.RELEASED))
        raise AssertionError(message)

    def granted(self, number: int, lease: str) -> m.Granted:
        found = self.find(lease)
        server = m.MemoryServer(10809, f"{lease}.1", "vmcoal", "ab" * 32) if found.kind is ResourceKind.MEMORY else None
        return m.Granted(id=number, lease=found, memory=server)

    def find(self, lease: str) -> Lease:
        if lease not in self.leases:
            raise NotFoundError(f"no lease {lease}")
        return self.leases[lease]

    def change(self, lease: str, **fields: Any) -> Lease:
        self.leases[lease] = msgspec.structs.replace(self.find(lease), **fields)
        return self.leases[lease]


class Pair:
    """Keys and records of one lender and one borrower that know each other."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o700)
        self.lender: Identity = load_identity(folder / "host_key")
        self.borrower: Identity = load_identity(folder / "identity")
        self.known = {
            self.borrower.public: BorrowerRecord(
                name="bob", public_key=self.borrower.public, grants=EVERYTHING, paired_at=0.0
            )
        }

    def record(self, port: int, *, host: str = "127.0.0.1", host_key: str | None = None) -> LenderRecord:
        return LenderRecord(
            name="small", host=host, port=port, host_key=host_key or self.lender.public, grants=EVERYTHING
        )

    @asynccontextmanager
    async def serving(self, handler: Any, **options: Any) -> AsyncIterator[FabricServer]:
        options = {"host": "127.0.0.1", "port": 0, "borrowers": self.known.get} | options
        server = await FabricServer.start(name="small", host_key=self.lender, handler=handler, **options)
        try:
            yield server
        finally:
            await server.close()
