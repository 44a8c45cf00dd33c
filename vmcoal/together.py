"""Several things at once, of which all or none are wanted, and things that are not broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def together(*works: Coroutine[Any, Any, T]) -> list[T]:
    """Run ``works`` at once and return their results in order.

    If one fails, or the caller is cancelled, the others are cancelled, and nothing of them runs any more when the error
    goes on. Unlike `asyncio.TaskGroup` it is the error itself.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end and return its result. A caller that is cancelled meanwhile is so after it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
