"""What a VM's status says of its page engine, and how long pages take, on fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from framework.fake_pager import FakePager
from framework.fake_vm import FakeVm, fake_vm
from vmcoal.controller.attach import attach
from vmcoal.controller.paging import page_fetch, paging, paging_troubles
from vmcoal.model.activity import PagingActivity, StoreActivity
from vmcoal.model.attachment import AttachRequest
from vmcoal.model.paging import LossPolicy, PagedRegion
from vmcoal.model.units import MIB

pytestmark = pytest.mark.unit

MEMORY = AttachRequest(memory=256 * MIB, deadline=10.0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FakeVm]:
    with fake_vm(tmp_path) as made:
        yield made


def paged(world: FakeVm) -> FakePager:
    pager = world.engine = FakePager(world.fuse)
    return pager


async def test_lenders_are_named(world: FakeVm) -> None:
    pager = paged(world)
    vm = world.controller()
    assert await paging(vm) == (None, [])
    done = await attach(vm, MEMORY, world.report)
    activity, troubles = await paging(vm)  # type: ignore[misc]
    assert troubles == []
    assert [store.lender for store in activity.stores] == [done.attachment.lender]  # type: ignore[union-attr]
    pager.silent = True
    nothing, (said,) = await paging(vm)
    assert nothing is None
    assert "the pager does not answer: no pager listens; next: vmcoal logs" in said


async def test_another_engine_has_nothing_to_tell(world: FakeVm) -> None:
    vm = world.controller()
    done = await attach(vm, MEMORY, world.report)
    lender = done.attachment.lender  # type: ignore[union-attr]
    assert await paging(vm) == (None, [])
    assert await page_fetch(vm, lender, 10) == (None, "the memory engine fake cannot measure it")


async def test_page_fetch(world: FakeVm) -> None:
    pager = paged(world)
    vm = world.controller()
    assert (await page_fetch(vm, "attic", 10))[1] == f"{vm.spec.name} borrows no memory from attic"
    done = await attach(vm, MEMORY, world.report)
    lender = done.attachment.lender  # type: ignore[union-attr]
    fetch, why = await page_fetch(vm, lender, 10)
    assert fetch is not None
    assert (fetch.p50, fetch.p99, fetch.pages, why) == (0.0001, 0.002, 10, None)
    (region,) = pager.paged.values()
    region.away = 0
    assert await page_fetch(vm, lender, 10) == (None, f"no page of {vm.spec.name} is with {lender} yet")
    region.places[0].connected = False
    assert await page_fetch(vm, lender, 10) == (None, "store 0 is not linked")


def activity(region: PagedRegion, *stores: StoreActivity) -> PagingActivity:
    return PagingActivity(cache=MIB, regions={"m1": region}, stores=stores)


ATTIC = StoreActivity(region="m1", number=0, lender="attic", connected=True)
BARN = StoreActivity(region="m1", number=1, lender="barn", connected=True)
REGION = PagedRegion(size=256 * MIB, away=64 * MIB)


def changed(store: StoreActivity, **changes: object) -> StoreActivity:
    return msgspec.structs.replace(store, **changes)


@pytest.mark.parametrize(
    ("region", "stores", "down", "said"),
    [
        (REGION, (ATTIC, BARN), set(), []),
        (
            msgspec.structs.replace(REGION, waiting=1),
            (changed(ATTIC, connected=False, why="no answer in 3 s"),),
            set(),
            ["attic does not answer (no answer in 3 s): an access waits for its 64 MiB there; bring attic back"],
        ),
        (REGION, (changed(ATTIC, connected=False),), set(), ["its 64 MiB cannot be read; bring attic back"]),
        (REGION, (changed(ATTIC, connected=False),), {"attic"}, []),
        (
            REGION,
            (ATTIC, changed(BARN, connected=False)),
            set(),
            ["barn does not answer; the other copy of its pages is used; bring barn back"],
        ),
        (REGION, (ATTIC, changed(BARN, behind=MIB)), set(), ["barn is being given 1 MiB of lease m1 that it does not"]),
        (
            msgspec.structs.replace(REGION, lost=8192, policy=LossPolicy.PAUSE),
            (ATTIC, BARN),
            set(),
            [
                "8 KiB of memory are lost: attic and barn do not give",
                "the VM pauses when it is touched; save what you can, then",
            ],
        ),
    ],
)
def test_what_is_wrong_is_said_with_the_next_step(
    region: PagedRegion, stores: tuple[StoreActivity, ...], down: set[str], said: list[str]
) -> None:
    found = "\n".join(paging_troubles("web", activity(region, *stores), down))
    assert bool(found) == bool(said)
    for words in said:
        assert words in found
