"""Memory paged by the pager, with a small program in QEMU's place."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from framework.native import helper

DEADLINE = 60.0


class PagedGuest:
    """`paged_guest.c` under the preload library, mapping ``file``."""

    def __init__(self, file: Path, environment: dict[str, str]) -> None:
        self._file = file
        self._environment = environment

    async def __aenter__(self) -> Self:
        self.process = await asyncio.create_subprocess_exec(
            str(helper("paged-guest")),
            str(self._file),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=os.environ | self._environment,
        )
        assert await self.answer() == "mapped"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin
        if kind is not None:
            self.process.kill()
        self.process.stdin.close()
        await asyncio.wait_for(self.process.wait(), DEADLINE)

    async def answer(self, deadline: float = DEADLINE) -> str:
        assert self.process.stdout
        return (await asyncio.wait_for(self.process.stdout.readline(), deadline)).decode().strip()

    def send(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n".encode())

    async def ask(self, line: str, deadline: float = DEADLINE) -> str:
        self.send(line)
        return await self.answer(deadline)
