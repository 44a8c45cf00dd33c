"""A data connection as a sign of life: what the kernel says of it, and what the book makes of it."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path
from typing import Any

import pytest

from vmcoal.lending import connections
from vmcoal.lending.book import LeaseBook
from vmcoal.lending.entry import Capacity, Entry
from vmcoal.model.lease import LeaseState, ResourceKind
from vmcoal.model.units import MIB

pytestmark = pytest.mark.unit

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
V4 = (
    HEAD
    + """\
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0200A8C0:C001 01 00000000:00000000 02:000003E8 00000000     0        0 2 2 0 20 4 30 10 -1
   2: 0100007F:1F90 0300A8C0:C001 06 00000000:00000000 02:000003E8 00000000     0        0 2 2 0 20 4 30 10 -1
   3: 0100007F:1F91 0400A8C0:C001 01 00000000:00000000 02:000003E8 00000000     0        0 2 2 0 20 4 30 10 -1
"""
)
V6 = (
    HEAD
    + """\
   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 1 1 0 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000500A8C0:C001 01 0:0 0:0 0 0 0 2 2 0 20 4 30 10 -1
   2: B80D0120000000000000000001000000:1F90 B80D0120000000000000000002000000:C001 01 0:0 0:0 0 0 0 2 2 0 20 4 30 10 -1
"""
)


def test_the_kernels_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(V4)
    (tmp_path / "tcp6").write_text(V6)
    tables = (tmp_path / "tcp", tmp_path / "tcp6", tmp_path / "none")
    assert connections.peers_of(8080, tables) == {"192.168.0.2", "192.168.0.5", "2001:db8::2"}
    assert connections.peers_of(8081, tables) == {"192.168.0.4"}
    assert connections.peers_of(8082, tables) == set()


@pytest.mark.parametrize(
    ("said", "plain"),
    [("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("fe80::1%eth0", "fe80::1"), ("::1", "::1")],
)
def test_addresses_have_one_form(said: str, plain: str) -> None:
    assert connections.plain(said) == plain


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_real_connection_is_seen_until_it_ends_and_is_looked_after(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family is socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        connections.notice_loss(listener)
        port = listener.getsockname()[1]
        with socket.create_connection((host, port)):
            accepted, _ = listener.accept()
            with accepted:
                assert connections.peers_of(port) == {host}
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < connections.LOST
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == connections.LOST * 1000
        assert connections.peers_of(port) == set()


def active(book: LeaseBook, vm: str, token: str, **changes: Any) -> Entry:
    amount = changes.get("amount", MIB * 2)
    entry = book.request(
        0.0,
        borrower="ann",
        vm=vm,
        grants={ResourceKind.MEMORY, ResourceKind.CPU},
        same_host=True,
        token=token,
        committed=amount,
        ttl=60.0,
        grace=60.0,
        peer="10.0.0.1",
        **({"kind": ResourceKind.MEMORY, "amount": amount} | changes),
    )
    book.granted(0.0, entry.lease.id, port=4000)
    for event in ("attach", "plugged"):
        entry = book.report(0.0, entry.lease.id, entry.lease.epoch, "ann", event)
    return entry


def test_a_vm_that_lives_keeps_all_it_uses_and_no_more() -> None:
    count = itertools.count(1)
    book = LeaseBook("den", Capacity(4, 64 * MIB), new_id=lambda: f"{next(count):08x}")
    memory, cpu = active(book, "dev", "a"), active(book, "dev", "b", kind=ResourceKind.CPU, amount=1)
    other = active(book, "web", "c")
    book.lost(1.0, "ann", "dev")
    assert book.expiring(59.0) == []
    assert {entry.lease.id for entry in book.expiring(60.0)} == {x.lease.id for x in (memory, cpu, other)}
    book.alive(60.0, "ann", "dev")
    book.sweep(60.0)
    states = [book.entry(x.lease.id).lease.state for x in (memory, cpu, other)]
    assert states == [LeaseState.UNREACHABLE, LeaseState.UNREACHABLE, LeaseState.EXPIRED]
    book.came("ann", "dev", "10.0.0.9")
    assert book.entry(memory.lease.id).peer == "10.0.0.9"
    book.sweep(120.0)
    assert book.live() == []


def test_an_unused_grant_is_not_kept() -> None:
    count = itertools.count(1)
    book = LeaseBook("den", Capacity(4, 64 * MIB), new_id=lambda: f"{next(count):08x}")
    used = active(book, "dev", "a")
    unused = book.request(
        0.0,
        borrower="ann",
        vm="dev",
        grants={ResourceKind.MEMORY},
        same_host=True,
        token="b",
        kind=ResourceKind.MEMORY,
        amount=MIB * 2,
        committed=MIB * 2,
        ttl=60.0,
        grace=60.0,
    )
    book.granted(0.0, unused.lease.id, port=4001)
    assert [entry.lease.id for entry in book.expiring(60.0)] == [used.lease.id]
    book.alive(60.0, "ann", "dev")
    book.sweep(60.0)
    assert [entry.lease.id for entry in book.live()] == [used.lease.id]
