"""Who listens at a socket is known before anything is said to it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmcoal.control.client import connect
from vmcoal.errors import PrerequisiteError
from vmcoal.holding.connection import Connection

pytestmark = [
    pytest.mark.unit,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="another user's socket takes root: run as root"),
]

NOBODY = 65534


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(params=[socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, socket.SocketKind]]:
    """A socket at which another user listens: the kernel keeps who called listen(2)."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, request.param) as listener:
        listener.bind(str(path))
        os.seteuid(NOBODY)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        yield path, request.param


async def test_another_users_socket_is_told_nothing(theirs: tuple[Path, socket.SocketKind]) -> None:
    path, kind = theirs
    before = open_fds()
    with pytest.raises(PrerequisiteError, match=f"user {NOBODY} listens at"):
        if kind == socket.SOCK_STREAM:
            connect(path, "the controller of VM web")
        else:
            Connection.open(path, lambda _: None, lambda _: None)
    assert open_fds() == before
