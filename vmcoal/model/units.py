"""Sizes, durations, hosts and ports as people write them."""

from __future__ import annotations

import re

from vmcoal.errors import UsageError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SIZE = re.compile(r"(\d{1,20})(?:\.(\d{1,3}))?\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SCALE = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": GIB * KIB}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*(ms|s|m|h|)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Return a size in bytes from text such as ``512M``, ``1.5GiB`` or ``4096``; units are powers of 1024.

    Raises `UsageError` for anything else, zero and negative sizes included.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a size", hint="write it as 512M, 2G or 1.5GiB")
    whole, fraction, unit = match.groups()
    scale = _SCALE[unit.lower()]
    size = int(whole) * scale
    if fraction:
        size += int(fraction) * scale // 10 ** len(fraction)
    if size <= 0:
        raise UsageError("a size must be larger than zero", hint="write it as 512M, 2G or 1.5GiB")
    if size >= 1 << 52:
        raise UsageError(f"{text!r} is larger than any machine", hint="write it as 512M, 2G or 1.5GiB")
    return size


def format_size(size: int) -> str:
    """Return a size in bytes as people read it: ``512 MiB``, ``1.5 GiB``, ``100 B``."""
    for name, scale in (("TiB", GIB * KIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size >= scale:
            text = f"{size / scale:.2f}".rstrip("0").rstrip(".")
            return f"{text} {name}"
    return f"{size} B"


def parse_duration(text: str) -> float:
    """Return a duration in seconds from text such as ``30``, ``30s``, ``1.5m`` or ``200ms``; raises `UsageError`."""
    match = _DURATION.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{text!r} is not a duration", hint="write it as 30s, 5m or 200ms")
    return float(match[1]) * _SECONDS[match[2].lower()]


def parse_port(text: str) -> int | None:
    """Return a TCP port, 0 for any, or ``None`` for text that is none."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 1 << 16
    return number if number < 1 << 16 else None


def is_host(text: str) -> bool:
    """Return whether ``text`` can be the name or address of a host, whether or not there is one."""
    try:
        return text.isprintable() and " " not in text and bool(text.encode("idna"))
    except UnicodeError:
        return False


def format_duration(seconds: float) -> str:
    """Return a duration as people read it: ``13 µs``, ``2.1 ms``, ``4.2 s``, ``3 m 20 s``."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} m {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m"
