"""Link samples: TCP_INFO of any size, boot ids, and how pings are taken."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmcoal.fabric import probe

pytestmark = pytest.mark.unit


def tcp_info(*, rtt: int, min_rtt: int, size: int = 280) -> bytes:
    info = bytearray(280)
    struct.pack_into("=I", info, 68, rtt)
    struct.pack_into("=I", info, 148, min_rtt)
    return bytes(info[:size])


@pytest.mark.parametrize(
    ("info", "seconds"),
    [
        (tcp_info(rtt=250, min_rtt=13), 13e-6),
        (tcp_info(rtt=250, min_rtt=0xFFFFFFFF), 250e-6),
        (tcp_info(rtt=250, min_rtt=0), 250e-6),
        (tcp_info(rtt=250, min_rtt=13, size=104), 250e-6),
        (tcp_info(rtt=250, min_rtt=13, size=151), 250e-6),
        (tcp_info(rtt=250, min_rtt=13, size=152), 13e-6),
        (tcp_info(rtt=0, min_rtt=0), None),
        (b"", None),
    ],
)
def test_tcp_info_of_old_and_new_kernels(info: bytes, seconds: float | None) -> None:
    assert probe.parse_tcp_info(info) == (None if seconds is None else pytest.approx(seconds))


@given(st.binary(max_size=300))
def test_tcp_info_of_any_kind(info: bytes) -> None:
    seconds = probe.parse_tcp_info(info)
    assert seconds is None or 0 < seconds < 4295


def test_the_kernel_tells_of_a_connection_over_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as one:
        other, _ = listener.accept()
        with other:
            one.send(b"x")
            other.recv(1)
            seconds = probe.kernel_rtt(one)
    assert seconds is not None
    assert 0 < seconds < 1


async def test_new_connections_are_timed_by_the_kernels() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address, port = listener.getsockname()
        seconds = await probe.connect_rtt(address, port, deadline=10)
    assert seconds is not None
    assert 0 < seconds < 1
    assert await probe.connect_rtt(address, port, deadline=10) is None


def test_a_socket_that_is_not_tcp() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert probe.kernel_rtt(one) is None


def test_boot_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert probe.same_boot(probe.boot_id(), probe.boot_id())
    assert not probe.same_boot(probe.boot_id(), "another")
    monkeypatch.setattr(probe, "_BOOT_ID", tmp_path / "none")
    assert probe.boot_id() == ""
    assert not probe.same_boot("", "")


@pytest.mark.parametrize(("count", "taken"), [(5, 5), (1, 1), (0, 1), (-3, 1), (10**9, 50)])
async def test_the_first_ping_only_warms_up(count: int, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MOST_PINGS", 50)
    made = 0

    async def ping() -> float:
        nonlocal made
        made += 1
        return float(made)

    async def kernel() -> float:
        return 0.5

    sample = await probe.sample_link(ping, kernel, count)
    assert sample.pings == tuple(float(number) for number in range(2, taken + 2))
    assert sample.kernel == 0.5
