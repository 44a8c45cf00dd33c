"""One operation at a time: who waits, for how long, and who is told to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.fake_vm import FakeVm, fake_vm
from vmcoal.controller.vm import Vm
from vmcoal.errors import ConflictError, DeadlineError

pytestmark = pytest.mark.unit


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FakeVm]:
    with fake_vm(tmp_path) as vm:
        yield vm


def undo_for_ever(vm: Vm) -> asyncio.Event:
    """Let an undo be under way until the event is set."""
    go = asyncio.Event()

    async def undo() -> list[str]:
        await go.wait()
        return []

    vm.undoing.keep(asyncio.create_task(undo()), "detach", vm.journal.begin("detach", {}))
    return go


async def test_an_operation_waits_for_an_undo_no_longer_than_its_deadline(world: FakeVm) -> None:
    vm = world.controller()
    go = undo_for_ever(vm)
    with pytest.raises(DeadlineError, match="web is busy: undo of detach") as caught:
        async with vm.turn("attach", deadline=0.01):
            pytest.fail("it was not its turn")
    assert caught.value.left == "nothing was begun"
    go.set()
    async with vm.turn("attach", deadline=60.0):
        assert vm.operation == "attach"
    assert vm.operation is None


async def test_a_shutdown_that_is_refused_ends_no_undo(world: FakeVm) -> None:
    vm = world.controller()
    go = undo_for_ever(vm)
    began = asyncio.Event()

    async def attach() -> None:
        async with vm.turn("attach"):
            began.set()

    task = asyncio.create_task(attach())
    await asyncio.sleep(0)
    with pytest.raises(ConflictError, match="web is busy: undo of detach"):
        async with vm.turn("shutdown", give_up=True):
            pytest.fail("it was not its turn")
    assert vm.undoing.text == "undo of detach"
    assert not began.is_set()
    go.set()
    await task
    undo_for_ever(vm)
    async with vm.turn("shutdown", give_up=True):
        assert vm.operation == "shutdown"
