"""What a lender or a guest that does not behave can do to the controller of a VM."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from framework.fake_vm import FakeKeeper, FakeSession, FakeVm, fake_vm
from vmcoal.controller.attach import attach
from vmcoal.controller.daemon import Controller
from vmcoal.controller.guard import Guard
from vmcoal.controller.guest import GuestKeeper
from vmcoal.controller.keeper import Keeper
from vmcoal.errors import (
    DeadlineError,
    ExecutionError,
    InternalError,
    RefusedError,
    UnreachableError,
    VmcoalError,
)
from vmcoal.fabric.messages import Revoke
from vmcoal.model.attachment import AttachRequest
from vmcoal.model.lease import LeaseState
from vmcoal_qmp import QmpTimeoutError

pytestmark = pytest.mark.unit


@pytest.fixture
def world(tmp_path: Path) -> Iterator[FakeVm]:
    with fake_vm(tmp_path) as vm:
        yield vm


class EndsAtOnce(FakeSession):
    """A session that its lender ends after the first heartbeat."""

    async def events(self) -> AsyncIterator[Any]:
        for nothing in ():
            yield nothing

    async def wait_closed(self) -> None:
        pass


async def test_a_lender_that_ends_every_session_is_not_asked_without_end(
    world: FakeVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcoal.controller.keeper._RETRY_FIRST", 1e6)
    vm = world.controller()
    await attach(vm, AttachRequest(cpus=1, deadline=10.0), world.report)
    sessions: list[EndsAtOnce] = []

    class Counts(FakeKeeper):
        kind = EndsAtOnce

        async def session(self, lender: str, *, deadline: float = 10.0) -> Any:
            sessions.append(await super().session(lender, deadline=deadline))
            return sessions[-1]

    keeper = Counts("web", vm.book, world.lenders, world.fuse)
    task = asyncio.create_task(keeper._keep("attic"))
    for _ in range(500):
        await asyncio.sleep(0)
    assert len(sessions) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_lender_takes_back_only_what_it_lent(world: FakeVm) -> None:
    vm = world.controller()
    await attach(vm, AttachRequest(cpus=1, deadline=10.0), world.report)
    (loan,) = vm.book
    controller = Controller(world.spec, vm.folders)
    controller._vm = vm
    controller._revoked(Revoke(lease=loan.id, epoch=loan.lease.epoch, deadline=0.0, reason="mine"), "cellar")
    assert not controller._tasks
    assert [x.lease.state for x in vm.book] == [LeaseState.ACTIVE]


async def test_a_guest_that_loses_its_agent_at_once_is_not_asked_without_end(
    world: FakeVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm, connected = world.controller(), []
    monkeypatch.setattr("vmcoal.controller.guest._SOON", 1e6)
    keeper = GuestKeeper(vm, asyncio.Event())

    async def connect(*, deadline: float, prefer: float = 10.0) -> None:
        connected.append(deadline)
        vm.agent = FloodsAgent()  # type: ignore[assignment]

    monkeypatch.setattr(keeper, "connect", connect)
    vm.agent = None
    task = asyncio.create_task(keeper.keep_agent())
    for _ in range(500):
        await asyncio.sleep(0)
    assert len(connected) == 1
    assert vm.agent is None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/run/x"), "cannot work: [Errno 13]"),
        (ValueError("a defect"), "failed: ValueError"),
    ],
)
async def test_whatever_keeps_a_controller_from_its_work_is_told(
    world: FakeVm, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    controller = Controller(world.spec, world.controller().folders)

    async def boot() -> None:
        raise error

    monkeypatch.setattr(controller, "_boot", boot)
    monkeypatch.setattr("vmcoal.controller.daemon._TELL_DEADLINE", 60.0)
    asked = asyncio.Event()
    running = asyncio.create_task(controller.run(boot=True, listening=asked.set))
    await asked.wait()
    with pytest.raises(VmcoalError, match=re.escape(said)):
        await controller._wait({}, SimpleNamespace(report=lambda *args: None))  # type: ignore[arg-type]
    assert await running in (ExecutionError.exit_code, InternalError.exit_code)


class FloodsAgent:
    """An agent that is hung up on at once."""

    async def wait_lost(self) -> UnreachableError:
        await asyncio.sleep(0)
        return UnreachableError("the guest floods the agent channel")

    async def close(self) -> None:
        pass


async def test_heartbeats_go_on_after_a_disk_that_was_full(world: FakeVm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcoal.controller.keeper._RETRY_FIRST", 0.0)
    vm = world.controller()
    await attach(vm, AttachRequest(cpus=1, deadline=10.0), world.report)
    full, renewed = ["first", "second"], asyncio.Event()

    class Renews(FakeSession):
        async def renew(self, leases: Any) -> Any:
            if full:
                raise UnreachableError("the link is cut")
            renewed.set()
            return await super().renew(leases)

    class Keeps(FakeKeeper):
        kind = Renews

    def put(loan: Any) -> None:
        if full:
            raise ExecutionError(f"cannot write the journal: disk full, the {full.pop(0)} time")

    monkeypatch.setattr(vm.book, "put", put)
    task = asyncio.create_task(Keeps("web", vm.book, world.lenders, world.fuse)._keep("attic"))
    async with asyncio.timeout(60):
        await renewed.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_is_given_back_while_its_lender_comes_back_stays_so(world: FakeVm) -> None:
    vm = world.controller()
    await attach(vm, AttachRequest(cpus=2, deadline=10.0), world.report)
    given_back = next(iter(vm.book)).id

    class Resumes(FakeSession):
        async def resume(self, lease: str, epoch: int, *, deadline: float = 10.0) -> Any:
            granted = await super().resume(lease, epoch)
            if lease == given_back:
                vm.book.drop(lease)
            return granted

    await vm.keeper._resume("attic", Resumes(world.lenders["attic"], "web", world.fuse))
    assert given_back not in {loan.id for loan in vm.book}
    assert len(vm.book) == 1


async def test_a_lender_that_could_not_be_told_is_when_it_answers_again(
    world: FakeVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcoal.controller.keeper._RETRY_FIRST", 0.0)
    vm = world.controller()
    await attach(vm, AttachRequest(cpus=1, deadline=10.0), world.report)
    (loan,) = vm.book
    vm.book.drop(loan.id)
    silent, told = (
        [UnreachableError("the link is cut"), DeadlineError("no answer"), ConnectionResetError()],
        asyncio.Event(),
    )

    class Releases(FakeSession):
        async def release(self, lease: str, epoch: int, *, deadline: float = 10.0) -> Any:
            if silent:
                raise silent.pop()
            after = await super().release(lease, epoch)
            told.set()
            return after

    class Owes(FakeKeeper):
        owe = Keeper.owe
        kind = Releases

    keeper = Owes("web", vm.book, world.lenders, world.fuse)
    with pytest.raises(OSError):
        await keeper.release("attic", loan.id, loan.lease.epoch)
    with pytest.raises(DeadlineError):
        await keeper.release("attic", loan.id, loan.lease.epoch)
    async with asyncio.timeout(60):
        await told.wait()
    assert not list(world.lenders["attic"].book.live())
    await keeper.close()


async def test_a_session_that_another_has_opened_meanwhile_stays(world: FakeVm) -> None:
    keeper = world.controller().keeper
    old, new = (FakeSession(world.lenders["attic"], "web", world.fuse) for _ in range(2))
    closed: list[FakeSession] = []
    for session in (old, new):

        async def close(*, deadline: float, session: FakeSession = session) -> None:
            closed.append(session)

        session.close = close  # type: ignore[method-assign]
    keeper._sessions["attic"] = new  # type: ignore[assignment]
    await keeper._hang_up("attic", None)
    await keeper._hang_up("attic", old)  # type: ignore[arg-type]
    assert (keeper._sessions, closed) == ({"attic": new}, [old])
    await keeper._hang_up("attic", new)  # type: ignore[arg-type]
    assert (keeper._sessions, closed) == ({}, [old, new])


async def test_a_lease_that_its_lender_does_not_know_any_more_is_not_owed(
    world: FakeVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmcoal.controller.keeper._RETRY_FIRST", 0.0)
    keeper = FakeKeeper("web", world.controller().book, world.lenders, world.fuse)
    async with asyncio.timeout(60):
        await keeper._settle("attic", "m0", 1)


async def test_a_monitor_that_does_not_answer_is_asked_again(world: FakeVm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmcoal.controller.guest._RETRY", 0.0)
    vm = world.controller()
    asked: list[float] = []

    class Launcher:
        async def adopt(self, spec: Any, *, deadline: float) -> None:
            asked.append(deadline)
            if len(asked) < 3:
                raise DeadlineError("QEMU does not answer")

    vm.launcher = Launcher()  # type: ignore[assignment]
    world.qemu.disconnect()
    async with asyncio.timeout(60):
        await GuestKeeper(vm, asyncio.Event()).watch_qemu()
    assert (len(asked), vm.monitor) == (3, None)


async def test_the_guard_outlives_a_qemu_that_does_not_stop(world: FakeVm, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = world.controller()
    looks: list[Exception] = [QmpTimeoutError("stop", 30.0), ValueError("a defect"), RefusedError("no")]
    guard, over = Guard(vm), asyncio.Event()

    async def look() -> None:
        if not looks:
            over.set()
            return
        guard.kick()
        raise looks.pop(0)

    monkeypatch.setattr(guard, "look", look)
    guard.kick()
    task = asyncio.create_task(guard.run())
    async with asyncio.timeout(60):
        await over.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
