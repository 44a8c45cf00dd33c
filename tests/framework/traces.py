"""Traces of page uses as they are kept: differences as variable-length numbers, then xz."""

from __future__ import annotations

import array
import lzma
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "dataplane" / "bench" / "traces"


def pack(pages: Iterable[int]) -> bytes:
    """Return page numbers as the zigzag of each one's difference to the one before, seven bits a byte."""
    out = bytearray()
    before = 0
    for page in pages:
        step = page - before
        before = page
        value = step * 2 if step >= 0 else -step * 2 - 1
        while value >= 128:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return bytes(out)


def unpack(data: bytes) -> array.array[int]:
    """Return what `pack` was given."""
    pages = array.array("I")
    value = shift = page = 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            page += value // 2 if value % 2 == 0 else -(value + 1) // 2
            pages.append(page)
            value = shift = 0
    return pages


def load(name: str) -> array.array[int]:
    """Return the committed trace ``name``."""
    return unpack(lzma.decompress((FOLDER / f"{name}.xz").read_bytes()))
