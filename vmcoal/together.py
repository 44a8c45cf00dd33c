"""Several things at once, of which all or none are wanted."""

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
