"""The fake GPU speaks vfio-user, and nothing that a peer says hurts it."""

from __future__ import annotations

import asyncio
import errno
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.fake_gpu import (
    CONFIG_REGION,
    DATA_MAX,
    ERROR,
    HEADER,
    MESSAGE_MAX,
    REGION_INFO,
    REGION_READ,
    REGION_WRITE,
    REPLY,
    VERSION,
    WRITE_MULTI,
    FakeGpu,
    RequestError,
)
from vmcoal.model.pci import Bar

pytestmark = pytest.mark.unit

BARS = (
    Bar(number=0, size=16 << 20),
    Bar(number=1, size=32 << 30, prefetchable=True, wide=True),
    Bar(number=3, size=32 << 20, prefetchable=True, wide=True),
)


def gpu() -> FakeGpu:
    return FakeGpu(vendor=0x10DE, device=0x2330, bars=BARS)


def access(region: int, offset: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<QII", offset, region, count) + data


def read(device: FakeGpu, region: int, offset: int, count: int) -> bytes:
    return device.answer(REGION_READ, access(region, offset, count))[16:]


def test_the_function_that_a_machine_sees() -> None:
    device = gpu()
    config = read(device, CONFIG_REGION, 0, 64)
    assert struct.unpack_from("<HH", config) == (0x10DE, 0x2330)
    assert config[9:12] == bytes((0x00, 0x02, 0x03))
    assert [word & 0xF for word in struct.unpack_from("<6I", config, 0x10)] == [0, 12, 0, 12, 0, 0]
    assert [read(device, CONFIG_REGION, at, 1)[0] for at in (config[0x34], 0x60)] == [5, 0x10]
    sizes = [
        struct.unpack("<IIIIQQ", device.answer(REGION_INFO, struct.pack("<IIIIQQ", 32, 0, n, 0, 0, 0)))
        for n in range(9)
    ]
    assert [size for *_, size, _ in sizes] == [16 << 20, 32 << 30, 0, 32 << 20, 0, 0, 0, 4096, 0]


def test_memory_keeps_what_is_written() -> None:
    device = gpu()
    end = (32 << 30) - 8
    device.answer(REGION_WRITE, access(1, end, 8, b"the end!"))
    device.answer(WRITE_MULTI, struct.pack("<Q", 2) + access(0, 4094, 4, b"abcd\0\0\0\0") + access(0, 8, 1, b"x" * 8))
    assert read(device, 1, end, 8) == b"the end!"
    assert read(device, 0, 4092, 8) == b"\0\0abcd\0\0"
    assert read(device, 0, 8, 2) == b"x\0"
    device.answer(REGION_WRITE, access(CONFIG_REGION, 0, 4, b"\0\0\0\0"))
    assert read(device, CONFIG_REGION, 0, 2) == b"\xde\x10"


@pytest.mark.parametrize(
    ("command", "body"),
    [
        (REGION_READ, access(0, 16 << 20, 1)),
        (REGION_READ, access(0, 0, DATA_MAX + 1)),
        (REGION_READ, access(0, 0, 0)),
        (REGION_READ, access(2, 0, 4)),
        (REGION_READ, access(0, (1 << 64) - 1, 4)),
        (REGION_READ, b""),
        (REGION_WRITE, access(0, 0, 8, b"short")),
        (WRITE_MULTI, struct.pack("<Q", 1 << 60)),
        (WRITE_MULTI, struct.pack("<Q", 1) + access(0, 0, 9, bytes(8))),
        (VERSION, struct.pack("<HH", 1, 0)),
        (99, b""),
    ],
)
def test_what_makes_no_sense_is_refused(command: int, body: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        gpu().answer(command, body)
    assert refused.value.number in (errno.EINVAL, errno.ENOTSUP)


@given(st.integers(0, 20), st.binary(max_size=100))
def test_nothing_hurts_it(command: int, body: bytes) -> None:
    try:
        assert len(gpu().answer(command, body)) <= MESSAGE_MAX
    except RequestError as refused:
        assert refused.number


async def test_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "gpu"
    async with gpu().served(path):
        reader, writer = await asyncio.open_unix_connection(path)

        async def ask(command: int, body: bytes, flags: int = 0) -> tuple[int, int, bytes]:
            writer.write(HEADER.pack(7, command, HEADER.size + len(body), flags, 0) + body)
            number, same, size, kind, error = HEADER.unpack(await reader.readexactly(HEADER.size))
            assert (number, same) == (7, command)
            return kind, error, await reader.readexactly(size - HEADER.size)

        kind, error, said = await ask(VERSION, struct.pack("<HH", 0, 1) + b"{}\0")
        assert (kind, error, said[:4]) == (REPLY, 0, struct.pack("<HH", 0, 1))
        assert json.loads(said[4:-1])["capabilities"]["max_data_xfer_size"] == DATA_MAX
        assert await ask(REGION_READ, b"") == (REPLY | ERROR, errno.EINVAL, b"")
        assert (await ask(REGION_READ, access(CONFIG_REGION, 0, 2)))[2][16:] == b"\xde\x10"
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    "words",
    [
        HEADER.pack(1, VERSION, 0, 0, 0),
        HEADER.pack(1, VERSION, MESSAGE_MAX + 1, 0, 0),
        HEADER.pack(1, VERSION, HEADER.size, REPLY, 0),
    ],
)
async def test_what_is_no_vfio_user_ends_the_connection(words: bytes, tmp_path: Path) -> None:
    async with gpu().served(tmp_path / "gpu"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "gpu")
        writer.write(words)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
