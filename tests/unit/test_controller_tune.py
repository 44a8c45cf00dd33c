"""How borrowed memory behaves: the cache of the page engine, on fakes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from framework.fake_vm import Killed, fake_vm
from framework.paged_vm import Paged
from vmcoal.controller.api import TuneRequest, Tuning
from vmcoal.controller.attach import attach
from vmcoal.controller.guard import Guard
from vmcoal.controller.reconcile import reconcile
from vmcoal.controller.tune import restore, tune
from vmcoal.errors import ConflictError, ExecutionError, UnreachableError, UsageError
from vmcoal.model.attachment import AttachRequest, Plan
from vmcoal.model.paging import Compression
from vmcoal.model.units import MIB

pytestmark = pytest.mark.unit

MEMORY = AttachRequest(memory=256 * MIB, deadline=10.0)


@pytest.fixture
def paged(tmp_path: Path) -> Iterator[Paged]:
    with fake_vm(tmp_path) as world:
        yield Paged(world)


async def test_the_cache_changes_and_is_kept(paged: Paged) -> None:
    vm = paged.world.controller()
    assert await tune(vm, TuneRequest(), paged.world.report) == Tuning(cache=256 * MIB)
    assert await tune(vm, TuneRequest(cache=64 * MIB), paged.world.report) == Tuning(cache=64 * MIB)
    paged.pager.cache = 256 * MIB  # a new pager
    await restore(paged.world.controller())
    assert paged.pager.cache == 64 * MIB


async def test_attach_sets_the_cache_and_undoes_it(paged: Paged) -> None:
    vm = paged.world.controller()
    request = msgspec.structs.replace(MEMORY, cache=32 * MIB)
    plan = await attach(vm, msgspec.structs.replace(request, dry_run=True), paged.world.report)
    assert isinstance(plan, Plan)
    assert "cache" in [step.name for step in plan.steps]
    paged.world.fuse.arm(4, kill=False)
    with pytest.raises(UnreachableError):
        await attach(vm, request, paged.world.report)
    paged.world.fuse.disarm()
    assert paged.pager.cache == 256 * MIB
    assert paged.world.leftovers() == []
    await attach(vm, request, paged.world.report)
    assert paged.pager.cache == 32 * MIB


async def test_pages_are_compressed_as_told_also_of_what_comes_later(paged: Paged) -> None:
    vm = paged.world.controller()
    request = msgspec.structs.replace(MEMORY, compress=Compression.ON)
    plan = await attach(vm, msgspec.structs.replace(request, dry_run=True), paged.world.report)
    assert isinstance(plan, Plan)
    assert "compress" in [step.name for step in plan.steps]
    await attach(vm, request, paged.world.report)
    (region,) = paged.pager.paged.values()
    assert region.compress
    assert (await tune(vm, TuneRequest(), paged.world.report)).compress is Compression.ON
    region.compress = False  # a new pager that was told nothing
    await restore(paged.world.controller())
    assert region.compress
    await attach(vm, MEMORY, paged.world.report)
    assert [region.compress for region in paged.pager.paged.values()] == [True, True]
    told = await tune(vm, TuneRequest(compress=Compression.OFF), paged.world.report)
    assert told.compress is Compression.OFF
    assert [region.compress for region in paged.pager.paged.values()] == [False, False]


async def test_what_is_told_of_compression_is_taken_back_when_it_fails(paged: Paged) -> None:
    vm = paged.world.controller()
    await attach(vm, MEMORY, paged.world.report)
    paged.world.fuse.arm(1, kill=False)
    with pytest.raises(UnreachableError):
        await tune(vm, TuneRequest(compress=Compression.ON), paged.world.report)
    paged.world.fuse.disarm()
    assert (await tune(vm, TuneRequest(), paged.world.report)).compress is Compression.OFF
    (region,) = paged.pager.paged.values()
    assert not region.compress


async def test_auto_compresses_where_a_link_turns_out_to_be_slow(paged: Paged) -> None:
    vm = paged.world.controller()
    await attach(vm, msgspec.structs.replace(MEMORY, compress=Compression.AUTO), paged.world.report)
    (region,) = paged.pager.paged.values()
    guard = Guard(vm)
    await guard.look()
    assert not region.compress, "nobody knows the link"
    assert guard._interval() is not None, "it is looked at again"
    for rate, compressed in ((1_000_000_000, False), (12_500_000, True), (40_000_000, True), (500_000_000, False)):
        region.places[0].rate = rate
        await guard.look()
        assert region.compress is compressed, rate


async def test_a_controller_killed_while_it_tunes(paged: Paged) -> None:
    vm = paged.world.controller()
    paged.world.fuse.arm(1, kill=True)
    with pytest.raises(Killed):
        await tune(vm, TuneRequest(cache=64 * MIB), paged.world.report)
    paged.world.fuse.disarm()
    after = paged.world.controller()
    await restore(after)
    await reconcile(after)
    assert after.journal.open_operations() == []
    assert (await tune(after, TuneRequest(), paged.world.report)).cache == 256 * MIB


async def test_an_engine_without_a_cache_says_so(tmp_path: Path) -> None:
    with fake_vm(tmp_path) as world:
        vm = world.controller()
        with pytest.raises(ConflictError, match="no bounded cache") as caught:
            await attach(vm, msgspec.structs.replace(MEMORY, cache=32 * MIB), world.report)
        assert caught.value.hint
        with pytest.raises(ConflictError):
            await tune(vm, TuneRequest(cache=32 * MIB), world.report)
        with pytest.raises(ConflictError, match="no compression"):
            await tune(vm, TuneRequest(compress=Compression.AUTO), world.report)
        assert world.fuse.calls == []


async def test_bad_sizes(paged: Paged) -> None:
    vm = paged.world.controller()
    with pytest.raises(UsageError, match="too small"):
        await tune(vm, TuneRequest(cache=4096), paged.world.report)
    with pytest.raises(UsageError, match="--cache"):
        await attach(vm, AttachRequest(cpus=1, cache=64 * MIB), paged.world.report)


async def test_memory_that_qemu_maps_by_itself_is_refused(paged: Paged) -> None:
    paged.pager.mapped = False
    vm = paged.world.controller()
    with pytest.raises(ExecutionError, match="without the page engine"):
        await attach(vm, MEMORY, paged.world.report)
    assert paged.world.leftovers() == []
    assert paged.pager.paged == {}
