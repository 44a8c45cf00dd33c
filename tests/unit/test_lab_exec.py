"""How ``vmcoal lab exec`` reads its stdin."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Iterator

import pytest

from vmcoal.cli import lab_exec

pytestmark = pytest.mark.unit


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Give the writing end of stdin."""
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        yield writer


def reader() -> threading.Thread | None:
    return next((thread for thread in threading.enumerate() if thread.name == "stdin"), None)


async def test_stdin_comes_in_order_and_ends(stdin: int) -> None:
    queue = lab_exec._read_stdin()
    os.write(stdin, b"one")
    assert (await queue.get()).data == b"one"
    os.close(stdin)
    assert (await queue.get()).eof


def test_nobody_waits_for_what_a_command_did_not_read(stdin: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends while stdin has more: a thread that then failed would fail this test."""
    monkeypatch.setattr(lab_exec, "_CHUNK", 4096)

    async def command() -> None:
        queue = lab_exec._read_stdin()
        while not queue.full():
            await asyncio.sleep(0)

    for _ in range(8):
        os.write(stdin, b"x" * 4096)
    asyncio.run(command())
    os.close(stdin)
    if (thread := reader()) is not None:
        thread.join(5)
        assert not thread.is_alive()
