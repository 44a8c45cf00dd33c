"""The operator's commands, on the lender's control socket (`vmcoal.lending.api`)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

import msgspec

from vmcoal.control.server import Client, Handler
from vmcoal.errors import UsageError
from vmcoal.fabric.identity import BorrowerRecord, RecordStore, fingerprint
from vmcoal.fabric.pairing import PairingWindow, explain, new_code
from vmcoal.fabric.server import FabricServer
from vmcoal.lending.api import (
    BorrowerView,
    DrainRequest,
    ForgetRequest,
    LenderStatus,
    PairRequest,
    ReclaimResult,
)
from vmcoal.lending.desk import Desk
from vmcoal.lending.entry import Entry
from vmcoal.lending.journal import LenderJournal
from vmcoal.lending.sessions import Sessions
from vmcoal.metrics.lender import LenderMetrics

_LONGEST_WINDOW = 3600.0
_SETTLE = 2.0
_LONGEST_DEADLINE = 24 * 3600.0


class Commands:
    """What `vmcoal lend …` can ask of a running lender. ``stop`` ends it once everything is back."""

    def __init__(
        self,
        desk: Desk,
        journal: LenderJournal,
        sessions: Sessions,
        server: FabricServer,
        store: RecordStore[BorrowerRecord],
        metrics: LenderMetrics,
        *,
        metrics_address: str | None,
        holder_pid: Callable[[], int],
        stop: Callable[[], None],
    ) -> None:
        self._desk = desk
        self._journal = journal
        self._sessions = sessions
        self._server = server
        self._store = store
        self._metrics = metrics
        self._metrics_address = metrics_address
        self._holder_pid = holder_pid
        self._stop = stop
        self._began = time.monotonic()
        self._window: tuple[PairingWindow, float] | None = None

    def methods(self) -> dict[str, Handler]:
        """Return the methods by name."""
        return {
            "status": self._status,
            "pair": self._pair,
            "borrowers": self._borrowers,
            "forget": self._forget,
            "cordon": self._cordon,
            "uncordon": self._uncordon,
            "drain": self._drain,
            "stop": self._end,
            "metrics": self._exposition,
        }

    def status(self) -> LenderStatus:
        """Return what there is to know of this lender."""
        desk = self._desk
        window = self._window
        return LenderStatus(
            name=desk.book.lender,
            addresses=tuple(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self._server.addresses
            ),
            offer=desk.book.offer(),
            leases=tuple(entry.lease for entry in desk.book.live()),
            borrowers=len(self._store.load()),
            pairing=max(0.0, window[1] - time.monotonic()) if window and window[0].is_open else None,
            metrics=self._metrics_address,
            pid=os.getpid(),
            holder_pid=self._holder_pid(),
            uptime=time.monotonic() - self._began,
            degraded=desk.degraded,
        )

    async def exposition(self) -> str:
        """Return the metrics."""
        desk = self._desk
        return self._metrics.exposition(
            desk.book.offer(),
            [entry.lease for entry in desk.book.live()],
            resident=sum(desk.servers.resident(entry) for entry in desk.book.entries() if entry.held),
            sessions=len(self._server.peers),
            borrowers=len(self._store.load()),
            degraded=len(desk.degraded),
        )

    async def _status(self, params: dict[str, Any], client: Client) -> LenderStatus:
        return self.status()

    async def _exposition(self, params: dict[str, Any], client: Client) -> str:
        return await self.exposition()

    async def _pair(self, params: dict[str, Any], client: Client) -> BorrowerView:
        request = msgspec.convert(params, PairRequest)
        if not 1 <= request.seconds <= _LONGEST_WINDOW:
            raise UsageError(f"a pairing window is open for 1 s to {_LONGEST_WINDOW / 60:g} m", hint="--for 5m")
        code = new_code()
        window = PairingWindow(
            code,
            self._store,
            request.grants,
            borrower_name=request.name,
            timeout=request.seconds,
            tell=lambda line: client.report(2, 2, line),
        )
        try:
            self._server.open_pairing(window)
            self._window = window, time.monotonic() + request.seconds
            client.report(1, 2, "give this code to the borrower's user, who types it into: vmcoal pair", detail=code)
            for line in explain(request.grants):
                client.report(1, 2, line)
            record = await window.wait()
        finally:
            window.close()
        return self._view(record)

    async def _borrowers(self, params: dict[str, Any], client: Client) -> tuple[BorrowerView, ...]:
        return tuple(self._view(record) for record in self._store.load())

    async def _forget(self, params: dict[str, Any], client: Client) -> ReclaimResult:
        request = msgspec.convert(params, ForgetRequest)
        _check_deadline(request.deadline)
        # From here on its key is refused; its open sessions stay as long as they have something to give back.
        record = self._store.remove(request.name)
        entries = [entry for entry in self._desk.book.live() if entry.lease.borrower == record.name]
        try:
            return await self._take_back(entries, request.deadline, "the lender forgot this borrower", client)
        finally:
            await self._sessions.dismiss(record.name, _SETTLE)

    async def _cordon(self, params: dict[str, Any], client: Client) -> LenderStatus:
        self._set_cordon(True)
        return self.status()

    async def _uncordon(self, params: dict[str, Any], client: Client) -> LenderStatus:
        self._set_cordon(False)
        return self.status()

    async def _drain(self, params: dict[str, Any], client: Client) -> ReclaimResult:
        request = msgspec.convert(params, DrainRequest)
        _check_deadline(request.deadline)
        self._set_cordon(True)
        return await self._take_back(self._desk.book.live(), request.deadline, "the lender is drained", client)

    async def _end(self, params: dict[str, Any], client: Client) -> ReclaimResult:
        request = msgspec.convert(params, DrainRequest)
        result = await self.drain_to_stop(request.deadline, client.report)
        await self._sessions.settle(_SETTLE)
        self._stop()
        return result

    async def drain_to_stop(self, deadline: float, report: Callable[[int, int, str], None]) -> ReclaimResult:
        """Grant nothing new and get everything back, without remembering it: the next start lends again."""
        _check_deadline(deadline)
        cordoned, self._desk.book.cordoned = self._desk.book.cordoned, True
        try:
            return await self._desk.take_back(
                self._desk.book.live(), deadline, "the lender ends", progress=_progress(report)
            )
        except asyncio.CancelledError:
            self._desk.book.cordoned = cordoned
            raise

    async def _take_back(self, entries: list[Entry], deadline: float, reason: str, client: Client) -> ReclaimResult:
        return await self._desk.take_back(entries, deadline, reason, progress=_progress(client.report))

    def _set_cordon(self, cordoned: bool) -> None:
        book = self._desk.book
        if book.cordoned == cordoned:
            return
        self._journal.set("cordoned", str(int(cordoned)))
        book.cordoned = cordoned
        self._sessions.notice()

    def _view(self, record: BorrowerRecord) -> BorrowerView:
        return BorrowerView(
            name=record.name,
            fingerprint=fingerprint(record.public_key),
            grants=record.grants,
            paired_at=record.paired_at,
            connected=bool(self._sessions.connected(record.name)),
            leases=tuple(entry.lease for entry in self._desk.book.live() if entry.lease.borrower == record.name),
        )


def _progress(report: Callable[[int, int, str], None]) -> Callable[[int, int], None]:
    def progress(done: int, all_: int) -> None:
        if all_:
            report(1, 1, f"get leases back: {done} of {all_}")

    return progress


def _check_deadline(deadline: float) -> None:
    if not 0 <= deadline <= _LONGEST_DEADLINE:
        raise UsageError("a deadline is 0 s to 24 h", hint="--deadline 60s")
