"""What `Holder` promises, on the real holder and on the fake that stands for it in other tests."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from signal import SIGKILL, SIGTERM, SIGUSR1

import pytest

from framework.fake_holder import FakeHolder, Program
from framework.native import sanitized_bindir
from vmcoal.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    PrerequisiteError,
    UnreachableError,
    UsageError,
)
from vmcoal.holding.client import ChildSpec, ChildState, ExitEvent, ExitStatus, Holder, Restart
from vmcoal.layout import vm_folders

pytestmark = pytest.mark.contract

RUNS = ("sleep", "1000")


def exits(code: int) -> tuple[str, ...]:
    return ("true",) if code == 0 else ("sh", "-c", f"exit {code}")


@dataclass
class Rig:
    """A holder; ``stubborn`` spawns a child that ignores SIGTERM and returns once it does."""

    holder: Holder
    stubborn: Callable[[ChildSpec], Awaitable[None]]


async def _stubborn_process(holder: Holder, spec: ChildSpec) -> None:
    reading, writing = os.pipe()
    try:
        script = "trap '' TERM; echo >&3; exec sleep 1000 3>&-"
        await holder.spawn(ChildSpec(id=spec.id, argv=("sh", "-c", script), main=spec.main, fds={3: writing}))
        await asyncio.wait_for(asyncio.to_thread(os.read, reading, 1), 10)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.fixture(params=["real", "sanitized", "fake"])
async def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    if request.param == "fake":
        fake = FakeHolder(
            {
                "true": Program(code=0),
                "sh": Program(code=7),
                "stubborn": Program(ignores=frozenset({SIGTERM})),
                "nowhere": Program(missing=True),
            }
        )

        async def stubborn(spec: ChildSpec) -> None:
            await fake.spawn(ChildSpec(id=spec.id, argv=("stubborn",), main=spec.main))

        yield Rig(fake, stubborn)
        await fake.close()
        return
    if request.param == "sanitized":
        monkeypatch.setenv("VMCOAL_BINDIR", str(sanitized_bindir()))
    folders = vm_folders("contract")
    folders.make()
    holder = await Holder.start(folders, name="contract", deadline=10)
    yield Rig(holder, lambda spec: _stubborn_process(holder, spec))
    await holder.close()
    with suppress(UnreachableError):
        async with await Holder.connect(folders.holder_socket, deadline=10) as again:
            await again.shutdown(grace=0)
    assert not folders.holder_socket.exists()


@pytest.fixture
def holder(rig: Rig) -> Holder:
    return rig.holder


async def states(holder: Holder) -> dict[str, ChildState]:
    return {child.id: child.state for child in await holder.list()}


async def test_the_fake_has_every_method_of_its_own() -> None:
    public = {name for name, _ in inspect.getmembers(Holder) if not name.startswith("_")} - {"pid", "name"}
    assert public <= set(vars(FakeHolder)), "the fake would talk to a socket"


async def test_a_child_runs_is_listed_and_stopped(holder: Holder) -> None:
    pid = await holder.spawn(ChildSpec(id="a", argv=RUNS))
    (child,) = await holder.list()
    assert (child.id, child.pid, child.state, child.restarts) == ("a", pid, ChildState.RUNNING, 0)
    assert child.live
    assert child.exit_status() is None
    expected = ExitStatus(id="a", pid=pid, state=ChildState.SIGNALED, code=0, signal=SIGTERM)
    assert await holder.stop("a", 5) == expected
    assert await holder.stop("a", 5) == expected, "stopping again changes nothing"
    assert (await holder.list())[0].exit_status() == expected


async def test_an_exit_is_awaited_or_found(holder: Holder) -> None:
    pid = await holder.spawn(ChildSpec(id="a", argv=exits(7)))
    expected = ExitStatus(id="a", pid=pid, state=ChildState.EXITED, code=7, signal=0)
    assert await holder.wait("a", 10) == expected
    assert await holder.wait("a", 10) == expected
    assert not expected.ok
    await holder.spawn(ChildSpec(id="b", argv=exits(0)))
    assert (await holder.wait("b", 10)).ok


async def test_many_wait_for_one_child(holder: Holder) -> None:
    await holder.spawn(ChildSpec(id="a", argv=RUNS))
    waits = [asyncio.ensure_future(holder.wait("a", 10)) for _ in range(5)]
    await holder.signal("a", SIGKILL)
    assert {status.signal for status in await asyncio.gather(*waits)} == {SIGKILL}


async def test_waiting_has_a_deadline(holder: Holder) -> None:
    await holder.spawn(ChildSpec(id="a", argv=RUNS))
    with pytest.raises(DeadlineError) as caught:
        await holder.wait("a", 0.02)
    assert caught.value.left == "child a"
    assert await states(holder) == {"a": ChildState.RUNNING}


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(rig: Rig) -> None:
    await rig.stubborn(ChildSpec(id="a", argv=RUNS))
    status = await rig.holder.stop("a", 0.05)
    assert (status.state, status.signal) == (ChildState.SIGNALED, SIGKILL)


async def test_a_second_stop_shortens_the_grace(rig: Rig) -> None:
    await rig.stubborn(ChildSpec(id="a", argv=RUNS))
    slow = asyncio.ensure_future(rig.holder.stop("a", 1000))
    await asyncio.sleep(0)
    assert (await rig.holder.stop("a", 0.05)).signal == SIGKILL
    assert (await slow).signal == SIGKILL


async def test_events_tell_every_end(holder: Holder) -> None:
    events: list[ExitEvent] = []
    others: list[ExitEvent] = []
    unwatch = await holder.watch(events.append)
    await holder.watch(others.append)
    pid = await holder.spawn(ChildSpec(id="a", argv=exits(7)))
    await holder.wait("a", 10)
    expected = ExitEvent(id="a", pid=pid, state=ChildState.EXITED, code=7, signal=0, restarting=False)
    assert events == others == [expected]
    unwatch()
    unwatch()
    await holder.spawn(ChildSpec(id="b", argv=exits(7)))
    await holder.wait("b", 10)
    assert (len(events), len(others)) == (1, 2)


async def test_a_failing_child_is_restarted_so_many_times(holder: Holder) -> None:
    events: list[ExitEvent] = []
    await holder.watch(events.append)
    await holder.spawn(ChildSpec(id="a", argv=exits(7), restart=Restart.ON_FAILURE, restart_max=2))
    status = await holder.wait("a", 10)
    assert (status.state, status.code) == (ChildState.EXITED, 7)
    assert [event.restarting for event in events] == [True, True, False]
    assert len({event.pid for event in events}) == 3
    assert (await holder.list())[0].restarts == 2


async def test_success_and_a_stop_are_no_reason_to_restart(holder: Holder) -> None:
    await holder.spawn(ChildSpec(id="good", argv=exits(0), restart=Restart.ON_FAILURE))
    await holder.spawn(ChildSpec(id="stopped", argv=RUNS, restart=Restart.ON_FAILURE))
    assert (await holder.wait("good", 10)).ok
    assert (await holder.stop("stopped", 5)).signal == SIGTERM
    assert [child.restarts for child in await holder.list()] == [0, 0]


async def test_a_stop_calls_a_restart_off(holder: Holder) -> None:
    waiting = asyncio.Event()
    events: list[ExitEvent] = []

    def note(event: ExitEvent) -> None:
        events.append(event)
        if len(events) == 3:
            waiting.set()

    await holder.watch(note)
    await holder.spawn(ChildSpec(id="a", argv=exits(7), restart=Restart.ON_FAILURE))
    # The third wait is 0.4 s: time enough to see it.
    await asyncio.wait_for(waiting.wait(), 10)
    assert await states(holder) == {"a": ChildState.WAITING}
    with pytest.raises(ConflictError):
        await holder.signal("a", SIGUSR1)
    with pytest.raises(ConflictError):
        await holder.forget("a")
    status = await holder.stop("a", 5)
    assert (status.state, status.code) == (ChildState.EXITED, 7)
    assert [event.restarting for event in events] == [True, True, True, False]
    assert await states(holder) == {"a": ChildState.EXITED}


async def test_a_signal_reaches_the_child(holder: Holder) -> None:
    await holder.spawn(ChildSpec(id="a", argv=RUNS))
    await holder.signal("a", SIGUSR1)
    assert (await holder.wait("a", 10)).signal == SIGUSR1
    with pytest.raises(ConflictError):
        await holder.signal("a", SIGUSR1)
    await holder.spawn(ChildSpec(id="b", argv=RUNS))
    with pytest.raises(UsageError):
        await holder.signal("b", 99)


async def test_ids_are_unique_until_forgotten(holder: Holder) -> None:
    await holder.spawn(ChildSpec(id="a", argv=exits(7)))
    with pytest.raises(ConflictError, match="child a exists"):
        await holder.spawn(ChildSpec(id="a", argv=RUNS))
    await holder.wait("a", 10)
    with pytest.raises(ConflictError, match="child a exists"):
        await holder.spawn(ChildSpec(id="a", argv=RUNS))
    await holder.forget("a")
    await holder.spawn(ChildSpec(id="a", argv=RUNS))
    with pytest.raises(ConflictError, match="child a has not ended"):
        await holder.forget("a")


async def test_what_is_not_there_is_not_found(holder: Holder) -> None:
    async def each() -> AsyncIterator[Awaitable[object]]:
        yield holder.stop("x", 1)
        yield holder.wait("x", 1)
        yield holder.signal("x", SIGTERM)
        yield holder.forget("x")
        yield holder.fetch("x")
        yield holder.drop("x")

    async for call in each():
        with pytest.raises(NotFoundError):
            await call


async def test_specs_that_make_no_sense_are_refused(holder: Holder) -> None:
    for spec in (
        ChildSpec(id="", argv=RUNS),
        ChildSpec(id="A", argv=RUNS),
        ChildSpec(id="a/b", argv=RUNS),
        ChildSpec(id="a", argv=()),
        ChildSpec(id="a", argv=("sleep", "1\0")),
        ChildSpec(id="a", argv=("sleep", "x" * 70000)),
        ChildSpec(id="a", argv=RUNS, fds={2: 0}),
    ):
        with pytest.raises(UsageError):
            await holder.spawn(spec)
    assert await holder.list() == []


async def test_a_program_that_is_missing_is_said_to_the_caller(holder: Holder) -> None:
    with pytest.raises(PrerequisiteError, match="cannot execute /nowhere: No such file or directory") as caught:
        await holder.spawn(ChildSpec(id="a", argv=("/nowhere",)))
    assert caught.value.details["errno"] == "ENOENT"
    assert await holder.list() == []


async def test_descriptors_are_kept_and_fetched(holder: Holder) -> None:
    reading, writing = os.pipe()
    await holder.keep("pipe.1", writing)
    os.close(writing)
    with pytest.raises(ConflictError):
        await holder.keep("pipe.1", reading)
    assert await holder.names() == {"pipe.1"}
    first, second = await holder.fetch("pipe.1"), await holder.fetch("pipe.1")
    assert not os.get_inheritable(first)
    os.write(first, b"x")
    assert os.read(reading, 2) == b"x"
    os.close(first)
    os.close(second)
    await holder.drop("pipe.1")
    assert os.read(reading, 1) == b"", "nobody holds the other end any more"
    assert await holder.names() == set()
    os.close(reading)


async def test_requests_may_overlap(holder: Holder) -> None:
    await asyncio.gather(*(holder.spawn(ChildSpec(id=f"c{i}", argv=RUNS)) for i in range(20)))
    assert len({child.pid for child in await holder.list()}) == 20
    stopped = await asyncio.gather(*(holder.stop(f"c{i}", 5) for i in range(20)))
    assert [status.id for status in stopped] == [f"c{i}" for i in range(20)]


async def test_the_end_of_the_main_child_ends_everything(holder: Holder) -> None:
    events: list[ExitEvent] = []
    await holder.watch(events.append)
    await holder.spawn(ChildSpec(id="proxy", argv=RUNS))
    await holder.spawn(ChildSpec(id="qemu", argv=RUNS, main=True))
    await holder.signal("qemu", SIGKILL)
    await asyncio.wait_for(holder.wait_lost(), 10)
    assert [(event.id, event.signal) for event in events] == [("qemu", SIGKILL), ("proxy", SIGTERM)]
    with pytest.raises(UnreachableError):
        await holder.list()


async def test_shutdown_stops_the_main_child_first(rig: Rig) -> None:
    events: list[ExitEvent] = []
    await rig.holder.watch(events.append)
    await rig.holder.spawn(ChildSpec(id="proxy", argv=RUNS))
    await rig.stubborn(ChildSpec(id="qemu", argv=RUNS, main=True))
    await rig.holder.shutdown(grace=0.1)
    assert [(event.id, event.signal) for event in events] == [("qemu", SIGKILL), ("proxy", SIGTERM)]
    await rig.holder.shutdown(grace=0.1)


async def test_nothing_is_spawned_once_the_holder_is_ending(rig: Rig) -> None:
    await rig.stubborn(ChildSpec(id="a", argv=RUNS))
    ending = asyncio.ensure_future(rig.holder.shutdown(grace=0.3))
    await asyncio.sleep(0)
    with pytest.raises(ConflictError, match="the holder is ending"):
        await rig.holder.spawn(ChildSpec(id="b", argv=RUNS))
    await ending


async def test_the_loss_of_the_holder_ends_every_wait(holder: Holder) -> None:
    await holder.spawn(ChildSpec(id="a", argv=RUNS))
    waiting = asyncio.ensure_future(holder.wait("a", 10))
    await asyncio.sleep(0)
    await holder.close()
    await holder.close()
    with pytest.raises(UnreachableError):
        await waiting
    with pytest.raises(UnreachableError):
        await holder.list()
    await asyncio.wait_for(holder.wait_lost(), 1)
