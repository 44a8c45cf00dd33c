"""A GPU that is not there: any ids and BAR sizes, for QEMU's vfio-user-pci (QEMU 10.1 and newer).

    async with FakeGpu(vendor=0x10DE, device=0x2330, bars=(Bar(number=1, size=32 << 30, ...),)).served(path):
        await pci.plug(monitor, far, "vfio-user-pci", "gpu", socket_of(path), deadline=30)

The protocol is vfio-user (QEMU docs/interop/vfio-user.rst): messages over a Unix socket, each with a header of 16
bytes. The memory of the BARs is sparse, nothing is mapped, descriptors that come along are dropped by the kernel, and
there are no interrupts. Whatever arrives is bounded: a message that is too long or too short ends the connection, a
request that makes no sense is answered with an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from vmcoal.model.pci import Bar

HEADER = struct.Struct("<HHIII")
"""Number, command, size with the header, flags, error."""

VERSION, DMA_MAP, DMA_UNMAP, DEVICE_INFO, REGION_INFO, IRQ_INFO, SET_IRQS = 1, 2, 3, 4, 5, 7, 8
REGION_READ, REGION_WRITE, RESET, WRITE_MULTI = 9, 10, 13, 15
REPLY, NO_REPLY, ERROR = 1, 0x10, 0x20
CONFIG_REGION, REGIONS, IRQS = 7, 9, 5
CONFIG_SIZE = 4096
DATA_MAX = 1 << 20
MESSAGE_MAX = DATA_MAX + 4096
WRITES_MAX = 1024

_ACCESS = struct.Struct("<QII")  # offset, region, count
_READ_WRITE = 3
_PCI_RESETS = 3
_PAGE = 4096
_MSI, _PCIE = 0x40, 0x60


class ProtocolError(Exception):
    """What a peer said is no vfio-user."""


class RequestError(Exception):
    """A request that is answered with an error number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class FakeGpu:
    """One PCI function. ``pci_class`` 24 bits."""

    def __init__(
        self, *, vendor: int = 0x1234, device: int = 0xC0A1, pci_class: int = 0x030200, bars: Sequence[Bar] = ()
    ) -> None:
        self.bars = {bar.number: bar for bar in bars}
        self._config = bytearray(CONFIG_SIZE)
        self._pages: dict[tuple[int, int], bytearray] = {}
        self.asked: dict[int, int] = {}
        """How often each command came."""
        put = struct.pack_into
        put("<HHHHB", self._config, 0, vendor, device, 0, 0x10, 1)
        put("<I", self._config, 9, pci_class)
        self._config[0x0C:0x10] = bytes(4)
        put("<HH", self._config, 0x2C, vendor, device)
        self._config[0x34], self._config[0x3D] = _MSI, 1
        put("<BBHIHH", self._config, _MSI, 5, _PCIE, 0x80, 0, 0, 0)  # one vector, 64 bits
        put("<BBHIHHIHH", self._config, _PCIE, 0x10, 0, 2, 0x10008000, 0, 0, 0x11, 0, 0x11)  # an endpoint, version 2
        for bar in bars:
            kind = int(bar.io) | (4 if bar.wide else 0) | (8 if bar.prefetchable else 0)
            put("<I", self._config, 0x10 + 4 * bar.number, kind)

    def size(self, region: int) -> int:
        """Return the bytes of a region."""
        if region == CONFIG_REGION:
            return CONFIG_SIZE
        return self.bars[region].size if region in self.bars else 0

    def answer(self, command: int, body: bytes) -> bytes:
        """Return the answer's body to one request; raises `RequestError`."""
        self.asked[command] = self.asked.get(command, 0) + 1
        try:
            return self._answer(command, body)
        except struct.error:
            raise RequestError(errno.EINVAL) from None

    def _answer(self, command: int, body: bytes) -> bytes:
        match command:
            case 1:
                major, minor = struct.unpack_from("<HH", body)
                if major:
                    raise RequestError(errno.ENOTSUP)
                can = {"capabilities": {"max_msg_fds": 8, "max_data_xfer_size": DATA_MAX, "pgsizes": _PAGE}}
                return struct.pack("<HH", 0, minor) + json.dumps(can).encode() + b"\0"
            case 2:
                struct.unpack_from("<IIQQQ", body)
                return b""
            case 3:
                struct.unpack_from("<IIQQ", body)
                return body[:24]
            case 4:
                return struct.pack("<IIII", 16, _PCI_RESETS, REGIONS, IRQS)
            case 5:
                region = struct.unpack_from("<IIIIQQ", body)[2]
                flags = _READ_WRITE if self.size(region) else 0
                return struct.pack("<IIIIQQ", 32, flags, region, 0, self.size(region), region << 40)
            case 7:
                index = struct.unpack_from("<IIII", body)[2]
                return struct.pack("<IIII", 16, 9, index, int(index == 1))
            case 8:
                struct.unpack_from("<IIIII", body)
                return b""
            case 9:
                offset, region, count = self._access(body)
                return _ACCESS.pack(offset, region, count) + self.read(region, offset, count)
            case 10:
                offset, region, count = self._access(body)
                data = body[_ACCESS.size : _ACCESS.size + count]
                if len(data) != count:
                    raise RequestError(errno.EINVAL)
                self.write(region, offset, data)
                return _ACCESS.pack(offset, region, count)
            case 13:
                return b""
            case 15:
                return self._writes(body)
            case _:
                raise RequestError(errno.ENOTSUP)

    def _access(self, body: bytes) -> tuple[int, int, int]:
        offset, region, count = _ACCESS.unpack_from(body)
        if not 0 < count <= DATA_MAX or offset + count > self.size(region):
            raise RequestError(errno.EINVAL)
        return offset, region, count

    def _writes(self, body: bytes) -> bytes:
        """Several writes of up to eight bytes in one message."""
        (many,) = struct.unpack_from("<Q", body)
        if many > WRITES_MAX or 8 + 24 * many > len(body):
            raise RequestError(errno.EINVAL)
        for start in range(8, 8 + 24 * many, 24):
            offset, region, count = self._access(body[start : start + _ACCESS.size])
            if count > 8:
                raise RequestError(errno.EINVAL)
            self.write(region, offset, body[start + _ACCESS.size : start + _ACCESS.size + count])
        return struct.pack("<Q", many)

    def read(self, region: int, offset: int, count: int) -> bytes:
        """Return bytes of a region; what was never written is zero."""
        if region == CONFIG_REGION:
            return bytes(self._config[offset : offset + count])
        out = bytearray()
        while len(out) < count:
            page, at = divmod(offset + len(out), _PAGE)
            part = min(count - len(out), _PAGE - at)
            out += self._pages.get((region, page), bytes(_PAGE))[at : at + part]
        return bytes(out)

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write bytes of a region; the ids are no use to write."""
        if region == CONFIG_REGION:
            if offset >= 4:
                self._config[offset : offset + len(data)] = data
            return
        done = 0
        while done < len(data):
            page, at = divmod(offset + done, _PAGE)
            part = min(len(data) - done, _PAGE - at)
            self._pages.setdefault((region, page), bytearray(_PAGE))[at : at + part] = data[done : done + part]
            done += part

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection until its peer ends it or says what is no vfio-user."""
        try:
            while True:
                number, command, size, flags, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                if not HEADER.size <= size <= MESSAGE_MAX:
                    raise ProtocolError(f"a message of {size} bytes")
                body = await reader.readexactly(size - HEADER.size)
                if flags & REPLY:
                    raise ProtocolError("an answer that nobody asked for")
                error = 0
                try:
                    said = self.answer(command, body)
                except RequestError as refused:
                    said, error = b"", refused.number
                if not flags & NO_REPLY:
                    kind = REPLY | (ERROR if error else 0)
                    writer.write(HEADER.pack(number, command, HEADER.size + len(said), kind, error) + said)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ProtocolError):
            return
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    @asynccontextmanager
    async def served(self, path: Path) -> AsyncIterator[FakeGpu]:
        """Listen on ``path`` as long as the body runs."""
        connections: set[asyncio.Task[Any]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            connections.add(task)
            try:
                await self.serve(reader, writer)
            finally:
                connections.discard(task)

        server = await asyncio.start_unix_server(connected, path)
        try:
            yield self
        finally:
            server.close()
            for task in list(connections):
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)


def socket_of(path: Path) -> dict[str, Any]:
    """Return what QEMU's vfio-user-pci is told."""
    return {"socket": {"type": "unix", "path": str(path)}}
