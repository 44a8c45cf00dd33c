"""Where pages may be: pure decisions."""

from __future__ import annotations

import msgspec
import pytest

from vmcoal.model.lease import Offer, ResourceKind
from vmcoal.model.machine import Accel
from vmcoal.model.paging import Compression, LossPolicy, PageCopy, PagedRegion
from vmcoal.model.units import GIB, MIB
from vmcoal.policy.paging import Candidate, Transfer, choose_spare, compresses, fits_home, only_at, refuse_loss

pytestmark = pytest.mark.unit

MEMORY = (ResourceKind.MEMORY,)


def candidate(name: str, free: int, rtt: float, *, cordoned: bool = False, grants: tuple[ResourceKind, ...] = MEMORY):  # type: ignore[no-untyped-def]
    offer = Offer(lender=name, cpus_free=0, cpus_total=0, memory_free=free, memory_total=free, cordoned=cordoned)
    return Candidate(offer, grants, rtt)


def test_the_nearest_lender_with_room_is_the_spare_one() -> None:
    lenders = [
        candidate("near", GIB, 0.001),
        candidate("far", GIB, 0.1),
        candidate("full", MIB, 0.0001),
        candidate("cordoned", GIB, 0.0001, cordoned=True),
        candidate("cpus", GIB, 0.0001, grants=(ResourceKind.CPU,)),
    ]
    assert choose_spare(lenders, (), 512 * MIB) == "near"
    assert choose_spare(lenders, {"near"}, 512 * MIB) == "far"
    assert choose_spare(lenders, {"near", "far"}, 512 * MIB) is None
    assert choose_spare([], (), MIB) is None


def region(*copies: PageCopy, home: bool = False, away: int = 8 * MIB) -> PagedRegion:
    return PagedRegion(size=64 * MIB, away=away, home=home, copies=copies)


@pytest.mark.parametrize(
    ("seen", "left"),
    [
        (region(), 0),
        (region(PageCopy(number=0, connected=True)), 64 * MIB),
        (region(PageCopy(number=0, connected=True), PageCopy(number=1, connected=True, behind=MIB)), MIB),
        (region(PageCopy(number=0, connected=True), PageCopy(number=1, connected=True)), 0),
        (region(PageCopy(number=0, connected=True), PageCopy(number=1, connected=False)), 64 * MIB),
        (region(PageCopy(number=0), home=True), 8 * MIB),
        (region(PageCopy(number=0), home=True, away=0), 0),
        (region(PageCopy(number=0), away=0), 64 * MIB),
    ],
)
def test_what_a_place_has_alone(seen: PagedRegion, left: int) -> None:
    assert only_at(seen, 0) == left


@pytest.mark.parametrize(
    ("wanted", "rates", "now", "then"),
    [
        (Compression.ON, (), False, True),
        (Compression.OFF, (1_000_000,), True, False),
        (Compression.AUTO, (), False, False),
        (Compression.AUTO, (0,), True, False),  # another lender by now
        (Compression.AUTO, (12_500_000,), False, True),  # 100 Mbit/s
        (Compression.AUTO, (25_000_000,), False, True),
        (Compression.AUTO, (40_000_000,), False, False),  # not worth a change, one way or the other
        (Compression.AUTO, (40_000_000,), True, True),
        (Compression.AUTO, (125_000_000,), True, False),  # 1 Gbit/s
        (Compression.AUTO, (2_000_000_000, 12_500_000), False, True),  # the slower of two
        (Compression.AUTO, (2_000_000_000, 0), False, False),
    ],
)
def test_what_is_compressed(wanted: Compression, rates: tuple[int, ...], now: bool, then: bool) -> None:
    copies = tuple(PageCopy(number=number, rate=rate) for number, rate in enumerate(rates))
    assert compresses(wanted, PagedRegion(size=MIB, compress=now, copies=copies)) is then


def test_room_at_home() -> None:
    assert fits_home(GIB, 2 * GIB, GIB)
    assert not fits_home(GIB, GIB, GIB)
    assert not fits_home(GIB, 2 * GIB, GIB - 1)


@pytest.mark.parametrize(
    ("policy", "kernel", "accel", "reason"),
    [
        (LossPolicy.STALL, "5.19", Accel.TCG, None),
        (LossPolicy.PAUSE, "6.2", Accel.KVM, None),
        (LossPolicy.PAUSE, "6.1.0-50-amd64", Accel.KVM, "6.2"),
        (LossPolicy.PAUSE, "6.18", Accel.TCG, "KVM"),
    ],
)
def test_which_host_can_have_which_policy(policy: LossPolicy, kernel: str, accel: Accel, reason: str | None) -> None:
    why = refuse_loss(policy, kernel, accel)
    assert (why is None) == (reason is None)
    assert reason is None or reason in (why or "")


def test_what_an_older_vmcoal_was_told_is_read() -> None:
    assert msgspec.json.decode(b'"poison"', type=LossPolicy) is LossPolicy.STALL
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'"panic"', type=LossPolicy)


def test_how_far_a_transfer_is() -> None:
    transfer = Transfer(100 * MIB, 10.0)
    assert transfer.estimate(10.0) is None
    transfer.look(75 * MIB, 11.0)
    assert transfer.fraction == 0.25
    assert transfer.estimate(11.0) == pytest.approx(3.0)
    assert transfer.text(11.0) == "75 MiB of 100 MiB left, 25 MiB/s, about 3 s"
    transfer.look(150 * MIB, 12.0)  # the guest wrote
    assert transfer.fraction == 0.0
    assert transfer.still(14.0) == 3.0
    transfer.look(0, 15.0)
    assert (transfer.fraction, transfer.text(15.0)) == (1.0, "0 B of 150 MiB left")
    assert Transfer(0, 0.0).fraction == 1.0
