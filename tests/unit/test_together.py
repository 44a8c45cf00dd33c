"""All or none: what runs at once ends at once."""

from __future__ import annotations

import asyncio

import pytest

from vmcoal.errors import RefusedError
from vmcoal.together import together, unbroken

pytestmark = pytest.mark.unit


async def soon(value: int, log: list[str] | None = None) -> int:
    try:
        await asyncio.sleep(0)
    finally:
        if log is not None:
            log.append(f"{value} ended")
    return value


async def never(log: list[str]) -> int:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0)  # it needs a moment to clean up
        log.append("cleaned up")
        raise
    return 0


async def refuse() -> int:
    await asyncio.sleep(0)
    raise RefusedError("no")


async def test_results_come_in_order() -> None:
    assert await together(soon(1), soon(2), soon(3)) == [1, 2, 3]
    assert await together() == []


async def test_the_first_error_ends_the_others_and_goes_on_itself() -> None:
    log: list[str] = []
    with pytest.raises(RefusedError, match="no"):
        await together(never(log), refuse(), soon(1, log))
    assert log == ["1 ended", "cleaned up"]


async def test_cancelling_ends_all() -> None:
    log: list[str] = []
    task = asyncio.create_task(_both(log))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["cleaned up", "cleaned up"]


async def _both(log: list[str]) -> list[int]:
    return await together(never(log), never(log))


async def test_what_is_not_broken_off_ends_before_its_cancelled_caller() -> None:
    go, ended = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        ended.append("work")

    async def caller() -> None:
        try:
            await unbroken(work())
        finally:
            ended.append("caller")

    task = asyncio.create_task(caller())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    assert ended == []
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["work", "caller"]
    assert await unbroken(soon(3)) == 3
    with pytest.raises(RefusedError):
        await unbroken(refused())


async def refused() -> None:
    raise RefusedError("no")
